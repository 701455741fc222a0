"""Pack: what the experts of all layers were called with, in the order and the width in which it is kept.

On a GPU with Triton it is the kernel of `ring`, one launch for all layers; elsewhere the torch reference below, which
launches the same operations whatever the values. It does not know where ids and weights come from, and does not check
them: an id that `id_dtype` cannot hold is the caller's fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from moe_probe_kernels.choosing import Way, choose

NETWORK_SLOTS = 16
"""Up to this many slots a sorting network is used, beyond it two stable sorts."""


@dataclass(frozen=True, eq=False)
class Packed:
    """Executed experts and weights of all layers, a column a slot, the heaviest slot first.

    `ran` is "triton" or "torch"; it unpacks into ids and weights.
    """

    ids: torch.Tensor  # (layers, slots, tokens)
    weights: torch.Tensor  # (layers, slots, tokens)
    ran: Way

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter((self.ids, self.weights))


def pack(
    ids: torch.Tensor,
    weights: torch.Tensor,
    keep: torch.Tensor | None = None,
    *,
    id_dtype: torch.dtype = torch.int32,
    weight_dtype: torch.dtype = torch.float32,
    dropped: int | None = None,
    way: Way | None = None,
) -> Packed:
    """Sort each token's slots by weight, drop the tokens that `keep` hides, and cast.

    Slots are compared in the precision in which they come, before any rounding; equal weights are ordered by expert,
    the lower first. A slot and its weight always move together.

    Args:
        ids: expert of each slot, (layers, tokens, slots), any integer type.
        weights: weight of each slot, (layers, tokens, slots), any floating type, no NaN.
        keep: (tokens,) bool, False for padding; None keeps all. With a mask on a GPU this waits for the device, since
            the number of rows is not known before.
        id_dtype: type of the returned ids.
        weight_dtype: type of the returned weights.
        dropped: the id of a slot that held no expert, if there may be such slots: they come last, with weight 0.
        way: "triton" or "torch"; None for what the device has.

    Returns:
        Ids and weights, both (layers, slots, kept tokens) and contiguous.

    Raises:
        ValueError: if the shapes do not agree, or the way cannot be gone.

    Example:
        >>> ids, weights = pack(torch.tensor([[[5, 2], [1, 0]]]), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
        >>> ids.tolist(), weights.tolist()
        ([[[2, 0], [5, 1]]], [[[0.75, 0.5], [0.25, 0.5]]])
    """
    check_shapes(ids, weights, keep)
    if choose(ids.device, way) == "triton":
        return _by_kernel(ids, weights, keep, id_dtype, weight_dtype, dropped)
    if keep is not None:
        ids, weights = ids[:, keep], weights[:, keep]
    if dropped is not None:
        # Lighter than any weight, and of equal weights the last.
        empty = ids == dropped
        ids = ids.masked_fill(empty, torch.iinfo(ids.dtype).max)
        weights = weights.masked_fill(empty, -math.inf)
    if dropped is None and ids.device.type == "cpu" and _in_order(ids, weights):
        by_slot, weights_by_slot = ids.transpose(1, 2).contiguous(), weights.transpose(1, 2).contiguous()
        return Packed(by_slot.to(id_dtype), weights_by_slot.to(weight_dtype), "torch")
    id_slots, weight_slots = _sorted_slots(ids, weights)
    if dropped is not None:
        empties = [slot == torch.iinfo(ids.dtype).max for slot in id_slots]
        id_slots = [slot.masked_fill(empty, dropped) for slot, empty in zip(id_slots, empties, strict=True)]
        weight_slots = [slot.masked_fill(empty, 0) for slot, empty in zip(weight_slots, empties, strict=True)]
    return Packed(
        torch.stack([slot.to(id_dtype) for slot in id_slots], dim=1),
        torch.stack([slot.to(weight_dtype) for slot in weight_slots], dim=1),
        "torch",
    )


def check_shapes(ids: torch.Tensor, weights: torch.Tensor, keep: torch.Tensor | None) -> None:
    """Refuse ids, weights and a mask that are not of the same layers, tokens and slots.

    Raises:
        ValueError: naming the shapes.
    """
    if ids.dim() != 3 or ids.shape != weights.shape:
        raise ValueError(
            f"ids {tuple(ids.shape)} and weights {tuple(weights.shape)} must both be (layers, tokens, slots)"
        )
    if keep is not None and keep.shape != ids.shape[1:2]:
        raise ValueError(f"keep {tuple(keep.shape)} must be ({ids.shape[1]},), one value a token")


def _by_kernel(
    ids: torch.Tensor,
    weights: torch.Tensor,
    keep: torch.Tensor | None,
    id_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    dropped: int | None,
) -> Packed:
    """Pack into a ring that is as long as what it gets."""
    from moe_probe_kernels import ring_kernel

    n_layers, n_tokens, n_slots = ids.shape
    places = None if keep is None else keep.cumsum(0)
    n_kept = n_tokens if places is None else int(places[-1]) if n_tokens else 0
    packed_ids = torch.empty((n_layers, n_slots, n_kept), dtype=id_dtype, device=ids.device)
    packed_weights = torch.empty((n_layers, n_slots, n_kept), dtype=weight_dtype, device=ids.device)
    if n_kept:
        begin = torch.zeros(1, dtype=torch.int64, device=ids.device)
        ring_kernel.launch(ids, weights, places, begin, packed_ids, packed_weights, dropped)
    return Packed(packed_ids, packed_weights, "triton")


def _in_order(ids: torch.Tensor, weights: torch.Tensor) -> bool:
    """Say whether all slots are sorted already, as top-k leaves them."""
    heavier, lighter = weights[..., :-1], weights[..., 1:]
    in_order = (heavier > lighter) | ((heavier == lighter) & (ids[..., :-1] <= ids[..., 1:]))
    return bool(in_order.all())


def _sorted_slots(ids: torch.Tensor, weights: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return one (layers, tokens) tensor a slot, in their final order.

    Slots are few, so that rounds of compare-and-exchange over whole columns beat two stable sorts along a short last
    dimension (on a CPU 20 times at 2 slots, 5 times at 8). They grow with the square of the slots, hence the limit.
    """
    if ids.shape[-1] > NETWORK_SLOTS:
        by_id, order = torch.sort(ids, dim=-1, stable=True)
        by_weight, order = torch.sort(weights.gather(-1, order), dim=-1, descending=True, stable=True)
        return list(by_id.gather(-1, order).unbind(-1)), list(by_weight.unbind(-1))
    id_slots, weight_slots = list(ids.unbind(-1)), list(weights.unbind(-1))
    n_slots = len(id_slots)
    for round_number in range(n_slots):  # an odd-even transposition network
        for upper in range(round_number % 2, n_slots - 1, 2):
            lower = upper + 1
            heavier = weight_slots[lower] > weight_slots[upper]
            tied = weight_slots[lower] == weight_slots[upper]
            swap = heavier | (tied & (id_slots[lower] < id_slots[upper]))
            for slots in (id_slots, weight_slots):
                slots[upper], slots[lower] = (
                    torch.where(swap, slots[lower], slots[upper]),
                    torch.where(swap, slots[upper], slots[lower]),
                )
    return id_slots, weight_slots
