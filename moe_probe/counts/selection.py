"""Which token rows are counted: of which label, whole words or all, with or without the first of each window.

It does not know experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.cache import Source
from moe_probe.counts.filters import Filter
from moe_probe.errors import BadInputError, RunError
from moe_probe.store.part import Texts

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard

TOKEN_ROWS = ("all", "word_initial")


@dataclass(frozen=True, eq=False)
class Rows:
    """All rows of a shard, and what was asked of them.

    `columns` are some of the tokens', (rows,) each. `kept` (rows,) says which rows may be counted for all but their
    label. `labels` are those, where none was asked for all "", and `asked` says which of `labels.different` count.
    """

    columns: Mapping[str, NDArray[Any]]
    kept: NDArray[np.bool_]
    labels: Texts
    asked: NDArray[np.bool_]

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Which rows are counted, (rows,)."""
        return self.kept if self.asked.all() else self.kept & self.asked.take(self.labels.places)

    @cached_property
    def n_counted(self) -> NDArray[np.int64]:
        """How many rows are counted of each label, as in `labels.different`."""
        places, size = self.labels.places, len(self.asked)
        # Most often, few rows are not kept.
        others = np.bincount(places[np.flatnonzero(~self.kept)], minlength=size)
        return np.where(self.asked, np.bincount(places, minlength=size) - others, 0)

    def take(self, rows: NDArray[np.integer]) -> Rows:
        """Return some of the rows."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Rows(columns, self.kept[rows], Texts(self.labels.different, self.labels.places[rows]), self.asked)

    def label_places(self) -> tuple[list[str], NDArray[np.int32]]:
        """Return the labels that counted rows have, sorted, and the place of each of `labels.different` among them.

        That of one that no such row has is the number of those that are had.
        """
        had = [label if number else None for label, number in zip(self.labels.different, self.n_counted, strict=True)]
        found = sorted({label for label in had if label is not None})
        place = {label: number for number, label in enumerate(found)}
        return found, np.array([len(found) if label is None else place[label] for label in had], dtype=np.int32)


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

    def rows(self, shard: Shard, columns: Iterable[str] = ()) -> Rows:
        """Return all rows of a shard with some columns of numbers, their labels, and which of them are counted.

        Raises:
            RunError: a row has no value of the label.
        """
        label = "" if self.label_set is None else self.label_set.name
        by_label = self.label_set is not None and self.label_set.word_level
        whole_words = self.tokens == "word_initial"
        wanted = [*columns, *self.filter.columns]
        wanted += [] if self.sinks else ["window_position"]
        wanted += ["word_initial"] if whole_words and not by_label else []
        of_texts = {*([label] if label else []), *([] if self.filter.phase is None else ["phase"])}
        numbers, texts = shard.columns(wanted, of_texts)
        kept = self.filter.keeps(shard.rows, numbers, texts.get("phase"))
        if not self.sinks:
            kept &= numbers["window_position"] >= schema.SINK_POSITIONS
        if whole_words and not by_label:
            kept &= numbers["word_initial"]
        labels = _checked(shard, label, texts[label]) if label else Texts(("",), np.zeros(shard.rows, np.int32))
        refused = {
            *(schema.NOT_WORDS if whole_words and by_label else ()),
            *(() if self.untagged else (schema.UNTAGGED,)),
        }
        return Rows(numbers, kept, labels, np.array([name not in refused for name in labels.different], np.bool_))


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


def _checked(shard: Shard, label: str, values: Texts) -> Texts:
    if values.places.min(initial=0) < 0:
        raise RunError(
            f"{shard.run.path}: {schema.tokens_file(shard.number)} has rows without a value of the label "
            f"{label!r}; make it anew with `moe-probe label {shard.run.path} --with {label}`"
        )
    return values
