"""Documents are cut into shards as they come, and as a plan would that had known them all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.importers import cutting
from moe_probe.importers.cutting import Cutting, shard_rows
from moe_probe.importers.kept import Form
from moe_probe.store.plan import Windowing, lay_out

FORM = Form((0, 1), 2, 8, True)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 12), min_size=1, max_size=40), most=st.integers(1, 20))
def test_documents_lie_where_a_plan_of_all_of_them_puts_them(sizes, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_SHARD_ROWS", most)
        patch.setattr(cutting, "_LARGEST_SHARE", 10**9)
        cut = Cutting(FORM)
        begins, rooms = zip(*[(cut.add(size), cut.room) for size in sizes], strict=True)
    found, planned = cut.layout(), lay_out(sizes, Windowing(max(1, *sizes)), most)
    assert found.shards == planned.shards
    assert sum(begins) == len(planned.shards)
    for name in ("rows", "token_counts", "first_shard", "first_row"):
        assert getattr(found, name).tolist() == getattr(planned, name).tolist()
    assert found.windowing == planned.windowing
    inside = [place for place, size in enumerate(sizes) if size]
    for place in inside:
        assert rooms[place] >= found.shards[found.first_shard[place]].rows


def test_shards_are_long_where_the_trace_is_and_short_where_its_rows_are_wide():
    assert shard_rows(0, 128) == shard_rows(1_000_000, 128) == 65_536
    assert shard_rows(8_000_000, 100) == 500_000
    assert shard_rows(64_000_000, 100) == 1_000_000
    assert shard_rows(64_000_000, 1_856) == 128 * 2**20 // 1_856  # no more than 128 MB
    assert shard_rows(10, 2**40) == shard_rows(10, 0) // 65_536 == 1


def test_a_billion_rows_are_a_thousand_files():
    cut = Cutting(FORM)
    for _ in range(50_000):
        cut.add(20_000)
    assert 900 < len(cut.layout().shards) < 1_200
