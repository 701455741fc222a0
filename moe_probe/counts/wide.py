"""Count the loads of routers with very many experts, such as those that retrieve from a million by product keys.

Counts by label, by token type and by cluster hold a number for each expert, and do not fit into memory there: they are
refused, with the number. What is counted here does fit: each expert's load, and, by slot and cluster, that of the 1,024
experts with most. It does not know what a load means (measures/).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.cache import Part, narrow, remembered_parts
from moe_probe.counts.clusters import Clusters, unit_for
from moe_probe.counts.experts import ANY_SLOT, add_codes, iter_experts
from moe_probe.counts.selection import Selection, cache_file, source
from moe_probe.errors import BadInputError
from moe_probe.store.clusters import N_CLUSTERS

if TYPE_CHECKING:
    from moe_probe.store import Run

MOST_EXPERTS = 2**14
"""Routers with more are told of by their loads alone."""
MOST_TOLD = 1024
"""So many of their experts, those with most assignments, have numbers of their own."""


@dataclass(frozen=True, eq=False)
class ExpertLoads:
    """What is counted of one router, over all tokens but the first four of each window.

    `load` (experts,) is each expert's assignments in any slot. `told` (m,) are the experts with most, ascending, at
    most 1,024 and none without an assignment; `clustered` (slots, 64, m + 1) are their assignments by slot and cluster,
    those of all others in the last column. `n` is how many token rows were counted, `documents` how many documents and
    `domains` how many domains have one; `cluster_unit` is "document" or "block".
    """

    router: schema.Router
    load: NDArray[np.int64]
    told: NDArray[np.int64]
    clustered: NDArray[np.int64]
    n: int
    documents: int
    domains: int
    cluster_unit: str


def wide_routers(run: Run) -> list[schema.Router]:
    """Return the routers that have too many experts for counts by label, type or cluster."""
    return [router for router in run.routers if router.n_experts > MOST_EXPERTS]


def refuse_wide(run: Run, what: str) -> None:
    """Refuse to count a run that has such a router.

    Args:
        run: an open run.
        what: what was to be counted, for the message.

    Raises:
        BadInputError: naming the router and how many experts it has.
    """
    for router in wide_routers(run)[:1]:
        raise BadInputError(
            f"{what}: router {router.index} ({router.name}) has {router.n_experts:,} experts, and this is counted of "
            f"up to {MOST_EXPERTS:,}; load, balance, repetition, position and paths can be had, and SQL (Run.sql)"
        )


def iter_expert_loads(run: Run) -> Iterator[ExpertLoads]:
    """Yield each router's loads; memory is for one router's experts, and for 1,024 by slot and cluster.

    Args:
        run: an open run.
    """
    rows = Selection()
    n, documents = _counted(run, rows)
    unit = unit_for(len(documents))
    names = run.documents().filter(pl.col("document").is_in(documents.tolist()))["domain"]
    parts = remembered_parts(
        cache_file(run, f"loads-{rows.name}"),
        source(run, run.shards, ("loads", unit, MOST_TOLD, *rows.what())),
        len(run.routers),
        partial(_count, run, rows, unit),
    )
    for index, part in parts:
        router = run.routers[index]
        load = np.zeros(router.n_experts, dtype=np.int64)
        load[part["experts"]] = part["loads"]
        told, clustered = part["told"].astype(np.int64), part["clustered"].astype(np.int64)
        yield ExpertLoads(router, load, told, clustered, n, len(documents), names.drop_nulls().n_unique(), unit)


def count_unit(run: Run) -> str:
    """Return what a cluster is where all tokens but the first four of each window are counted."""
    return unit_for(len(_counted(run, Selection())[1]))


def _counted(run: Run, rows: Selection) -> tuple[int, NDArray[np.int32]]:
    """Return how many rows are counted, and the documents that they are of."""
    n = 0
    documents = np.zeros(0, dtype=np.int32)
    for shard in run.iter_shards():
        here = rows.rows(shard, ["document"])
        n += int(here.n_counted.sum())
        documents = np.union1d(documents, here.columns["document"][here.counted])
    return n, documents


def _count(run: Run, rows: Selection, unit: str) -> Iterator[Part]:
    clusters = Clusters(run, unit)
    for router in run.routers:
        load = np.zeros(router.n_experts, dtype=np.int64)
        for shard in run.iter_shards():
            places = np.flatnonzero(rows.rows(shard).counted)
            for _, slots in iter_experts(shard, [router], ANY_SLOT, places):
                for held in slots:
                    add_codes(load, held.experts if held.missing is None else held.experts[~held.missing])
        # Of equal loads the lower expert is told.
        most = np.argsort(-load, kind="stable")[:MOST_TOLD]
        told = np.sort(most[load[most] > 0])
        seen = np.flatnonzero(load)
        clustered = _by_cluster(run, rows, clusters, router, told)
        yield {
            "experts": narrow(seen),
            "loads": narrow(load[seen]),
            "told": narrow(told),
            "clustered": narrow(clustered),
        }


def _by_cluster(
    run: Run, rows: Selection, clusters: Clusters, router: schema.Router, told: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count assignments, (slots, clusters, told experts and one more for all others)."""
    width = len(told) + 1
    total = np.zeros((router.n_slots, N_CLUSTERS * width), dtype=np.int64)
    for shard in run.iter_shards():
        here = rows.rows(shard, clusters.columns)
        places = np.flatnonzero(here.counted)
        positions = here.columns["position"][places] if "position" in clusters.columns else None
        starts = clusters.of(here.columns["document"][places], positions).astype(np.int64) * width
        for _, slots in iter_experts(shard, [router], ANY_SLOT, places):
            for slot, held in enumerate(slots):
                column = np.searchsorted(told, held.experts)
                is_told = column < len(told)
                is_told[is_told] = told[column[is_told]] == held.experts[is_told]
                codes = starts + np.where(is_told, column, len(told))
                add_codes(total[slot], codes if held.missing is None else codes[~held.missing])
    return total.reshape(router.n_slots, N_CLUSTERS, width)
