"""Checkpoints of every format are recorded exactly or refused; the table of docs/models.md says which."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import packed_checkpoints
import pytest
import tiny_models
import torch
from hand_forward import hand_forward
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.finegrained_fp8 import FP8Experts
from transformers.integrations.mxfp4 import Mxfp4GptOssExperts
from transformers.utils import logging

import moe_probe as mp
from moe_probe.models import fit
from moe_probe.recording.formats import DEVICES, FORMATS, UNKNOWN_FP8, Row, write_tables

TOKENS = torch.randint(3, 512, (2, 9), generator=torch.Generator().manual_seed(0))
PAGE = Path(__file__).parent.parent / "docs/models.md"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def row(begins: str) -> Row:
    """Return the row of a format in the table."""
    found = [one for one in (*FORMATS, *DEVICES) if one.name.startswith(begins)]
    assert len(found) == 1, begins
    return found[0]


def check_exact(model: Any, begins: str) -> None:
    """Compare what is recorded of a model with the hand-written forward over the weights that it holds."""
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    told = row(begins)
    assert told.recorded.startswith("exact")
    assert recording.self_check == told.self_check
    routing = recording.routing()
    precise = model.dtype == torch.float32
    for index, expected in enumerate(hand_forward(model, lambda: model(TOKENS))):
        clear = ~expected.tied
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(routing.experts(index)[clear], expected.experts[clear])
        np.testing.assert_allclose(routing.weights(index), expected.weights, rtol=1e-5 if precise else 2**-7)
        output, returned = expected.output[clear], expected.returned[clear].float()
        assert (output - returned).norm() <= (1e-5 if precise else 3e-2) * returned.norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_full_and_half_precision(dtype: str, tmp_path: Path) -> None:
    folder = tiny_models.save("qwen3_moe", tmp_path)
    check_exact(mp.load(folder, dtype=dtype, device_map="cpu").model, "float32, bfloat16")


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_our_own_8_and_4_bits(quantization: str, tmp_path: Path) -> None:
    folder = tiny_models.save("qwen3_moe", tmp_path)
    lm = mp.load(folder, quantization=quantization, device_map="cpu")
    check_exact(lm.model, f'`moe_probe.load(quantization="{quantization}")`')


@pytest.mark.parametrize("bits", [8, 4])
def test_what_transformers_makes_of_8_and_4_bits(bits: int, tmp_path: Path) -> None:
    folder = tiny_models.save("mixtral", tmp_path, dtype=torch.float32)
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    assert model.model.layers[0].mlp.experts.gate_up_proj.dtype == torch.float32
    check_exact(model, "bitsandbytes as transformers has it")


def test_fp8_is_dequantised_where_there_is_no_gpu(tmp_path: Path) -> None:
    stand_for = packed_checkpoints.write_fp8(tmp_path, "qwen3_moe")
    model: Any = mp.load(tmp_path, device_map="cpu").model
    for layer, expert in ((0, 0), (2, 15)):
        experts = model.model.layers[layer].mlp.experts
        names = [f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight" for part in ("gate", "up", "down")]
        assert torch.equal(experts.gate_up_proj[expert], torch.cat([stand_for[name] for name in names[:2]]))
        assert torch.equal(experts.down_proj[expert], stand_for[names[2]])
    check_exact(model, "FP8 (fine-grained), no GPU")


def test_fp8_that_does_not_fit_when_dequantised_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed_checkpoints.write_fp8(tmp_path, "qwen3_moe")
    packed = (tmp_path / "model.safetensors").stat().st_size
    monkeypatch.setattr(fit, "accelerators", list)
    monkeypatch.setattr(fit, "free_bytes", lambda device: 2 * packed)
    with pytest.raises(mp.ModelTooLargeError, match="in 32 bits"):
        mp.load(tmp_path)


class _Fp8WithoutKernels(FP8Experts):
    """FP8 experts whose matrix products are made in float32 of what their codes stand for."""

    def linear(self, input: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, **_: object) -> torch.Tensor:
        blocks = weight.float().view(scale.shape[0], 32, scale.shape[1], 32) * scale[:, None, :, None]
        return functional.linear(input, blocks.view(weight.shape))


_Fp8WithoutKernels.__name__ = "FP8Experts"


def _with_fp8_experts() -> tuple[Any, Any]:
    """Return a Qwen3-MoE whose experts are held in FP8, and one that holds what they stand for."""
    full, model = (tiny_models.build("qwen3_moe") for _ in range(2))
    for layer, block in enumerate(one.mlp for one in model.model.layers):
        experts = _Fp8WithoutKernels(model.config, block_size=(32, 32))
        for name in ("gate_up_proj", "down_proj"):
            matrices = getattr(block.experts, name).data
            n_experts, outputs, inputs = matrices.shape
            blocks = matrices.view(n_experts, outputs // 32, 32, inputs // 32, 32)
            scale = blocks.abs().amax((2, 4)) / 448
            codes = (blocks / scale[:, :, None, :, None]).to(torch.float8_e4m3fn)
            getattr(experts, name).data = codes.view(matrices.shape)
            getattr(experts, f"{name}_scale_inv").data = scale
            stands_for = (codes.float() * scale[:, :, None, :, None]).view(matrices.shape)
            getattr(full.model.layers[layer].mlp.experts, name).data = stands_for
        block.experts = experts
    return model, full


def test_fp8_experts_are_called_as_others_are() -> None:
    model, full = _with_fp8_experts()
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    assert recording.self_check == UNKNOWN_FP8 == row("FP8 (fine-grained), GPU").self_check
    routing = recording.routing()
    for index, expected in enumerate(hand_forward(full, lambda: full(TOKENS))):
        np.testing.assert_array_equal(routing.experts(index), expected.experts)
        np.testing.assert_allclose(routing.weights(index), expected.weights, rtol=1e-4)
    with pytest.raises(mp.RoutingError, match="self_check=True cannot be done: FP8Experts"):  # noqa: SIM117
        with mp.record(model, self_check=True):
            model(TOKENS)


def test_an_fp8_router_is_refused() -> None:
    model: Any = tiny_models.build("qwen3_moe")
    gate = model.model.layers[1].mlp.gate
    gate.weight = nn.Parameter(gate.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(mp.UnsupportedModelError, match=r"gate\.weight: the router is quantised \(float8_e4m3fn\)"):
        mp.record(model)


def test_mxfp4_is_dequantised_and_its_kernels_are_refused(tmp_path: Path) -> None:
    stand_for = packed_checkpoints.write_mxfp4(tmp_path)
    model: Any = mp.load(tmp_path, device_map="cpu").model
    for name, values in stand_for.items():
        assert torch.equal(model.get_parameter(name).data, values)
    check_exact(model, "MXFP4 (GPT-OSS), `moe_probe.load`")
    model.model.layers[0].mlp.experts = Mxfp4GptOssExperts(model.config)
    reason = row("MXFP4 (GPT-OSS), kernels").recorded.removeprefix("refused: ")
    with pytest.raises(mp.UnsupportedModelError, match=reason):
        mp.record(model)


@pytest.mark.parametrize(
    ("begins", "told", "package"),
    [
        ("GPTQ, `moe", {"quant_method": "gptq", "bits": 4, "group_size": 32}, "optimum"),
        ("AWQ, `moe", {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, "gptqmodel"),
        ("compressed", {"quant_method": "compressed-tensors", "config_groups": {}}, "compressed-tensors"),
    ],
)
def test_what_needs_a_package_says_which(begins: str, told: dict[str, Any], package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed here, so that what is said without it cannot be seen")
    folder = tiny_models.save("qwen3_moe", tmp_path)
    packed_checkpoints.mark(folder, told)
    assert f"needs {package}" in row(begins).recorded
    with pytest.raises(mp.UnsupportedModelError, match=rf"is quantised already \({told['quant_method']}\).*{package}"):
        mp.load(folder, device_map="cpu")


def test_packed_experts_that_are_not_read_are_refused_when_loading(tmp_path: Path) -> None:
    stand_for = packed_checkpoints.write_fp8(tmp_path, "qwen3_moe")
    assert stand_for
    tensors = packed_checkpoints.load_file(tmp_path / "model.safetensors")
    packed = {
        name.replace(".weight", ".qweight") if ".experts." in name else name: one for name, one in tensors.items()
    }
    packed_checkpoints.save_file(packed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = row("GPTQ, `moe").recorded.partition("with them: ")[2]
    with pytest.raises(
        mp.UnsupportedModelError, match=rf"{message} \(fp8\) that .* would be random; give the original"
    ):
        mp.load(tmp_path, device_map="cpu")


@pytest.mark.parametrize("method", ["gptq", "awq", "auto-round"])
def test_experts_that_another_loader_left_random_are_refused_when_recording(method: str) -> None:
    model: Any = tiny_models.build("qwen3_moe")
    model.config.quantization_config = {"quant_method": method, "bits": 4, "modules_to_not_convert": ["lm_head"]}
    reason = row("GPTQ or AWQ, loaded by transformers itself").recorded.removeprefix("refused: ")
    for part in (model, model.model):
        with pytest.raises(
            mp.UnsupportedModelError, match=rf"layer 0\): {reason} \({method}\), but its experts are in"
        ):
            mp.record(part)
    model.config.quantization_config["modules_to_not_convert"] = ["mlp.experts"]  # left out on purpose
    mp.record(model)
    model.config.quantization_config = {"quant_method": "fp8"}  # its experts are read, and may be dequantised
    mp.record(model)


def test_the_tables_are_on_the_page() -> None:
    assert "\n".join(write_tables()) in PAGE.read_text()
