"""What was recorded may be sorted and checked later, by another thread: nothing else changes by that."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hand_forward import hand_forward

import moe_probe as mp
from moe_probe.errors import RoutingError
from moe_probe.recording.routing import Routing

ARCHITECTURES = ("mixtral", "deepseek_v3")


def _batches() -> list[dict[str, torch.Tensor]]:
    """Return three batches: padded on the right, padded all over, and not at all."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for rows, length, hidden in ((4, 9, "right"), (40, 7, "all over"), (2, 11, "nothing")):
        ids = torch.randint(3, 512, (rows, length), generator=generator)
        mask = torch.ones_like(ids)
        if hidden == "right":
            for row in range(1, rows):
                mask[row, length - row :] = 0
        elif hidden == "all over":
            mask[:, ::2] = 0
            mask[:, 0] = 1
        batches.append({"input_ids": ids, "attention_mask": mask, "use_cache": False})
    return batches


def _later(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[Routing]:
    """Record each batch and have it sorted by another thread when the next one has begun."""
    waiting: list[Callable[[], Routing]] = []
    with mp.record(model) as recording, ThreadPoolExecutor(1) as thread, torch.inference_mode():
        futures = []
        for batch in batches:
            model(**batch)
            futures += [thread.submit(one) for one in waiting]
            waiting = [recording.take_later()]
        futures += [thread.submit(one) for one in waiting]
        return [future.result() for future in futures]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_taken_later_is_what_was_executed(architecture: str) -> None:
    model = tiny_models.build(architecture)
    batches = _batches()
    found = _later(model, batches)
    first = 0
    for batch, routing in zip(batches, found, strict=True):
        expected = hand_forward(model, lambda batch=batch: model(**batch))
        keep = batch["attention_mask"].reshape(-1).bool().numpy()
        assert routing.n_tokens == keep.sum()
        rows, length = batch["input_ids"].shape
        numbers = np.repeat(np.arange(first, first + rows), length)[keep]
        np.testing.assert_array_equal(routing.sequences, numbers)
        first += rows
        for index, decided in enumerate(expected):
            clear = ~decided.tied[keep]
            assert clear.mean() > 0.9
            np.testing.assert_array_equal(routing.experts(index)[clear], decided.experts[keep][clear])
            np.testing.assert_allclose(routing.weights(index), decided.weights[keep], rtol=2e-6)
            np.testing.assert_allclose(routing.entropy(index), decided.entropy[keep], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(routing.margin(index), decided.margin[keep], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_to_take_later_or_at_once_is_the_same_to_the_last_bit(architecture: str) -> None:
    model = tiny_models.build(architecture)
    batches = _batches()
    found = _later(model, batches)
    with mp.record(model) as recording, torch.inference_mode():
        for batch, later in zip(batches, found, strict=True):
            model(**batch)
            at_once = recording.take()
            np.testing.assert_array_equal(later.sequences, at_once.sequences)
            np.testing.assert_array_equal(later.positions, at_once.positions)
            for one, other in zip(later.decisions, at_once.decisions, strict=True):
                for name in ("experts", "weights", "entropy", "margin"):
                    np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_what_is_wrong_with_a_forward_is_raised_by_the_call_that_takes_it() -> None:
    model = tiny_models.build("mixtral")
    batch = _batches()[2]
    with mp.record(model) as recording, torch.inference_mode():
        model(**batch)
        recording.take_later()()
        handle = model.model.layers[1].mlp.gate.register_forward_hook(_with_nan)
        model(**batch)
        handle.remove()
        spoilt = recording.take_later()
        model(**batch)
        whole = recording.take_later()
        with pytest.raises(RoutingError, match=r"layers\.1\.mlp .*1 of 22 tokens have NaN"):
            spoilt()
        assert whole().n_tokens == 22


def _with_nan(gate: torch.nn.Module, args: object, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    logits, weights, ids = output
    weights = weights.clone()
    weights[5] = torch.nan
    return logits, weights, ids


def test_a_router_that_is_silent_is_found_out_at_once_all_the_same() -> None:
    model = tiny_models.build("mixtral")
    batch = _batches()[2]
    with mp.record(model) as recording, torch.inference_mode():
        model(**batch)
        recording.take_later()()
        model.model.layers[0].mlp.forward = lambda hidden: hidden  # goes around its experts
        with pytest.raises(RoutingError, match="yielded no rows in a forward of 22"):
            model(**batch)


def test_where_nothing_was_recorded_there_is_nothing_to_take_later() -> None:
    with mp.record(tiny_models.build("mixtral")) as recording, pytest.raises(RoutingError, match="no forward was"):
        recording.take_later()()
