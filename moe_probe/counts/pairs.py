"""Count which experts a token is sent to together, and which experts follow each other from router to router.

It does not know what the counts mean (measures/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.batches import in_batches
from moe_probe.counts.by_label import load_counts
from moe_probe.counts.cache import Part, narrow, remembered_parts
from moe_probe.counts.clusters import Clusters
from moe_probe.counts.experts import ANY_SLOT, SlotExperts, add_codes, iter_experts
from moe_probe.counts.selection import Selection, cache_file, source
from moe_probe.counts.wide import count_unit, wide_routers
from moe_probe.errors import RunError
from moe_probe.store.clusters import N_CLUSTERS

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard

MOST_EXPERTS = 1024
"""Routers with more are left out: their table of pairs would not fit into memory."""

_CHUNK_ROWS = 65_536
_BATCH_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class PairCounts:
    """How often the experts of one router were chosen together.

    A token's set is the experts of its executed slots. `together` (64, experts, experts) int64, symmetric, with a zero
    diagonal: tokens of the cluster whose set holds both. `loads` (64, experts): tokens whose set holds the expert.
    `sizes` (64, slots + 1): tokens by how many slots were executed. `cluster_unit` is "document" or "block".
    """

    together: NDArray[np.int64]
    loads: NDArray[np.int64]
    sizes: NDArray[np.int64]
    cluster_unit: str


def iter_coactivation_counts(run: Run, *, adjacent: bool = False) -> Iterator[tuple[schema.Router, PairCounts]]:
    """Yield each router with how often its experts were chosen together, over all tokens but for sinks.

    Routers with more than 1,024 experts are left out.

    Args:
        run: an open run.
        adjacent: count only pairs of neighbouring slots, the first with the second, the second with the third.

    Raises:
        RunError: a token has an expert twice.
    """
    routers = [router for router in run.routers if router.n_experts <= MOST_EXPERTS]
    if not routers:
        return
    # By the same rule as every count over all tokens, and kept with them.
    unit = count_unit(run) if wide_routers(run) else load_counts(run, "phase", 0, "all").cluster_unit
    rows = Selection()
    kind = "adjacent" if adjacent else "pairs"
    parts = remembered_parts(
        cache_file(run, f"{kind}-{rows.name}"),
        source(run, run.shards, (kind, unit, *rows.what())),
        len(routers),
        partial(_count_pairs, run, routers, rows, unit, adjacent),
    )
    for index, part in parts:
        router = routers[index]
        one, other = np.triu_indices(router.n_experts, 1)
        cells = np.zeros((N_CLUSTERS, router.n_experts**2), dtype=np.int64)
        for cluster, counts in zip(part["clusters"], part["together"], strict=True):
            cells[cluster, one * router.n_experts + other] = counts
            cells[cluster, other * router.n_experts + one] = counts
        together = cells.reshape(N_CLUSTERS, router.n_experts, router.n_experts)
        yield router, PairCounts(together, part["loads"].astype(np.int64), part["sizes"].astype(np.int64), unit)


def iter_transition_counts(run: Run) -> Iterator[tuple[schema.Router, schema.Router, NDArray[np.int64]]]:
    """Yield each two consecutive routers with how often a first choice followed another, (experts, next experts).

    Counted are all tokens, but for sinks, of which both routers executed the first choice. Pairs with a router of more
    than 1,024 experts are left out.

    Args:
        run: an open run.
    """
    steps = [
        (one, other) for one, other in pairwise(run.routers) if max(one.n_experts, other.n_experts) <= MOST_EXPERTS
    ]
    rows = Selection()
    parts = remembered_parts(
        cache_file(run, f"transitions-{rows.name}"),
        source(run, run.shards, ("transitions", *rows.what())),
        len(steps),
        partial(_count_transitions, run, steps, rows),
    )
    for index, part in parts:
        yield *steps[index], part["counts"].astype(np.int64)


class _Pairs:
    """The pairs of one router, while they are counted: from a lower slot's expert to a higher one's."""

    def __init__(self, router: schema.Router, adjacent: bool) -> None:
        self.router = router
        slots = range(router.n_slots)
        pairs = list(pairwise(slots) if adjacent else combinations(slots, 2))
        self._slots = np.array(pairs, dtype=np.int64).reshape(-1, 2).T  # (2, pairs)
        self._pairs = np.zeros((N_CLUSTERS, router.n_experts**2), dtype=np.int64)
        self._loads = np.zeros((N_CLUSTERS, router.n_experts), dtype=np.int64)
        self._sizes = np.zeros((N_CLUSTERS, router.n_slots + 1), dtype=np.int64)

    @staticmethod
    def bytes_of(router: schema.Router) -> int:
        """Return what it takes in memory."""
        return N_CLUSTERS * router.n_experts**2 * 8

    def add(self, slots: Sequence[SlotExperts], bounds: NDArray[np.int64]) -> None:
        """Add rows that are sorted by cluster; those of cluster c lie from `bounds[c]` to `bounds[c + 1]`."""
        n_rows = int(bounds[-1])
        experts = np.empty((len(slots), n_rows), dtype=np.int32)
        for slot, held in enumerate(slots):
            experts[slot] = held.experts
            if held.missing is not None:
                experts[slot, held.missing] = schema.DROPPED
        for cluster in np.flatnonzero(np.diff(bounds)):
            for start in range(bounds[cluster], bounds[cluster + 1], _CHUNK_ROWS):
                self._add(cluster, experts[:, start : min(start + _CHUNK_ROWS, bounds[cluster + 1])])

    def _add(self, cluster: int, experts: NDArray[np.int32]) -> None:
        """Add rows of one cluster: `experts` (slots, rows), -1 where dropped."""
        executed = experts >= 0
        add_codes(self._sizes[cluster], executed.sum(axis=0))
        add_codes(self._loads[cluster], experts[executed])
        one, other = experts[self._slots]  # (pairs, rows) each
        codes = one * self.router.n_experts + other
        add_codes(self._pairs[cluster], codes.ravel() if executed.all() else codes[(one >= 0) & (other >= 0)])

    def part(self, path: object) -> Part:
        """Return the counts of pairs in either order, each once, of the clusters that have any."""
        n_experts = self.router.n_experts
        clusters = np.flatnonzero(self._sizes.any(axis=1))
        one, other = np.triu_indices(n_experts, 1)
        together = np.zeros((len(clusters), len(one)), dtype=np.min_scalar_type(2 * int(self._pairs.max(initial=0))))
        for place, cluster in enumerate(clusters):
            table = self._pairs[cluster].reshape(n_experts, n_experts)
            if table.trace():
                twice = int(table.diagonal().argmax())
                raise RunError(
                    f"{path}: router {self.router.index} has tokens that hold expert {twice} in two slots; the run is "
                    "damaged, trace or import it again"
                )
            together[place] = (table + table.T)[one, other]
        of_all = {"loads": narrow(self._loads), "sizes": narrow(self._sizes)}
        return {"together": together, "clusters": clusters} | of_all


def _count_pairs(
    run: Run, routers: Sequence[schema.Router], rows: Selection, unit: str, adjacent: bool
) -> Iterator[Part]:
    clusters = Clusters(run, unit)
    for batch in in_batches(routers, _Pairs.bytes_of, _BATCH_BYTES):
        counted = [_Pairs(router, adjacent) for router in batch]
        for shard in run.iter_shards():
            order, bounds = _by_cluster(shard, rows, clusters)
            for (_, slots), pairs in zip(iter_experts(shard, batch, ANY_SLOT, order), counted, strict=True):
                pairs.add(slots, bounds)
        while counted:
            yield counted.pop(0).part(run.path)


def _by_cluster(shard: Shard, rows: Selection, clusters: Clusters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the counted rows of a shard in the order of their clusters, and where each cluster begins, (65,)."""
    here = rows.rows(shard, clusters.columns)
    places = np.flatnonzero(here.counted)
    positions = here.columns["position"][places] if "position" in clusters.columns else None
    cluster = clusters.of(here.columns["document"][places], positions)
    sizes = np.bincount(cluster, minlength=N_CLUSTERS)
    return places[np.argsort(cluster, kind="stable")], np.concatenate([[0], np.cumsum(sizes)])


def _count_transitions(
    run: Run, steps: Sequence[tuple[schema.Router, schema.Router]], rows: Selection
) -> Iterator[Part]:
    totals = {other.index: np.zeros(one.n_experts * other.n_experts, dtype=np.int64) for one, other in steps}
    routers = [router for router in run.routers if router.index in totals or router.index + 1 in totals]
    for shard in run.iter_shards():
        places = np.flatnonzero(rows.rows(shard).counted)
        before: SlotExperts | None = None
        for router, (first, *_) in iter_experts(shard, routers, 0, places):
            if before is not None and router.index in totals:
                add_codes(totals[router.index], _steps(before, first, router.n_experts))
            before = first
    for one, other in steps:
        yield {"counts": narrow(totals[other.index]).reshape(one.n_experts, other.n_experts)}


def _steps(first: SlotExperts, second: SlotExperts, n_experts: int) -> NDArray[np.int64]:
    """Return a code for each token's two experts, those left out of which one was dropped."""
    codes = first.experts.astype(np.int64) * n_experts + second.experts
    missing = [slot.missing for slot in (first, second) if slot.missing is not None]
    return codes[~np.logical_or.reduce(missing)] if missing else codes
