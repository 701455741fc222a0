"""The experts of a shard, router by router, as arrays to count from. It does not know what is counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.batches import in_batches
from moe_probe.errors import BadInputError, RunError

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard
    from moe_probe.store.part import ExpertColumn

ANY_SLOT = "any"

_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class SlotExperts:
    """What one slot of a router held: `experts` (rows,), 0 where dropped; `missing` (rows,) says which, None: none."""

    experts: NDArray[np.unsignedinteger]
    missing: NDArray[np.bool_] | None


def check_slot(run: Run, slot: str | int) -> None:
    """Refuse a slot that no router of a run has.

    Raises:
        BadInputError: it is neither "any" nor a number of one.
    """
    n_slots = max((router.n_slots for router in run.routers), default=0)
    if slot != ANY_SLOT and not (isinstance(slot, int) and 0 <= slot < n_slots):
        raise BadInputError(f"slot {slot!r}: the run has slots 0 to {n_slots - 1}; give one of them or 'any'")


def iter_experts(
    shard: Shard, routers: Sequence[schema.Router], slot: str | int, rows: NDArray[np.integer] | None = None
) -> Iterator[tuple[schema.Router, list[SlotExperts]]]:
    """Yield each router with its experts, a part a slot; about 64 MiB of columns are held at a time.

    Args:
        shard: where to read.
        routers: the routers wanted, in order.
        slot: "any" for all slots, or a number: no part where a router has no such slot.
        rows: the rows wanted; None for all.

    Raises:
        RunError: there is an expert that does not exist: it would be counted as another cell's.
    """
    for batch in in_batches(routers, lambda router: _column_bytes(router, shard.rows), _BATCH_BYTES):
        columns = [_slot_columns(router, slot) for router in batch]
        held = shard.experts([column for names in columns for column in names])
        for router, names in zip(batch, columns, strict=True):
            yield router, [_slot_experts(shard, router, column, next(held), rows) for column in names]


def add_codes(total: NDArray[np.int64], codes: NDArray[np.integer]) -> None:
    """Count each code in its place of `total`, whichever way costs less: one pass over all of it, or an addition each.

    Example:
        >>> total = np.array([0, 5, 0])
        >>> add_codes(total, np.array([1, 1, 2]))
        >>> total.tolist()
        [0, 7, 1]
    """
    if len(codes) * 8 < len(total):
        np.add.at(total, codes, 1)
    else:
        total += np.bincount(codes, minlength=len(total))


def _slot_experts(
    shard: Shard,
    router: schema.Router,
    column: str,
    held: ExpertColumn,
    rows: NDArray[np.integer] | None,
) -> SlotExperts:
    experts, missing, highest = held
    highest = int(experts.max(initial=0)) if highest is None else highest
    if highest >= router.n_experts:
        raise RunError(
            f"{shard.run.path}: {schema.routing_file(shard.number)} has expert {highest} in {column}, but router "
            f"{router.index} has {router.n_experts} experts; the run is damaged, trace it again"
        )
    if rows is None:
        return SlotExperts(experts, missing)
    return SlotExperts(experts[rows], None if missing is None else missing[rows])


def _slot_columns(router: schema.Router, slot: str | int) -> list[str]:
    slots = range(router.n_slots) if slot == ANY_SLOT else [s for s in [int(slot)] if s < router.n_slots]
    return [schema.expert_column(router.index, number) for number in slots]


def _column_bytes(router: schema.Router, n_rows: int) -> int:
    return n_rows * router.n_slots * schema.expert_bits(router.n_experts) // 8
