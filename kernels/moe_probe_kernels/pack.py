"""Pack: what the experts of all layers were called with, in the order and the width in which it is kept.

This is the torch reference. It runs on any device, launches the same operations whatever the values, and waits for
nothing. It does not know where ids and weights come from, and does not check them: an id that `id_dtype` cannot hold
is the caller's fault.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

NETWORK_SLOTS = 16
"""Up to this many slots a sorting network is used, beyond it two stable sorts."""


class Packed(NamedTuple):
    """Executed experts and weights of all layers, a column a slot, the heaviest slot first."""

    ids: torch.Tensor  # (layers, slots, tokens)
    weights: torch.Tensor  # (layers, slots, tokens)


def pack(
    ids: torch.Tensor,
    weights: torch.Tensor,
    keep: torch.Tensor | None = None,
    *,
    id_dtype: torch.dtype = torch.int32,
    weight_dtype: torch.dtype = torch.float32,
    dropped: int | None = None,
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

    Returns:
        Ids and weights, both (layers, slots, kept tokens) and contiguous.

    Raises:
        ValueError: if the shapes do not agree.

    Example:
        >>> ids, weights = pack(torch.tensor([[[5, 2], [1, 0]]]), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
        >>> ids.tolist(), weights.tolist()
        ([[[2, 0], [5, 1]]], [[[0.75, 0.5], [0.25, 0.5]]])
    """
    if ids.dim() != 3 or ids.shape != weights.shape:
        raise ValueError(
            f"ids {tuple(ids.shape)} and weights {tuple(weights.shape)} must both be (layers, tokens, slots)"
        )
    if keep is not None:
        if keep.shape != ids.shape[1:2]:
            raise ValueError(f"keep {tuple(keep.shape)} must be ({ids.shape[1]},), one value a token")
        ids, weights = ids[:, keep], weights[:, keep]
    if dropped is not None:
        # Lighter than any weight, and of equal weights the last.
        empty = ids == dropped
        ids = ids.masked_fill(empty, torch.iinfo(ids.dtype).max)
        weights = weights.masked_fill(empty, -math.inf)
    id_slots, weight_slots = _sorted_slots(ids, weights)
    if dropped is not None:
        empties = [slot == torch.iinfo(ids.dtype).max for slot in id_slots]
        id_slots = [slot.masked_fill(empty, dropped) for slot, empty in zip(id_slots, empties, strict=True)]
        weight_slots = [slot.masked_fill(empty, 0) for slot, empty in zip(weight_slots, empties, strict=True)]
    return Packed(
        torch.stack([slot.to(id_dtype) for slot in id_slots], dim=1),
        torch.stack([slot.to(weight_dtype) for slot in weight_slots], dim=1),
    )


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
