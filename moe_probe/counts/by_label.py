"""Count a run: how many assignments of each router's experts fell on tokens of each label.

Everything that is said about a run is said from these integers. They are kept shard by shard in the run's `counts`
folder (`cache`). Counts are kept for 64 clusters of documents, by a hash of the document's name, so that intervals
cost the same for a thousand and for a billion tokens.

It does not know what a count means (measures/) nor how a table looks (tables.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.batches import in_batches
from moe_probe.counts.cache import Counted, remembered
from moe_probe.errors import BadInputError, RunError

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard

N_CLUSTERS = 64
TOKEN_ROWS = ("all", "word_initial")

_CHUNK_ROWS = 262_144
_BATCH_BYTES = 64 * 2**20


@dataclass(frozen=True, eq=False)
class LabelCounts:
    """Assignments by expert and label, router by router.

    `clustered[i]` is (clusters, experts, labels) for router i, int64. `arrays[i]`, and `counts[i]` for short, is its
    sum over clusters, (experts, labels). `labels` names the label axis, sorted. `slot` is "any" or a number, `tokens`
    says which token rows were counted, `sinks` whether the first four positions of each window were, `n` how many
    token rows. Dropped slots are counted nowhere, so that a router's sum may be less than n times its slots.
    """

    routers: tuple[schema.Router, ...]
    label_set: schema.LabelSet
    labels: tuple[str, ...]
    clustered: tuple[NDArray[np.int64], ...]
    slot: str | int
    tokens: str
    sinks: bool
    n: int

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


@dataclass(frozen=True)
class Scores:
    """Means, over tokens, of what one router's scores say; None where no score is known."""

    mean_token_entropy_bits: float | None
    mean_margin: float | None


