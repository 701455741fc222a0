"""Count a run: how many assignments of each router's experts fell on tokens of each label.

Everything that is said about a run is said from these integers. They are kept shard by shard in the run's `counts`
folder (`cache`), for 64 clusters (`clusters`), so that intervals cost the same for a thousand and for a billion tokens.

It does not know what a count means (measures/) nor how a table looks (tables/).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.cache import Kept, narrow, remembered
from moe_probe.counts.cells import find_cells
from moe_probe.counts.clusters import BLOCK, DOCUMENT, Clusters, unit_for
from moe_probe.counts.experts import ANY_SLOT, check_slot, iter_experts
from moe_probe.counts.filters import find_filter
from moe_probe.counts.selection import Selection, cache_file, find_label, source
from moe_probe.counts.wide import refuse_wide
from moe_probe.store.clusters import FEWEST_DOCUMENTS, N_CLUSTERS
from moe_probe.store.totals import no_totals

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Assignments by expert and label, router by router.

    `clustered[i]` is (64, experts, labels) for router i, int64. `arrays[i]`, and `counts[i]` for short, is its sum over
    clusters, (experts, labels). `labels` names the label axis, sorted. `slot` is "any" or a number, `tokens` says which
    token rows were counted, `sinks` whether the first four positions of each window were, `n` how many token rows.
    Dropped slots are counted nowhere, so that a router's sum may be less than n times its slots.

    `documents` is how many documents have a counted token that is not `untagged`, `domains` how many different domains
    these have. `cluster_unit` is "document", or "block" where they are fewer than five: clusters are then blocks of 256
    tokens, and what is said holds for this text only.
    """

    routers: tuple[schema.Router, ...]
    label_set: schema.LabelSet
    labels: tuple[str, ...]
    clustered: tuple[NDArray[np.int64], ...]
    slot: str | int
    tokens: str
    sinks: bool
    n: int
    cluster_unit: str
    documents: int
    domains: int

    @property
    def arrays(self) -> tuple[NDArray[np.int64], ...]:
        """One (experts, labels) array a router."""
        return tuple(self)

    def __getitem__(self, router: int) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self.clustered[router].sum(axis=0)
        return counts

    def __len__(self) -> int:
        return len(self.clustered)

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        return (self[router] for router in range(len(self)))


def load_counts(
    run: Run,
    label: str = "upos",
    slot: str | int = ANY_SLOT,
    tokens: str | None = None,
    *,
    sinks: bool = False,
    documents: Collection[int | str] | None = None,
    domain: str | None = None,
    phase: str | None = None,
    positions: tuple[int, int | None] | None = None,
) -> LabelCounts:
    """Count assignments by expert and label in every router.

    Args:
        run: an open run.
        label: one of the run's label sets, or "phase", which every run has.
        slot: "any", or the rank of the choice: 0 is the first.
        tokens: "all" or "word_initial"; by default word-initial for labels that cut the text into words, else all.
            Of such labels a row is word-initial where the value stands for a whole word; of others, where the run's
            `word_initial` says so.
        sinks: count also the first four positions of each window, which route oddly.
        documents: count these documents only, numbers or names.
        domain: count the documents of this domain only.
        phase: count "prompt" or "generated" tokens only.
        positions: count these places within a document only: the first, and the one after the last or None.

    Raises:
        BadInputError: the run has no such label, slot, document, domain or phase, or it has a router of more than
            16,384 experts.
        RunError: a label is missing on some row, or the run holds counts only and these are not among them: slots
            above 0 (of "phase" there are all), the first positions of windows, parts of a run, labels of fewer than
            five documents.
    """
    refuse_wide(run, f"counts by {label}")
    label_set = find_label(run, label)
    check_slot(run, slot)
    part_of_run = find_filter(run, documents, domain, phase, positions)
    if run.counts_only and part_of_run.name:
        run.need_tokens("counts of a part of the run (documents, domain, phase, positions)")
    rows = Selection(label_set, tokens or ("word_initial" if label_set.word_level else "all"), sinks, True, part_of_run)
    choice = _Choice(rows, slot)
    if run.counts_only:
        return _counted_before(run, choice)
    shards = part_of_run.shards(run)
    total = remembered(
        cache_file(run, f"all-{choice.name}"),
        source(run, shards, choice.what()),
        partial(_count_run, run, choice, shards),
    )
    return _label_counts(run, choice, total)


