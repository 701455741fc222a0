from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_runs import is_counted, random_run, rows_of

from moe_probe import schema
from moe_probe.counts import TypeCounts, iter_expert_counts, load_type_counts
from moe_probe.errors import BadInputError, RunError
from moe_probe.store import Run, open_run

WORDS = ["the", "cat", "the", "cat", "saw"]
IDS = [7, 2, 7, 2, 9]
TAGS = ["DET", "NOUN", "DET", "VERB", "untagged"]
EXPERTS = np.array([[0, 1], [1, 2], [3, 0], [1, -1], [2, 1]])


def small_run(tmp_path, **more) -> Run:
    asked = {"labels": {"upos": TAGS}, "token": WORDS, "token_id": IDS} | more
    return write_run(tmp_path / "run", [EXPERTS], **asked)


def by_type(run: Run, types: TypeCounts, slot: str | int = 0) -> list[dict]:
    """A dict a router: (token id, expert) to count."""
    return [
        {
            (int(types.token_ids[place]), expert): int(table[place, expert])
            for place, expert in np.argwhere(table).tolist()
        }
        for _, table in iter_expert_counts(run, types, slot)
    ]


def test_hand_counted_types(tmp_path):
    run = small_run(tmp_path)
    types = load_type_counts(run, "upos")
    assert (types.token_ids.tolist(), types.tokens, types.labels) == ([2, 7], ("cat", "the"), ("DET", "NOUN", "VERB"))
    assert types.label_counts.tolist() == [[0, 1, 1], [2, 0, 0]]
    assert (types.rows, types.domain) == ("word_initial", None)
    ((router, experts),) = iter_expert_counts(run, types)
    assert router == run.routers[0]
    assert experts.dtype == np.int64
    assert experts.tolist() == [[0, 2, 0, 0], [1, 0, 0, 1]]
    assert by_type(run, types, "any") == [{(2, 1): 2, (2, 2): 1, (7, 0): 2, (7, 1): 1, (7, 3): 1}]


def test_types_of_all_tokens_and_of_a_domain(tmp_path):
    run = small_run(
        tmp_path,
        documents=[0, 0, 1, 1, 1],
        domains=["a", "b"],
        labels={"kind": ["x"] * 5},
        word_initial=[True, False, True, True, True],
    )
    assert load_type_counts(run, "kind").label_counts.ravel().tolist() == [1, 2, 1]
    assert load_type_counts(run, "kind", "all").label_counts.ravel().tolist() == [2, 2, 1]
    assert load_type_counts(run, "phase", "all").labels == ("prompt",)
    types = load_type_counts(run, "kind", "all", domain="b")
    assert types.token_ids.tolist() == [2, 7, 9]
    assert by_type(run, types) == [{(2, 1): 1, (7, 3): 1, (9, 2): 1}]
    with pytest.raises(BadInputError, match="domain 'c': the run has no such domain, it has a, b"):
        load_type_counts(run, "kind", domain="c")


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000),
    st.booleans(),
    st.sampled_from(["upos", "kind", "phase"]),
    st.sampled_from(["all", "word_initial"]),
    st.sampled_from([None, "code"]),
    st.sampled_from(["any", 0, 2]),
)
def test_type_counts_equal_a_loop_over_rows(tmp_path_factory, seed, missing, label, tokens, domain, slot):
    run = random_run(tmp_path_factory.mktemp("run"), seed, missing=missing)
    domain = domain if domain in set(run.documents()["domain"]) else None
    rows = [
        row
        for row in rows_of(run)
        if is_counted(row, label, tokens) and row[label] != "untagged" and domain in (None, row["domain"])
    ]
    for run_again in (run, open_run(run.path)):
        types = load_type_counts(run_again, label, tokens, domain=domain)
        assert types.token_ids.tolist() == sorted({row["token_id"] for row in rows})
        found = {
            (int(types.token_ids[place]), types.labels[code]): int(types.label_counts[place, code])
            for place, code in np.argwhere(types.label_counts).tolist()
        }
        assert found == dict(Counter((row["token_id"], row[label]) for row in rows))
        assert by_type(run_again, types, slot) == [
            dict(
                Counter(
                    (row["token_id"], expert)
                    for row in rows
                    for number, expert in enumerate(row["experts"][router.index])
                    if expert >= 0 and slot in ("any", number)
                )
            )
            for router in run.routers
        ]


