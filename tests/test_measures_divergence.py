from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon

from moe_probe.measures.divergence import divergence, jensen_shannon_bits

LOADS = arrays(np.int64, 5, elements=st.integers(0, 60)).filter(lambda load: load.any())


@settings(max_examples=60, deadline=None)
@given(LOADS, LOADS)
def test_the_divergence_agrees_with_scipy(one, other):
    found = jensen_shannon_bits(one, other)
    with np.errstate(invalid="ignore"):  # scipy takes the root of what rounding may leave below 0
        expected = np.nan_to_num(jensenshannon(one, other, base=2)) ** 2
    assert found == pytest.approx(expected, abs=1e-12)
    assert found == jensen_shannon_bits(other, one)


def test_loads_without_a_common_expert_are_one_bit_apart_and_equal_shares_none():
    assert jensen_shannon_bits(np.array([3, 0, 0]), np.array([0, 5, 5])) == 1.0
    assert jensen_shannon_bits(np.array([3, 1]), np.array([30, 10])) == 0.0
    assert jensen_shannon_bits(np.array([0, 0]), np.array([1, 2])) is None


def test_the_null_of_documents_with_one_value_each_is_the_mean_over_all_ways_to_deal_them():
    loads = np.random.default_rng(0).integers(1, 30, (5, 3))
    one, other = loads.copy(), loads.copy()
    one[2:], other[:2] = 0, 0
    ways = [
        jensen_shannon_bits(loads[list(chosen)].sum(axis=0), loads[~np.isin(range(5), chosen)].sum(axis=0))
        for chosen in [(a, b) for a in range(5) for b in range(a)]
    ]
    found = divergence(one, other, n_exchanges=4000)
    assert found.bits == pytest.approx(jensen_shannon_bits(loads[:2].sum(axis=0), loads[2:].sum(axis=0)))
    assert found.null_bits == pytest.approx(np.mean(ways), abs=0.05 * np.mean(ways))
    assert found.p == pytest.approx(np.mean(np.array(ways) >= found.bits - 1e-12), abs=0.03)
    assert found.excess_bits == found.bits - found.null_bits


def test_clusters_that_have_both_values_swap_them():
    rng = np.random.default_rng(1)
    one, other = rng.integers(1, 30, (2, 4, 3))
    ways = []
    for swapped in product([False, True], repeat=4):
        exchanged = np.where(np.array(swapped)[:, None], other, one)
        ways.append(jensen_shannon_bits(exchanged.sum(axis=0), (one + other - exchanged).sum(axis=0)))
    found = divergence(one, other, n_exchanges=4000)
    assert found.null_bits == pytest.approx(np.mean(ways), rel=0.05)
    assert found.p == pytest.approx(np.mean(np.array(ways) >= found.bits - 1e-12), abs=0.03)


def test_values_that_are_alike_are_not_told_apart_and_others_are():
    rejected = covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        loads = rng.multinomial(300, rng.dirichlet(np.full(8, 20.0), 24))  # each document has a load of its own
        one, other = loads.copy(), loads.copy()
        one[12:], other[:12] = 0, 0
        found = divergence(one, other, seed=seed, n_exchanges=200)
        rejected += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert rejected <= 6  # 2 expected; 7 or more has a probability of 0.003
    assert covered >= 36
    other[12:, 0] += 150
    assert divergence(one, other, n_exchanges=200).p < 0.01
    assert divergence(one, other, n_exchanges=200).low > 0


def test_one_cluster_each_leaves_nothing_to_exchange_and_few_no_interval():
    found = divergence(np.array([[5, 1], [0, 0]]), np.array([[0, 0], [1, 5]]))
    assert found.p == 1.0
    assert found.excess_bits == pytest.approx(0.0, abs=1e-12)
    assert (found.low, found.high) == (None, None)
    four = np.tile([3, 4], (4, 1))
    assert divergence(four, four[:, ::-1]).low is None


def test_a_value_that_never_occurs_gives_no_number():
    assert divergence(np.zeros((3, 4), int), np.ones((3, 4), int)) is None
    assert divergence(np.zeros((0, 4), int), np.zeros((0, 4), int)) is None


def test_relabelling_experts_changes_nothing_and_a_seed_decides_the_exchanges():
    rng = np.random.default_rng(3)
    one, other = rng.integers(0, 20, (2, 12, 4))
    found = divergence(one, other)
    renamed = divergence(one[:, [2, 0, 3, 1]], other[:, [2, 0, 3, 1]])
    assert vars(renamed) == pytest.approx(vars(found), abs=1e-12)
    assert divergence(one, other) == found
    assert divergence(one, other, seed=1).null_bits != found.null_bits
