from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_runs import clusters_of, is_counted, random_run, rows_of

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS, LabelCounts, document_clusters, load_counts
from moe_probe.errors import BadInputError
from moe_probe.store import Run, open_run


def one_document_a_token(tmp_path, n_documents: int = 8, **more) -> Run:
    """Document d has one token, whose first choice is expert d % 4."""
    experts = np.arange(n_documents).reshape(-1, 1) % 4
    labels = {"kind": ["x", "y"] * (n_documents // 2)}
    return write_run(tmp_path / "run", [experts], labels=labels, documents=range(n_documents), **more)


def check_against_rows(counts: LabelCounts, run: Run, rows: list[dict], label: str, slot: str | int) -> None:
    """`rows` are those that should have been counted."""
    tagged = [row for row in rows if row[label] != "untagged"]
    documents = {row["name"] for row in tagged}
    assert counts.n == len(rows)
    assert counts.documents == len(documents)
    assert counts.domains == len({row["domain"] for row in tagged if row["domain"] is not None})
    assert counts.cluster_unit == ("document" if len(documents) >= 5 else "block")
    assert counts.labels == tuple(sorted({row[label] for row in rows}))
    clusters = clusters_of(rows, len(documents))
    for router in run.routers:
        expected = Counter(
            (cluster, expert, row[label])
            for row, cluster in zip(rows, clusters, strict=True)
            for number, expert in enumerate(row["experts"][router.index])
            if expert >= 0 and slot in ("any", number)
        )
        table = counts.clustered[router.index]
        assert table.shape == (N_CLUSTERS, router.n_experts, len(counts.labels))
        assert table.dtype == np.int64
        found = {
            (cluster, expert, counts.labels[place]): int(table[cluster, expert, place])
            for cluster, expert, place in np.argwhere(table).tolist()
        }
        assert found == dict(expected)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000), st.booleans(), st.sampled_from(["upos", "kind", "phase"]), st.sampled_from(["any", 0, 2])
)
def test_counts_equal_a_loop_over_rows(tmp_path_factory, seed, missing, label, slot):
    run = random_run(tmp_path_factory.mktemp("run"), seed, missing=missing)
    for tokens in ("all", "word_initial"):
        for sinks in (False, True):
            rows = [row for row in rows_of(run) if is_counted(row, label, tokens, sinks=sinks)]
            check_against_rows(load_counts(run, label, slot, tokens, sinks=sinks), run, rows, label, slot)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10_000),
    st.booleans(),
    st.sets(st.integers(0, 6)),
    st.sampled_from([None, "code", "law"]),
    st.sampled_from([None, "prompt", "generated"]),
    st.sampled_from([None, (0, 20), (10, None), (250, 300)]),
)
def test_filtered_counts_equal_a_loop_over_rows(tmp_path_factory, seed, missing, numbers, domain, phase, positions):
    run = random_run(tmp_path_factory.mktemp("run"), seed, missing=missing)
    here = run.documents()
    numbers = numbers & set(here["document"]) or None
    domain = domain if domain in set(here["domain"]) else None
    first, stop = positions or (0, None)
    rows = [
        row
        for row in rows_of(run)
        if is_counted(row, "upos", "word_initial")
        and (numbers is None or row["document"] in numbers)
        and domain in (None, row["domain"])
        and phase in (None, row["phase"])
        and first <= row["position"] < (10**9 if stop is None else stop)
    ]
    asked = {"documents": numbers, "domain": domain, "phase": phase, "positions": positions}
    for run_again in (run, open_run(run.path)):
        check_against_rows(load_counts(run_again, "upos", **asked), run, rows, "upos", "any")


def test_documents_are_named_by_number_or_name(tmp_path):
    run = one_document_a_token(tmp_path, names=list("abcdefgh"))
    assert load_counts(run, "kind", documents=[1, "c", "c"])[0].sum(axis=1).tolist() == [0, 1, 1, 0]
    assert load_counts(run, "kind", documents=[])[0].sum() == 0
    assert load_counts(run, "kind", documents=["h"]).labels == ("y",)


def test_two_filters_that_mean_the_same_share_what_is_kept(tmp_path, monkeypatch):
    run = one_document_a_token(tmp_path, names=list("abcdefgh"), domains=["d", "d"] + ["e"] * 6)
    load_counts(run, "kind", domain="d")
    monkeypatch.setattr("moe_probe.store.Shard.columns", lambda *_: pytest.fail("counted again"))
    assert load_counts(run, "kind", documents=["b", 0]).n == 2


def test_every_filter_has_counts_of_its_own(tmp_path):
    run = one_document_a_token(tmp_path, domains=["d"] * 3 + ["e"] * 5, phase=["prompt"] * 6 + ["generated"] * 2)
    asked = [
        ({}, 8),
        ({"documents": [0]}, 1),
        ({"documents": [0, 1]}, 2),
        ({"domain": "d"}, 3),
        ({"domain": "e"}, 5),
        ({"domain": "e", "phase": "generated"}, 2),
        ({"phase": "prompt"}, 6),
        ({"positions": (0, None)}, 8),
        ({"positions": (1, None)}, 0),
        ({"positions": (0, 1)}, 8),
    ]
    for _ in range(2):
        assert [load_counts(run, "kind", **filters).n for filters, _ in asked] == [n for _, n in asked]


