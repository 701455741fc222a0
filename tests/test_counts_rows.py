from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_runs import clusters_of, random_run, rows_of

from moe_probe.counts import load_rows
from moe_probe.errors import BadInputError
from moe_probe.store import Run

ALWAYS = ["row", "document", "position", "window_position", "word_initial", "token_id"]
ADDED = ["cluster", "domain_of_document"]


def by_hash(names: list[str]) -> list[str]:
    """The order in which documents are taken."""
    return sorted(
        names, key=lambda name: int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    )


def documents_of(tmp_path, lengths: list[int], **more) -> Run:
    """A run of documents a, b, c … whose token n of the run goes to expert n % 4."""
    n_tokens = sum(lengths)
    names = [chr(ord("a") + number) for number in range(len(lengths))]
    experts = np.arange(n_tokens).reshape(-1, 1) % 4
    documents = np.repeat(np.arange(len(lengths)), lengths)
    return write_run(tmp_path / "run", [experts], documents=documents, names=names, **more)


def test_all_rows_of_a_small_run(tmp_path):
    run = documents_of(tmp_path, [2, 1], domains=["code", None], labels={"kind": ["x", "y", "x"]})
    rows = load_rows(run, ["kind", "token"])
    assert rows.frame.columns == [*ALWAYS, "kind", "token", *ADDED]
    assert rows.frame["row"].to_list() == [0, 1, 2]
    assert rows.frame["document"].to_list() == [0, 0, 1]
    assert rows.frame["position"].to_list() == [0, 1, 0]
    assert rows.frame["kind"].to_list() == ["x", "y", "x"]
    assert rows.frame["domain_of_document"].to_list() == ["code", "code", None]
    assert (rows.complete, rows.cluster_unit) == (True, "block")
    assert rows.experts(0).tolist() == [[0], [1], [2]]
    assert rows.experts(run.routers[0]).dtype == np.int32
    assert rows.weights(0).tolist() == [[0.5], [0.5], [0.5]]
    assert rows.weights(0).dtype == np.float32


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(4, 9), st.integers(1, 900))
def test_rows_are_those_of_whole_documents_in_the_order_of_a_hash(tmp_path_factory, seed, missing, n_documents, most):
    run = random_run(tmp_path_factory.mktemp("run"), seed, missing=missing, n_documents=n_documents)
    everything = [row | {"row": number} for number, row in enumerate(rows_of(run))]
    taken: list[str] = []
    for name in by_hash(sorted({row["name"] for row in everything})):
        if sum(row["name"] in (*taken, name) for row in everything) > most:
            break
        taken.append(name)
    first = by_hash(sorted({row["name"] for row in everything}))[:1]
    expected = [row for row in everything if row["name"] in (taken or first)][:most]
    rows = load_rows(run, ["upos"], most_tokens=most)
    for column in [*ALWAYS, "upos"]:
        assert rows.frame[column].to_list() == [row[column] for row in expected]
    assert rows.frame["domain_of_document"].to_list() == [row["domain"] for row in expected]
    assert rows.complete == (len(expected) == len(everything))
    counted = len({row["name"] for row in expected if row["window_position"] >= 4})
    assert rows.cluster_unit == ("document" if counted >= 5 else "block")
    assert rows.frame["cluster"].to_list() == clusters_of(expected, counted)
    for router in run.routers:
        assert rows.experts(router).tolist() == [row["experts"][router.index] for row in expected]
        assert rows.weights(router.index).tolist() == [row["weights"][router.index] for row in expected]


def test_no_more_rows_are_held_than_asked_for(tmp_path):
    run = documents_of(tmp_path, [10] * 20, shard_rows=7)
    rows = load_rows(run, most_tokens=57)
    assert rows.frame.height == 50
    assert not rows.complete
    assert rows.frame["row"].is_sorted()
    assert rows.frame["document"].value_counts()["count"].to_list() == [10] * 5
    assert (rows.experts(0)[:, 0] == rows.frame["row"].to_numpy() % 4).all()


