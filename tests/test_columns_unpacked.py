"""Columns of experts are unpacked from the pages that we write; Polars and NumPy say what is in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe import schema
from moe_probe.counts import load_counts
from moe_probe.errors import RunError
from moe_probe.store import Run, ShardFacts, chunks, open_run
from moe_probe.store.columnar import write_columns
from moe_probe.store.packed import find_packed
from moe_probe.store.parquet import write_routing

EXPERTS = "expert_0_0"


def write(path: Path, columns: dict[str, pa.Array], row_group: int = 65_536) -> Path:
    with path.open("wb") as file:
        write_columns(file, pa.table(columns), row_group, {})
    return path


def written_by_us(run: Run) -> Run:
    """Write the routing of a run as a trace does, what pyarrow wrote."""
    for shard in run.shards:
        path = run.path / schema.routing_file(shard)
        table = pq.read_table(path)
        with path.open("wb") as file:
            write_columns(file, table, 1_000, table.schema.metadata or {})
    return open_run(run.path)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    highest=st.sampled_from([0, 1, 2, 3, 4, 6, 7, 8, 15, 16, 40, 63, 64, 127, 128, 200, 255]),
    rows=st.sampled_from([300, 301, 304, 1_000, 2_047]),
    row_group=st.sampled_from([65_536, 1_000, 304, 301]),
    kind=st.sampled_from(["uint8", "uint16", "uint32"]),
)
def test_numbers_of_every_width_come_back(tmp_path_factory, seed, highest, rows, row_group, kind):
    values = np.random.default_rng(seed).integers(0, highest + 1, rows).astype(kind)
    values[::300] = highest  # in every row group
    path = write(tmp_path_factory.mktemp("file") / "a.parquet", {EXPERTS: values, "other": values}, row_group)
    found = find_packed(path, [EXPERTS])
    # The last row group may be so short that a dictionary does not pay.
    if all(
        pq.read_metadata(path).row_group(group).column(0).has_dictionary_page for group in range(-(-rows // row_group))
    ):
        assert list(found) == [EXPERTS]
        assert found[EXPERTS].unpack().tolist() == values.tolist()
        assert found[EXPERTS].highest == highest
    else:
        assert found == {}


@pytest.mark.parametrize("rows", [16_383, 16_384, 16_385, 32_768, 40_001, 70_007])
@pytest.mark.parametrize("highest", [1, 7, 63, 100, 255])
def test_columns_of_several_pages_and_row_groups_come_back(tmp_path, rows, highest):
    values = np.random.default_rng(rows).integers(0, highest + 1, (2, rows), np.uint8)
    path = write(tmp_path / "a.parquet", {"a": values[0], "b": values[1]})
    found = find_packed(path, ["b", "a"])
    assert [found[name].unpack().tolist() for name in "ab"] == values.tolist()


def test_what_a_trace_writes_is_unpacked_and_what_is_none_of_it_is_left(tmp_path):
    draw = np.random.default_rng(0)
    experts = {
        f"expert_{router}_{slot}": draw.integers(0, 8, 140_000, np.uint8) for router in (0, 1) for slot in (0, 1)
    }
    weights = {"weight_0_0": draw.random(140_000).astype(np.float16)}
    facts = ShardFacts((False, False), "made up")
    write_routing(tmp_path / "a.parquet", pa.table(experts | weights), facts)
    found = find_packed(tmp_path / "a.parquet", [*experts, *weights, "expert_9_0"])
    assert found.keys() == experts.keys()
    assert all((found[name].unpack() == values).all() for name, values in experts.items())


def test_columns_of_other_forms_are_left(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 8, 20_000, np.uint8)
    late = np.arange(20_000) == 19_999
    columns = {
        "some_dropped": pa.array(values, mask=values == 3),
        "one_dropped": pa.array(values, mask=late),
        "too_many": pa.array(values.astype(np.uint16) + 249),
        "good": pa.array(values),
    }
    path = write(tmp_path / "a.parquet", columns, 10_000)
    assert list(find_packed(path, list(columns))) == ["good"]
    frame = pl.read_parquet(path)
    assert (frame["good"].to_numpy() == find_packed(path, ["good"])["good"].unpack()).all()
    table = pa.table({"good": values})
    for number, options in enumerate(({}, {"use_dictionary": False}, {"compression": "none"}, {"compression": "zstd"})):
        pq.write_table(table, tmp_path / f"{number}.parquet", **options)
        assert find_packed(tmp_path / f"{number}.parquet", ["good"]) == {}
    monkeypatch.setattr(chunks, "PAGE_ROWS", 8_000)
    other_pages = write(tmp_path / "b.parquet", {"good": values})
    assert find_packed(other_pages, ["good"]) == {}
    assert (pl.read_parquet(other_pages)["good"].to_numpy() == values).all()


def small_run(tmp_path, n_experts: int, values: np.ndarray) -> Run:
    return written_by_us(write_run(tmp_path / "run", [values.reshape(-1, 1)], n_experts=n_experts))


def patch(path: Path, place: int, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    whole[place : place + len(data)] = data
    path.write_bytes(whole)


def test_a_dictionary_in_another_order_is_looked_up(tmp_path):
    values = np.arange(600) % 5
    run = small_run(tmp_path, 8, values)
    path = run.path / schema.routing_file(0)
    numbers = pq.read_metadata(path).row_group(0).column(0).data_page_offset - 20
    assert path.read_bytes()[numbers : numbers + 20] == np.arange(5, dtype="<u4").tobytes()
    patch(path, numbers, np.array([5, 1, 2, 3, 4], "<u4").tobytes())
    assert find_packed(path, [EXPERTS]) == {}
    assert load_counts(run, "phase")[0].ravel().tolist() == [0, 120, 120, 120, 120, 120, 0, 0]


def test_a_page_that_says_otherwise_is_left_to_polars(tmp_path):
    values = np.arange(600) % 5
    run = small_run(tmp_path, 8, values)
    path = run.path / schema.routing_file(0)
    data = path.read_bytes()
    begin = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    levels = data.index(b"\3\0\0\0\xb0\x09\1", begin)  # 600 times: there is a value
    patch(path, levels + 4, b"\xb0\x09\0")  # 600 times: there is none
    assert find_packed(path, [EXPERTS]) == {}


def test_an_expert_that_the_dictionary_lacks_is_an_error(tmp_path):
    run = small_run(tmp_path, 8, np.arange(600) % 5)
    assert load_counts(run, "phase")[0].sum() == 600
    path = run.path / schema.routing_file(0)
    column = pq.read_metadata(path).row_group(0).column(0)
    patch(path, column.dictionary_page_offset + column.total_compressed_size - 1, b"\xff")
    assert list(find_packed(path, [EXPERTS])) == [EXPERTS]
    with pytest.raises(RunError, match=r"routing/part-000000\.parquet: expert_0_0: expert 7 .* ends at 4; the run is"):
        load_counts(run, "phase")


def test_a_file_cut_short_while_it_is_read_is_an_error_and_not_the_end(tmp_path):
    path = write(tmp_path / "a.parquet", {EXPERTS: np.arange(40_000, dtype=np.uint8) % 5})
    column = find_packed(path, [EXPERTS])[EXPERTS]
    os.truncate(path, 9_000)
    with pytest.raises(RunError, match=r"the file ends [1-9]\d+ bytes too early; the run is damaged"):
        column.unpack()


def test_an_expert_that_the_router_lacks_is_an_error_in_any_row_group(tmp_path):
    values = np.concatenate([np.arange(1_000) % 3, np.arange(600) % 5, np.zeros(400, int)])
    with pytest.raises(RunError, match="has expert 4 in expert_0_0, but router 0 has 4 experts"):
        load_counts(small_run(tmp_path, 4, values), "phase")


def test_a_file_that_is_none_is_an_error(tmp_path):
    run = small_run(tmp_path, 8, np.arange(600) % 5)
    shard = next(run.iter_shards())
    (run.path / schema.routing_file(0)).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RunError, match=r"routing/part-000000\.parquet: "):
        list(shard.experts([EXPERTS]))


def test_columns_read_in_either_way_are_counted_together(tmp_path):
    draw = np.random.default_rng(0)
    n_experts, n_tokens, tags = (8, 5, 200), 1_900, np.array(["ADJ", "NOUN", "VERB", "continuation"])
    experts = [draw.permuted(np.tile(np.arange(size), (n_tokens, 1)), axis=1)[:, :2] for size in n_experts]
    experts[1][draw.random(n_tokens) < 0.2, 1] = -1
    upos, places = draw.choice(tags, n_tokens), draw.integers(0, 20, n_tokens)
    asked = {"labels": {"upos": upos}, "documents": np.arange(n_tokens) // 300, "window_position": places}
    run = written_by_us(write_run(tmp_path / "run", experts, n_experts=n_experts, shard_rows=900, **asked))
    columns = [schema.expert_column(router, slot) for router in range(3) for slot in range(2)]
    assert list(find_packed(run.path / schema.routing_file(0), columns)) == [*columns[:3], *columns[4:]]
    counts = load_counts(run, "upos")
    counted = (places >= 4) & (upos != "continuation")
    assert counts.n == counted.sum()
    for size, of_router, found in zip(n_experts, experts, counts, strict=True):
        expected = np.zeros((size, 3), np.int64)
        for column in of_router.T:
            rows = counted & (column >= 0)
            np.add.at(expected, (column[rows], np.searchsorted(tags, upos[rows])), 1)
        assert (found == expected).all()
