"""Models that are spread, offloaded, compiled or run their experts in several ways; see the table in docs/models.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import tiny_models
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from hand_forward import hand_forward
from test_checkpoint_formats import row

import moe_probe as mp
from moe_probe.recording import capture
from moe_probe.recording.routing import Routing

TOKENS = torch.randint(3, 512, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _record(model: Any) -> tuple[Routing, str]:
    with mp.record(model, probabilities=True) as recording, torch.inference_mode():
        model(TOKENS)
    return recording.routing(), recording.self_check


def _same(found: Routing, expected: Routing) -> None:
    """Compare every number of two recordings, bit by bit."""
    for router in expected.routers:
        for name in ("experts", "weights", "entropy", "margin", "probabilities"):
            one, other = getattr(found, name)(router.index), getattr(expected, name)(router.index)
            assert one is not None
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_layers_on_the_disk_are_recorded_as_those_in_memory(architecture: str, tmp_path: Path) -> None:
    model: Any = tiny_models.build(architecture)
    expected, check = _record(model)
    assert check == "passed"
    accelerate.disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    assert model.model.layers[0].mlp.experts.gate_up_proj.is_meta
    found, check = _record(model)
    assert check == row("accelerate, layers offloaded to the disk").self_check
    _same(found, expected)


def test_layers_that_move_between_memory_and_disk_by_a_map_are_recorded(tmp_path: Path) -> None:
    model: Any = tiny_models.build("mixtral")
    expected, _ = _record(model)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "cpu"}
    spread = type(model).from_pretrained(folder, device_map=places, offload_folder=tmp_path / "off").eval()
    assert [layer.mlp.experts.down_proj.is_meta for layer in spread.model.layers] == [False, True, False]
    found, check = _record(spread)
    assert check == row("accelerate, layers offloaded to memory").self_check
    _same(found, expected)


def test_layers_under_dispatch_hooks_are_recorded_and_checked() -> None:
    model: Any = tiny_models.build("qwen3_moe")
    expected, _ = _record(model)
    for index, layer in enumerate(model.model.layers):
        device = torch.device("cpu")  # what several GPUs have on each layer, with another device
        add_hook_to_module(layer, AlignDevicesHook(execution_device=device, io_same_device=index == 0))
    found, check = _record(model)
    assert check in (row("several devices").self_check, "passed earlier")
    _same(found, expected)


def test_routers_on_several_devices_cross_apart_from_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of several devices cannot be stacked: they must be told apart by where they are."""
    model: Any = tiny_models.build("mixtral")
    stacks: list[list[list[int]]] = []
    stackable = capture._stackable

    def keep(sites: Any, forward: Any) -> list[list[int]]:
        stacks.append(stackable(sites, forward))
        elsewhere = torch.empty_like(forward.ids[1], device="meta")
        forward.ids[1], before = elsewhere, forward.ids[1]
        stacks.append(stackable(sites, forward))
        forward.ids[1] = before
        return stacks[0]

    monkeypatch.setattr(capture, "_stackable", keep)
    _record(model)
    assert stacks[0] == [[0, 1, 2]]
    assert sorted(stacks[1]) == [[0, 2], [1]]


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_way_of_running_experts_is_recorded_exactly(implementation: str, dtype: torch.dtype) -> None:
    model: Any = tiny_models.build("qwen3_moe", dtype=dtype)
    model.set_experts_implementation(implementation)
    found, check = _record(model)
    assert check == row("experts `eager`").self_check
    for index, expected in enumerate(hand_forward(model, lambda: model(TOKENS), outputs=False)):
        clear = ~expected.tied
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(found.experts(index)[clear], expected.experts[clear])
        rounding = 1e-5 if dtype == torch.float32 else 2**-7
        np.testing.assert_allclose(found.weights(index), expected.weights, rtol=rounding)


def test_what_runs_experts_without_calling_them_is_refused() -> None:
    model: Any = tiny_models.build("gpt_oss")
    model.model.layers[1].mlp.forward = lambda states: (states, None)
    told = row("`use_kernels=True`").recorded.partition(": ")[2]
    with mp.record(model), torch.inference_mode(), pytest.raises(mp.RoutingError, match=rf"layer 1\): {told}"):
        model(TOKENS)


def test_experts_of_which_a_process_holds_a_part_are_refused() -> None:
    model: Any = tiny_models.build("mixtral")
    model.model.layers[0].mlp.experts._is_expert_parallel = True
    with pytest.raises(mp.UnsupportedModelError, match=row("expert parallelism").recorded.removeprefix("refused: ")):
        mp.record(model)