def _counted_before(run: Run, choice: _Choice) -> LabelCounts:
    """Return the counts of a run that holds nothing else, as far as they are among them."""
    name = choice.label_set.name
    if choice.rows.sinks:
        run.need_tokens("counts with the first positions of each window (sinks=True)")
    totals = run.totals(name) if run.shards else no_totals(run.routers)
    if choice.slot not in totals.slots(run.routers):
        run.need_tokens(f"counts by {name} of slot {choice.slot}, which was not counted apart from others,")
    found = totals.select(choice.slot, choice.rows.tokens == "word_initial")
    if unit_for(len(found.documents)) == BLOCK and found.n:
        run.need_tokens(
            f"counts by {name} of {len(found.documents)} document(s) with a {choice.rows.tokens} token that is not"
            f" {schema.UNTAGGED}, which is fewer than {FEWEST_DOCUMENTS},"
        )
    documents = run.documents()
    seen = pl.Series(np.isin(documents["document"].to_numpy(), found.documents))
    return LabelCounts(
        routers=tuple(run.routers),
        label_set=choice.label_set,
        labels=found.labels,
        clustered=found.clustered,
        slot=choice.slot,
        tokens=choice.rows.tokens,
        sinks=False,
        n=found.n,
        cluster_unit=DOCUMENT,
        documents=len(found.documents),
        domains=documents["domain"].filter(seen).drop_nulls().n_unique(),
    )


def _label_counts(run: Run, choice: _Choice, total: Kept) -> LabelCounts:
    facts = total.facts
    return LabelCounts(
        routers=tuple(run.routers),
        label_set=choice.label_set,
        labels=tuple(facts["labels"]),
        clustered=tuple(_all_clusters(run.routers, total)),
        slot=choice.slot,
        tokens=choice.rows.tokens,
        sinks=choice.rows.sinks,
        n=facts["n"],
        cluster_unit=facts["cluster_unit"],
        documents=facts["documents"],
        domains=facts["domains"],
    )


@dataclass(frozen=True)
class _Choice:
    """What is counted."""

    rows: Selection
    slot: str | int

    @property
    def label_set(self) -> schema.LabelSet:
        assert self.rows.label_set is not None
        return self.rows.label_set

    @property
    def name(self) -> str:
        """The same for the same choice, and fit for a file."""
        return f"{self.label_set.name}-{self.slot}-{self.rows.name}"

    def what(self) -> tuple[object, ...]:
        """Return everything that the choice says."""
        return ("labels", self.slot, *self.rows.what())


def _count_run(run: Run, choice: _Choice, shards: Sequence[int]) -> Kept:
    """Count with documents for clusters, and with blocks if there turn out to be too few."""
    if choice.rows.filter.n_documents(run) >= FEWEST_DOCUMENTS:
        total = _count_clustered(run, choice, shards, DOCUMENT)
        if unit_for(total.facts["documents"]) == DOCUMENT:
            return total
    return _count_clustered(run, choice, shards, BLOCK)


def _count_clustered(run: Run, choice: _Choice, shards: Sequence[int], unit: str) -> Kept:
    clusters = Clusters(run, unit)
    total = _Total(run)
    wanted = set(shards)
    for shard in run.iter_shards():
        if shard.number not in wanted:
            continue
        count = partial(_count_shard, shard, choice, clusters)
        if choice.rows.filter.name:
            # Only the sum of a part of a run is kept: there are many such parts, and few that are asked for again.
            total.add(count())
            continue
        name = f"part-{shard.number:06d}-{choice.name}{'-blocks' if unit == BLOCK else ''}"
        what = source(run, [shard.number], [unit, *choice.what()])
        total.add(remembered(cache_file(run, name), what, count))
    return total.kept(unit)


