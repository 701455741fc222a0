"""Reads the files of one shard of a run. It does not know which shards there are, nor whether they are whole."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import RunError
from moe_probe.schema import Router, probabilities_column, probabilities_file, routing_file, tokens_file
from moe_probe.store.columns import Floats, probabilities_of
from moe_probe.store.packed import find_packed

if TYPE_CHECKING:
    from moe_probe.store.run import Run


@dataclass(frozen=True, eq=False)
class Texts:
    """A column of texts: the `different` ones, in any order, and the place of each row's among them, -1 for none."""

    different: tuple[str, ...]
    places: npt.NDArray[np.int32]

    def are(self, texts: Collection[str]) -> npt.NDArray[np.bool_]:
        """Return which rows have one of some texts, (rows,)."""
        # The last is that of place -1.
        wanted = np.array([*(text in texts for text in self.different), False], dtype=np.bool_)
        return wanted.take(self.places)


class ExpertColumn(NamedTuple):
    """What one slot of a router held: `experts` (rows,), 0 where dropped; `missing` (rows,) says which, None: none.

    No number in `experts` is above `highest`, or that is not known.
    """

    experts: npt.NDArray[np.unsignedinteger]
    missing: npt.NDArray[np.bool_] | None
    highest: int | None


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

    def columns(
        self, numbers: Collection[str], texts: Collection[str] = ()
    ) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Texts]]:
        """Return columns of the tokens, by their names, as arrays.

        Texts are a dictionary on disk. pyarrow hands them on as one; Polars makes a text a row of it, and to number the
        texts again takes longer than to read them.

        Args:
            numbers: names of columns of numbers or of truth values.
            texts: names of columns of texts: of labels, or "phase".

        Raises:
            RunError: the file cannot be read, or a label is of two makings, for a relabelling was cut short.
            BadInputError: the tokens have no such column.
        """
        wanted = list(dict.fromkeys([*numbers, *texts]))
        if not wanted:
            return {}, {}
        self.run.refuse_stale(self.run.token_schema(wanted))
        path = self.run.path / tokens_file(self.number)
        try:
            with pq.ParquetFile(path, read_dictionary=list(texts)) as file:
                table = file.read(columns=wanted, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: {error}") from error
        return {name: table[name].to_numpy() for name in numbers}, {name: _texts_of(table[name]) for name in texts}

    def routing(self, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a row a token: experts (unsigned, null where dropped), weights and scores (float32)."""
        wanted = list(columns) if columns is not None else self.run.routing_columns()
        frame = pl.read_parquet(self.run.path / routing_file(self.number), columns=wanted, glob=False)
        return frame.select(wanted).cast({pl.Float16: pl.Float32})

    def experts(self, columns: Sequence[str]) -> Iterator[ExpertColumn]:
        """Yield columns of experts, one at a time.

        Columns as they are written where nothing was dropped are unpacked when it is their turn, in less time than a
        reader of any Parquet file takes; the others are read by Polars, all at once.

        Raises:
            RunError: the file cannot be read, or is damaged.
        """
        path = self.run.path / routing_file(self.number)
        try:
            packed = find_packed(path, columns)
        except (OSError, pa.ArrowException) as error:
            raise RunError(f"{path}: {error}") from error
        others = [column for column in columns if column not in packed]
        frame = self.routing(others) if others else pl.DataFrame()
        for column in columns:
            if column not in packed:
                yield _expert_column(frame[column])
                continue
            try:
                experts = packed[column].unpack()
            except (OSError, RunError) as error:
                raise RunError(f"{path}: {column}: {error}") from error
            yield ExpertColumn(experts, None, packed[column].highest)

    def probabilities(self, router: Router) -> Floats:
        """Return the distribution over its experts of a router that has one, (tokens, experts); see `Run`."""
        path = self.run.path / probabilities_file(self.number)
        try:
            table = pq.read_table(path, columns=[probabilities_column(router.index)], partitioning=None)
            return probabilities_of(table.column(0), router)
        except (OSError, pa.ArrowException, RunError) as error:
            raise RunError(f"{path}: {error}") from error


def _texts_of(column: pa.ChunkedArray) -> Texts:
    chunks = column.unify_dictionaries().chunks if column.num_chunks > 1 else column.chunks
    different = tuple(chunks[0].dictionary.to_pylist()) if chunks else ()
    places = [(part.indices.fill_null(-1) if part.null_count else part.indices).to_numpy() for part in chunks]
    return Texts(different, places[0] if len(places) == 1 else np.concatenate([np.zeros(0, np.int32), *places]))


def _expert_column(column: pl.Series) -> ExpertColumn:
    missing = column.is_null().to_numpy() if column.null_count() else None
    experts = column.to_numpy() if missing is None else column.fill_null(0).to_numpy()
    return ExpertColumn(experts, missing, None)


def read_rows(path: Path, columns: Sequence[str], first: int, count: int) -> pl.DataFrame:
    """Return some rows of a file; Polars decodes only the row groups that they lie in."""
    rows = pl.scan_parquet(path, glob=False).select(columns).slice(first, count).collect()
    return rows.cast({pl.Float16: pl.Float32})


def stacked(frames: Sequence[pl.DataFrame], schema: dict[str, pl.DataType]) -> pl.DataFrame:
    """Return frames under each other; without any, one of the schema without rows."""
    return pl.concat(frames) if frames else pl.DataFrame(schema=schema)