def test_types_are_counted_once_and_then_read(tmp_path, monkeypatch):
    run = small_run(tmp_path, shard_rows=2)
    before = load_type_counts(run, "upos")
    experts = by_type(run, before)
    monkeypatch.setattr("moe_probe.store.Run.iter_shards", lambda run: pytest.fail("a shard was read again"))
    again = load_type_counts(open_run(run.path), "upos")
    assert (again.tokens, again.labels, again.rows) == (before.tokens, before.labels, before.rows)
    assert (again.label_counts == before.label_counts).all()
    assert by_type(open_run(run.path), again) == experts


def test_a_relabelled_run_is_counted_again(tmp_path):
    run = small_run(tmp_path)
    by_type(run, load_type_counts(run, "upos"))
    other = small_run(tmp_path / "other", labels={"upos": ["DET", "untagged", "DET", "untagged", "VERB"]})
    (run.path / schema.tokens_file(0)).write_bytes((other.path / schema.tokens_file(0)).read_bytes())
    run = open_run(run.path)
    types = load_type_counts(run, "upos")
    assert types.token_ids.tolist() == [7, 9]
    assert by_type(run, types) == [{(7, 0): 1, (7, 3): 1, (9, 2): 1}]


def test_only_the_types_that_are_given_are_counted(tmp_path):
    run = small_run(tmp_path)
    types = load_type_counts(run, "upos")
    assert by_type(run, types) == [{(2, 1): 2, (7, 0): 1, (7, 3): 1}]
    some = TypeCounts(types.label_set, np.array([3, 7]), ("x", "the"), ("DET",), np.array([[0], [2]]))
    assert by_type(run, some) == [{(7, 0): 1, (7, 3): 1}]
    assert by_type(run, types) == [{(2, 1): 2, (7, 0): 1, (7, 3): 1}]


def test_a_run_whose_memory_holds_one_router_at_a_time_gives_the_same(tmp_path, monkeypatch):
    run = random_run(tmp_path / "run", 5)
    types = load_type_counts(run, "upos")
    whole = by_type(run, types)
    for path in (run.path / schema.COUNTS_FOLDER).glob("*"):
        path.unlink()
    monkeypatch.setattr("moe_probe.counts.by_type._BATCH_BYTES", 1)
    monkeypatch.setattr("moe_probe.counts.experts._BATCH_BYTES", 1)
    assert by_type(run, types) == whole


@pytest.mark.parametrize("slot", [2, -1, "first"])
def test_a_slot_that_is_not_there_is_refused(tmp_path, slot):
    run = small_run(tmp_path)
    with pytest.raises(BadInputError, match=rf"slot {slot!r}: the run has slots 0 to 1"):
        list(iter_expert_counts(run, load_type_counts(run), slot))


def test_unknown_labels_and_token_rows_are_refused(tmp_path):
    run = small_run(tmp_path)
    with pytest.raises(BadInputError, match="label 'xpos': the run has no such label, it has upos, phase"):
        load_type_counts(run, "xpos")
    with pytest.raises(BadInputError, match="tokens 'words': choose one of all, word_initial"):
        load_type_counts(run, "upos", "words")


def test_a_row_without_a_label_is_an_error(tmp_path):
    run = small_run(tmp_path, labels={"upos": ["NOUN", None, "VERB", "VERB", "VERB"]})
    with pytest.raises(RunError, match="has rows without a value of the label 'upos'"):
        load_type_counts(run, "upos")


def test_a_run_without_rows_or_labels_has_no_types(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((0, 2), int)], labels={"upos": []})
    types = load_type_counts(run, "upos")
    assert (types.tokens, types.labels, types.label_counts.shape) == ((), (), (0, 0))
    assert [table.shape for _, table in iter_expert_counts(run, types)] == [(0, 4)]
    untagged = small_run(tmp_path, labels={"upos": ["untagged"] * 5})
    assert load_type_counts(untagged, "upos").tokens == ()
