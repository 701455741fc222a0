from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hand_forward import Decided, hand_forward

import moe_probe as mp
from moe_probe.recording import capture
from moe_probe.recording.routing import Routing

IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _batch(rows: int, length: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tokens and a mask that pads the odd rows on the left and every fourth on the right."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 512, (rows, length), generator=generator)
    mask = torch.ones_like(tokens)
    for row in range(1, rows):
        hidden = int(torch.randint(1, length - 1, (1,), generator=generator))
        if row % 2:
            mask[row, :hidden] = 0
        elif row % 4 == 0:
            mask[row, length - hidden :] = 0
    return tokens, mask


def _assert_equal(routing: Routing, expected: list[Decided], mask: torch.Tensor, dtype: torch.dtype) -> None:
    """Compare every row with the hand-written forward: ids exactly, weights to a rounding of their type."""
    keep = mask.reshape(-1).bool().numpy()
    assert [router.layer for router in routing.routers] == [decided.layer for decided in expected]
    rounding = 2e-6 if dtype == torch.float32 else 2**-7
    for index, decided in enumerate(expected):
        clear = ~decided.tied[keep]
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(routing.experts(index)[clear], decided.experts[keep][clear])
        np.testing.assert_allclose(routing.weights(index), decided.weights[keep], rtol=rounding, atol=0)
        entropy, margin = routing.entropy(index), routing.margin(index)
        assert entropy is not None
        assert margin is not None
        np.testing.assert_allclose(entropy, decided.entropy[keep], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(margin, decided.margin[keep], rtol=1e-4, atol=2e-6)
        output, returned = decided.output[~decided.tied], decided.returned[~decided.tied].float()
        error = (output - returned).norm() / returned.norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2), "the oracle is not what the block computes"


def _record(model: Any, *args: Any, **kwargs: Any) -> Routing:
    with mp.record(model) as recording, torch.inference_mode():
        model(*args, **kwargs)
    assert recording.self_check in ("passed", "passed earlier")
    return recording.routing()


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_every_id_and_weight_is_that_of_the_hand_written_forward(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_models.build(architecture, dtype=dtype)
    for rows, length in ((1, 20), (16, 12)):
        tokens, mask = _batch(rows, length)
        expected = hand_forward(model, lambda t=tokens, m=mask: model(t, attention_mask=m, use_cache=False))
        _assert_equal(_record(model, tokens, attention_mask=mask, use_cache=False), expected, mask, dtype)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_quantised_models_are_recorded_as_exactly(architecture: str, quantization: str, tmp_path: Path) -> None:
    model = mp.load(tiny_models.save(architecture, tmp_path), quantization=quantization).model
    for rows, length in ((1, 20), (16, 8)):
        tokens, mask = _batch(rows, length)
        expected = hand_forward(model, lambda t=tokens, m=mask: model(t, attention_mask=m, use_cache=False))
        _assert_equal(_record(model, tokens, attention_mask=mask, use_cache=False), expected, mask, torch.float32)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_every_experts_implementation_gives_the_same_rows_and_checks_itself(
    architecture: str, implementation: str
) -> None:
    model = tiny_models.build(architecture)
    tokens, mask = _batch(3, 12)
    model.set_experts_implementation(implementation)
    expected = hand_forward(model, lambda: model(tokens, attention_mask=mask))
    with mp.record(model) as recording, torch.inference_mode():
        model(tokens, attention_mask=mask)
    assert recording.self_check == "passed"
    _assert_equal(recording.routing(), expected, mask, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16"))
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_recording_does_not_change_a_bit_of_the_output(architecture: str, dtype: torch.dtype) -> None:
    model = tiny_models.build(architecture, dtype=dtype)
    tokens, mask = _batch(4, 10)
    with torch.inference_mode():
        before = model(tokens, attention_mask=mask).logits
        with mp.record(model, self_check=True):
            during = model(tokens, attention_mask=mask).logits
        after = model(tokens, attention_mask=mask).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)


def test_gradients_are_those_without_recording() -> None:
    model = tiny_models.build("mixtral").train()
    tokens, _ = _batch(2, 6)
    gradients = []
    for recorded in (False, True):
        model.zero_grad()
        if recorded:
            with mp.record(model) as recording:
                model(tokens, labels=tokens, use_cache=False).loss.backward()
            assert recording.routing().n_tokens == 12
        else:
            model(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_a_call_of_the_decoder_is_recorded_like_one_of_the_whole_model() -> None:
    model = tiny_models.build("olmoe")
    tokens, mask = _batch(4, 8)
    whole = _record(model, tokens, attention_mask=mask)
    with mp.record(model) as recording, torch.inference_mode():
        model.model(tokens, mask, use_cache=False)  # the mask by position
    _assert_same(recording.routing(), whole)
    with mp.record(model.model) as recording, torch.inference_mode():
        model(inputs_embeds=model.get_input_embeddings()(tokens), attention_mask=mask)
    _assert_same(recording.routing(), whole)


def test_rows_go_by_forward_then_batch_row_then_position_without_padding() -> None:
    model = tiny_models.build("mixtral")
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]])
    with mp.record(model) as recording, torch.inference_mode():
        model(torch.full((3, 4), 7), attention_mask=mask)
        model(torch.full((1, 2), 7))
    routing = recording.routing()
    assert routing.sequence(0).tolist() == [0, 0, 1, 1, 1, 3, 3]
    assert routing.position(2).tolist() == [0, 1, 0, 1, 2, 0, 1]
    assert routing.n_tokens == 7
    assert (routing.sequence(0).dtype, routing.position(0).dtype) == (np.int32, np.int32)
    assert (routing.experts(0).dtype, routing.weights(0).dtype) == (np.int32, np.float32)


