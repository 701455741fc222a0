from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS, document_clusters, load_counts, load_scores
from moe_probe.errors import BadInputError, RunError
from moe_probe.relabelling import relabel
from moe_probe.store import open_run

EXPERTS = np.array([[0, 1], [1, 2], [3, 0], [0, 2], [2, 1]])
TAGS = ["NOUN", "VERB", "NOUN", "continuation", "VERB"]


def test_hand_counted_parts_of_speech(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    counts = load_counts(run, "upos")
    assert counts.labels == ("NOUN", "VERB")  # no row that is counted is a continuation
    assert (counts.tokens, counts.slot, counts.n, counts.sinks) == ("word_initial", "any", 4, False)
    assert counts[0].tolist() == [[2, 0], [1, 2], [0, 2], [1, 0]]
    first = load_counts(run, "upos", slot=0)
    assert first[0].tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
    everything = load_counts(run, "upos", tokens="all")
    assert everything.n == 5
    assert everything[0][:, 2].tolist() == [1, 0, 1, 0]


def test_counts_are_arrays_by_router_with_names(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS, EXPERTS[:, ::-1]], labels={"upos": TAGS}, layers=[2, 5])
    counts = load_counts(run, "upos", slot=0)
    assert [router.layer for router in counts.routers] == [2, 5]
    assert len(counts) == 2
    assert [array.shape for array in counts] == [(4, 2), (4, 2)]
    assert [array.dtype for array in counts.arrays] == [np.int64, np.int64]
    assert (counts.arrays[1] == load_counts(run, "upos", slot=1)[0]).all()
    assert counts.label_set.word_level


def test_word_initial_of_other_labels_is_what_the_run_says(tmp_path):
    run = write_run(
        tmp_path / "run",
        [EXPERTS],
        labels={"domain": ["a", "a", "b", "b", "b"]},
        word_initial=[True, False, True, False, True],
    )
    assert load_counts(run, "domain").tokens == "all"
    assert load_counts(run, "domain").n == 5
    counts = load_counts(run, "domain", slot=0, tokens="word_initial")
    assert counts.n == 3
    assert counts[0].tolist() == [[1, 0], [0, 0], [0, 1], [0, 1]]


def test_sinks_are_left_out_unless_asked_for(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": ["NOUN"] * 5}, window_position=[2, 3, 4, 5, 0])
    assert load_counts(run, "upos", 0).n == 2
    assert load_counts(run, "upos", 0)[0].ravel().tolist() == [1, 0, 0, 1]
    assert load_counts(run, "upos", 0, sinks=True).n == 5
    assert load_counts(run, "upos", 0).n == 2


def test_dropped_slots_are_never_counted(tmp_path):
    experts = np.array([[0, -1], [-1, -1], [3, 2]])
    run = write_run(tmp_path / "run", [experts], labels={"upos": ["NOUN", "VERB", "VERB"]})
    counts = load_counts(run, "upos")
    assert counts.n == 3
    assert counts[0].tolist() == [[1, 0], [0, 0], [0, 1], [0, 1]]
    assert load_counts(run, "upos", slot=1)[0].sum() == 1


def test_a_router_with_fewer_slots_has_no_assignment_in_the_others(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS, EXPERTS[:, :1]], labels={"upos": TAGS})
    assert load_counts(run, "upos", slot=1)[1].sum() == 0
    assert load_counts(run, "upos", slot=1)[0].sum() == 4


def test_clusters_are_of_documents_by_name_and_add_up(tmp_path):
    rng = np.random.default_rng(0)
    documents = np.sort(rng.integers(0, 200, 3000))
    experts = rng.integers(0, 4, (3000, 1))
    names = [f"text {number}" for number in range(200)]
    run = write_run(
        tmp_path / "run", [experts], labels={"kind": rng.choice(["x", "y"], 3000)}, documents=documents, names=names
    )
    counts = load_counts(run, "kind")
    clusters = document_clusters(run)
    assert counts.clustered[0].shape == (N_CLUSTERS, 4, 2)
    assert len(set(clusters.tolist())) > 55
    expected = np.bincount(clusters[documents], minlength=N_CLUSTERS)
    assert counts.clustered[0].sum(axis=(1, 2)).tolist() == expected.tolist()
    reordered = write_run(
        tmp_path / "other", [experts[:2]], labels={"kind": ["x", "y"]}, documents=[0, 1], names=["text 7", "text 3"]
    )
    assert document_clusters(reordered).tolist() == [clusters[7], clusters[3]]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 20), st.sampled_from([1, 3, 300]))
