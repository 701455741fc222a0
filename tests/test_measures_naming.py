"""What an expert is named after: how much a label tells, and which token types stand out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from moe_probe.measures.naming import pulled_lift, telling_bits, top_types


def test_a_label_tells_its_share_times_the_logarithm_of_the_least_lift():
    bits = telling_bits(np.array([[1.0, 0.5], [0.25, 0.0]]), np.array([[2.0, 4.0], [0.5, 3.0]]))
    assert bits.tolist() == [[1.0, 1.0], [-0.25, 0.0]]


def test_the_bits_of_all_labels_add_up_to_the_divergence_where_the_lift_is_exact():
    rng = np.random.default_rng(0)
    of_expert, of_all = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    bits = telling_bits(of_expert, of_expert / of_all)
    assert bits.sum() == pytest.approx(entropy(of_expert, of_all, base=2))


def test_a_common_label_that_is_surely_above_chance_tells_more_than_a_rare_one_with_a_high_lift():
    common, rare, unsure = telling_bits(np.array([0.5, 0.01, 0.5]), np.array([2.0, 20.0, 1.01]))
    assert common > rare > unsure


@pytest.mark.filterwarnings("error")
def test_what_is_not_known_tells_nothing_and_warns_of_nothing():
    bits = telling_bits(np.array([0.5, np.nan, 0.5]), np.array([np.nan, 2.0, 0.0]))
    assert np.isnan(bits).all()


def test_a_lift_of_few_occurrences_is_pulled_to_one_and_one_of_many_is_not():
    given_to, occurrences = np.array([1, 1000, 0, 999]), np.array([1, 1000, 1000, 1999])
    lift = pulled_lift(given_to, occurrences)
    assert lift[0] == pytest.approx(6 / 5.5)  # 1 given, half expected, five of chance
    assert lift[1] == pytest.approx(1005 / 505)
    assert lift[2] == pytest.approx(5 / 505)
    assert pulled_lift(given_to, occurrences, pull=0)[:2].tolist() == [2.0, 2.0]


@pytest.mark.filterwarnings("error")
def test_without_any_occurrence_every_lift_is_one():
    assert pulled_lift(np.zeros(3, np.int64), np.zeros(3, np.int64)).tolist() == [1.0, 1.0, 1.0]
    found = top_types(np.zeros((0, 2), np.int64), k=2)
    assert found.by_count.tolist() == found.by_lift.tolist() == [[-1, -1], [-1, -1]]


def test_two_experts_that_share_no_type_have_their_own_at_the_top():
    counts = np.array([[30, 0], [0, 40], [20, 0], [0, 10]])
    found = top_types(counts, k=3)
    assert found.by_count.tolist() == [[0, 2, -1], [1, 3, -1]]
    assert found.by_lift.tolist() == [[0, 2, -1], [1, 3, -1]]


def test_a_type_below_the_floor_has_no_lift_but_is_counted():
    counts = np.array([[9, 0], [10, 0], [0, 100]])
    found = top_types(counts, k=2)
    assert found.by_count[0].tolist() == [1, 0]
    assert found.by_lift[0].tolist() == [1, -1]
    assert top_types(counts, k=2, floor=9).by_lift[0].tolist() == [1, 0]


def test_a_type_that_every_expert_gets_alike_is_common_and_does_not_stand_out():
    found = top_types(np.array([[500, 500], [30, 0], [0, 30]]), k=2)
    assert found.by_count.tolist() == [[0, 1], [0, 2]]
    assert found.by_lift.tolist() == [[1, -1], [2, -1]]


def test_ties_go_to_the_earlier_row():
    assert top_types(np.full((4, 1), 20), k=3).by_count.tolist() == [[0, 1, 2]]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 40), min_size=3, max_size=3), max_size=12),
    st.integers(1, 5),
    st.permutations([0, 1, 2]),
)
def test_top_types_are_those_of_a_plain_sort_and_follow_their_experts(rows, k, order):
    counts = np.array(rows, np.int64).reshape(-1, 3)
    found = top_types(counts, k=k, floor=10, pull=5.0)
    total = counts.sum()
    for expert in range(3):
        given_to = counts[:, expert]
        by_count = sorted((row for row in range(len(rows)) if given_to[row]), key=lambda row: (-given_to[row], row))
        assert [row for row in found.by_count[expert].tolist() if row >= 0] == by_count[:k]
        lifts = {
            row: (given_to[row] + 5) / (counts[row].sum() * given_to.sum() / total + 5)
            for row in range(len(rows))
            if given_to[row] and counts[row].sum() >= 10
        }
        best = sorted((row for row in lifts if lifts[row] > 1 + 1e-9), key=lambda row: (-lifts[row], row))[:k]
        shown = [row for row in found.by_lift[expert].tolist() if row >= 0]
        assert [lifts[row] for row in shown] == pytest.approx([lifts[row] for row in best])
    moved = top_types(counts[:, list(order)], k=k)
    assert np.array_equal(moved.by_count, found.by_count[list(order)])
    assert math.prod(found.by_lift.shape) == 3 * k