def test_positions_are_the_models_where_it_is_given_them() -> None:
    model = tiny_models.build("mixtral")
    positions = torch.tensor([[5, 6, 7], [9, 10, 11]])
    with mp.record(model) as recording, torch.inference_mode():
        model(torch.full((2, 3), 7), attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]), position_ids=positions)
        model(torch.full((2, 3), 7), position_ids=positions[:1])
    assert recording.routing().position(0).tolist() == [6, 7, 9, 10, 11, 5, 6, 7, 5, 6, 7]


def _static(model: Any) -> Any:
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=32)


def _none(model: Any) -> None:
    return None


@pytest.mark.parametrize("make_cache", [_none, _static], ids=("its own cache", "a static cache"))
def test_a_cache_continues_sequences_and_positions(make_cache: Callable[[Any], Any]) -> None:
    model = tiny_models.build("mixtral")
    tokens, mask = _batch(3, 9)
    whole = _record(model, tokens, attention_mask=mask)
    with mp.record(model) as recording, torch.inference_mode():
        cache = model(tokens[:, :6], attention_mask=mask[:, :6], cache=make_cache(model), use_cache=True).cache
        for end in range(7, 10):
            cache = model(tokens[:, end - 1 : end], attention_mask=mask[:, :end], cache=cache).cache
        model(tokens[:1], use_cache=True)
    routing = recording.routing()
    order = np.lexsort((routing.position(0), routing.sequence(0)))[: whole.n_tokens]
    assert routing.sequence(0)[order].tolist() == whole.sequence(0).tolist()
    assert routing.position(0)[order].tolist() == whole.position(0).tolist()
    assert routing.sequence(0)[-9:].tolist() == [3] * 9  # a new cache is a new sequence
    for index in range(3):
        np.testing.assert_array_equal(routing.experts(index)[order], whole.experts(index))
        np.testing.assert_allclose(routing.weights(index)[order], whole.weights(index), rtol=2e-4)


def test_a_cache_that_was_filled_before_gives_new_sequences_at_later_positions() -> None:
    model = tiny_models.build("mixtral")
    with torch.inference_mode():
        cache = model(torch.full((2, 5), 7), use_cache=True).cache
        with mp.record(model) as recording:
            model(torch.full((2, 2), 8), cache=cache)
    assert recording.routing().sequence(0).tolist() == [0, 0, 1, 1]
    assert recording.routing().position(0).tolist() == [5, 6, 5, 6]


def test_a_cache_that_was_emptied_begins_new_sequences() -> None:
    model = tiny_models.build("mixtral")
    for make_cache in (_none, _static):
        with mp.record(model) as recording, torch.inference_mode():
            cache = model(torch.full((1, 3), 7), cache=make_cache(model), use_cache=True).cache
            cache.reset()
            model(torch.full((1, 2), 7), cache=cache)
        assert recording.routing().sequence(0).tolist() == [0, 0, 0, 1, 1]
        assert recording.routing().position(0).tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 50}], ids=("greedy", "sampled"))
