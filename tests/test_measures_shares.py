from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from moe_probe.measures.intervals import clustered_ratio
from moe_probe.measures.shares import clustered_shares, wilson


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200), st.integers(1, 200))
def test_wilson_with_many_degrees_of_freedom_agrees_with_statsmodels(successes, more):
    n = successes + more
    low, high = wilson(successes, n, 1e12)
    assert (float(low), float(high)) == pytest.approx(proportion_confint(successes, n, method="wilson"), abs=1e-9)


def test_wilson_solves_its_quadratic_with_students_t():
    low, high = wilson(np.array([3.0, 0.0]), np.array([12.5, 40.0]), np.array([7.0, 3.0]))
    for end in (low[0], high[0]):
        assert abs(0.24 - end) == pytest.approx(stats.t.ppf(0.975, 7) * np.sqrt(end * (1 - end) / 12.5))
    t = stats.t.ppf(0.975, 3)
    assert (low[1], high[1]) == pytest.approx((0, t**2 / (40 + t**2)))


def test_hand_made_shares():
    counts = np.array([[5, 15], [7, 13], [6, 14], [6, 14]])
    found = clustered_shares(np.concatenate([counts, np.zeros((60, 2), int)]))
    assert found.share.tolist() == [0.3, 0.7]
    assert np.allclose(found.geff, [24**2 / (25 + 49 + 36 + 36), 56**2 / (225 + 169 + 196 + 196)])
    # Residuals of the first expert: -1, 1, 0, 0, over 80.
    variance = 4 / 3 * 2 / 80**2
    assert found.deff[0] == pytest.approx(variance / (0.3 * 0.7 / 80))
    n_eff = 80 / found.deff[0]
    assert (found.low[0], found.high[0]) == pytest.approx(
        [float(end) for end in wilson(0.3 * n_eff, n_eff, found.geff[0] - 1)]
    )


def test_the_design_effect_holds_the_variance_that_the_ratio_has():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2, 20, (40, 5)))
    found = clustered_shares(counts)
    for expert in range(5):
        ratio = clustered_ratio(counts[:, expert], counts.sum(axis=1))
        effective = counts.sum() ** 2 / (counts.sum(axis=1) ** 2).sum()
        error = (ratio.high - ratio.value) / stats.t.ppf(0.975, effective - 1)
        independent = found.share[expert] * (1 - found.share[expert]) / counts.sum()
        assert found.deff[expert] == pytest.approx(error**2 / independent)


def test_clusters_of_alike_tokens_widen_the_interval():
    rng = np.random.default_rng(1)
    lumps = np.stack([rng.multinomial(100, rng.dirichlet(np.ones(4))) for _ in range(50)])
    spread = rng.multinomial(100, np.full(4, 0.25), 50)
    assert (clustered_shares(lumps).deff > 5).all()
    assert (clustered_shares(spread).deff < 3).all()
    widths = [found.high - found.low for found in (clustered_shares(lumps), clustered_shares(spread))]
    assert (widths[0] > 2 * widths[1]).all()


def test_an_expert_with_hardly_any_assignments_takes_the_others_design_effect():
    rng = np.random.default_rng(2)
    counts = np.stack([rng.multinomial(100, rng.dirichlet(np.ones(3))) for _ in range(50)])
    counts = np.concatenate([counts, np.zeros((50, 2), int)], axis=1)
    counts[0, 3] = 4
    found = clustered_shares(counts)
    assert found.deff[3] == found.deff[4] == np.median(found.deff[:3])
    assert found.low[4] == 0
    assert found.geff[4] == pytest.approx(counts.sum() ** 2 / (counts.sum(axis=1) ** 2).sum())
    bound = found.high[4]
    t2 = stats.t.ppf(0.975, found.geff[4] - 1) ** 2
    assert bound == pytest.approx(t2 / (counts.sum() / found.deff[4] + t2))


def test_five_assignments_are_enough_for_a_design_effect_of_ones_own():
    counts = np.array([[40, 60, 1]] * 5 + [[60, 40, 0]] * 5)
    found = clustered_shares(counts)
    residuals = (counts[:, 2] - counts.sum(axis=1) * 5 / 1005) / 1005
    independent = 5 / 1005 * 1000 / 1005 / 1005
    assert found.deff[2] == pytest.approx(10 / 9 * (residuals**2).sum() / independent)
    assert found.geff[2] == 5


def test_an_expert_rests_on_no_more_draws_than_the_tokens_do():
    counts = np.array([[5, 2000]] + [[5, 5]] * 19)
    found = clustered_shares(counts)
    assert found.geff[0] == pytest.approx(counts.sum() ** 2 / (counts.sum(axis=1) ** 2).sum())
    assert found.geff[0] < 1.3


def test_where_no_expert_has_enough_a_cluster_is_one_draw():
    found = clustered_shares(np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]]))
    t2 = stats.t.ppf(0.975, 16 / 6 - 1) ** 2
    assert found.high[2] == pytest.approx(t2 / (16 / 6 + t2))


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_bounded_is_nan_and_warns_of_nothing():
    assert all(np.isnan(values).all() for values in vars(clustered_shares(np.zeros((64, 3), int))).values())
    one = clustered_shares(np.array([[5, 15]]))
    assert one.share.tolist() == [0.25, 0.75]
    assert np.isnan([one.low, one.high, one.deff]).all()
    collapsed = clustered_shares(np.array([[50, 0], [60, 0], [70, 0]]))
    assert collapsed.share.tolist() == [1.0, 0.0]
    assert collapsed.deff.tolist() == [1.0, 1.0]
    assert 0.9 < collapsed.low[0] < collapsed.high[0] == 1.0
    everywhere = clustered_shares(np.array([[50, 50], [60, 60]]))  # two of two experts: nothing varies
    assert (everywhere.low, everywhere.high) == (pytest.approx(0.5, abs=1e-3), pytest.approx(0.5, abs=1e-3))


def test_intervals_cover_the_share_that_documents_are_drawn_from():
    rng = np.random.default_rng(3)
    truth = np.array([0.4, 0.3, 0.2, 0.07, 0.03])
    covered = []
    for _ in range(150):
        counts = np.zeros((64, 5), np.int64)
        for cluster in rng.integers(0, 64, 100):
            counts[cluster] += rng.multinomial(rng.integers(100, 900), rng.dirichlet(truth * 30))
        found = clustered_shares(counts)
        covered.append((found.low <= truth) & (truth <= found.high))
    assert 0.91 < np.mean(covered) < 0.97