def test_one_document_longer_than_all_that_is_held_is_cut(tmp_path):
    run = documents_of(tmp_path, [100], shard_rows=30)
    rows = load_rows(run, most_tokens=70)
    assert rows.frame["row"].to_list() == list(range(70))
    assert not rows.complete
    assert (rows.experts(0)[:, 0] == np.arange(70) % 4).all()


def test_a_document_too_long_ends_the_taking_and_is_no_reason_to_take_shorter_ones(tmp_path):
    names = by_hash(["a", "b", "c"])
    lengths = {names[0]: 5, names[1]: 50, names[2]: 5}
    rows = load_rows(documents_of(tmp_path, [lengths[name] for name in "abc"]), most_tokens=20)
    assert rows.frame.height == 5
    assert rows.frame["document"].unique().to_list() == ["abc".index(names[0])]


def test_shards_without_a_taken_document_are_not_read(tmp_path, monkeypatch):
    names = by_hash(list("abcdefgh"))
    run = documents_of(tmp_path, [5] * 8, shard_rows=5)
    read = []
    real = __import__("moe_probe.store", fromlist=["Shard"]).Shard
    tokens, routing = real.tokens, real.routing
    monkeypatch.setattr(real, "tokens", lambda shard, columns=None: read.append(shard.number) or tokens(shard, columns))
    monkeypatch.setattr(
        real, "routing", lambda shard, columns=None: read.append(shard.number) or routing(shard, columns)
    )
    rows = load_rows(run, most_tokens=10)
    rows.experts(0)
    assert read == sorted("abcdefgh".index(name) for name in names[:2]) * 2


def test_rows_that_are_dropped_are_minus_one(tmp_path):
    run = write_run(tmp_path / "run", [np.array([[0, -1], [-1, -1]])])
    assert load_rows(run).experts(0).tolist() == [[0, -1], [-1, -1]]


def test_routers_are_read_ahead_as_far_as_they_fit_and_what_is_given_may_be_written_to(tmp_path, monkeypatch):
    run = random_run(tmp_path / "run", 0)
    rows = load_rows(run)
    whole = [rows.experts(router) for router in run.routers]
    real = __import__("moe_probe.store", fromlist=["Shard"]).Shard
    routing, read = real.routing, []
    monkeypatch.setattr(real, "routing", lambda shard, columns: read.append(columns) or routing(shard, columns))
    rows.experts(1)[:] = 7
    assert all((rows.experts(router) == whole[router.index]).all() for router in run.routers)
    assert read == []
    monkeypatch.setattr("moe_probe.counts.rows._AHEAD_BYTES", 1)
    rows = load_rows(run)
    assert all((rows.experts(router) == whole[router.index]).all() for router in run.routers)
    assert rows.weights(2).shape == whole[2].shape
    assert [columns for columns in read if len(columns) > 3] == []


def test_an_empty_run_has_no_rows_but_columns(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((0, 2), int)], labels={"upos": []})
    rows = load_rows(run, ["upos"])
    assert rows.frame.columns == [*ALWAYS, "upos", *ADDED]
    assert (rows.frame.height, rows.complete, rows.cluster_unit) == (0, True, "block")
    assert rows.experts(0).shape == rows.weights(0).shape == (0, 2)


@pytest.mark.parametrize(
    ("columns", "most", "message"),
    [
        (["xpos"], 10, "column 'xpos': the tokens have document, position"),
        (["cluster"], 10, "column 'cluster': token rows have one of that name already; rename the label"),
        ([], 0, "most_tokens 0: give 1 or more"),
    ],
)
def test_what_cannot_be_given_is_refused(tmp_path, columns, most, message):
    with pytest.raises(BadInputError, match=message):
        load_rows(documents_of(tmp_path, [2]), columns, most_tokens=most)


@pytest.mark.parametrize("router", [1, -1])
def test_a_router_that_is_not_there_is_refused(tmp_path, router):
    with pytest.raises(BadInputError, match=f"router {router}: the run has routers 0 to 0"):
        load_rows(documents_of(tmp_path, [2])).experts(router)
