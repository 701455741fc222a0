# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""The Triton kernel of `tally`: one launch for all layers, slots and sets of cells; an addition an assignment."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moe_probe_kernels.choosing import is_interpreted

_BLOCK = 256
_INTERPRETED_BLOCK = 4096


@triton.jit
def tally_kernel(
    ids,
    cells,
    counts,
    strays,
    n_tokens,
    n_cells,
    n_sets,
    dropped,
    EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
    PLANES: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `tally.Tally.add`."""
    layer = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n_tokens
    anywhere = row < 0
    for number in range(n_sets):
        cell = tl.load(cells + number * n_tokens + row, mask=inside, other=-1)
        anywhere = anywhere | ((cell >= 0) & (cell < n_cells))
    lost = tl.zeros((BLOCK,), tl.int64)
    for slot in range(SLOTS):
        expert = tl.load(ids + (layer * SLOTS + slot) * n_tokens + row, mask=inside, other=0).to(tl.int64)
        exists = (expert >= 0) & (expert < EXPERTS)
        if DROPS:
            lost += (anywhere & (exists == 0) & (expert != dropped)).to(tl.int64)
            exists = exists & (expert != dropped)
        else:
            lost += (anywhere & (exists == 0)).to(tl.int64)
        plane = layer * PLANES + tl.minimum(slot, PLANES - 1)
        for number in range(n_sets):
            cell = tl.load(cells + number * n_tokens + row, mask=inside, other=-1).to(tl.int64)
            counted = exists & (cell >= 0) & (cell < n_cells)
            tl.atomic_add(counts + (plane * n_cells + cell) * EXPERTS + expert, 1, mask=counted, sem="relaxed")
    n_lost = tl.sum(lost, axis=0)
    tl.atomic_add(strays + layer, n_lost, mask=n_lost > 0, sem="relaxed")


def constants(n_experts: int, n_slots: int, n_planes: int) -> dict[str, int]:
    """Return what the kernel is compiled for, but for its flag."""
    block = _INTERPRETED_BLOCK if is_interpreted() else _BLOCK  # the interpreter pays by the program
    return {"EXPERTS": n_experts, "SLOTS": n_slots, "PLANES": n_planes, "BLOCK": block}


def launch(
    ids: torch.Tensor, cells: torch.Tensor, counts: torch.Tensor, strays: torch.Tensor, dropped: int | None
) -> None:
    """Run the kernel; shapes were checked."""
    n_layers, n_slots, n_tokens = ids.shape
    _, n_planes, n_cells, n_experts = counts.shape
    if not n_tokens or not n_layers:
        return
    fixed = constants(n_experts, n_slots, n_planes)
    with torch.cuda.device_of(ids):  # Triton launches where torch is, which may be another GPU
        tally_kernel[(triton.cdiv(n_tokens, fixed["BLOCK"]), n_layers)](
            ids.contiguous(),
            cells.contiguous(),
            counts,
            strays,
            n_tokens,
            n_cells,
            len(cells),
            0 if dropped is None else dropped,
            DROPS=dropped is not None,
            **fixed,
        )
