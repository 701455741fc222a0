"""Writes a table of experts, weights and scores as a Parquet file, row group by row group.

It does not know which columns there are. (Apache Parquet, README.md and parquet.thrift.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import pyarrow as pa

from moe_probe import __version__
from moe_probe.store.chunks import element, encode
from moe_probe.store.thrift import Value, binary, int16, int32, int64, sequence, struct

_MAGIC = b"PAR1"
_VERSION = 2


def write_columns(file: BinaryIO, table: pa.Table, row_group_rows: int, metadata: Mapping[bytes, str]) -> None:
    """Write a whole file.

    Args:
        file: open for writing, at its beginning.
        table: columns of unsigned integers and float16, with nulls or without.
        row_group_rows: rows of a row group, but for the last.
        metadata: keys and values that the footer holds.

    Raises:
        ValueError: if a column is of another type.
    """
    columns = {name: _whole(table.column(name)) for name in table.column_names}
    root = struct({4: binary(b"schema"), 5: int32(len(columns))})
    schema = [root, *(element(name, column.type) for name, column in columns.items())]
    file.write(_MAGIC)
    place = len(_MAGIC)
    groups: list[Value] = []
    for number, begin in enumerate(range(0, table.num_rows, row_group_rows)):
        parts = {name: column.slice(begin, row_group_rows) for name, column in columns.items()}
        group, place = _write_group(file, parts, number, place)
        groups.append(group)
    said = [struct({1: binary(key), 2: binary(value.encode())}) for key, value in metadata.items()]
    footer = {1: int32(_VERSION), 2: sequence(schema), 3: int64(table.num_rows), 4: sequence(groups)}
    _, data = struct(footer | {5: sequence(said), 6: binary(f"moe-probe version {__version__}".encode())})
    file.write(data + len(data).to_bytes(4, "little") + _MAGIC)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _write_group(file: BinaryIO, columns: Mapping[str, pa.Array], number: int, begin: int) -> tuple[Value, int]:
    """Write a row group at a byte of the file; return what the footer says of it, and the byte after it."""
    chunks: list[Value] = []
    place, uncompressed, rows = begin, 0, 0
    for name, chunk in zip(columns, encode(list(columns.values())), strict=True):
        for page in chunk.pages:
            file.write(page)
        chunks.append(struct({2: int64(0), 3: chunk.metadata(name, place)}))
        place += chunk.n_bytes
        uncompressed += chunk.uncompressed_bytes
        rows = chunk.rows
    fields = {1: sequence(chunks), 2: int64(uncompressed), 3: int64(rows)}
    return struct(fields | {5: int64(begin), 6: int64(place - begin), 7: int16(number)}), place
