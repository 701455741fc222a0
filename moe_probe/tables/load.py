"""How the work of each router is spread over its experts, expert by expert, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.counts import ExpertLoads, LabelCounts, iter_expert_loads, load_counts, wide_routers
from moe_probe.counts.clusters import DOCUMENT
from moe_probe.errors import BadInputError
from moe_probe.measures.shares import Shares, clustered_shares
from moe_probe.measures.verdicts import load_verdicts, share_verdicts
from moe_probe.tables.columns import ASSIGNMENTS, EXPERT, LAYER, MIXTRAL, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe import schema
    from moe_probe.store import Run

Convention = Literal["mixtral", "olmoe"]
CONVENTIONS = ("mixtral", "olmoe")

_OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060), 5.3 (domain specialization)"
_WILSON = "Wilson 1927, with the effective sample size of Korn & Graubard 1998"

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
        "The expert's assignments over those of all experts of the router, same slot. In the olmoe convention, times "
        "the number of slots where slot is any.",
        f"{MIXTRAL}, 5 and Fig. 7; {_OLMOE}",
    ),
    Column(
        "ci_low",
        pl.Float64,
        "0 to 1",
        "Lower end of the 95 % interval of share, a document (or a group of them) being one draw; below five "
        "documents, 256 tokens of one. Null where fewer than two draws hold a token.",
        _WILSON,
    ),
    Column("ci_high", pl.Float64, "0 to 1", "Upper end of the 95 % interval of share; see ci_low.", _WILSON),
    Column(
        "uniform",
        pl.Float64,
        "0 to 1",
        "The share under even load, 1/E: the baseline of share. k/E in the olmoe convention where slot is any.",
        f"{MIXTRAL}, Fig. 7; {_OLMOE}",
    ),
    Column(
        "verdict",
        pl.String,
        "above, below, at chance, dead, unseen, not enough data",
        "Where the interval lies against uniform. dead: no assignment in any slot, in at least 30 documents of at "
        "least two domains and so many tokens that the share is bounded below uniform/10; unseen: no assignment, and "
        "not that. not enough data: fewer than five documents, or draws that are worth fewer than five.",
    ),
    Column("n", pl.Int64, "count", "Assignments of all experts of the router, same slot: what share is a share of."),
)


def load_table(run: Run, *, convention: Convention = "mixtral") -> pl.DataFrame:
    """Return the load of every expert, over any slot and slot by slot, over all tokens.

    Args:
        run: an open run.
        convention: "mixtral" gives shares of assignments, which sum to 1 (Mixtral's Figure 7); "olmoe" multiplies those
            over any slot by the number of slots, so that they are shares of tokens, and compares with k/E.

    Returns:
        The columns of load.csv. `share` is null where every slot was dropped. In a run with a router of more than
        16,384 experts each router has rows for the experts with most assignments alone, 1,024 at most.

    Raises:
        BadInputError: there is no such convention.
    """
    if convention not in CONVENTIONS:
        raise BadInputError(f"convention {convention!r}: choose one of {', '.join(CONVENTIONS)}")
    if wide_routers(run):
        return stack_rows(LOAD_COLUMNS, [rows for loads in iter_expert_loads(run) for rows in _told(loads, convention)])
    n_slots = max((router.n_slots for router in run.routers), default=0)
    by_slot = [load_counts(run, "phase", slot, "all") for slot in range(n_slots)]
    if not by_slot or by_slot[0].n == 0:
        return stack_rows(LOAD_COLUMNS, [])
    frames = []
    for index, router in enumerate(run.routers):
        slots = [by_slot[slot].clustered[index].sum(axis=2) for slot in range(router.n_slots)]
        over_all: NDArray[np.int64] = np.sum(slots, axis=0)
        verdicts = expert_verdicts(by_slot[0], over_all)
        factor = router.n_slots if convention == "olmoe" else 1
        frames.append(_share_rows(router, ANY_SLOT, over_all, verdicts, factor))
        never = over_all.sum(axis=0) == 0
        for slot, clustered in enumerate(slots):
            # An expert is dead or unseen as a whole: one that is never the first choice may well be the second.
            of_slot = share_verdicts(clustered_shares(clustered), of_documents=by_slot[slot].cluster_unit == DOCUMENT)
            frames.append(_share_rows(router, str(slot), clustered, np.where(never, verdicts, of_slot), 1))
    return stack_rows(LOAD_COLUMNS, frames)


def expert_verdicts(counts: LabelCounts, clustered: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return the verdict on the load of each expert of a router, over all slots.

    Args:
        counts: what was counted, for how many documents that was.
        clustered: (clusters, experts) the router's assignments.
    """
    return load_verdicts(
        clustered_shares(clustered),
        int(clustered.sum()),
        documents=counts.documents,
        domains=counts.domains,
        of_documents=counts.cluster_unit == DOCUMENT,
    )


def _share_rows(
    router: schema.Router, slot: str, clustered: NDArray[np.int64], verdicts: NDArray[np.object_], factor: int
) -> pl.DataFrame:
    """The rows of one slot of one router; `factor` multiplies its shares.

    Args:
        router: whose.
        slot: "any" or its number.
        clustered: (clusters, experts).
        verdicts: (experts,).
        factor: 1, or the number of slots.
    """
    columns = _share_columns(clustered, clustered_shares(clustered), factor)
    columns |= {"expert": np.arange(router.n_experts), "verdict": verdicts}
    same = {"uniform": factor / router.n_experts, "n": int(clustered.sum())}
    return router_rows(router, slot, "all", columns, same)


def _share_columns(clustered: NDArray[np.int64], shares: Shares, factor: int) -> dict[str, NDArray[np.generic]]:
    return {
        "assignments": clustered.sum(axis=0),
        "share": shares.share * factor,
        "ci_low": shares.low * factor,
        "ci_high": shares.high * factor,
    }


def _told(loads: ExpertLoads, convention: Convention) -> list[pl.DataFrame]:
    """The rows of a router of which the experts with most assignments are told: any slot, then slot by slot."""
    router, told = loads.router, loads.told
    frames = []
    for slot in range(-1, router.n_slots if loads.n else -1):
        clustered = loads.clustered.sum(axis=0) if slot < 0 else loads.clustered[slot]
        factor = router.n_slots if convention == "olmoe" and slot < 0 else 1
        shares = clustered_shares(clustered)  # all others are one more column
        columns = {name: of[:-1] for name, of in _share_columns(clustered, shares, factor).items()}
        columns |= {"expert": told, "verdict": _told_verdicts(loads, shares)[:-1]}
        same = {"uniform": factor / router.n_experts, "n": int(clustered.sum())}
        frames.append(router_rows(router, ANY_SLOT if slot < 0 else str(slot), "all", columns, same))
    return frames


def _told_verdicts(loads: ExpertLoads, shares: Shares) -> NDArray[np.object_]:
    """Return the verdicts of the experts told, against an even share of all there are."""
    # The verdict compares with one over the number of shares, which are few of the router's: so they are scaled.
    scale = loads.router.n_experts / shares.share.size
    scaled = Shares(shares.share * scale, shares.low * scale, shares.high * scale, shares.deff, shares.geff)
    return share_verdicts(scaled, of_documents=loads.cluster_unit == DOCUMENT)
