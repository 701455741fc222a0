# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""The Triton kernel of `ring` and `pack`: sorts, casts and writes the slots of all layers in one launch.

Slots are few: a slot's place is how many of the token's others come before it, which needs no exchanges.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe_probe_kernels.choosing import is_interpreted
from moe_probe_kernels.signed import as_signed

_TILE = 2048
_INTERPRETED_TILE = 2**15


@triton.jit
def ring_kernel(
    ids,
    weights,
    places,
    written,
    ring_ids,
    ring_weights,
    n_tokens,
    capacity,
    dropped,
    SLOTS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    HAS_PLACES: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`places` holds, for each token, how many are kept up to and with it."""
    layer = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = row < n_tokens
    rank = row.to(tl.int64)
    if HAS_PLACES:
        up_to = tl.load(places + row, mask=kept, other=0)
        rank = tl.load(places + row - 1, mask=kept & (row > 0), other=0)
        kept = kept & (up_to > rank)
    target = (tl.load(written) + rank) % capacity

    slot = tl.arange(0, SLOT_COLUMNS)
    source = (layer * n_tokens + row)[:, None] * SLOTS + slot[None, :]
    filled = kept[:, None] & (slot < SLOTS)[None, :]
    expert = tl.load(ids + source, mask=filled, other=0).to(tl.int64)
    weight = tl.load(weights + source, mask=filled, other=0.0)
    key = weight if weight.dtype == tl.float64 else weight.to(tl.float32)
    tie = expert
    if DROPS:  # lighter than any weight, and of equal weights the last
        empty = expert == dropped
        key = tl.where(empty, float("-inf"), key)
        tie = tl.where(empty, 0x7FFFFFFFFFFFFFFF, tie)
        weight = tl.where(empty, 0.0, weight)

    own, other = key[:, :, None], key[:, None, :]
    own_tie, other_tie = tie[:, :, None], tie[:, None, :]
    own_none, other_none = own != own, other != other  # no number comes before every number
    earlier = slot[None, None, :] < slot[None, :, None]
    same = (own == other) | (own_none & other_none)
    before = (other > own) | (other_none & (own == own))
    before = before | (same & ((other_tie < own_tie) | ((other_tie == own_tie) & earlier)))
    before = before & (slot < SLOTS)[None, None, :]
    order = tl.sum(before.to(tl.int32), axis=2)

    place = (layer * SLOTS + order) * capacity + target[:, None]
    tl.store(ring_ids + place, expert.to(ring_ids.dtype.element_ty), mask=filled)
    tl.store(ring_weights + place, weight.to(ring_weights.dtype.element_ty), mask=filled)


def constants(n_slots: int) -> dict[str, int]:
    """Return what the kernel is compiled for, but for its flags."""
    columns = max(2, triton.next_power_of_2(n_slots))
    tile = _INTERPRETED_TILE if is_interpreted() else _TILE  # the interpreter pays by the program
    return {"SLOTS": n_slots, "SLOT_COLUMNS": columns, "BLOCK": min(128, max(4, tile // columns**2))}


def launch(
    ids: torch.Tensor,
    weights: torch.Tensor,
    places: torch.Tensor | None,
    written: torch.Tensor,
    ring_ids: torch.Tensor,
    ring_weights: torch.Tensor,
    dropped: int | None,
) -> None:
    """Write into (layers, slots, capacity), from the token that `written` counts on; shapes were checked."""
    n_layers, n_tokens, n_slots = ids.shape
    if not n_tokens or not n_layers or not n_slots:
        return
    fixed = constants(n_slots)
    with torch.cuda.device_of(ids):  # Triton launches where torch is, which may be another GPU
        ring_kernel[(triton.cdiv(n_tokens, fixed["BLOCK"]), n_layers)](
            ids.contiguous(),
            weights.contiguous(),
            written if places is None else places,
            written,
            as_signed(ring_ids),
            ring_weights,
            n_tokens,
            ring_ids.shape[2],
            0 if dropped is None else dropped,
            HAS_PLACES=places is not None,
            DROPS=dropped is not None,
            **fixed,
        )
