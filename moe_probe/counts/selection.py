"""Which token rows are counted: of which label, whole words or all, with or without the first of each window.

It does not know experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.cache import Source
from moe_probe.counts.filters import Filter
from moe_probe.errors import BadInputError, RunError

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard

TOKEN_ROWS = ("all", "word_initial")


@dataclass(frozen=True)
class Selection:
    """What is asked of a row to be counted.

    With `tokens` "word_initial" it must start a word: where the label set cuts the text into words, by its value, else
    by the run's `word_initial`. `label_set` None asks for no label.
    """

    label_set: schema.LabelSet | None = None
    tokens: str = "all"
    sinks: bool = False
    untagged: bool = True
    filter: Filter = field(default_factory=Filter)

    def __post_init__(self) -> None:
        if self.tokens not in TOKEN_ROWS:
            raise BadInputError(f"tokens {self.tokens!r}: choose one of {', '.join(TOKEN_ROWS)}")

    @property
    def name(self) -> str:
        """The same for the same selection, and fit for a file."""
        parts = [self.tokens, "sinks" if self.sinks else "", self.filter.name]
        return "-".join(part for part in parts if part)

    def what(self) -> tuple[object, ...]:
        """Return everything that the selection says, as values that JSON can hold."""
        label = None if self.label_set is None else self.label_set.as_dict()
        return (label, self.tokens, self.sinks, self.untagged, self.filter.name)

    def rows(self, shard: Shard, columns: Iterable[str] = ()) -> tuple[pl.DataFrame, NDArray[np.bool_]]:
        """Return some columns of all rows of a shard, the label as `label`, and which rows are counted.

        Raises:
            RunError: a row has no value of the label.
        """
        label_set = self.label_set
        wanted = [*columns, *self.filter.columns]
        wanted += [] if self.sinks else ["window_position"]
        by_label = label_set is not None and label_set.word_level
        wanted += ["word_initial"] if self.tokens == "word_initial" and not by_label else []
        # With no column asked for, all would come.
        frame = shard.tokens(list(dict.fromkeys(wanted or ["document"])))
        if label_set is not None:
            frame = frame.with_columns(label=_checked(shard, label_set.name))
        counted = self.filter.keeps(frame)
        if not self.sinks:
            counted &= (frame["window_position"] >= schema.SINK_POSITIONS).to_numpy()
        if self.tokens == "word_initial":
            starts = ~_is_any(frame["label"], schema.NOT_WORDS) if by_label else frame["word_initial"].to_numpy()
            counted &= starts
        if label_set is not None and not self.untagged:
            counted &= ~_is_any(frame["label"], [schema.UNTAGGED])
        return frame, counted


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


def source(run: Run, shards: Iterable[int], what: Iterable[object]) -> Source:
    """Return all that a count of these shards depends on; the labels lie in the tokens."""
    run.need_tokens("a count that was not kept")
    names = [schema.DOCUMENTS_FILE]
    for shard in shards:
        names += [schema.tokens_file(shard), schema.routing_file(shard)]
    routers = [[router.n_experts, router.n_slots] for router in run.routers]
    return Source(Path(run.path), tuple(names), (*what, routers))


def cache_file(run: Run, name: str) -> Path:
    """Return where a count of that name is kept."""
    return Path(run.path) / schema.COUNTS_FOLDER / f"{name}.npz"


def _checked(shard: Shard, label: str) -> pl.Series:
    values = shard.categories(label)
    if values.null_count():
        raise RunError(
            f"{shard.run.path}: {schema.tokens_file(shard.number)} has rows without a value of the label "
            f"{label!r}; make it anew with `moe-probe label {shard.run.path} --with {label}`"
        )
    return values


def _is_any(labels: pl.Series, values: Iterable[str]) -> NDArray[np.bool_]:
    return labels.is_in(list(values)).to_numpy()


def label_codes(labels: pl.Series, counted: NDArray[np.bool_]) -> tuple[list[str], NDArray[np.integer]]:
    """Return the values that rows which are counted have, sorted, and each row's place among them, (rows,).

    Rows that are not counted have any place.

    Example:
        >>> label_codes(pl.Series(["b", "a", "c", "b"], dtype=pl.Categorical), np.array([True, True, False, True]))
        (['a', 'b'], array([1, 0, 0, 1], dtype=int32))
    """
    # By the numbers that stand for the values: as strings they would cost more than all the counting.
    numbers = labels.to_physical().to_numpy()
    size = int(numbers.max(initial=0)) + 1
    example = np.full(size + 1, -1)
    example[np.where(counted, numbers, np.int64(size))] = np.arange(len(numbers))
    seen = np.flatnonzero(example[:size] >= 0)
    found = labels.gather(example[seen]).cast(pl.String)
    order = found.arg_sort().to_numpy()
    place = np.zeros(size, dtype=np.int32)
    place[seen[order]] = np.arange(len(found))
    return found.gather(order).to_list(), place[numbers]
