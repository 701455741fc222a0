from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny_models
import torch

import moe_probe as mp
from moe_probe.recording import capture
from moe_probe_kernels import Packed, pack

TOKENS = torch.randint(3, 512, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _record(model: Any, *, self_check: bool | None = None) -> str:
    with mp.record(model, self_check=self_check) as recording, torch.inference_mode():
        model(TOKENS)
    return recording.self_check


def _wrong_id(packed: Packed) -> Packed:
    ids = packed.ids.clone()
    ids[1] = (ids[1] + 1) % 8  # layer 1 says it used the next expert
    return replace(packed, ids=ids)


def _swapped_ids(packed: Packed) -> Packed:
    return replace(packed, ids=packed.ids.flip(1))


def _wrong_weights(packed: Packed) -> Packed:
    return replace(packed, weights=packed.weights * 1.25)


def _permuted_rows(packed: Packed) -> Packed:
    return replace(packed, ids=packed.ids.roll(1, dims=2), weights=packed.weights.roll(1, dims=2))


def _swapped_layers(packed: Packed) -> Packed:
    return replace(packed, ids=packed.ids.flip(0), weights=packed.weights.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("float32", "bfloat16"))
@pytest.mark.parametrize("fault", [_wrong_id, _swapped_ids, _wrong_weights, _permuted_rows, _swapped_layers])
def test_a_recording_that_is_wrong_is_caught(
    fault: Callable[[Packed], Packed], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.build("mixtral", dtype=dtype)
    monkeypatch.setattr(capture, "pack", lambda *args, **kwargs: fault(pack(*args, **kwargs)))
    with mp.record(model, entropy=False) as recording, torch.inference_mode():
        with pytest.raises(mp.RoutingError, match=r"layer [01]\): self-check failed: for \d+ of 16 tokens"):
            model(TOKENS)
        assert recording.self_check == "failed"
        with pytest.raises(mp.RoutingError, match="no forward was recorded"):
            recording.routing()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_wrong_recording_of_quantised_experts_is_caught(
    quantization: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mp.load(tiny_models.save("gpt_oss", tmp_path), quantization=quantization).model
    assert _record(model) == "passed"
    monkeypatch.setattr(capture, "pack", lambda *args, **kwargs: _wrong_id(pack(*args, **kwargs)))
    with pytest.raises(mp.RoutingError, match="self-check failed"):
        _record(model, self_check=True)


def test_it_runs_once_for_a_model_and_a_way_of_running_experts() -> None:
    model = tiny_models.build("mixtral")
    assert _record(model) == "passed"
    assert _record(model) == "passed earlier"
    assert _record(model.model.to(torch.float32)) == "passed earlier"  # its decoder is the same stream
    model.set_experts_implementation("eager")
    assert _record(model) == "passed"
    assert _record(model, self_check=True) == "passed"
    assert _record(tiny_models.build("mixtral")) == "passed"


def test_it_can_be_switched_off_and_says_so() -> None:
    model = tiny_models.build("mixtral")
    assert _record(model, self_check=False) == "not run: it was switched off"
    assert mp.record(model).self_check == "not run: no forward yet"


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_offloaded_weights_are_recorded_and_the_check_says_why_it_did_not_run(offload_buffers: bool) -> None:
    model = tiny_models.build("deepseek_v3")
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    expected = recording.routing()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), offload_buffers=offload_buffers)
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    assert recording.self_check == "not run: weights are offloaded"
    assert (recording.routing().experts(0) == expected.experts(0)).all()
    # A correction bias that is offloaded too is not there to make selection scores of.
    assert (recording.routing().margin(0) is None) == offload_buffers
    with pytest.raises(mp.RoutingError, match="self_check=True cannot be done: weights are offloaded"):
        _record(model, self_check=True)


class _OpaqueExperts(torch.nn.Module):
    """Experts that the rule can read and nobody can apply one by one."""

    def __init__(self, experts: torch.nn.Module) -> None:
        super().__init__()
        self.num_experts = experts.num_experts
        self.inside = torch.nn.ModuleList([experts])

    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.inside[0](hidden, ids, weights)
        return output


def test_experts_of_an_unknown_form_are_recorded_without_a_check() -> None:
    model = tiny_models.build("mixtral")
    model.model.layers[1].mlp.experts = _OpaqueExperts(model.model.layers[1].mlp.experts)
    reason = "not run: _OpaqueExperts does not hold its weights as transformers' fused experts do"
    assert _record(model) == reason


def test_it_follows_autocast() -> None:
    model = tiny_models.build("olmoe")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert _record(model) == "passed"
