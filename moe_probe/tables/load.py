"""How the work of each router is spread over its experts, expert by expert, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_probe.counts import load_counts
from moe_probe.tables.columns import ASSIGNMENTS, EXPERT, LAYER, MIXTRAL, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

LOAD_COLUMNS = (
    LAYER,
    ROUTER,
    EXPERT,
    SLOT,
    TOKENS,
    ASSIGNMENTS,
    Column(
        "share",
        pl.Float64,
        "0 to 1",
        "The expert's assignments over those of all experts of the router, same slot.",
        f"{MIXTRAL}, 5 and Fig. 7",
    ),
    Column(
        "uniform", pl.Float64, "0 to 1", "The share under even load, 1/E: the baseline of share.", f"{MIXTRAL}, Fig. 7"
    ),
    Column("n", pl.Int64, "count", "Assignments of all experts of the router, same slot: what share is a share of."),
)


def load_table(run: Run) -> pl.DataFrame:
    """Return the load of every expert, over any slot and slot by slot, over all tokens.

    Args:
        run: an open run.

    Returns:
        The columns of load.csv. `share` is null where every slot was dropped.
    """
    n_slots = max((router.n_slots for router in run.routers), default=0)
    by_slot = [load_counts(run, "phase", slot, "all") for slot in range(n_slots)]
    if not by_slot or by_slot[0].n == 0:
        return stack_rows(LOAD_COLUMNS, [])
    frames = []
    for index, router in enumerate(run.routers):
        slots = {str(slot): by_slot[slot][index].sum(axis=1) for slot in range(router.n_slots)}
        loads = {ANY_SLOT: np.sum(list(slots.values()), axis=0), **slots}
        for slot, load in loads.items():
            total = int(load.sum())
            share = load / total if total else np.full(router.n_experts, np.nan)
            columns = {"expert": np.arange(router.n_experts), "assignments": load, "share": share}
            frames.append(router_rows(router, slot, "all", columns, {"uniform": 1 / router.n_experts, "n": total}))
    return stack_rows(LOAD_COLUMNS, frames)
