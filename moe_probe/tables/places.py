"""Load, drops and repetition by the place in the window, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import load_rows
from moe_probe.measures.position import bucket_shares, octaves
from moe_probe.measures.random_pairs import meet
from moe_probe.measures.repetition import consecutive
from moe_probe.tables.columns import LAYER, ROUTER, TOKENS, Column
from moe_probe.tables.neighbours import CLUSTER_UNIT
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

MOST_EXPERTS = 1024
"""Routers with more have no rows for the load of each expert, as they have none for pairs."""

_OPENMOE = "Xue et al. 2024, OpenMoE (arXiv 2402.01739), 4"

POSITION_COLUMNS = (
    LAYER,
    ROUTER,
    TOKENS,
    Column(
        "measure",
        pl.String,
        "share, dropped, first_choice, either",
        "share: assignments of the expert over those of all, any slot. dropped: slots that held no expert over all "
        "slots. first_choice, either: consecutive tokens with the same first choice, or whose sets of experts meet.",
        _OPENMOE,
    ),
    Column("expert", pl.Int64, "index", "The expert whose share it is; null for the other measures."),
    Column(
        "from_position",
        pl.Int64,
        "position",
        "First position of the bucket in the window, counted from 0; of two consecutive tokens the later one counts.",
    ),
    Column("to_position", pl.Int64, "position", "Last position of the bucket, included."),
    Column("value", pl.Float64, "0 to 1", "The measure within the bucket."),
    Column("ci_low", pl.Float64, "0 to 1", "Lower end of value at 95 %, a cluster being one draw; null below two."),
    Column("ci_high", pl.Float64, "0 to 1", "Upper end of value at 95 %."),
    Column("baseline", pl.Float64, "0 to 1", "The measure over all positions."),
    CLUSTER_UNIT,
    Column("n", pl.Int64, "count", "Assignments, slots or pairs of tokens in the bucket, as the measure has it."),
)


def position(run: Run) -> pl.DataFrame:
    """Return how each router's load, drops and repetition change with the place in the window.

    Places are those within the window, since that is what the model knows of a token's place; the first four are left
    out as everywhere. Buckets are octaves: 4-7, 8-15, 16-31, and so on.

    Args:
        run: an open run. Of more than 2,000,000 tokens, whole documents of so many are measured.

    Returns:
        The columns of position.csv. Routers with more than 1,024 experts have no rows of shares.
    """
    run.need_tokens("the table position")
    rows = load_rows(run)
    frame = rows.frame
    kept = np.flatnonzero(frame["window_position"].to_numpy() >= schema.SINK_POSITIONS)
    if kept.size == 0:
        return stack_rows(POSITION_COLUMNS, [])
    documents, positions, places, clusters = (
        frame[name].to_numpy()[kept] for name in ("document", "position", "window_position", "cluster")
    )
    follows = np.flatnonzero(consecutive(documents, positions, places))
    buckets = octaves(places)
    frames = []
    for router in run.routers:
        experts = rows.experts(router)[kept]
        for measure, outcomes, of_rows, n_outcomes in _outcomes(router, experts, follows):
            frames += _bucket_rows(
                router, measure, buckets[of_rows], outcomes, clusters[of_rows], n_outcomes, rows.cluster_unit
            )
    return stack_rows(POSITION_COLUMNS, frames)


def _outcomes(
    router: schema.Router, experts: NDArray[np.int32], follows: NDArray[np.int64]
) -> Iterator[tuple[str, NDArray[np.integer], NDArray[np.int64], int]]:
    """Yield each measure with its outcomes, the rows that they are of, and how many there are; 0 is what is told of."""
    row, slot = np.nonzero(experts >= 0)
    if router.n_experts <= MOST_EXPERTS:
        yield "share", experts[row, slot], row, router.n_experts
    yield "dropped", (experts >= 0).ravel().astype(np.int64), np.repeat(np.arange(len(experts)), router.n_slots), 2
    held = follows[(experts[follows, 0] >= 0) & (experts[follows + 1, 0] >= 0)]
    yield "first_choice", (experts[held, 0] != experts[held + 1, 0]).astype(np.int64), held + 1, 2
    yield "either", (~meet(experts[held].T, experts[held + 1].T)).astype(np.int64), held + 1, 2


def _bucket_rows(
    router: schema.Router,
    measure: str,
    buckets: NDArray[np.int64],
    outcomes: NDArray[np.integer],
    clusters: NDArray[np.int64],
    n_outcomes: int,
    cluster_unit: str,
) -> list[pl.DataFrame]:
    told = np.arange(n_outcomes if measure == "share" else 1)
    overall = np.bincount(outcomes, minlength=n_outcomes)[told] / max(outcomes.size, 1)
    frames = []
    for bucket in bucket_shares(buckets, outcomes, clusters, n_outcomes):
        columns = {
            "value": bucket.shares.share[told],
            "ci_low": bucket.shares.low[told],
            "ci_high": bucket.shares.high[told],
            "baseline": overall,
        }
        if measure == "share":
            columns["expert"] = told
        same = {"measure": measure, "from_position": bucket.first, "to_position": bucket.last, "n": bucket.n}
        frames.append(router_rows(router, ANY_SLOT, "all", columns, {**same, "cluster_unit": cluster_unit}))
    return frames