def test_counts_equal_a_loop_over_rows_however_the_run_is_cut(tmp_path_factory, seed, n_tokens, shard_rows, n_experts):
    rng = np.random.default_rng(seed)
    experts = [rng.integers(-1, n_experts, (n_tokens, slots)) for slots in (1, 3)]
    tags = rng.choice(["NOUN", "VERB", "untagged", "continuation", "whitespace", "special"], n_tokens)
    where = rng.integers(0, 9, n_tokens)
    run = write_run(
        tmp_path_factory.mktemp("run"),
        experts,
        labels={"upos": tags},
        n_experts=n_experts,
        window_position=where,
        documents=np.sort(rng.integers(0, 5, n_tokens)),
        shard_rows=shard_rows,
    )
    for slot in ("any", 0, 2):
        counts = load_counts(run, "upos", slot)
        for router, array in enumerate(experts):
            slots = range(array.shape[1]) if slot == "any" else [slot]
            expected = Counter(
                (int(array[row, one]), str(tags[row]))
                for row in range(n_tokens)
                for one in slots
                if one < array.shape[1]
                and array[row, one] >= 0
                and where[row] >= 4
                and tags[row] not in ("continuation", "whitespace", "special")
            )
            found = {
                (expert, label): int(count)
                for expert, row in enumerate(counts[router])
                for label, count in zip(counts.labels, row, strict=True)
                if count
            }
            assert found == dict(expected)


def cached(run) -> list[Path]:
    return sorted((run.path / schema.COUNTS_FOLDER).glob("*.npz"))


def test_a_cached_count_is_read_again_without_the_shards(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS}, shard_rows=2)
    before = load_counts(run, "upos")
    assert [path.name for path in cached(run)] == [
        "all-upos-any-word_initial.npz",
        *(f"part-{number:06d}-upos-any-word_initial-blocks.npz" for number in range(3)),
    ]
    monkeypatch.setattr("moe_probe.store.Run.iter_shards", lambda run: pytest.fail("a shard was read again"))
    after = load_counts(open_run(run.path), "upos")
    assert (after.labels, after.n) == (before.labels, before.n)
    assert (after.clustered[0] == before.clustered[0]).all()


def test_a_changed_shard_is_counted_again_and_the_others_are_not(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS}, shard_rows=3)
    load_counts(run, "upos")
    changed = write_run(tmp_path / "new", [EXPERTS], labels={"upos": ["NOUN"] * 3 + ["ADJ"] * 2}, shard_rows=3)
    shutil.copy(changed.path / schema.tokens_file(1), run.path / schema.tokens_file(1))
    counted = []
    real = __import__("moe_probe.counts.by_label", fromlist=["_count_shard"])._count_shard
    monkeypatch.setattr(
        "moe_probe.counts.by_label._count_shard",
        lambda shard, choice, clusters: counted.append(shard.number) or real(shard, choice, clusters),
    )
    counts = load_counts(open_run(run.path), "upos")
    assert counted == [1]
    assert counts.labels == ("ADJ", "NOUN", "VERB")
    assert counts[0].sum(axis=0).tolist() == [4, 4, 2]


def test_a_resumed_run_is_counted_with_its_new_shard(tmp_path, monkeypatch):
    asked = {"labels": {"upos": ["NOUN", "VERB", "NOUN", "ADJ", "VERB", "X"]}, "documents": range(6), "shard_rows": 2}
    experts = np.array([[0], [1], [2], [3], [0], [1]])
    run = write_run(tmp_path / "run", [experts], missing_shards=[1], **asked)
    before = load_counts(run, "upos")
    assert (before.n, before.labels, before.cluster_unit) == (4, ("NOUN", "VERB", "X"), "block")
    assert load_counts(run, "upos", documents=[0, 4]).n == 2
    write_run(run.path, [experts], **asked)
    resumed = open_run(run.path)
    after = load_counts(resumed, "upos")
    assert (after.n, after.labels, after.cluster_unit) == (6, ("ADJ", "NOUN", "VERB", "X"), "document")
    assert after[0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert load_counts(resumed, "upos", documents=[0, 2]).n == 2


def test_a_relabelled_run_is_counted_by_its_new_labels(tmp_path):
    run = write_run(
        tmp_path / "run", [EXPERTS], labels={"shape": ["x"] * 5}, word_level=[], token=["a", " ", "3", " ", "!"]
    )
    assert load_counts(run, "shape").labels == ("x",)
    assert load_counts(run, "shape", positions=(2, None)).labels == ("x",)
    relabel(run.path, ["shape"])
    after = open_run(run.path)
    first, _, number, _, mark = after.tokens()["shape"]
    assert len({first, number, mark, "x"}) == 4
    assert load_counts(after, "shape").labels == tuple(sorted([first, number, mark]))
    assert load_counts(after, "shape", positions=(2, None)).labels == tuple(sorted([number, mark]))


def test_labels_that_are_said_to_cut_words_otherwise_are_counted_again(tmp_path):
    initial = [True, False, False, True, True]
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS}, word_level=[], word_initial=initial)
    assert load_counts(run, "upos", tokens="word_initial").n == 3
    manifest = run.path / schema.MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"word_level": false', '"word_level": true'))
    assert load_counts(open_run(run.path), "upos", tokens="word_initial").n == 4


