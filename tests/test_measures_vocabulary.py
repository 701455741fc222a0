from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics.cluster import expected_mutual_information

from moe_probe.measures.vocabulary import (
    chance_top_shares,
    context_independence,
    context_independence_of_experts,
    top_shares,
)

TABLES = arrays(np.int64, st.tuples(st.integers(2, 8), st.integers(2, 5)), elements=st.integers(0, 20))


def bits_of(counts: np.ndarray) -> float:
    return float(stats.entropy(counts, base=2)) if counts.any() else 0.0


def test_top_shares_by_hand():
    assert top_shares(np.array([[3, 1, 0], [2, 2, 0]])).tolist() == [0.75, 0.5]
    assert np.isnan(top_shares(np.array([[0, 0]]))).all()
    assert top_shares(np.zeros((0, 3), int)).size == 0


def test_the_chance_share_is_the_mean_over_all_ways_to_draw():
    loads = np.array([6, 3, 1])
    for n in (1, 2, 5):
        exact = 0.0
        for drawn in product(range(3), repeat=n):
            exact += np.prod(loads[list(drawn)] / 10) * np.bincount(drawn).max() / n
        assert chance_top_shares(np.array([n]), loads)[0] == pytest.approx(exact, abs=0.012)


def test_the_chance_share_of_two_experts_has_a_closed_form_at_any_n():
    occurrences = np.array([1, 10, 63, 64, 65, 137, 1000, 40_000])
    found = chance_top_shares(occurrences, np.array([50, 50]))
    exact = [0.5 + stats.binom(n, 0.5).expect(lambda x, n=n: abs(x / n - 0.5)) for n in occurrences[:7]]
    assert found[:7] == pytest.approx(exact, abs=0.008)
    assert found[7] == pytest.approx(0.5 + math.sqrt(1 / (2 * math.pi * 40_000)), abs=0.002)


def test_the_chance_share_falls_with_n_to_the_heaviest_load():
    found = chance_top_shares(np.arange(1, 3000), np.array([40, 30, 20, 10]))
    assert found[0] == 1.0
    assert found[-1] == pytest.approx(0.4, abs=0.01)
    assert (np.diff(found[::100]) < 0.005).all()


def test_nothing_occurs_and_nothing_loads_are_no_share():
    assert np.isnan(chance_top_shares(np.array([0, 3]), np.array([1, 1]))[0])
    assert np.isnan(chance_top_shares(np.array([3]), np.zeros(4, int))).all()
    assert chance_top_shares(np.zeros(0, int), np.array([1, 1])).size == 0


def test_a_seed_decides_the_chance_share():
    one, same, other = (chance_top_shares(np.array([10]), np.ones(8, int), seed=seed)[0] for seed in (1, 1, 2))
    assert one == same != other


def test_unfiltered_the_published_measure_is_high_under_random_routing_and_the_chance_share_says_so():
    rng = np.random.default_rng(0)
    occurrences = np.bincount(rng.choice(60_000, 200_000, p=(w := 1 / np.arange(3, 60_003)) / w.sum()))
    occurrences = occurrences[occurrences > 0]
    counts = rng.multinomial(occurrences, np.full(8, 1 / 8))
    published = top_shares(counts).mean()
    assert 0.7 < published < 0.8
    chances = chance_top_shares(occurrences, counts.sum(axis=0))
    assert chances.mean() == pytest.approx(published, abs=0.003)
    often = occurrences >= 10
    assert top_shares(counts[often]).mean() == pytest.approx(chances[often].mean(), abs=0.005)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_context_independence_agrees_with_scikit_learn_and_scipy(counts):
    found = context_independence(counts, np.arange(len(counts)))
    total, whole = counts.sum(), bits_of(counts.sum(axis=0))
    if whole == 0:
        assert found.value is None
        return
    left = sum(bits_of(row) * row.sum() for row in counts) / total
    kept = counts[counts.any(axis=1)][:, counts.any(axis=0)]
    shuffled = whole - expected_mutual_information(kept, int(total)) / math.log(2)
    assert found.raw == pytest.approx(1 - left / whole, abs=1e-12)
    assert found.null == pytest.approx(1 - shuffled / whole, abs=1e-9)
    if shuffled > 1e-9:
        assert found.value == pytest.approx(1 - left / shuffled, abs=1e-9)


def test_a_token_that_decides_the_expert_is_worth_one_and_a_random_router_nothing():
    hashed = np.eye(4, dtype=int)[np.arange(40) % 4] * 12
    assert context_independence(hashed, np.arange(40)).value == pytest.approx(1.0)
    assert [one.value for one in context_independence_of_experts(hashed, np.arange(40))] == pytest.approx([1.0] * 4)
    rng = np.random.default_rng(0)
    random = rng.multinomial(rng.integers(1, 40, 2000), np.full(8, 1 / 8))
    found = context_independence(random, np.arange(2000) % 64)
    assert found.low < 0 < found.high
    assert abs(found.value) < 0.01 < found.null
    assert found.raw == pytest.approx(found.null, abs=0.01)


def test_the_interval_of_context_independence_holds_zero_for_random_routers():
    held = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(np.minimum(rng.zipf(1.6, 600), 400), np.full(6, 1 / 6))
        found = context_independence(counts, np.arange(600) % 64)
        held.append(found.low <= 0 <= found.high)
    assert np.mean(held) > 0.9


def test_of_each_expert_it_is_asked_whether_it_is_chosen():
    counts = np.array([[8, 0, 2], [1, 6, 3], [0, 0, 5]])
    folds = np.arange(3)
    for expert, found in enumerate(context_independence_of_experts(counts, folds)):
        chosen = np.stack([counts[:, expert], counts.sum(axis=1) - counts[:, expert]], axis=1)
        alone = context_independence(chosen, folds)
        assert (found.value, found.raw, found.null) == pytest.approx((alone.value, alone.raw, alone.null))
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_where_every_type_occurs_once_or_one_expert_has_all_nothing_can_be_said():
    once = context_independence(np.eye(5, dtype=int), np.arange(5))
    assert (once.value, once.low, once.raw, once.null) == (None, None, 1.0, pytest.approx(1.0))
    one_expert = context_independence(np.array([[5, 0], [9, 0]]), np.arange(2))
    assert (one_expert.value, one_expert.raw, one_expert.null) == (None, None, None)
    assert [one.value for one in context_independence_of_experts(np.array([[5, 0], [9, 0]]), np.arange(2))] == [
        None
    ] * 2
    assert context_independence(np.zeros((0, 3), int), np.zeros(0, int)).value is None
    assert len(context_independence_of_experts(np.zeros((0, 3), int), np.zeros(0, int))) == 3
    assert context_independence(np.array([[4, 4], [0, 8]]), np.zeros(2, int)).low is None
