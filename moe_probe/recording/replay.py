"""The self-check: do the recorded experts and weights give what the experts module returned?

For a few tokens each recorded expert is applied on its own, from the module's own weights, and the outputs are added
up with the recorded weights. It uses neither the model's router nor the model's way of running experts. It does not
know how decisions were recorded, and cannot check a router whose experts it cannot apply; it says so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from moe_probe.errors import RoutingError
from moe_probe.recording.forms import missing_weights
from moe_probe.recording.routers import Site
from moe_probe.schema import DROPPED

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
    if any(tensor.is_meta for tensor in [*site.experts.parameters(), *site.experts.buffers()]):
        return "weights are offloaded"
    return missing_weights(site.experts)


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
    for expert in torch.unique(experts[experts != DROPPED]).tolist():
        tokens, slots = torch.where(experts == expert)
        factors = weights[tokens, slots, None]
        if site.form.scales_input:
            scaled = hidden[tokens] * factors.to(hidden.dtype)
            outputs = site.form.apply(site.experts, expert, scaled).float()
        else:
            outputs = factors * site.form.apply(site.experts, expert, hidden[tokens]).float()
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


def _types(probe: Probe) -> list[torch.dtype]:
    """Return the types that the experts computed in."""
    device = probe.hidden.device.type
    autocast = [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    return [probe.hidden.dtype, probe.output.dtype, *autocast]
