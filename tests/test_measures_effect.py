from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from moe_probe.measures.effect import difference, label_clusters, mean_effect, over_any


def sums_of(d: np.ndarray, cluster: np.ndarray, label: np.ndarray, n_labels: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (64, n_labels)
    sums, counts = np.zeros(shape), np.zeros(shape, np.int64)
    np.add.at(sums, (cluster, label), d)
    np.add.at(counts, (cluster, label), 1)
    return sums, counts


def test_means_and_differences_by_hand() -> None:
    sums, counts = np.array([[3.0, 1.0], [1.0, 1.0]]), np.array([[2, 1], [2, 3]])
    assert mean_effect(sums, counts).value.tolist() == [1.0, 0.5]
    assert difference(sums, counts).value.tolist() == [0.5, -0.5]
    assert label_clusters(counts).tolist() == [1.6, 1.6]


def test_one_token_a_cluster_is_the_textbook_interval() -> None:
    rng = np.random.default_rng(0)
    d = rng.normal(size=64)
    sums, counts = sums_of(d, np.arange(64), np.zeros(64, np.int64), 1)
    found = mean_effect(sums, counts)
    low, high = stats.t.interval(0.95, 63, loc=d.mean(), scale=stats.sem(d))
    assert (found.low[0], found.high[0]) == pytest.approx((low, high), abs=1e-12)
    assert found.p[0] == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=1e-12)


def test_two_labels_in_every_cluster_are_the_paired_test() -> None:
    rng = np.random.default_rng(1)
    of_label = rng.normal(size=(64, 2)) + rng.normal(size=(64, 1)) * 5  # documents differ far more than labels
    sums, counts = of_label, np.ones((64, 2), np.int64)
    found, paired = difference(sums, counts), stats.ttest_rel(of_label[:, 0], of_label[:, 1])
    assert found.p[0] == pytest.approx(paired.pvalue, abs=1e-12)
    interval = paired.confidence_interval()
    assert (found.low[0], found.high[0]) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_intervals_cover_and_tests_reject_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    covered, rejected, n_seeds = 0, 0, 400
    for _ in range(n_seeds):
        cluster = np.sort(rng.integers(0, 40, 2_000))
        label = rng.integers(0, 3, 2_000)
        effect_of_document = rng.normal(scale=0.5, size=(64, 3))
        d = rng.normal(size=2_000) + effect_of_document[cluster, label]
        found = difference(*sums_of(d, cluster, label, 3))
        covered += bool(found.low[0] <= 0 <= found.high[0])
        rejected += bool(found.p[0] < 0.05)
    assert covered + rejected == n_seeds
    assert 0.92 < covered / n_seeds < 0.975


def test_more_than_any_other_needs_every_comparison() -> None:
    counts = np.full((8, 2), 10)
    noise = np.random.default_rng(3).normal(scale=0.1, size=(3, 8, 2))
    mine = noise[0] + [10.0, 0.0]
    weak, strong = noise[1] + [2.0, 0.0], noise[2] + [10.0, 0.0]
    assert over_any(mine, np.array([weak]), counts)[0] > 0.5
    assert over_any(mine, np.array([weak, strong]), counts)[0] < 0.05
    assert np.isnan(over_any(mine, np.zeros((0, 8, 2)), counts)).all()


def test_too_little_is_nan_and_never_a_warning() -> None:
    counts = np.array([[5, 0, 2]])
    found = difference(np.array([[1.0, 0.0, 1.0]]), counts)
    assert np.isnan(found.low).all()
    assert np.isnan(found.value[1])
    empty = mean_effect(np.zeros((64, 2)), np.zeros((64, 2), np.int64))
    assert all(np.isnan(one).all() for one in (empty.value, empty.low, empty.high, empty.p))
    same = mean_effect(np.ones((4, 1)), np.ones((4, 1), np.int64))
    assert (same.value[0], same.low[0], same.high[0]) == (1.0, 1.0, 1.0)
    assert np.isnan(same.p[0])


def test_a_label_that_lies_in_one_cluster_has_a_value_and_no_interval() -> None:
    sums, counts = np.array([[1.0, 2.0], [0.0, 3.0], [0.0, 1.0]]), np.array([[2, 4], [0, 4], [0, 4]])
    for found in (mean_effect(sums, counts), difference(sums, counts)):
        assert not np.isnan(found.value[0])
        assert np.isnan([found.low[0], found.high[0], found.p[0]]).all()
    assert not np.isnan(mean_effect(sums, counts).low[1])


def test_an_effect_of_nothing_at_all_has_no_p_value() -> None:
    found = difference(np.zeros((8, 2)), np.ones((8, 2), np.int64))
    assert found.value.tolist() == [0.0, 0.0]
    assert np.isnan(found.p).all()
