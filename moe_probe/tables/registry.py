"""Every table that a run gives: the file it is written to, its columns, and how it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from moe_probe.tables.columns import Column
from moe_probe.tables.imbalance import BALANCE_COLUMNS, balance
from moe_probe.tables.labels import LABEL_COLUMNS, label_table
from moe_probe.tables.load import LOAD_COLUMNS, load_table

if TYPE_CHECKING:
    from moe_probe.store import Run

_FILE_OF_LABEL = {"upos": "syntax"}
_TAKEN = ("load", "balance", "columns", "tokens", "syntax", "run")


@dataclass(frozen=True)
class Table:
    """One table of a run; `file` has no suffix."""

    file: str
    columns: tuple[Column, ...]
    make: Callable[[], pl.DataFrame]


def tables_of(run: Run) -> list[Table]:
    """Return every table of a run, none of them made yet."""
    return [
        Table("load", LOAD_COLUMNS, partial(load_table, run)),
        Table("balance", BALANCE_COLUMNS, partial(balance, run)),
        *(
            Table(label_file(label_set.name), LABEL_COLUMNS, partial(label_table, run, label_set.name))
            for label_set in run.labels
        ),
    ]


def label_file(label: str) -> str:
    """Return the name, without suffix, of the file that a label set's table is written to.

    Example:
        >>> label_file("upos"), label_file("domain"), label_file("load")
        ('syntax', 'domain', 'label_load')
    """
    if label in _FILE_OF_LABEL:
        return _FILE_OF_LABEL[label]
    return f"label_{label}" if label in _TAKEN or label.startswith("label_") else label
