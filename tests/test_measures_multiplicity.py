from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.multitest import multipletests

from moe_probe.measures.multiplicity import q_values


def test_a_hand_made_family():
    # Sorted p times m over rank: .03, .03, .04; the second and third also from above.
    assert q_values(np.array([0.02, 0.01, 0.04])).tolist() == pytest.approx([0.03, 0.03, 0.04])
    assert q_values(np.array([[0.01, 0.9]])).tolist() == [[0.02, 0.9]]


def test_what_was_not_tested_stays_so_and_counts_for_nothing():
    q = q_values(np.array([[np.nan, 0.01], [0.5, np.nan]]))
    assert np.isnan(q).tolist() == [[True, False], [False, True]]
    assert q[0, 1] == 0.02
    assert np.isnan(q_values(np.full(3, np.nan))).all()
    assert q_values(np.zeros(0)).shape == (0,)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 1)))
def test_agrees_with_statsmodels(p):
    assert q_values(p) == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)


def test_of_tests_of_nothing_a_family_in_twenty_has_a_find():
    rng = np.random.default_rng(0)
    found = [(q_values(rng.random(200)) < 0.05).any() for _ in range(400)]
    assert 0.02 < np.mean(found) < 0.08
