"""Numbers that scikit-learn, statsmodels and SciPy give too agree with theirs to 1e-12."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import mutual_info_score
from sklearn.metrics.cluster import expected_mutual_information
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from moe_probe.measures.association import (
    cramers_v,
    entropy_bits,
    expected_information_bits,
    information_bits,
    mutual_information_bits,
)
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.divergence import jensen_shannon_bits
from moe_probe.measures.intervals import clustered_ratio
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.repetition import uniform_chance
from moe_probe.measures.shares import wilson

EXACT = 1e-12
TABLES = arrays(np.int64, st.tuples(st.integers(2, 7), st.integers(2, 6)), elements=st.integers(0, 500))
LOADS = st.integers(2, 40).flatmap(lambda n: st.tuples(*[arrays(np.int64, n, elements=st.integers(0, 9999))] * 2))


@settings(max_examples=80, deadline=None)
@given(TABLES)
def test_mutual_information_is_scikit_learns(table: np.ndarray):
    expected = mutual_info_score(None, None, contingency=table) / math.log(2) if table.any() else 0.0
    assert information_bits(table) == pytest.approx(expected, abs=EXACT)
    found = mutual_information_bits(table, n_draws=0)
    if found is not None:
        assert found.raw_bits == pytest.approx(expected, abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_its_mean_under_independence_is_scikit_learns(table: np.ndarray):
    held = table[table.any(axis=1)][:, table.any(axis=0)]  # theirs takes the logarithm of every sum
    if held.size:
        expected = expected_mutual_information(held.astype(float), held.sum()) / math.log(2)
        # Theirs sums logarithms of factorials of n, which leaves 1e-10 at thousands of tokens.
        assert expected_information_bits(table) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)))
def test_q_values_are_those_of_statsmodels(p: np.ndarray):
    assert q_values(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=EXACT)


def test_q_values_leave_out_what_was_not_tested_as_statsmodels_never_saw_it():
    p = np.array([[0.001, np.nan, 0.2], [0.03, 0.04, np.nan]])
    tested = ~np.isnan(p)
    q = q_values(p)
    assert np.isnan(q[~tested]).all()
    assert q[tested] == pytest.approx(multipletests(p[tested], method="fdr_bh")[1], abs=EXACT)


@settings(max_examples=80, deadline=None)
@given(LOADS)
def test_jensen_shannon_is_scipys_distance_squared(loads: tuple[np.ndarray, np.ndarray]):
    one, other = loads
    found = jensen_shannon_bits(one, other)
    if not one.any() or not other.any():
        assert found is None
    else:
        # SciPy's square root of what rounding made negative is nan: it stands for 0.
        expected = np.nan_to_num(jensenshannon(one, other, base=2)) ** 2
        assert found == pytest.approx(expected, abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 9999)))
def test_entropy_is_scipys(counts: np.ndarray):
    expected = stats.entropy(counts, base=2) if counts.any() else 0.0
    assert entropy_bits(counts) == pytest.approx(expected, abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_cramers_v_without_correction_is_scipys(table: np.ndarray):
    held = table[table.any(axis=1)][:, table.any(axis=0)]
    found = cramers_v(table, corrected=False)
    if min(held.shape) < 2:
        assert found is None
    else:
        assert found == pytest.approx(stats.contingency.association(held, method="cramer"), abs=EXACT)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_for_independent_draws_is_that_of_statsmodels(counts: tuple[int, int]):
    successes, n = counts
    low, high = wilson(successes, n, np.inf)
    assert (float(low), float(high)) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=EXACT)


def test_a_clustered_ratio_over_equal_clusters_is_scipys_interval_of_a_mean():
    values = np.random.default_rng(0).normal(5, 1, 17)
    found = clustered_ratio(values * 8, np.full(17, 8))
    low, high = stats.t.interval(0.95, 16, loc=values.mean(), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high), abs=EXACT)


def test_expected_counts_are_scipys():
    clustered = np.random.default_rng(0).integers(0, 30, (12, 5, 4))
    expected = stats.contingency.expected_freq(clustered.sum(axis=0))
    assert cell_estimates(clustered).expected == pytest.approx(expected, abs=1e-10)


def test_the_chance_that_uniform_sets_meet_is_scipys_hypergeometric():
    for n_experts, n_slots in [(8, 2), (64, 8), (60, 4), (16, 1), (8, 4), (256, 8)]:
        first, either = uniform_chance(n_experts, n_slots)
        assert first == 1 / n_experts
        assert either == pytest.approx(1 - stats.hypergeom.pmf(0, n_experts, n_slots, n_slots), abs=EXACT)