def test_a_filter_reads_only_the_shards_that_hold_its_documents(tmp_path, monkeypatch):
    run = one_document_a_token(tmp_path, shard_rows=2)
    read = []
    real = __import__("moe_probe.store", fromlist=["Shard"]).Shard.columns
    monkeypatch.setattr(
        "moe_probe.store.Shard.columns", lambda shard, *asked: read.append(shard.number) or real(shard, *asked)
    )
    assert load_counts(run, "kind", documents=[4, 5]).n == 2
    assert read == [2]
    read.clear()
    assert load_counts(run, "kind", documents=[1, 6]).n == 2
    assert read == [0, 3]


def test_a_document_is_found_in_all_the_shards_that_it_lies_in(tmp_path):
    experts = np.arange(12).reshape(-1, 1) % 4
    documents = [0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 3]  # document 1 lies in shards 1 to 4
    run = write_run(tmp_path / "run", [experts], documents=documents, shard_rows=2)
    assert [load_counts(run, "phase", documents=[number]).n for number in range(4)] == [3, 6, 2, 1]
    interrupted = write_run(tmp_path / "half", [experts], documents=documents, shard_rows=2, missing_shards=[2, 5])
    assert [load_counts(interrupted, "phase", documents=[number]).n for number in range(3)] == [3, 4, 1]


def test_filtered_counts_do_not_need_the_shards_of_other_documents(tmp_path, monkeypatch):
    run = one_document_a_token(tmp_path, shard_rows=2)
    load_counts(run, "kind", documents=[4, 5])
    (run.path / schema.tokens_file(0)).touch()
    monkeypatch.setattr("moe_probe.store.Shard.columns", lambda *_: pytest.fail("counted again"))
    assert load_counts(run, "kind", documents=[4, 5]).n == 2


def test_a_domain_that_documents_change_to_is_counted_again(tmp_path):
    run = one_document_a_token(tmp_path, domains=["d"] * 3 + ["e"] * 5)
    assert load_counts(run, "kind", domain="d").n == 3
    (tmp_path / "other").mkdir()
    other = one_document_a_token(tmp_path / "other", domains=["d"] * 4 + ["e"] * 4)
    (run.path / schema.DOCUMENTS_FILE).write_bytes((other.path / schema.DOCUMENTS_FILE).read_bytes())
    assert load_counts(open_run(run.path), "kind", domain="d").n == 4


def test_five_documents_are_clusters_and_four_are_blocks(tmp_path):
    run = one_document_a_token(tmp_path)
    counts = load_counts(run, "kind", documents=range(5))
    assert (counts.cluster_unit, counts.documents) == ("document", 5)
    assert np.flatnonzero(counts.clustered[0].any(axis=(1, 2))).tolist() == sorted(
        set(document_clusters(run)[:5].tolist())
    )
    assert load_counts(run, "kind", documents=range(4)).cluster_unit == "block"


def test_documents_without_a_counted_token_are_no_clusters(tmp_path):
    run = one_document_a_token(tmp_path, window_position=[100] * 4 + [0] * 4)
    assert load_counts(run, "kind").cluster_unit == "block"
    assert load_counts(run, "kind").documents == 4
    assert load_counts(run, "kind", sinks=True).cluster_unit == "document"


def test_documents_that_nobody_tagged_are_no_clusters(tmp_path):
    experts = np.zeros((8, 1), int)
    labels = {"upos": ["NOUN"] * 4 + ["untagged"] * 4}
    run = write_run(tmp_path / "run", [experts], labels=labels, documents=range(8), domains=["a"] * 4 + ["b"] * 4)
    counts = load_counts(run, "upos")
    assert (counts.n, counts.documents, counts.domains, counts.cluster_unit) == (8, 4, 1, "block")


def test_a_long_text_is_cut_into_blocks_of_256_positions(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((1000, 1), int)], names=["one long book"])
    counts = load_counts(run, "phase")
    assert counts.cluster_unit == "block"
    sizes = counts.clustered[0].sum(axis=(1, 2))
    assert sorted(sizes[sizes > 0].tolist()) == [232, 256, 256, 256]
    renamed = write_run(tmp_path / "renamed", [np.zeros((1000, 1), int)], names=["another book"])
    assert load_counts(renamed, "phase").clustered[0].tolist() != counts.clustered[0].tolist()


def test_special_tokens_in_front_have_a_block_too(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((3, 1), int)], position=[-1, 0, 1])
    assert load_counts(run, "phase").clustered[0].sum() == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"documents": ["nope"]},
            r"document 'nope': the run has no such document; it has 8, for example \['document 0'",
        ),
        ({"documents": [0, 8]}, r"document 8: the run has no such document"),
        ({"documents": "document 0"}, r"documents 'document 0': give a list of numbers or names"),
        ({"domain": "z"}, r"domain 'z': the run has no such domain, it has d, e"),
        ({"phase": "later"}, r"phase 'later': choose one of prompt, generated, special"),
        ({"positions": (-1, 3)}, r"positions \(-1, 3\): give the first, from 0 on"),
        ({"positions": (3, 3)}, r"positions \(3, 3\): give the first"),
    ],
)
def test_a_filter_for_what_is_not_there_is_refused(tmp_path, asked, message):
    run = one_document_a_token(tmp_path, domains=["d"] * 3 + ["e"] * 5)
    with pytest.raises(BadInputError, match=message):
        load_counts(run, "kind", **asked)


def test_a_run_without_domains_says_so(tmp_path):
    with pytest.raises(BadInputError, match="domain 'z': the run has no such domain, its documents have none"):
        load_counts(one_document_a_token(tmp_path), "kind", domain="z")
