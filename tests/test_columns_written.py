"""Routing files are written byte by byte here: three other libraries must read from them what was put in."""

from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.store.columnar import write_columns
from moe_probe.store.packing import pack

KINDS = {
    "uint8": [1, 2, 8, 64, 255],
    "uint16": [2, 256, 300, 512, 4_000, 65_535],
    "uint32": [2, 70_000, 2**31],
}


def write(path: Path, table: pa.Table, rows: int = 65_536) -> Path:
    with path.open("wb") as file:
        write_columns(file, table, rows, {b"key": "välue"})
    return path


def table_of(rows: int, seed: int = 0) -> pa.Table:
    """Return columns of every type and width, without nulls, with some, and of nothing else."""
    draw = np.random.default_rng(seed)
    columns = {}
    for kind, sizes in KINDS.items():
        for size in sizes:
            values = draw.integers(0, size, rows).astype(kind)
            columns[f"{kind}_{size}"] = pa.array(values)
            columns[f"{kind}_{size}_some"] = pa.array(values, mask=draw.random(rows) < 0.3)
    columns["none"] = pa.array(np.zeros(rows, np.uint8), mask=np.ones(rows, np.bool_))
    halves = draw.normal(size=rows).astype(np.float16)
    columns["half"] = pa.array(halves)
    columns["half_some"] = pa.array(halves, mask=draw.random(rows) < 0.3)
    return pa.table(columns)


def told(table: pa.Table) -> dict[str, list[float | None]]:
    """Return the values of columns as Python's numbers."""
    return {name: table[name].to_pylist() for name in table.column_names}


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 1_000, 20_001])
@pytest.mark.parametrize("row_group", [65_536, 640])
def test_pyarrow_polars_and_duckdb_read_what_was_written(tmp_path, rows, row_group):
    table = table_of(rows)
    path = write(tmp_path / "a.parquet", table, row_group)
    read = pq.read_table(path)
    assert read.schema.types == table.schema.types
    assert told(read) == told(table)
    frame = pl.read_parquet(path)
    assert frame.schema == pl.from_arrow(table).schema
    assert frame.to_dict(as_series=False) == told(table)
    assert told(duckdb.sql(f"from '{path}'").to_arrow_table()) == told(table)


def test_a_part_of_a_table_and_one_in_pieces_are_written_as_they_are(tmp_path):
    table = table_of(1_000)
    part, pieces = table.slice(3, 700), pa.concat_tables([table, table.slice(5)])
    assert told(pq.read_table(write(tmp_path / "a.parquet", part))) == told(part)
    assert told(pq.read_table(write(tmp_path / "b.parquet", pieces))) == told(pieces)


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    table = table_of(5).slice(0, 0)
    path = write(tmp_path / "a.parquet", table)
    assert pq.read_table(path).schema.types == table.schema.types
    assert pl.read_parquet(path).height == duckdb.sql(f"from '{path}'").shape[0] == 0


def test_the_footer_is_what_pyarrow_writes_of_the_same_table(tmp_path):
    table = table_of(3_000)
    ours = pq.read_metadata(write(tmp_path / "a.parquet", table, 2_000))
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=2_000, store_schema=False)
    theirs = pq.read_metadata(tmp_path / "b.parquet")
    assert ours.schema.equals(theirs.schema)
    assert (ours.num_rows, ours.num_row_groups, ours.format_version) == (3_000, 2, theirs.format_version)
    assert ours.metadata == {b"key": "välue".encode()}
    data, end = (tmp_path / "a.parquet").read_bytes(), 4
    for number in range(2):
        group = ours.row_group(number)
        assert group.num_rows == theirs.row_group(number).num_rows
        sizes = 0
        for place in range(group.num_columns):
            column = group.column(place)
            begin = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            assert begin == end, column.path_in_schema
            assert data[begin : begin + 2] == (b"\x15\x04" if column.has_dictionary_page else b"\x15\x00")
            assert data[column.data_page_offset : column.data_page_offset + 2] == b"\x15\x00"  # a page of data
            end += column.total_compressed_size
            sizes += column.total_uncompressed_size
        assert group.total_byte_size == sizes
    assert len(data) == end + ours.serialized_size + 8


def test_experts_are_packed_and_weights_compressed(tmp_path):
    draw = np.random.default_rng(0)
    experts = draw.integers(0, 64, 8_000, np.uint8)
    table = pa.table({"a": experts, "b": np.full(8_000, 0.5, np.float16)})
    first, second = (
        pq.read_metadata(write(tmp_path / "a.parquet", table)).row_group(0).column(place) for place in (0, 1)
    )
    assert (first.compression, first.encodings) == ("UNCOMPRESSED", ("PLAIN", "RLE", "RLE_DICTIONARY"))
    assert 6_000 < first.total_compressed_size < 6_400  # 6 bits each
    assert (second.compression, second.encodings) == ("ZSTD", ("RLE", "PLAIN"))
    assert second.total_compressed_size < 200 < 16_000 < second.total_uncompressed_size


def test_another_type_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"weight_0_0: of type double; experts are uint8"):
        write(tmp_path / "a.parquet", pa.table({"weight_0_0": [0.5]}))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data(), width=st.integers(1, 16), size=st.integers(0, 100))
def test_numbers_are_packed_lowest_bit_first(data, width, size):
    values = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=size, max_size=size))
    array = np.array(values, np.uint8 if width <= 8 else np.uint16)
    first, second = (int.from_bytes(row.tobytes(), "little") for row in pack([array, array[::-1]], width))
    assert first == sum(value << place * width for place, value in enumerate(values))
    assert second == sum(value << place * width for place, value in enumerate(reversed(values)))


def test_many_numbers_are_packed_as_a_few_are():
    draw = np.random.default_rng(0)
    for width in (3, 6, 9, 11, 16):
        values = draw.integers(0, 2**width, 300_000).astype(np.uint8 if width <= 8 else np.uint16)
        parts = [pack([values[begin : begin + 800]], width) for begin in range(0, len(values), 800)]
        assert pack([values], width).tobytes() == np.concatenate(parts, axis=1).tobytes()
