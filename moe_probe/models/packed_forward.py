"""The experts of a layer on packed matrices, in three ways that give the same numbers within the type's rounding.

| way | for | how | the host waits for a GPU |
|---|---|---|---|
| `gathered` | decoding | the chosen experts' codes are picked on the device, a copy an assignment | never |
| `one_by_one` | what is between | each expert that holds tokens, alone in full precision | once a layer |
| `grouped` | many tokens on small experts | some experts at a time in full precision, one grouped product | \
where a layer is cut |

`choose_way` says which one runs, from shapes alone: never from what the tokens hold. This module does not know how the
matrices are held (`packing`), nor how a checkpoint is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_probe.models.packing import scratch_bytes

EXPERTS_IMPLEMENTATION = "moe_probe_packed"
"""The name under which transformers finds `packed_experts_forward`; no other model asks for it."""

_Multiply = Callable[[str, Tensor], Tensor]
"""Multiplies rows by the matrices of a projection, named as in the module, and adds the biases."""


def packed_experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run a fused experts module of transformers whose projections are packed, in the way that `choose_way` names.

    Slots whose index is beyond the last expert add nothing.

    Args:
        experts: the module, with `gate_up_proj` or `up_proj` and `down_proj` packed.
        hidden_states: (tokens, hidden).
        top_k_index: (tokens, slots), the experts.
        top_k_weights: (tokens, slots), the factors of their outputs.

    Returns:
        (tokens, hidden), in the type of `hidden_states`.
    """
    if not top_k_index.numel():
        return torch.zeros_like(hidden_states)
    way = choose_way(experts, top_k_index.numel(), hidden_states.dtype, hidden_states.device)
    return WAYS[way](experts, hidden_states, top_k_index, top_k_weights)


