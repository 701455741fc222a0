from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.paths import find_paths


def test_paths_counted_by_hand():
    choices = np.array([[0, 1, 0]] * 12 + [[0, 0, 0]] * 6 + [[1, 1, 2]] * 2)
    found = find_paths(choices, [2, 2, 3], np.arange(20) % 5)
    assert found.experts.tolist() == [[0, 1, 0], [0, 0, 0], [1, 1, 2]]
    assert found.tokens.tolist() == [12, 6, 2]
    assert found.share.tolist() == [0.6, 0.3, 0.1]
    # 18/20 · 14/20 · 18/20 of 20 tokens, and so on.
    assert found.expected == pytest.approx([20 * 0.9 * 0.7 * 0.9, 20 * 0.9 * 0.3 * 0.9, 20 * 0.1 * 0.7 * 0.1])
    assert found.lift == pytest.approx(found.tokens / found.expected)
    assert found.count_rank.tolist() == [1, 2, 3]
    assert found.lift_rank.tolist() == [1, 0, 0]  # only one path has ten tokens
    assert found.example.tolist() == [0, 12, 18]
    assert found.n == 20


def test_the_highest_lift_is_not_the_highest_count():
    rng = np.random.default_rng(0)
    usual = np.where(rng.random((2000, 2)) < 0.95, 0, 1)
    choices = np.concatenate([usual, np.full((15, 2), 2)])
    found = find_paths(choices, [3, 3], np.arange(2015) % 31, top=1)
    assert found.experts.tolist() == [[0, 0], [2, 2]]
    assert (found.count_rank.tolist(), found.lift_rank.tolist()) == ([1, 0], [0, 1])
    assert found.lift[1] == pytest.approx(2015 / 15)
    assert found.lift[0] == pytest.approx(1.0, abs=0.02)
    none = find_paths(choices, [3, 3], np.arange(2015) % 31, top=1, floor=3000)
    assert none.experts.tolist() == [[0, 0]]


def test_independent_routers_have_lifts_whose_intervals_hold_one():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(20):
        choices = np.stack([rng.choice(4, 3000, p=[0.4, 0.3, 0.2, 0.1]) for _ in range(3)], axis=1)
        found = find_paths(choices, [4, 4, 4], rng.integers(0, 64, 3000), floor=30, top=20)
        held += ((found.lift_low <= 1) & (found.lift_high >= 1)).tolist()
    assert 0.9 < np.mean(held) < 0.99


def test_a_path_through_two_routers_has_the_interval_of_their_table():
    rng = np.random.default_rng(2)
    first = rng.integers(0, 3, 900)
    second = np.where(rng.random(900) < 0.5, first, rng.integers(0, 3, 900))
    clusters = rng.integers(0, 20, 900)
    table = np.zeros((20, 3, 3), dtype=np.int64)
    np.add.at(table, (clusters, first, second), 1)
    cells = cell_estimates(table)
    found = find_paths(np.stack([first, second], axis=1), [3, 3], clusters)
    for (one, other), lift, low in zip(found.experts, found.lift, found.lift_low, strict=True):
        assert lift == pytest.approx(cells.lift[one, other])
        # The same variance; a path has no more effective clusters than its experts have.
        assert 0 < low <= cells.low[one, other] * (1 + 1e-9)


def test_tokens_with_a_dropped_choice_are_left_out_and_examples_keep_their_place():
    choices = np.array([[-1, 0], [1, 1], [0, -1], [1, 1], [0, 0]])
    found = find_paths(choices, [2, 2], np.arange(5))
    assert found.n == 3
    assert found.experts.tolist() == [[1, 1], [0, 0]]
    assert found.example.tolist() == [1, 4]
    assert find_paths(np.full((4, 2), -1), [2, 2], np.arange(4)) is None
    assert find_paths(np.zeros((0, 2), int), [2, 2], np.zeros(0, int)) is None


@pytest.mark.filterwarnings("error")
def test_without_a_second_cluster_there_is_no_interval():
    found = find_paths(np.array([[0, 1]] * 20), [2, 2], np.zeros(20, int))
    assert found.lift == pytest.approx([1.0])
    assert np.isnan([found.lift_low[0], found.share_low[0]]).all()
    alike = find_paths(np.array([[0, 1]] * 20), [2, 2], np.arange(20))
    assert np.isnan(alike.lift_low[0])  # every token takes it: there is nothing that could differ


def test_hundreds_of_routers_fit_into_numbers():
    rng = np.random.default_rng(3)
    ways = rng.integers(0, 256, (7, 200))
    ways[1, 1:] = ways[0, 1:]  # two that differ at the very beginning
    which = rng.choice(7, 500, p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.05, 0.05])
    found = find_paths(ways[which].astype(np.int16), [256] * 200, np.arange(500) % 64)
    counts = Counter(which.tolist()).most_common()
    assert found.tokens.tolist() == [count for _, count in counts]
    assert found.experts[0].tolist() == ways[counts[0][0]].tolist()
    assert np.isfinite(found.lift).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5))
def test_all_paths_together_are_all_tokens(seed, n_routers, n_experts):
    choices = np.random.default_rng(seed).integers(0, n_experts, (60, n_routers))
    found = find_paths(choices, [n_experts] * n_routers, np.arange(60) % 7, top=1000)
    expected = Counter(map(tuple, choices.tolist()))
    assert {
        tuple(way): count for way, count in zip(found.experts.tolist(), found.tokens.tolist(), strict=True)
    } == expected
    assert found.tokens.tolist() == sorted(found.tokens.tolist(), reverse=True)
