"""The self-check: do the recorded experts and weights give what the experts module returned?

For a few tokens each recorded expert is applied on its own, from the module's own weights, and the outputs are added
up with the recorded weights. It uses neither the model's router nor the model's way of running experts. It does not
know how decisions were recorded, and cannot check a router whose experts it cannot apply; it says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from moe_probe.errors import RoutingError
from moe_probe.recording.routers import Site

MAX_ROWS = 16
"""Tokens a router that are replayed."""

# Against the sum of the experts' own magnitudes; a few roundings of the type, TF32 for float32 on a GPU.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


class Probe(NamedTuple):
    """What one router's experts received and returned for the tokens to replay, on the module's device."""

    hidden: torch.Tensor  # (tokens, hidden)
    output: torch.Tensor  # (tokens, hidden)


def obstacle(site: Site) -> str | None:
    """Return why a router cannot be replayed, or None if it can."""
    experts: Any = site.experts
    if any(tensor.is_meta for tensor in [*experts.parameters(), *experts.buffers()]):
        return "weights are offloaded"
    up = _up_name(experts)
    if up is None or not hasattr(experts, "down_proj") or not hasattr(experts, "_apply_gate"):
        return f"{type(experts).__name__} does not hold its weights as transformers' fused experts do"
    for name in (up, "down_proj"):
        weights = getattr(experts, name)
        fused = isinstance(weights, torch.Tensor) and weights.dim() == 3 and weights.is_floating_point()
        if not fused and not hasattr(weights, "dequantise"):
            return f"{type(experts).__name__}.{name} is quantised in a way that is not known here"
    return None


def check(site: Site, probe: Probe, experts: torch.Tensor, weights: torch.Tensor) -> None:
    """Compare what the experts returned with the sum of the recorded experts' outputs.

    Args:
        site: the router.
        probe: what its experts received and returned.
        experts: recorded experts, (tokens, slots).
        weights: recorded weights, (tokens, slots), float32.

    Raises:
        RoutingError: if they differ by more than the rounding of the model's type.
    """
    hidden, returned = probe.hidden, probe.output.float()
    experts, weights = experts.to(hidden.device), weights.to(hidden.device)
    replayed = torch.zeros_like(returned)
    magnitude = returned.new_zeros(len(hidden))  # (tokens,)
    for expert in torch.unique(experts).tolist():
        tokens, slots = torch.where(experts == expert)
        outputs = weights[tokens, slots, None] * apply_expert(site.experts, expert, hidden[tokens]).float()
        replayed.index_add_(0, tokens, outputs)
        magnitude.index_add_(0, tokens, outputs.norm(dim=-1))
    scale = torch.maximum(magnitude, returned.norm(dim=-1)).clamp(min=torch.finfo(torch.float32).tiny)
    errors = (replayed - returned).norm(dim=-1) / scale
    tolerance = max(_TOLERANCES[dtype] for dtype in _types(probe))
    wrong = int((~(errors <= tolerance)).sum())
    if wrong:
        raise RoutingError(
            f"{site.where}: self-check failed: for {wrong} of {len(hidden)} tokens the recorded experts and weights do "
            f"not give what the experts returned (relative error up to {float(errors.max()):.2g}, tolerance "
            f"{tolerance:g}); do not trust this model's routing, and report its class and transformers' version"
        )


def apply_expert(experts: nn.Module, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """Return the output of one expert alone, not weighted, for hidden states (tokens, hidden)."""
    module: Any = experts
    up = _up_name(module)
    assert up is not None, "obstacle() was asked before"
    inner = _linear(module, up, expert, hidden)
    inner = module._apply_gate(inner) if up == "gate_up_proj" else module.act_fn(inner)
    output = _linear(module, "down_proj", expert, inner)
    return module.post_expert_norm(output) if getattr(module, "has_post_expert_norm", False) else output


def _linear(experts: Any, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    weights = getattr(experts, name)
    if isinstance(weights, torch.Tensor):
        matrix = weights[expert].T if getattr(experts, "is_transposed", False) else weights[expert]
    else:
        matrix = weights.dequantise(expert, inputs.dtype)  # (outputs, inputs)
    bias = getattr(experts, f"{name}_bias")[expert] if getattr(experts, "has_bias", False) else None
    return functional.linear(inputs.to(matrix.dtype), matrix, bias)


def _types(probe: Probe) -> list[torch.dtype]:
    """Return the types that the experts computed in."""
    device = probe.hidden.device.type
    autocast = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    return [probe.hidden.dtype, probe.output.dtype, *autocast]


def _up_name(experts: nn.Module) -> str | None:
    return next((name for name in ("gate_up_proj", "up_proj") if hasattr(experts, name)), None)
