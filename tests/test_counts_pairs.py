from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from random_runs import clusters_of, is_counted, random_run, rows_of

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS, document_clusters, iter_coactivation_counts, iter_transition_counts
from moe_probe.errors import RunError
from moe_probe.store import open_run

SETS = np.array([[0, 1, 2], [2, 0, -1], [3, -1, -1], [-1, -1, -1], [1, 0, 3]])


def test_hand_counted_pairs(tmp_path):
    run = write_run(tmp_path / "run", [SETS])
    ((router, pairs),) = iter_coactivation_counts(run)
    assert router == run.routers[0]
    assert pairs.together.sum(axis=0).tolist() == [[0, 2, 2, 1], [2, 0, 1, 1], [2, 1, 0, 0], [1, 1, 0, 0]]
    assert pairs.loads.sum(axis=0).tolist() == [3, 2, 2, 2]
    assert pairs.sizes.sum(axis=0).tolist() == [1, 1, 1, 2]
    assert pairs.cluster_unit == "block"
    assert pairs.together.dtype == pairs.loads.dtype == pairs.sizes.dtype == np.int64


def test_neighbouring_slots_only(tmp_path):
    run = write_run(tmp_path / "run", [SETS])
    ((_, pairs),) = iter_coactivation_counts(run, adjacent=True)
    assert pairs.together.sum(axis=0).tolist() == [[0, 2, 1, 1], [2, 0, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert pairs.loads.sum(axis=0).tolist() == [3, 2, 2, 2]
    ((_, both),) = iter_coactivation_counts(run)
    assert both.together.sum() > pairs.together.sum()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.booleans(), st.integers(3, 7), st.booleans())
def test_pairs_equal_a_loop_over_rows(tmp_path_factory, seed, missing, n_documents, adjacent):
    run = random_run(tmp_path_factory.mktemp("run"), seed, missing=missing, n_documents=n_documents)
    rows = [row for row in rows_of(run) if is_counted(row, None, "all")]
    n_counted = len({row["name"] for row in rows})
    clusters = clusters_of(rows, n_counted)
    for run_again in (run, open_run(run.path)):
        found = list(iter_coactivation_counts(run_again, adjacent=adjacent))
        assert [router for router, _ in found] == run.routers
        for router, pairs in found:
            assert pairs.cluster_unit == ("document" if n_counted >= 5 else "block")
            together = np.zeros((N_CLUSTERS, router.n_experts, router.n_experts), int)
            loads = np.zeros((N_CLUSTERS, router.n_experts), int)
            sizes = np.zeros((N_CLUSTERS, router.n_slots + 1), int)
            for row, cluster in zip(rows, clusters, strict=True):
                slots = row["experts"][router.index]
                executed = [expert for expert in slots if expert >= 0]
                sizes[cluster, len(executed)] += 1
                loads[cluster, executed] += 1
                for one, other in pairwise(slots) if adjacent else combinations(slots, 2):
                    if one >= 0 and other >= 0:
                        together[cluster, one, other] += 1
                        together[cluster, other, one] += 1
            assert (pairs.together == together).all()
            assert (pairs.loads == loads).all()
            assert (pairs.sizes == sizes).all()


def test_many_experts_and_many_tokens_take_either_way_of_adding(tmp_path):
    rng = np.random.default_rng(0)
    n_tokens, n_experts = 3000, 64
    experts = rng.permuted(np.tile(np.arange(n_experts), (n_tokens, 1)), axis=1)[:, :3]
    documents = np.repeat(np.arange(6), [2000, 200, 200, 200, 200, 200])
    run = write_run(tmp_path / "run", [experts], n_experts=n_experts, documents=documents)
    ((_, pairs),) = iter_coactivation_counts(run)
    clusters = document_clusters(run)[documents]
    expected = Counter(
        (int(cluster), *sorted(pair))
        for cluster, row in zip(clusters, experts.tolist(), strict=True)
        for pair in combinations(row, 2)
    )
    found = {
        (cluster, one, other): int(pairs.together[cluster, one, other])
        for cluster, one, other in np.argwhere(np.triu(pairs.together)).tolist()
    }
    assert found == dict(expected)


def test_a_router_with_too_many_experts_is_left_out(tmp_path):
    experts = [np.array([[1, 0], [0, 1]])] * 3
    run = write_run(tmp_path / "run", experts, n_experts=[4, 1025, 1024])
    assert [router.n_experts for router, _ in iter_coactivation_counts(run)] == [4, 1024]
    assert list(iter_transition_counts(run)) == []
    huge = write_run(tmp_path / "huge", experts[:1], n_experts=2000)
    assert list(iter_coactivation_counts(huge)) == []


def test_an_expert_twice_in_a_token_is_an_error(tmp_path):
    run = write_run(tmp_path / "run", [np.array([[0, 1], [2, 2]])])
    with pytest.raises(RunError, match="router 0 has tokens that hold expert 2 in two slots; the run"):
        list(iter_coactivation_counts(run))


def test_hand_counted_transitions(tmp_path):
    first = np.array([[0, 1], [0, 2], [3, 1], [-1, 0]])
    second = np.array([[1, 0], [1, 3], [-1, -1], [2, 0]])
    third = np.array([[0], [1], [0], [1]])
    run = write_run(tmp_path / "run", [first, second, third], n_experts=[4, 5, 2])
    steps = list(iter_transition_counts(run))
    assert [(one.index, other.index) for one, other, _ in steps] == [(0, 1), (1, 2)]
    assert [table.shape for _, _, table in steps] == [(4, 5), (5, 2)]
    assert [table.dtype for _, _, table in steps] == [np.int64, np.int64]
    assert np.argwhere(steps[0][2]).tolist() == [[0, 1]]
    assert steps[0][2][0, 1] == 2
    assert steps[1][2].tolist() == [[0, 0], [1, 1], [0, 1], [0, 0], [0, 0]]


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_transitions_equal_a_loop_over_rows(tmp_path_factory, seed, missing):
    run = random_run(tmp_path_factory.mktemp("run"), seed, missing=missing)
    rows = [row for row in rows_of(run) if is_counted(row, None, "all")]
    for run_again in (run, open_run(run.path)):
        steps = list(iter_transition_counts(run_again))
        assert [(one.index, other.index) for one, other, _ in steps] == [(0, 1), (1, 2)]
        for one, other, table in steps:
            expected = np.zeros((one.n_experts, other.n_experts), int)
            for row in rows:
                step = row["experts"][one.index][0], row["experts"][other.index][0]
                if min(step) >= 0:
                    expected[step] += 1
            assert (table == expected).all()


def test_a_pair_of_routers_is_skipped_without_losing_the_others(tmp_path):
    experts = [np.array([[0], [1]])] * 4
    run = write_run(tmp_path / "run", experts, n_experts=[2000, 2, 2, 2])
    assert [(one.index, other.index, table.tolist()) for one, other, table in iter_transition_counts(run)] == [
        (1, 2, [[1, 0], [0, 1]]),
        (2, 3, [[1, 0], [0, 1]]),
    ]


def test_pairs_are_counted_once_and_then_read(tmp_path, monkeypatch):
    run = random_run(tmp_path / "run", 1)
    before = list(iter_coactivation_counts(run))
    steps = list(iter_transition_counts(run))
    monkeypatch.setattr("moe_probe.store.Run.iter_shards", lambda run: pytest.fail("a shard was read again"))
    for (_, one), (_, other) in zip(before, iter_coactivation_counts(open_run(run.path)), strict=True):
        assert (one.together == other.together).all()
        assert (one.loads == other.loads).all()
        assert (one.sizes == other.sizes).all()
    for one_step, other_step in zip(steps, iter_transition_counts(open_run(run.path)), strict=True):
        assert (one_step[2] == other_step[2]).all()


def test_a_resumed_run_is_counted_again(tmp_path):
    experts = np.array([[0, 1]] * 6)
    run = write_run(tmp_path / "run", [experts, experts], documents=range(6), shard_rows=2, missing_shards=[1])
    before = [pairs for _, pairs in iter_coactivation_counts(run)]
    assert [(pairs.sizes.sum(), pairs.cluster_unit) for pairs in before] == [(4, "block")] * 2
    assert [table[0, 0] for _, _, table in iter_transition_counts(run)] == [4]
    write_run(run.path, [experts, experts], documents=range(6), shard_rows=2)
    after = [pairs for _, pairs in iter_coactivation_counts(open_run(run.path))]
    assert [(pairs.sizes.sum(), pairs.cluster_unit) for pairs in after] == [(6, "document")] * 2
    assert [table[0, 0] for _, _, table in iter_transition_counts(open_run(run.path))] == [6]


def test_stopping_half_way_leaves_nothing_behind(tmp_path):
    run = random_run(tmp_path / "run", 2)
    counted = iter_coactivation_counts(run)
    next(counted)
    counted.close()
    assert not list((run.path / schema.COUNTS_FOLDER).glob("pairs*"))
    assert not list((run.path / schema.COUNTS_FOLDER).glob("*.tmp"))
    assert len(list(iter_coactivation_counts(run))) == 3


def test_one_router_in_memory_at_a_time_gives_the_same(tmp_path, monkeypatch):
    run = random_run(tmp_path / "run", 3)
    before = list(iter_coactivation_counts(run))
    for path in (run.path / schema.COUNTS_FOLDER).glob("*"):
        path.unlink()
    monkeypatch.setattr("moe_probe.counts.pairs._BATCH_BYTES", 1)
    monkeypatch.setattr("moe_probe.counts.experts._BATCH_BYTES", 1)
    for (_, one), (_, other) in zip(before, iter_coactivation_counts(run), strict=True):
        assert (one.together == other.together).all()


def test_an_empty_run_has_pairs_of_nothing(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((0, 2), int)] * 2)
    assert [pairs.loads.sum() for _, pairs in iter_coactivation_counts(run)] == [0, 0]
    assert [table.sum() for _, _, table in iter_transition_counts(run)] == [0]


def test_a_run_without_routers_has_no_pairs(tmp_path):
    run = write_run(tmp_path / "run", [], window_position=[4, 5])
    assert list(iter_coactivation_counts(run)) == []
    assert list(iter_transition_counts(run)) == []
