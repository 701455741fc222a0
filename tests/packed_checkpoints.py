"""Tiny checkpoints packed by hand in others' formats, and what their numbers stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_models
import torch
from safetensors.torch import load_file, save_file

BLOCK = 32
_MXFP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def write_fp8(folder: Path, architecture: str) -> dict[str, torch.Tensor]:
    """Write float8 matrices with a scale for every 32 × 32 block; return the matrices that they stand for."""

    def pack(name: str, matrix: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        outputs, inputs = matrix.shape
        blocks = matrix.view(outputs // BLOCK, BLOCK, inputs // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3)) / 448  # the largest float8_e4m3fn
        packed = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        stands_for = (packed.float() * scale[:, None, :, None]).view(outputs, inputs)
        return {name: packed.view(outputs, inputs), f"{name}_scale_inv": scale}, stands_for

    routers = [f"model.layers.{layer}.mlp.gate" for layer in range(3)]
    told = {
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        "activation_scheme": "dynamic",
        "modules_to_not_convert": ["lm_head", *routers],
    }
    return _write(folder, architecture, told, pack)


def write_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Write GPT-OSS experts as 4-bit numbers with an exponent for every 32; return what they stand for."""

    def pack(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        matrices = tensor.transpose(1, 2)  # (experts, outputs, inputs)
        n_experts, outputs, inputs = matrices.shape
        blocks = matrices.reshape(n_experts, outputs, inputs // 32, 32)
        exponents = torch.floor(torch.log2(blocks.abs().amax(-1) / 6)) + 1
        scaled = blocks / 2 ** exponents[..., None]
        index = (scaled.abs()[..., None] - _MXFP4_VALUES).abs().argmin(-1)
        codes = index + 8 * (scaled < 0)
        values = torch.where(scaled < 0, -1.0, 1.0) * _MXFP4_VALUES[index] * 2 ** exponents[..., None]
        packed = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
        stands_for = values.reshape(n_experts, outputs, inputs).transpose(1, 2)
        return {f"{name}_blocks": packed, f"{name}_scales": (exponents + 127).to(torch.uint8)}, stands_for

    told = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return _write(folder, "gpt_oss", told, pack, last=("gate_up_proj", "down_proj"))


def mark(folder: Path, told: dict[str, Any]) -> None:
    """Write into a checkpoint's configuration how it is said to be quantised."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": told}))


def _write(
    folder: Path, architecture: str, told: dict[str, Any], pack: Any, last: tuple[str, ...] = ("weight",)
) -> dict[str, torch.Tensor]:
    """Write a random model whose tensors of these names are packed, but for routers, embedding and head."""
    tiny_models.save(architecture, folder, dtype=torch.float32)
    tensors, stand_for = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        left = any(part in name for part in (".gate.", ".router.", "embed_tokens", "lm_head", "norm"))
        if left or name.rpartition(".")[2] not in last or tensor.dim() < 2:
            tensors[name] = tensor
            continue
        packed, stand_for[name] = pack(name, tensor)
        tensors |= packed
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    mark(folder, told)
    return stand_for
