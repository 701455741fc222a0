"""What quantised experts must compute, by hand in float64: token by token, slot by slot, from the full weights."""

from __future__ import annotations

import bitsandbytes as bnb
import torch
from torch import Tensor
from torch.nn import functional


def dequantised(weight: Tensor, quantization: str) -> Tensor:
    """What bitsandbytes itself makes of one matrix (outputs, inputs)."""
    if quantization == "4bit":
        codes, state = bnb.functional.quantize_4bit(weight, compress_statistics=True, quant_type="nf4", blocksize=64)
        return bnb.functional.dequantize_4bit(codes, state).float()
    codes, absmax, _ = bnb.functional.int8_vectorwise_quant(weight.half())
    return bnb.functional.int8_vectorwise_dequant(codes, absmax)


def gate(architecture: str, up: Tensor) -> Tensor:
    if architecture == "gpt_oss":
        first, second = up[0::2].clamp(max=7.0), up[1::2].clamp(-7.0, 7.0)
        return (second + 1) * first * torch.sigmoid(1.702 * first)
    first, second = up.chunk(2)
    return functional.silu(first) * second


def oracle(
    architecture: str, full: torch.nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor, quantization: str
) -> Tensor:
    """Return the experts' output (tokens, hidden), float64. An index beyond the last expert adds nothing."""
    turned = architecture == "gpt_oss"
    matrices = {
        (name, expert): dequantised((weight.T if turned else weight).float().contiguous(), quantization).double()
        for name in ("gate_up_proj", "down_proj")
        for expert, weight in enumerate(getattr(full, name).detach())
    }
    result = torch.zeros(hidden.shape, dtype=torch.float64)
    for token, row in enumerate(hidden.double()):
        for slot, expert in enumerate(ids[token].tolist()):
            if expert >= full.num_experts:
                continue
            up = matrices["gate_up_proj", expert] @ row
            up = up + full.gate_up_proj_bias[expert].detach().double() if turned else up
            down = matrices["down_proj", expert] @ gate(architecture, up)
            down = down + full.down_proj_bias[expert].detach().double() if turned else down
            result[token] += weights[token, slot].double() * down
    return result
