"""What a column of a table is: its type, unit, meaning and source; and the columns that several tables share.

Each table declares its columns beside the code that fills them, and takes their order and types from there, so that no
column lacks a meaning. It knows no data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl


class Column(NamedTuple):
    """One column of one table; `source` is the paper and section that the measure is from, if any."""

    name: str
    dtype: type[pl.DataType]
    unit: str
    definition: str
    source: str = ""


MIXTRAL = "Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088)"
COVER = "Cover & Thomas 2006, Elements of Information Theory, 2.3"
RULES = "Brin et al. 1997, Dynamic Itemset Counting, 4 (there called interest)"

LAYER = Column("layer", pl.Int64, "index", "Transformer block, counted from 0.")
ROUTER = Column("router", pl.Int64, "index", "Place of the router in the run; a layer may have two.")
EXPERT = Column("expert", pl.Int64, "index", "The model's own index of the expert, counted from 0.")
SLOT = Column(
    "slot",
    pl.String,
    "any, 0, 1 …",
    "Rank of the choice by its combine weight, 0 the heaviest; any: all slots together.",
)
TOKENS = Column(
    "tokens",
    pl.String,
    "all, word_initial",
    "Which tokens were counted. The first four positions of each window are left out, since they route oddly.",
)
ASSIGNMENTS = Column(
    "assignments", pl.Int64, "count", "Executed (token, router, slot) triples; a dropped slot is none."
)


def schema_of(columns: Sequence[Column]) -> dict[str, type[pl.DataType]]:
    """Return the names of columns with their types, in order."""
    return {column.name: column.dtype for column in columns}


def columns_table(files: Mapping[str, Sequence[Column]]) -> pl.DataFrame:
    """Return the meaning of every column: name, table, unit, definition, source.

    Args:
        files: the columns that each file holds, by the file's name without suffix.

    Example:
        >>> columns_table({"load": [LAYER]}).row(0)[:3]
        ('layer', 'load', 'index')
    """
    facts = ("name", "table", "unit", "definition", "source")
    return pl.DataFrame(
        [
            (column.name, file, column.unit, column.definition, column.source)
            for file in files
            for column in files[file]
        ],
        schema=dict.fromkeys(facts, pl.String),
        orient="row",
    )
