"""Reads a label of a shard as numbers that stand for its values, which is what to count by.

A label's column is a dictionary on disk already. pyarrow hands it on as one; Polars makes a text a row of it, and to
number the texts again takes longer than to read them. It does not know what a label means.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import RunError
from moe_probe.schema import tokens_file

if TYPE_CHECKING:
    from moe_probe.store.run import Shard


def read_categories(shard: Shard, name: str) -> pl.Series:
    """Return a column of texts of a shard's tokens as a categorical series, null where there is none.

    Args:
        shard: where to read.
        name: of a label, or "phase".

    Raises:
        RunError: the file cannot be read, or the label is of two makings, for a relabelling was cut short.
        BadInputError: the tokens have no such column.
    """
    shard.run._refuse_stale(shard.run._token_schema([name]))
    path = shard.run.path / tokens_file(shard.number)
    try:
        with pq.ParquetFile(path, read_dictionary=[name]) as file:
            column = file.read(columns=[name], use_threads=False)[name]
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path}: {error}") from error
    values = pl.from_arrow(column)
    assert isinstance(values, pl.Series)
    return values.cast(pl.Categorical).alias(name)
