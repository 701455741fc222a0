"""How the work of each router is spread over its experts, as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_probe.counts import load_counts, load_scores
from moe_probe.measures.balance import load_balance
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run


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
        return stack_rows("load", [])
    frames = []
    for index, router in enumerate(run.routers):
        slots = {str(slot): by_slot[slot][index].sum(axis=1) for slot in range(router.n_slots)}
        loads = {ANY_SLOT: np.sum(list(slots.values()), axis=0), **slots}
        for slot, load in loads.items():
            total = int(load.sum())
            share = load / total if total else np.full(router.n_experts, np.nan)
            columns = {"expert": np.arange(router.n_experts), "assignments": load, "share": share}
            frames.append(router_rows(router, slot, "all", columns, {"uniform": 1 / router.n_experts, "n": total}))
    return stack_rows("load", frames)


def balance(run: Run) -> pl.DataFrame:
    """Return how evenly each router spreads its load, over any slot and all tokens.

    Args:
        run: an open run.

    Returns:
        The columns of balance.csv. Entropy and margin are null where the model gives no scores; all measures are where
        every slot was dropped.
    """
    counts = load_counts(run, "phase", ANY_SLOT, "all")
    if counts.n == 0:
        return stack_rows("balance", [])
    frames = []
    for router, table, scores in zip(run.routers, counts, load_scores(run), strict=True):
        load = table.sum(axis=1)
        measured = load_balance(load)
        row: dict[str, object] = {} if measured is None else asdict(measured)
        row |= asdict(scores)
        row |= {"unseen": int(np.count_nonzero(load == 0)), "n": counts.n}
        row |= {"dropped": counts.n * router.n_slots - int(load.sum())}
        frames.append(router_rows(router, ANY_SLOT, "all", {}, row))
    return stack_rows("balance", frames)
