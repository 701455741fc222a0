from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from moe_probe.measures.cells import cell_estimates

SIX = np.array([[[6, 2], [2, 6]], [[7, 1], [1, 7]], [[5, 3], [3, 5]]])


def by_hand(clustered: np.ndarray, expert: int, label: int) -> tuple[float, float, float, float, float]:
    """The formulas as they are written, one cell and one cluster at a time."""
    clusters = [cluster for cluster in clustered.astype(float) if cluster.sum()]
    table = sum(clusters)
    n_ec, n_e, n_c, n = table[expert, label], table[expert].sum(), table[:, label].sum(), table.sum()
    log_lift = math.log(n_ec * n / (n_e * n_c))
    total = 0.0
    for x in clusters:
        z = x[expert, label] / n_ec + x.sum() / n - x[expert].sum() / n_e - x[:, label].sum() / n_c
        total += z**2
    error = math.sqrt(len(clusters) / (len(clusters) - 1) * total)
    geff = min(
        n_c**2 / sum(x[:, label].sum() ** 2 for x in clusters), n_e**2 / sum(x[expert].sum() ** 2 for x in clusters)
    )
    t = stats.t(max(geff - 1, 1))
    half = t.ppf(0.975) * error
    return (
        geff,
        math.exp(log_lift),
        math.exp(log_lift - half),
        math.exp(log_lift + half),
        2 * t.sf(abs(log_lift / error)) if error else 1.0,
    )


def test_a_hand_made_cell():
    found = cell_estimates(SIX)
    assert found.lift.tolist() == [[1.5, 0.5], [0.5, 1.5]]
    assert found.expected.tolist() == [[12.0, 12.0], [12.0, 12.0]]
    assert np.allclose(found.geff, 3)
    # Of the 18 in the cell the clusters hold 6, 7 and 5; everything else is spread evenly: Z = 0, 1/18, -1/18.
    error = math.sqrt(3 / 2 * 2 / 18**2)
    assert found.high[0, 0] == pytest.approx(1.5 * math.exp(stats.t.ppf(0.975, 2) * error))
    assert found.p[0, 0] == pytest.approx(2 * stats.t.sf(math.log(1.5) / error, 2))


@settings(max_examples=30, deadline=None)
@given(
    arrays(np.int64, st.tuples(st.integers(2, 6), st.integers(2, 4), st.integers(2, 4)), elements=st.integers(1, 50))
)
def test_agrees_with_the_formulas_as_they_are_written(clustered):
    found = cell_estimates(np.concatenate([clustered, np.zeros_like(clustered)]))  # empty clusters are no draws
    for expert in range(clustered.shape[1]):
        for label in range(clustered.shape[2]):
            cell = [array[expert, label] for array in (found.geff, found.lift, found.low, found.high, found.p)]
            wanted = by_hand(clustered, expert, label)
            # Clusters that agree to the last digit have no variance, and then no interval.
            assert cell == pytest.approx(wanted, rel=1e-6) or math.log(wanted[3] / wanted[2]) < 1e-8


def test_renaming_experts_and_labels_changes_nothing():
    rng = np.random.default_rng(0)
    clustered = rng.poisson(20, (16, 5, 3))
    experts, labels = rng.permutation(5), rng.permutation(3)
    one, two = cell_estimates(clustered), cell_estimates(clustered[:, experts][:, :, labels])
    for name in ("lift", "low", "high", "p", "expected", "geff"):
        assert np.allclose(getattr(one, name)[experts][:, labels], getattr(two, name))


def test_the_interval_is_as_wide_as_the_clusters_differ():
    even = np.tile(np.array([[60, 20], [20, 60]]), (12, 1, 1)) + np.arange(12)[:, None, None] % 2
    uneven = even.copy()
    uneven[:, 0, 0] = 60 + 50 * (-1) ** np.arange(12)
    wide, narrow = cell_estimates(uneven), cell_estimates(even)
    widths = [math.log(found.high[0, 0] / found.low[0, 0]) for found in (wide, narrow)]
    assert widths[0] > 10 * widths[1]


def test_one_heavy_cluster_is_hardly_more_than_one_draw():
    clustered = np.full((20, 2, 2), 5)
    clustered[0] = [[5000, 4000], [4000, 5000]]
    assert (cell_estimates(clustered).geff < 1.1).all()
    assert np.allclose(cell_estimates(np.full((20, 2, 2), 5)).geff, 20)


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_estimated_is_nan_and_warns_of_nothing():
    never = SIX.copy()
    never[:, 0, 1] = 0
    found = cell_estimates(never)
    assert found.lift[0, 1] == 0
    assert np.isnan([found.low[0, 1], found.high[0, 1], found.p[0, 1]]).all()
    one_cluster = cell_estimates(SIX[:1])
    assert one_cluster.lift[0, 0] == 1.5
    assert np.isnan(one_cluster.low).all()
    one_label = cell_estimates(SIX.sum(axis=2, keepdims=True))
    assert set(one_label.lift.ravel()) == {1.0}
    assert np.isnan(one_label.p).all()
    alike = cell_estimates(np.tile(SIX[:1], (7, 1, 1)))  # no variance is not certainty
    assert np.isnan(alike.p).all()
    nothing = cell_estimates(np.zeros((64, 3, 2), np.int64))
    assert all(np.isnan(values).all() for values in vars(nothing).values())
    unused = cell_estimates(np.pad(SIX, ((0, 0), (0, 1), (0, 1))))
    assert np.isnan(unused.geff[2]).all()
    assert np.isnan(unused.lift[:, 2]).all()
    assert cell_estimates(np.zeros((64, 3, 0), np.int64)).lift.shape == (3, 0)


def test_a_random_router_is_called_in_one_of_twenty_cells_and_covered_in_nineteen():
    rng = np.random.default_rng(1)
    shares = np.array([0.3, 0.25, 0.2, 0.15, 0.1])
    rejected = []
    for _ in range(60):
        documents = rng.integers(0, 64, 60)
        clustered = np.zeros((64, 8, 5), np.int64)
        for cluster in documents:
            labels = rng.dirichlet(shares * 20)  # documents differ in what they hold, and in how long they are
            clustered[cluster] += rng.multinomial(
                rng.integers(100, 900), np.outer(np.full(8, 1 / 8), labels).ravel()
            ).reshape(8, 5)
        found = cell_estimates(clustered)
        assert ((found.low <= 1) & (found.high >= 1)).tolist() == (found.p >= 0.05).tolist()
        rejected.append(found.p < 0.05)
    assert 0.035 < np.mean(rejected) < 0.065


def test_documents_that_differ_in_their_experts_are_not_taken_for_independent_tokens():
    rng = np.random.default_rng(2)
    clustered, naive = [], []
    for _ in range(80):
        table = np.zeros((64, 2, 2), np.int64)
        for cluster in range(40):
            # Label and expert are independent, but both follow the document: occurrences lie in lumps.
            expert, label = rng.beta(2, 2), rng.beta(2, 2)
            cell = np.outer([expert, 1 - expert], [label, 1 - label]).ravel()
            table[cluster] = rng.multinomial(300, cell).reshape(2, 2)
        clustered.append(cell_estimates(table).p[0, 0] < 0.05)
        naive.append(stats.chi2_contingency(table.sum(axis=0)).pvalue < 0.05)
    assert np.mean(clustered) < 0.15
    assert np.mean(naive) > 0.5