def load_counts(
    run: Run, label: str = "upos", slot: str | int = "any", tokens: str | None = None, *, sinks: bool = False
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

    Raises:
        BadInputError: the run has no such label or slot.
        RunError: a label is missing on some row.
    """
    label_set = find_label(run, label)
    choice = _Choice(label_set, slot, tokens or ("word_initial" if label_set.word_level else "all"), sinks)
    _check_choice(run, choice)
    folder = Path(run.path) / schema.COUNTS_FOLDER

    def count_run() -> Counted:
        clusters = document_clusters(run)
        parts = [
            remembered(
                folder / f"part-{shard.number:06d}-{choice.name}.npz",
                _files(run, [shard.number]),
                partial(_count_shard, run, shard, choice, clusters),
            )
            for shard in run.iter_shards()
        ]
        return _merge(run.routers, parts)

    total = remembered(folder / f"all-{choice.name}.npz", _files(run, run.shards), count_run)
    return LabelCounts(
        routers=tuple(run.routers),
        label_set=label_set,
        labels=total.labels,
        clustered=tuple(_tables(run.routers, total)),
        slot=slot,
        tokens=choice.tokens,
        sinks=sinks,
        n=total.n,
    )


def load_scores(run: Run, *, sinks: bool = False) -> list[Scores]:
    """Return each router's mean entropy of a token, in bits, and mean margin, over all tokens.

    Rows without a number (no scores, or logits that were no numbers) are left out of the mean.

    Args:
        run: an open run.
        sinks: take in the first four positions of each window.
    """
    columns = [
        column
        for router, known in zip(run.routers, run.with_scores, strict=True)
        if known
        for column in (schema.entropy_column(router.index), schema.margin_column(router.index))
    ]
    name = f"scores{'-sinks' if sinks else ''}"
    total = np.zeros((2, len(columns)))
    for shard in run.iter_shards():
        path = Path(run.path) / schema.COUNTS_FOLDER / f"part-{shard.number:06d}-{name}.npz"
        part = remembered(path, _files(run, [shard.number]), partial(_add_up_scores, shard, columns, sinks))
        total += part.numbers.reshape(total.shape).astype(np.float64)
    means = {
        column: float(value) / float(count) if count else None
        for column, value, count in zip(columns, *total, strict=True)
    }
    return [
        Scores(means.get(schema.entropy_column(router.index)), means.get(schema.margin_column(router.index)))
        for router in run.routers
    ]


def find_label(run: Run, name: str) -> schema.LabelSet:
    """Return a run's label set by its name.

    Raises:
        BadInputError: the run has none of that name.
    """
    known: dict[str, schema.LabelSet] = {label_set.name: label_set for label_set in run.labels}
    known.setdefault("phase", schema.LabelSet("phase", "trace", word_level=False))
    if name not in known:
        raise BadInputError(
            f"label {name!r}: the run has no such label, it has {', '.join(known)}; "
            f"add it with `moe-probe label {run.path} --with {name}`"
        )
    return known[name]


def document_clusters(run: Run) -> NDArray[np.int64]:
    """Return the cluster, 0 to 63, of each document by its number: a hash of its name."""
    documents = run.documents()
    numbers = documents["document"].to_numpy()
    clusters = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int64)
    for number, name in zip(numbers, documents["name"], strict=True):
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        clusters[number] = int.from_bytes(digest, "little") % N_CLUSTERS
    return clusters


@dataclass(frozen=True)
class _Choice:
    """What is counted."""

    label_set: schema.LabelSet
    slot: str | int
    tokens: str
    sinks: bool

    @property
    def name(self) -> str:
        """The same for the same choice, and fit for a file."""
        return f"{self.label_set.name}-{self.slot}-{self.tokens}{'-sinks' if self.sinks else ''}"


def _check_choice(run: Run, choice: _Choice) -> None:
    n_slots = max((router.n_slots for router in run.routers), default=0)
    slot = choice.slot
    if slot != "any" and not (isinstance(slot, int) and 0 <= slot < n_slots):
        raise BadInputError(f"slot {slot!r}: the run has slots 0 to {n_slots - 1}; give one of them or 'any'")
    if choice.tokens not in TOKEN_ROWS:
        raise BadInputError(f"tokens {choice.tokens!r}: choose one of {', '.join(TOKEN_ROWS)}")


def _files(run: Run, shards: Sequence[int]) -> list[Path]:
    """Everything that counts of these shards depend on; the labels lie in the tokens."""
    names = [schema.DOCUMENTS_FILE]
    for shard in shards:
        names += [schema.tokens_file(shard), schema.routing_file(shard)]
    return [Path(run.path) / name for name in names]


def _merge(routers: Sequence[schema.Router], parts: Sequence[Counted]) -> Counted:
    """Add up shards that hold different labels and clusters."""
    labels = tuple(sorted({label for part in parts for label in part.labels}))
    place = {label: index for index, label in enumerate(labels)}
    totals = [np.zeros((N_CLUSTERS, router.n_experts, len(labels)), dtype=np.int64) for router in routers]
    for part in parts:
        cells = np.ix_(part.clusters, [place[label] for label in part.labels])
        for total, table in zip(totals, _tables(routers, part), strict=True):
            total.swapaxes(1, 2)[cells] += table.swapaxes(1, 2)
    numbers = np.concatenate([total.ravel() for total in totals]) if totals else np.zeros(0, dtype=np.int64)
    return Counted(sum(part.n for part in parts), labels, tuple(range(N_CLUSTERS)), numbers)


def _tables(routers: Sequence[schema.Router], counted: Counted) -> Iterator[NDArray[np.int64]]:
    """Yield each router's (clusters, experts, labels)."""
    start = 0
    for router in routers:
        shape = (len(counted.clusters), router.n_experts, len(counted.labels))
        stop = start + shape[0] * shape[1] * shape[2]
        yield counted.numbers[start:stop].reshape(shape).astype(np.int64, copy=False)
        start = stop


def _count_shard(run: Run, shard: Shard, choice: _Choice, clusters: NDArray[np.int64]) -> Counted:
    """Count one shard, holding one batch of routers' columns at a time."""
    kept, cells = _cells(run, shard, choice, clusters)
    n_cells = len(kept.clusters) * len(kept.labels)
    counted: list[NDArray[np.uint32]] = []
    starts = {size: cells * size for size in {router.n_experts for router in run.routers}}
    for batch in in_batches(run.routers, lambda router: _column_bytes(router, len(cells)), _BATCH_BYTES):
        columns = {router.index: _slot_columns(router, choice.slot) for router in batch}
        frame = shard.routing([column for names in columns.values() for column in names])
        for router in batch:
            size = router.n_experts
            table = np.zeros((n_cells + 1) * size, dtype=np.int64)
            for column in columns[router.index]:
                experts, missing = _experts(run, shard, router, frame[column])
                _add_column(table, starts[size], experts, missing)
            by_cell = table[: n_cells * size].reshape(len(kept.clusters), len(kept.labels), size)
            counted.append(by_cell.swapaxes(1, 2).astype(np.uint32).ravel())
    return replace(kept, numbers=np.concatenate(counted)) if counted else kept


def _cells(run: Run, shard: Shard, choice: _Choice, clusters: NDArray[np.int64]) -> tuple[Counted, NDArray[np.int64]]:
    """Return what a shard's cells stand for, and each row's cell: cluster times labels plus label.

    Rows that are not counted get one cell more than there are.
    """
    name = choice.label_set.name
    frame = shard.tokens(list(dict.fromkeys(["document", "window_position", "word_initial", name])))
    if frame[name].null_count():
        raise RunError(
            f"{run.path}: {schema.tokens_file(shard.number)} has rows without a value of the label {name!r}; "
            f"make it anew with `moe-probe label {run.path} --with {name}`"
        )
    counts = pl.Series(np.ones(len(frame), dtype=np.bool_))
    if choice.tokens == "word_initial" and choice.label_set.word_level:
        counts = ~frame[name].cast(pl.String).is_in(schema.NOT_WORDS)
    elif choice.tokens == "word_initial":
        counts = frame["word_initial"]
    if not choice.sinks:
        counts = counts & (frame["window_position"] >= schema.SINK_POSITIONS)
    labels = tuple(frame[name].filter(counts).unique().cast(pl.String).sort().to_list())
    # Values that only rows not counted have are no label here: they have no code, and those rows no cell.
    codes = frame[name].cast(pl.Enum(labels), strict=False).to_physical().fill_null(0).to_numpy().astype(np.int64)
    cluster = clusters[frame["document"].to_numpy()]
    present = np.flatnonzero(np.bincount(cluster, minlength=N_CLUSTERS))
    place = np.zeros(N_CLUSTERS, dtype=np.int64)
    place[present] = np.arange(present.size)
    cells = np.where(counts.to_numpy(), place[cluster] * len(labels) + codes, present.size * len(labels))
    kept = Counted(int(counts.sum()), labels, tuple(present.tolist()), np.zeros(0, dtype=np.uint32))
    return kept, cells


def _experts(
    run: Run, shard: Shard, router: schema.Router, column: pl.Series
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.bool_] | None]:
    """Return one slot's experts, 0 where dropped, and which those are (None: none).

    Refuses an expert that does not exist: it would be counted as another cell's.
    """
    missing = column.is_null().to_numpy() if column.null_count() else None
    experts = column.to_numpy() if missing is None else column.fill_null(0).to_numpy()
    highest = int(experts.max(initial=0))
    if highest >= router.n_experts:
        raise RunError(
            f"{run.path}: {schema.routing_file(shard.number)} has expert {highest} in {column.name}, but router "
            f"{router.index} has {router.n_experts} experts; the run is damaged, trace it again"
        )
    return experts, missing