def gathered(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Multiply each assignment by its own copy of its expert; arguments as of `packed_experts_forward`.

    Nothing here depends on what a tensor holds, so a CUDA graph can hold it; `packing` builds its tables at the first
    call, which must come before.
    """
    n_slots = top_k_index.shape[1]
    ids = top_k_index.reshape(-1)  # (assignments,)
    matrices = ids.clamp(max=experts.num_experts - 1)

    def multiply(name: str, rows: Tensor) -> Tensor:
        bias = _bias(experts, name)
        product: Tensor = getattr(experts, name).multiply_each(rows, matrices, None if bias is None else bias[matrices])
        return product

    outputs = _run(experts, hidden_states.repeat_interleave(n_slots, dim=0), multiply)
    outputs = outputs.masked_fill((ids >= experts.num_experts).unsqueeze(1), 0)
    return _sum_slots(outputs * top_k_weights.reshape(-1, 1), n_slots, hidden_states.dtype)


def one_by_one(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Take one expert in full precision at a time, only those with tokens; arguments as of `packed_experts_forward`."""
    n_slots = top_k_index.shape[1]
    ids, order = torch.sort(top_k_index.reshape(-1), stable=True)  # (assignments,), by expert
    factors = top_k_weights.reshape(-1, 1)
    outputs = _no_outputs(hidden_states, factors)
    start = 0
    for expert, end in enumerate(_ends(ids, experts.num_experts).tolist()):
        if end > start:
            places = order[start:end]
            output = _run(experts, hidden_states[places // n_slots], _multiply_one(experts, expert))
            outputs[places] = output * factors[places]
            start = end
    return _sum_slots(outputs, n_slots, hidden_states.dtype)


def _multiply_one(experts: Any, expert: int) -> _Multiply:
    def multiply(name: str, rows: Tensor) -> Tensor:
        bias = _bias(experts, name)
        product: Tensor = getattr(experts, name).multiply(rows, expert, None if bias is None else bias[expert])
        return product

    return multiply


def grouped(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Dequantise some experts and multiply all their tokens at once; arguments as of `packed_experts_forward`.

    Where all experts of the layer fit into `scratch_bytes` the host does not wait; else it learns once where to cut.
    """
    n_slots = top_k_index.shape[1]
    ids, order = torch.sort(top_k_index.reshape(-1), stable=True)  # (assignments,), by expert
    ends = _ends(ids, experts.num_experts)
    n_at_once = experts_at_once(experts, hidden_states.dtype, hidden_states.device)
    cuts = list(range(0, experts.num_experts, n_at_once))
    if len(cuts) == 1:
        stops = [len(ids)]  # all rows, also those beyond the last expert
    else:
        limits = ends.tolist()
        stops = [limits[min(cut + n_at_once, len(limits)) - 1] for cut in cuts]
    factors = top_k_weights.reshape(-1, 1)
    outputs = _no_outputs(hidden_states, factors)
    start = 0
    for first, stop in zip(cuts, stops, strict=True):
        if stop > start:
            some = slice(first, first + n_at_once)
            places = order[start:stop]
            multiply = _multiply_grouped(experts, some, ends[some] - start, ids[start:stop])
            output = _run(experts, hidden_states[places // n_slots], multiply)
            if len(cuts) == 1:  # a grouped product leaves the rows beyond the last expert undefined
                output = output.masked_fill((ids >= experts.num_experts).unsqueeze(1), 0)
            outputs[places] = output * factors[places]
            start = stop
    return _sum_slots(outputs, n_slots, hidden_states.dtype)


def _multiply_grouped(experts: Any, some: slice, ends: Tensor, ids: Tensor) -> _Multiply:
    """Multiply rows, sorted by expert, by a slice of the experts; `ends` (experts,) int32 are the groups' ends."""

    def multiply(name: str, rows: Tensor) -> Tensor:
        weight = getattr(experts, name).dequantise_many(some, rows.dtype)  # (experts, rows, columns)
        product = _grouped_product()(rows, weight.transpose(1, 2), offs=ends)
        bias = _bias(experts, name)
        return product if bias is None else product + bias[ids.clamp(max=experts.num_experts - 1)]

    return multiply


@dataclass(frozen=True)
class _Limits:
    """Assignments an expert, on average over a layer, up to which to gather and from which on to group.

    Grouping also asks that `at_once` experts fit into the scratch together.
    """

    gathered: float
    grouped: float
    at_once: int


# The CPU's were measured with benchmarks/quantised_forward.py: copying codes never pays there, nor does grouping larger
# experts. The GPU's were reasoned and not measured: up to one assignment an expert the copies are no larger than the
# layer; from 64 on a grouped product is bound by arithmetic, so that the bytes of dequantising are hidden.
_LIMITS = {"cpu": _Limits(0, 1, 8), "cuda": _Limits(1, 64, 2)}

WAYS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "gathered": gathered,
    "one_by_one": one_by_one,
    "grouped": grouped,
}


def choose_way(experts: Any, n_assignments: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return which of `WAYS` runs a layer.

    Args:
        experts: the module, packed.
        n_assignments: tokens × slots.
        dtype: what is computed in.
        device: where.
    """
    n_experts = int(experts.num_experts)
    limits = _LIMITS["cpu" if device.type == "cpu" else "cuda"]
    if n_assignments <= limits.gathered * n_experts:
        return "gathered"
    if n_assignments >= limits.grouped * n_experts and _can_group(experts, limits.at_once, dtype, device):
        return "grouped"
    return "one_by_one"


def _can_group(experts: Any, at_once: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Say that torch's grouped product takes these matrices, and that `at_once` experts fit into the scratch."""
    sizes = [size for name in (_up_name(experts), "down_proj") for size in getattr(experts, name).shape]
    if any(size * dtype.itemsize % 16 for size in sizes) or experts_at_once(experts, dtype, device) < at_once:
        return False
    return device.type == "cpu" or (dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0))


def experts_at_once(experts: Any, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many experts `grouped` has in full precision at a time, at least 1."""
    names = (_up_name(experts), "down_proj")
    n_weights = sum(rows * columns for rows, columns in (getattr(experts, name).shape for name in names))
    return int(min(experts.num_experts, max(1, scratch_bytes(device) // (n_weights * dtype.itemsize))))


@functools.cache
def _grouped_product() -> Callable[..., Tensor]:
    """Return torch's grouped product, public from torch 2.10 on."""
    product: Callable[..., Tensor] = getattr(functional, "grouped_mm", None) or torch._grouped_mm
    return product


def _ends(ids: Tensor, n_experts: int) -> Tensor:
    """Return where each expert's places end in sorted ids: (experts,) int32. `bincount` would make the host wait."""
    return torch.searchsorted(ids, torch.arange(n_experts, device=ids.device), right=True, out_int32=True)


def _up_name(experts: Any) -> str:
    return "gate_up_proj" if experts.has_gate else "up_proj"


def _bias(experts: Any, name: str) -> Tensor | None:
    """Return the biases (experts, rows) of a projection, where there are any."""
    return getattr(experts, f"{name}_bias") if experts.has_bias else None


def _run(experts: Any, hidden: Tensor, multiply: _Multiply) -> Tensor:
    """Return what experts make of rows (n, hidden), each multiplied by the matrices of its own expert: (n, hidden)."""
    inner = multiply(_up_name(experts), hidden)
    inner = experts._apply_gate(inner) if experts.has_gate else experts.act_fn(inner)
    output = multiply("down_proj", inner.to(hidden.dtype))
    output = experts.post_expert_norm(output) if experts.has_post_expert_norm else output
    return output.to(hidden.dtype)


def _no_outputs(hidden: Tensor, factors: Tensor) -> Tensor:
    """Return zeros (assignments, hidden) in the type of an output times its factor."""
    return hidden.new_zeros((len(factors), hidden.shape[1]), dtype=torch.result_type(hidden, factors))


def _sum_slots(outputs: Tensor, n_slots: int, dtype: torch.dtype) -> Tensor:
    """Return the sums over slots of `outputs` (tokens * slots, hidden): (tokens, hidden)."""
    return outputs.view(-1, n_slots, outputs.shape[1]).sum(dim=1).to(dtype)


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_IMPLEMENTATION, packed_experts_forward)