def test_a_file_of_the_same_size_with_another_time_is_counted_again(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": ["NOUN", "VERB", "NOUN", "VERB", "VERB"]})
    assert load_counts(run, "upos").labels == ("NOUN", "VERB")
    path = run.path / schema.tokens_file(0)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes().replace(b"VERB", b"PRON"))
    os.utime(path, ns=(1, 1))
    assert path.stat().st_size == size
    assert load_counts(open_run(run.path), "upos").labels == ("NOUN", "PRON")


def test_a_file_of_another_size_with_the_same_time_is_counted_again(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    load_counts(run, "upos")
    path = run.path / schema.tokens_file(0)
    before = path.stat()
    other = write_run(tmp_path / "other", [EXPERTS], labels={"upos": ["INTERJECTION"] * 5})
    path.write_bytes((other.path / schema.tokens_file(0)).read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size != before.st_size
    assert load_counts(open_run(run.path), "upos").labels == ("INTERJECTION",)


def test_renaming_documents_moves_them_to_other_clusters(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS}, names=["one"])
    before = load_counts(run, "upos").clustered[0]
    other = write_run(tmp_path / "other", [EXPERTS], labels={"upos": TAGS}, names=["another name"])
    shutil.copy(other.path / schema.DOCUMENTS_FILE, run.path / schema.DOCUMENTS_FILE)
    after = load_counts(open_run(run.path), "upos").clustered[0]
    assert (before.sum(axis=0) == after.sum(axis=0)).all()
    assert (before != after).any()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not a zip", "half"])
def test_a_damaged_cache_is_counted_again(tmp_path, damage):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    before = load_counts(run, "upos")
    for path in cached(run):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
    after = load_counts(run, "upos")
    assert (before[0] == after[0]).all()
    assert all(path.stat().st_size > 200 for path in cached(run))


def test_a_run_that_cannot_be_written_to_is_counted_all_the_same(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    (run.path / schema.COUNTS_FOLDER).write_text("in the way: root may write to any folder")
    assert load_counts(run, "upos").n == 4


def test_an_empty_run_has_empty_counts(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((0, 2), int)], labels={"upos": []})
    counts = load_counts(run, "upos")
    assert (counts.n, counts.labels) == (0, ())
    assert counts[0].shape == (4, 0)
    assert load_scores(run)[0].mean_margin is None


def test_an_unknown_label_names_those_that_are_there(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    with pytest.raises(
        BadInputError, match=r"label 'xpos': the run has no such label, it has upos, phase; add it with"
    ):
        load_counts(run, "xpos")
    assert load_counts(run, "phase").labels == ("prompt",)


@pytest.mark.parametrize("slot", [2, -1, "first", 0.5])
def test_a_slot_that_is_not_there_is_refused(tmp_path, slot):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    with pytest.raises(BadInputError, match=rf"slot {slot!r}: the run has slots 0 to 1; give one of them or 'any'"):
        load_counts(run, "upos", slot)


def test_unknown_token_rows_are_refused(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    with pytest.raises(BadInputError, match="tokens 'words': choose one of all, word_initial"):
        load_counts(run, "upos", tokens="words")


def test_a_row_without_a_label_is_an_error_and_no_label_of_its_own(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": ["NOUN", None, "VERB", "VERB", "VERB"]})
    with pytest.raises(RunError, match=r"tokens/part-000000.parquet has rows without a value of the label 'upos'"):
        load_counts(run, "upos")


def test_an_expert_that_does_not_exist_is_an_error_and_no_neighbours_count(tmp_path):
    run = write_run(tmp_path / "run", [np.array([[0], [7]])], labels={"upos": ["NOUN", "VERB"]})
    with pytest.raises(RunError, match="has expert 7 in expert_0_0, but router 0 has 4 experts"):
        load_counts(run, "upos")


def test_scores_are_means_over_tokens_that_have_one(tmp_path):
    run = write_run(
        tmp_path / "run",
        [EXPERTS, EXPERTS],
        labels={"upos": TAGS},
        window_position=[0, 4, 5, 6, 7],
        scores={1: ([9, 1, 2, float("nan"), 3], [9, 0.5, 0.25, 0.25, float("inf")])},
        shard_rows=2,
    )
    silent, known = load_scores(run)
    assert (silent.mean_token_entropy_bits, silent.mean_margin) == (None, None)
    assert known.mean_token_entropy_bits == 2.0
    assert known.mean_margin == pytest.approx(1 / 3)
    assert load_scores(run)[1] == known
    assert load_scores(run, sinks=True)[1].mean_token_entropy_bits == pytest.approx(15 / 4)


def test_an_unused_experts_column_is_not_read(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    asked = []
    real = __import__("moe_probe.store", fromlist=["Shard"]).Shard.routing
    monkeypatch.setattr(
        "moe_probe.store.Shard.routing", lambda shard, columns: asked.extend(columns) or real(shard, columns)
    )
    load_counts(run, "upos", slot=0)
    assert asked == ["expert_0_0"]