def _add_column(
    table: NDArray[np.int64],
    starts: NDArray[np.int64],
    experts: NDArray[np.unsignedinteger],
    missing: NDArray[np.bool_] | None,
) -> None:
    """Add one slot's assignments to `table`, chunk by chunk so that the codes stay in the processor's cache.

    Args:
        table: (cells x experts,) the last cell is of rows that do not count.
        starts: (rows,) where each row's cell begins in `table`.
        experts: (rows,).
        missing: (rows,) rows whose slot was dropped.
    """
    for start in range(0, len(starts), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        codes = starts[rows] + experts[rows]
        if missing is not None:
            codes[missing[rows]] = len(table) - 1
        table += np.bincount(codes, minlength=len(table))


def _slot_columns(router: schema.Router, slot: str | int) -> list[str]:
    slots = range(router.n_slots) if slot == "any" else [s for s in [int(slot)] if s < router.n_slots]
    return [schema.expert_column(router.index, number) for number in slots]


def _column_bytes(router: schema.Router, n_rows: int) -> int:
    return n_rows * router.n_slots * schema.expert_bits(router.n_experts) // 8


def _add_up_scores(shard: Shard, columns: Sequence[str], sinks: bool) -> Counted:
    """Sum and count of the numbers in each column."""
    kept = shard.tokens(["window_position"])["window_position"].to_numpy() >= (0 if sinks else schema.SINK_POSITIONS)
    total = np.zeros((2, len(columns)))
    for index, column in enumerate(columns):
        values = shard.routing([column])[column].to_numpy()[kept].astype(np.float64)  # null becomes nan
        known = np.isfinite(values)
        total[:, index] = values[known].sum(), known.sum()
    return Counted(int(kept.sum()), (), (), total.ravel())