class _Total:
    """Adds up shards that hold different labels, clusters and documents, one at a time."""

    def __init__(self, run: Run) -> None:
        documents = run.documents()
        self._numbers = documents["document"].to_numpy()
        self._domains = documents["domain"]
        self._seen = np.zeros(int(self._numbers.max(initial=0)) + 1, dtype=np.bool_)
        self._labels: list[str] = []
        self._n = 0
        # (experts of all routers, labels) of each cluster that has any
        self._tables: dict[int, NDArray[np.int64]] = {}
        self._n_experts = sum(router.n_experts for router in run.routers)

    def add(self, part: Kept) -> None:
        """Add one shard."""
        self._n += part.facts["n"]
        self._seen[part.arrays["documents"]] = True
        labels = sorted({*self._labels, *part.facts["labels"]})
        if labels != self._labels:
            place = [labels.index(label) for label in self._labels]
            for cluster, old in self._tables.items():
                self._tables[cluster] = np.zeros((self._n_experts, len(labels)), dtype=np.int64)
                self._tables[cluster][:, place] = old
            self._labels = labels
        places = [labels.index(label) for label in part.facts["labels"]]
        same_labels = places == list(range(len(labels)))
        for cluster, counts in zip(part.facts["clusters"], part.arrays["numbers"], strict=True):
            if cluster not in self._tables:
                self._tables[cluster] = np.zeros((self._n_experts, len(labels)), dtype=np.int64)
            if same_labels:  # as most shards have, and a third of the time
                self._tables[cluster] += counts
            else:
                self._tables[cluster][:, places] += counts

    def kept(self, unit: str) -> Kept:
        """Return the sum, with the clusters that have a document."""
        clusters = sorted(cluster for cluster, table in self._tables.items() if table.any())
        tables = [narrow(self._tables[cluster]) for cluster in clusters]
        # (clusters, experts of all routers, labels)
        numbers = np.stack(tables) if tables else np.zeros((0, self._n_experts, len(self._labels)), dtype=np.uint8)
        domains = self._domains.filter(pl.Series(self._seen[self._numbers])).drop_nulls()
        facts = {"n": self._n, "labels": self._labels, "clusters": clusters, "cluster_unit": unit}
        facts |= {"documents": int(self._seen.sum()), "domains": domains.n_unique()}
        return Kept(facts, {"numbers": numbers})


def _all_clusters(routers: Sequence[schema.Router], kept: Kept) -> Iterator[NDArray[np.int64]]:
    """Yield each router's (64, experts, labels)."""
    table = kept.arrays["numbers"]
    start = 0
    for router in routers:
        stop = start + router.n_experts
        whole = np.zeros((N_CLUSTERS, router.n_experts, table.shape[2]), dtype=np.int64)
        whole[kept.facts["clusters"]] = table[:, start:stop]
        yield whole
        start = stop


def _count_shard(shard: Shard, choice: _Choice, clusters: Clusters) -> Kept:
    """Count one shard, holding one batch of routers' columns at a time."""
    cells = find_cells(shard, choice.rows, clusters)
    routers = shard.run.routers
    # (clusters, experts of all routers, labels)
    shape = len(cells.clusters), sum(router.n_experts for router in routers), len(cells.labels)
    numbers = np.empty(shape, dtype=np.int32)
    start = 0
    for router, slots in iter_experts(shard, routers, choice.slot, cells.rows):
        stop = start + router.n_experts
        numbers[:, start:stop] = cells.count(router.n_experts, slots)
        start = stop
    facts = {"n": cells.n, "labels": cells.labels, "clusters": cells.clusters}
    return Kept(facts, {"numbers": narrow(numbers), "documents": cells.documents})
