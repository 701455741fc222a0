"""Every table that a run gives: the file it is written to, its columns, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import polars as pl

from moe_probe.counts import load_counts, wide_routers
from moe_probe.errors import RunError
from moe_probe.tables.columns import Column
from moe_probe.tables.depths import PATH_COLUMNS, TRANSITION_COLUMNS, paths, transitions
from moe_probe.tables.distances import DIVERGENCE_COLUMNS, divergence
from moe_probe.tables.imbalance import BALANCE_COLUMNS, balance
from moe_probe.tables.information import SPECIALISATION_COLUMNS, specialisation
from moe_probe.tables.labels import LABEL_COLUMNS, label_table
from moe_probe.tables.load import LOAD_COLUMNS, load_table
from moe_probe.tables.names import EXPERT_COLUMNS, expert_names
from moe_probe.tables.neighbours import REPETITION_COLUMNS, repetition
from moe_probe.tables.pairs import COACTIVATION_COLUMNS, coactivation
from moe_probe.tables.places import POSITION_COLUMNS, position
from moe_probe.tables.tasks import AFFINITY_COLUMNS, affinity
from moe_probe.tables.words import (
    VOCABULARY_COLUMNS,
    VOCABULARY_SUMMARY_COLUMNS,
    vocabulary,
    vocabulary_summary,
)

if TYPE_CHECKING:
    from moe_probe.store import Run

_FILE_OF_LABEL = {"upos": "syntax"}
_OF_EVERY_RUN = (
    "load",
    "balance",
    "specialisation",
    "experts",
    "repetition",
    "position",
    "coactivation",
    "transitions",
    "paths",
    "vocabulary",
    "vocabulary_summary",
    "affinity",
    "divergence",
)
_OF_LOADS = ("load", "balance", "repetition", "position", "coactivation", "transitions", "paths")
"""The tables that can be made whatever the number of experts."""
_OF_COUNTS = ("load", "balance", "specialisation", "divergence")
"""Those that a run which holds counts only has, besides the tables of its labels."""
_TAKEN = (*_OF_EVERY_RUN, "columns", "tokens", "syntax", "run")


@dataclass(frozen=True)
class Table:
    """One table of a run; `file` has no suffix."""

    file: str
    columns: tuple[Column, ...]
    make: Callable[[], pl.DataFrame]


def tables_of(run: Run) -> list[Table]:
    """Return every table of a run, none of them made yet.

    A label's table is made once, also where the experts' names ask for it again. In a run with a router of more than
    16,384 experts there are none that hold a number for each expert and label, token or domain; in one that holds
    counts only, none that needs tokens, see `tables_left_out`.
    """
    left_out = tables_left_out(run)
    labels = [label_set.name for label_set in run.labels if label_file(label_set.name) not in left_out]

    @cache
    def of_label(label: str) -> pl.DataFrame:
        return label_table(run, label)

    def information() -> pl.DataFrame:
        return pl.concat([specialisation(run, label) for label in labels] or [pl.DataFrame(schema=_empty())])

    def names() -> pl.DataFrame:
        return expert_names(run, tables={label: of_label(label) for label in labels})

    every = [
        Table("load", LOAD_COLUMNS, partial(load_table, run)),
        Table("balance", BALANCE_COLUMNS, partial(balance, run)),
        *(Table(label_file(label), LABEL_COLUMNS, partial(of_label, label)) for label in labels),
        Table("specialisation", SPECIALISATION_COLUMNS, information),
        Table("experts", EXPERT_COLUMNS, names),
        Table("repetition", REPETITION_COLUMNS, partial(repetition, run)),
        Table("position", POSITION_COLUMNS, partial(position, run)),
        Table("coactivation", COACTIVATION_COLUMNS, partial(coactivation, run)),
        Table("transitions", TRANSITION_COLUMNS, partial(transitions, run)),
        Table("paths", PATH_COLUMNS, partial(paths, run)),
        Table("vocabulary", VOCABULARY_COLUMNS, partial(vocabulary, run)),
        Table("vocabulary_summary", VOCABULARY_SUMMARY_COLUMNS, partial(vocabulary_summary, run)),
        Table("affinity", AFFINITY_COLUMNS, partial(affinity, run)),
        *([Table("divergence", DIVERGENCE_COLUMNS, partial(divergence, run))] if "domain" in labels else []),
    ]
    every = [table for table in every if table.file not in left_out]
    return [table for table in every if table.file in _OF_LOADS] if wide_routers(run) else every


def tables_left_out(run: Run) -> tuple[str, ...]:
    """Return the files of the tables that cannot be made because a run holds counts only.

    Those of labels that too few documents have are among them.
    """
    if not run.counts_only:
        return ()
    labels = (label_set.name for label_set in run.labels)
    of_tokens = (name for name in _OF_EVERY_RUN if name not in _OF_COUNTS)
    return (*of_tokens, *(label_file(label) for label in labels if not _is_counted(run, label)))


def _is_counted(run: Run, label: str) -> bool:
    """Say whether the counts of a label can be had as tables need them: over its usual tokens, and over words."""
    try:
        load_counts(run, label)
        load_counts(run, label, 0, "word_initial")
    except RunError:
        return False
    return True


def _empty() -> dict[str, type[pl.DataType]]:
    return {column.name: column.dtype for column in SPECIALISATION_COLUMNS}


def label_file(label: str) -> str:
    """Return the name, without suffix, of the file that a label set's table is written to.

    Example:
        >>> label_file("upos"), label_file("domain"), label_file("load")
        ('syntax', 'domain', 'label_load')
    """
    if label in _FILE_OF_LABEL:
        return _FILE_OF_LABEL[label]
    return f"label_{label}" if label in _TAKEN or label.startswith("label_") else label
