"""How documents are cut into windows, and windows into shards."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import BadInputError, RunError
from moe_probe.store.plan import (
    Windowing,
    check_same_plan,
    document_windows,
    fingerprint,
    lay_out,
    plan_json,
    shard_rows_for,
    shard_windows,
)


def test_a_document_that_fits_is_one_window():
    assert [(w.start, w.first, w.end) for w in document_windows(4, Windowing(context=4))] == [(0, 0, 4)]


def test_a_document_one_token_too_long_is_two_windows():
    assert [(w.start, w.first, w.end) for w in document_windows(5, Windowing(context=4))] == [(0, 0, 4), (4, 4, 5)]


def test_an_overlap_is_seen_twice_and_recorded_once():
    windows = list(document_windows(10, Windowing(context=6, stride=3)))
    assert [(w.start, w.first, w.end) for w in windows] == [(0, 0, 6), (3, 6, 9), (6, 9, 10)]


def test_special_tokens_take_room_in_each_window():
    windows = list(document_windows(5, Windowing(context=4, n_prefix=2)))
    assert [(w.start, w.end) for w in windows] == [(0, 2), (2, 4), (4, 5)]


def test_an_empty_document_has_no_window():
    assert list(document_windows(0, Windowing(context=4))) == []


def test_special_tokens_are_rows_only_where_asked_for():
    plain, special = (Windowing(context=4, n_prefix=1, special=special) for special in (False, True))
    assert [sum(w.rows(windowing) for w in document_windows(7, windowing)) for windowing in (plain, special)] == [7, 10]


cuts = st.builds(
    lambda context, stride, prefix, special: (context + prefix, min(stride, context - 1), prefix, special),
    st.integers(1, 12),
    st.integers(0, 11),
    st.integers(0, 2),
    st.booleans(),
).map(lambda cut: Windowing(*cut))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), cuts)
def test_windows_tile_a_document_exactly_and_never_exceed_the_context(n_tokens, windowing):
    windows = list(document_windows(n_tokens, windowing))
    assert [token for w in windows for token in range(w.first, w.end)] == list(range(n_tokens))
    assert all(0 < w.fed(windowing) <= windowing.context for w in windows)
    assert all(w.first - w.start == (windowing.stride if w.start else 0) for w in windows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), cuts, st.integers(1, 60))
def test_shards_end_at_windows_and_hold_every_row_once(counts, windowing, shard_rows):
    layout = lay_out(counts, windowing, shard_rows)
    every = [w for d, n in enumerate(counts) for w in document_windows(n, windowing, d)]
    by_shard = [list(shard_windows(layout, shard.number)) for shard in layout.shards]
    assert [w for shard in by_shard for w in shard] == every
    for shard, windows in zip(layout.shards, by_shard, strict=True):
        assert shard.rows == sum(w.rows(windowing) for w in windows) > 0
        assert shard.rows <= shard_rows or len(windows) == 1
    assert sum(shard.rows for shard in layout.shards) == sum(layout.rows)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=12), cuts, st.integers(1, 60))
def test_the_place_of_a_document_counts_the_rows_before_it(counts, windowing, shard_rows):
    layout = lay_out(counts, windowing, shard_rows)
    sizes = [shard.rows for shard in layout.shards]
    for document in range(len(counts)):
        if layout.rows[document]:
            before = sum(sizes[: layout.first_shard[document]]) + layout.first_row[document]
            assert before == sum(layout.rows[:document])
            assert layout.first_row[document] < sizes[layout.first_shard[document]]


def test_the_plan_of_many_documents_stays_small():
    layout = lay_out([500] * 200_000, Windowing(context=4096), 1_000_000)
    text = json.dumps(plan_json({"inputs": "x"}, layout))
    assert len(text) < 5_000
    assert json.loads(text)["tokens"] == 100_000_000


def test_shards_grow_with_the_corpus_and_shrink_with_wide_rows():
    assert shard_rows_for(10_000, 100) == 16_384
    assert shard_rows_for(6_400_000, 100) == 100_000
    assert shard_rows_for(10**9, 100) == 1_000_000
    assert shard_rows_for(10**9, 5_368_709) == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"context": 1, "n_prefix": 1},
            "context 1: the special tokens at a window's start take 1, which leaves no room for text; use at least 2",
        ),
        ({"context": 8, "stride": 8}, "stride 8: windows hold 8 tokens of text and must overlap by fewer; use 0 to 7"),
        ({"context": 8, "stride": -1}, "stride -1: "),
        ({"context": 1_000_001}, "context 1000001: a window must fit into a shard; use at most 1000000"),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(BadInputError, match=message):
        Windowing(**arguments)


@pytest.mark.parametrize("shard_rows", [0, 1_000_001])
def test_a_shard_is_never_empty_nor_larger_than_a_million_rows(shard_rows):
    with pytest.raises(BadInputError, match=f"shard_rows {shard_rows}: use 1 to 1000000"):
        lay_out([1], Windowing(context=4), shard_rows)


def test_a_fingerprint_changes_with_any_value_and_not_with_the_order():
    assert fingerprint({"a": 1, "b": "x"}) == fingerprint({"b": "x", "a": 1})
    assert len({fingerprint({"a": value}) for value in (1, 2, "1", None, [1])}) == 5


def test_another_plan_is_refused_by_naming_what_differs():
    layout = lay_out([5], Windowing(context=4), 10)
    old = plan_json({"inputs": "0" * 64, "settings": {"context": 256, "stride": 0}}, layout)
    check_same_plan("r", old, plan_json({"settings": {"stride": 0, "context": 256}, "inputs": "0" * 64}, layout))
    new = plan_json({"inputs": "0" * 64, "settings": {"context": 512, "stride": 0}}, layout)
    with pytest.raises(RunError, match=r"r: .*something else \(context was 256 and is 512\); resume it with the same"):
        check_same_plan("r", old, new)
    assert RunError.exit_status == 2
