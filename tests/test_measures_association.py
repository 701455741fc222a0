from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.stats.contingency import association
from sklearn.metrics.cluster import expected_mutual_information

from moe_probe.measures.association import (
    cramers_v,
    entropy_bits,
    expected_information_bits,
    expected_n_log_n,
    information_bits,
    mutual_information_bits,
)

TABLES = arrays(np.int64, st.tuples(st.integers(2, 5), st.integers(2, 5)), elements=st.integers(1, 40))


def test_the_expected_information_of_a_small_table_is_the_mean_over_all_pairings():
    # Three tokens of expert 0, two of expert 1; labels 0 0 1 1 1, dealt in every order.
    experts, labels = [0, 0, 0, 1, 1], (0, 0, 1, 1, 1)
    bits = []
    for dealt in permutations(labels):
        table = np.zeros((2, 2))
        np.add.at(table, (experts, dealt), 1)
        bits.append(float(information_bits(table)))
    assert expected_information_bits(np.array([[2, 1], [0, 2]])) == pytest.approx(np.mean(bits), abs=1e-14)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_the_expected_information_agrees_with_scikit_learn(table):
    expected = expected_mutual_information(table, int(table.sum())) / math.log(2)
    assert expected_information_bits(table) == pytest.approx(expected, abs=1e-12)


def test_the_expected_information_of_large_counts_agrees_with_scikit_learn():
    table = np.array([[9000, 12, 4000], [3000, 7000, 40], [5, 2500, 9000]])
    expected = expected_mutual_information(table, int(table.sum())) / math.log(2)
    assert expected_information_bits(table) == pytest.approx(expected, abs=1e-9)


def test_each_cells_mean_is_that_of_its_hypergeometric_distribution():
    found = expected_n_log_n(np.array([7, 30, 7]), np.array([12, 0, 400]), 500)
    for row, size in enumerate((7, 30, 7)):
        for column, other in enumerate((12, 0, 400)):
            n = np.arange(min(size, other) + 1)
            p = stats.hypergeom.pmf(n, 500, size, other)
            assert found[row, column] == pytest.approx(float(p @ (n * np.log2(np.maximum(n, 1)))), abs=1e-12)


def test_nothing_is_expected_of_an_empty_table_or_of_one_row():
    assert expected_information_bits(np.zeros((3, 2), int)) == 0.0
    assert expected_information_bits(np.array([[5, 7]])) == pytest.approx(0.0, abs=1e-12)


def test_the_null_of_occurrences_is_exact_and_its_draws_lie_around_it():
    table = np.random.default_rng(0).multinomial(800, np.full(24, 1 / 24)).reshape(4, 6)
    found = mutual_information_bits(table, n_draws=500)
    assert found.null_bits == expected_information_bits(table)
    assert 0.02 < found.p < 1
    assert mutual_information_bits(table, n_draws=0).p is None
    assert mutual_information_bits(table, n_draws=0).bits == found.bits


def test_draws_are_tables_with_the_same_sums_and_the_null_is_their_mean():
    # With 0.35 bits of dependence no draw reaches it; independent counts are reached by about half of the draws.
    dependent = mutual_information_bits(np.array([[80, 20], [15, 85]]), n_draws=99)
    assert dependent.p == pytest.approx(1 / 100)
    p = [
        mutual_information_bits(np.random.default_rng(seed).multinomial(300, np.full(6, 1 / 6)).reshape(2, 3)).p
        for seed in range(60)
    ]
    assert 0.35 < np.mean(p) < 0.65


def test_a_draw_that_is_the_table_itself_counts_as_reaching_it():
    assert mutual_information_bits(np.array([[1, 0], [0, 1]])).p == 1.0  # both tables with these sums tell one bit


@settings(max_examples=30, deadline=None)
@given(TABLES)
def test_cramers_v_without_correction_agrees_with_scipy(table):
    assert cramers_v(table, corrected=False) == pytest.approx(association(table, method="cramer"), abs=1e-12)


def test_cramers_v_corrected_by_hand():
    # Chi-square 8, n 50, 2 x 2: phi² .16 less 1/49; both sides 2 - 1/49.
    table = np.array([[20, 10], [5, 15]])
    phi = stats.chi2_contingency(table, correction=False).statistic / 50
    expected = math.sqrt((phi - 1 / 49) / (2 - 1 / 49 - 1))
    assert cramers_v(table) == pytest.approx(expected)


def test_cramers_v_is_one_for_a_perfect_split_and_about_zero_for_independent_counts():
    assert cramers_v(np.diag([40, 50, 60])) == pytest.approx(1.0)
    counts = [np.random.default_rng(seed).multinomial(400, np.full(40, 1 / 40)).reshape(8, 5) for seed in range(40)]
    assert np.mean([cramers_v(table) for table in counts]) < 0.04
    assert np.mean([cramers_v(table, corrected=False) for table in counts]) > 0.12


def test_rows_and_columns_that_never_occur_do_not_change_cramers_v():
    padded = np.array([[20, 0, 10], [0, 0, 0], [5, 0, 15]])
    assert cramers_v(padded) == cramers_v(np.array([[20, 10], [5, 15]]))


@pytest.mark.parametrize("table", [np.zeros((2, 2), int), np.array([[4, 5]]), np.array([[4, 0], [5, 0]])])
def test_one_value_of_a_side_gives_no_cramers_v(table):
    assert cramers_v(table) is None


def test_entropy_agrees_with_scipy_and_is_zero_for_one_category_or_nothing():
    counts = np.array([[3, 0, 9, 1], [5, 0, 0, 0], [0, 0, 0, 0]])
    assert entropy_bits(counts)[0] == pytest.approx(stats.entropy(counts[0], base=2), abs=1e-14)
    assert entropy_bits(counts)[1:].tolist() == [0.0, 0.0]