def test_generation_is_recorded_as_one_forward_over_its_result(options: dict[str, Any]) -> None:
    model = tiny_models.build("qwen3_moe")
    tokens, mask = _batch(2, 6)
    mask[0] = 1
    torch.manual_seed(0)
    with mp.record(model) as recording:
        result = model.generate(tokens, attention_mask=mask, max_new_tokens=4, eos_token_id=None, **options)
    routing = recording.routing()
    full_mask = torch.cat([mask, torch.ones(2, 4, dtype=mask.dtype)], dim=1)
    whole = _record(model, result[:, :-1], attention_mask=full_mask[:, :-1])
    order = np.lexsort((routing.position(0), routing.sequence(0)))
    assert routing.position(0)[order].tolist() == whole.position(0).tolist()
    for index in range(3):
        np.testing.assert_array_equal(routing.experts(index)[order], whole.experts(index))


def test_take_returns_and_forgets_while_sequence_numbers_go_on() -> None:
    model = tiny_models.build("granitemoe")
    tokens, _ = _batch(2, 5)
    with mp.record(model) as recording, torch.inference_mode():
        model(tokens)
        first = recording.take()
        model(tokens)
        model(tokens[:, :1])
        second = recording.take()
    assert first.sequence(0).tolist() == [0] * 5 + [1] * 5
    assert second.sequence(0).tolist() == [2] * 5 + [3] * 5 + [4, 5]
    np.testing.assert_array_equal(second.experts(1)[:10], first.experts(1))
    with pytest.raises(mp.RoutingError, match="no forward was recorded"):
        recording.take()


class _LateCopies:
    """Stands in for a CUDA device: what is sent holds rubbish until its event was waited for."""

    def __init__(self) -> None:
        self.waited: list[int] = []

    def send(self, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        host = {name: torch.full_like(tensor, 1) for name, tensor in tensors.items()}
        number = len(self.waited)
        self.waited.append(0)

        class Event:
            def synchronize(event) -> None:
                self.waited[number] += 1
                for name, tensor in tensors.items():
                    host[name].copy_(tensor)

        return host, [Event()]


def test_copies_that_arrive_late_are_waited_for_one_forward_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("deepseek_v3")
    tokens, mask = _batch(4, 8)
    with mp.record(model) as recording, torch.inference_mode():
        for row in range(4):
            model(tokens[row : row + 1], attention_mask=mask[row : row + 1])
    expected = recording.routing()
    device = _LateCopies()
    monkeypatch.setattr(capture, "_send", device.send)
    monkeypatch.setattr(capture.Forward, "on_cuda", True)
    monkeypatch.setattr(capture.Forward, "rows_in_memory", False)
    with mp.record(model, self_check=True) as recording, torch.inference_mode():
        for row, waited in enumerate(([1], [1, 0], [1, 1, 0], [1, 1, 1, 0])):
            model(tokens[row : row + 1], attention_mask=mask[row : row + 1])
            assert device.waited == waited  # the first at once, for the self-check
        _assert_same(recording.routing(), expected)
    assert recording.self_check == "passed"


def test_without_entropy_only_ids_and_weights_are_kept() -> None:
    model = tiny_models.build("mixtral")
    tokens, mask = _batch(2, 5)
    with mp.record(model, entropy=False) as recording, torch.inference_mode():
        model(tokens, attention_mask=mask)
    routing = recording.routing()
    assert routing.entropy(0) is None
    assert routing.margin(0) is None
    np.testing.assert_array_equal(routing.experts(0), _record(model, tokens, attention_mask=mask).experts(0))


def test_a_forward_of_padding_alone_has_no_rows() -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model) as recording, torch.inference_mode():
        model(torch.full((2, 3), 7), attention_mask=torch.zeros(2, 3, dtype=torch.long))
        assert recording.self_check == "not run: no forward yet"
        model(torch.full((1, 3), 7))
    assert recording.routing().sequence(0).tolist() == [2, 2, 2]


def test_a_routing_becomes_a_frame_with_the_columns_of_a_run() -> None:
    model = tiny_models.build("mixtral")
    tokens, _ = _batch(2, 5)
    routing = _record(model, tokens)
    frame = routing.to_polars()
    assert frame.columns[:6] == ["sequence", "position", "expert_0_0", "expert_0_1", "weight_0_0", "weight_0_1"]
    assert frame.columns[-2:] == ["entropy_2", "margin_2"]
    assert frame["expert_1_1"].to_list() == routing.experts(1)[:, 1].tolist()
    assert frame["weight_1_0"].to_list() == routing.weights(1)[:, 0].tolist()


def _assert_same(routing: Routing, other: Routing) -> None:
    np.testing.assert_array_equal(routing.sequence(0), other.sequence(0))
    np.testing.assert_array_equal(routing.position(0), other.position(0))
    for index in range(len(routing.routers)):
        np.testing.assert_array_equal(routing.experts(index), other.experts(index))
        np.testing.assert_array_equal(routing.weights(index), other.weights(index))
