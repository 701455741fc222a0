"""Reads the files of one shard of a run. It does not know which shards there are, nor whether they are whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import RunError
from moe_probe.schema import Router, probabilities_column, probabilities_file, routing_file, tokens_file
from moe_probe.store.columns import Floats, probabilities_of

if TYPE_CHECKING:
    from moe_probe.store.run import Run


@dataclass(frozen=True)
class Shard:
    """One part of a run: `rows` tokens."""

    run: Run
    number: int
    rows: int

    def tokens(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a row a token: all columns, or those named."""
        wanted = list(self.run.token_schema(columns))
        self.run.refuse_stale(wanted)
        return pl.read_parquet(self.run.path / tokens_file(self.number), columns=wanted, glob=False).select(wanted)

    def categories(self, name: str) -> pl.Series:
        """Return a column of texts of the tokens as a categorical series, null where there is none.

        On disk it is a dictionary. pyarrow hands it on as one; Polars makes a text a row of it, and to number the texts
        again takes longer than to read them.

        Args:
            name: of a label, or "phase".

        Raises:
            RunError: the file cannot be read, or the label is of two makings, for a relabelling was cut short.
            BadInputError: the tokens have no such column.
        """
        self.run.refuse_stale(self.run.token_schema([name]))
        path = self.run.path / tokens_file(self.number)
        try:
            with pq.ParquetFile(path, read_dictionary=[name]) as file:
                column = file.read(columns=[name], use_threads=False)[name]
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: {error}") from error
        values = pl.from_arrow(column)
        assert isinstance(values, pl.Series)
        return values.cast(pl.Categorical).alias(name)

    def routing(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a row a token: experts (unsigned, null where dropped), weights and scores (float32)."""
        wanted = list(columns) if columns is not None else self.run.routing_columns()
        frame = pl.read_parquet(self.run.path / routing_file(self.number), columns=wanted, glob=False)
        return frame.select(wanted).cast({pl.Float16: pl.Float32})

    def probabilities(self, router: Router) -> Floats:
        """Return the distribution over its experts of a router that has one, (tokens, experts); see `Run`."""
        path = self.run.path / probabilities_file(self.number)
        try:
            table = pq.read_table(path, columns=[probabilities_column(router.index)], partitioning=None)
            return probabilities_of(table.column(0), router)
        except (OSError, pa.ArrowException, RunError) as error:
            raise RunError(f"{path}: {error}") from error


def read_rows(path: Path, columns: Sequence[str], first: int, count: int) -> pl.DataFrame:
    """Return some rows of a file; Polars decodes only the row groups that they lie in."""
    rows = pl.scan_parquet(path, glob=False).select(columns).slice(first, count).collect()
    return rows.cast({pl.Float16: pl.Float32})


def stacked(frames: Sequence[pl.DataFrame], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Return frames under each other; without any, one of the schema without rows."""
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)
