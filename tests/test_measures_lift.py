from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats.contingency import expected_freq

from moe_probe.measures.lift import label_lift


def test_a_hand_made_table():
    found = label_lift(np.array([[6, 2], [1, 3]]))
    assert found.expected.tolist() == [[8 * 7 / 12, 8 * 5 / 12], [4 * 7 / 12, 4 * 5 / 12]]
    assert found.lift[0, 0] == pytest.approx((6 / 8) / (7 / 12))
    assert found.p_label_given_expert.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert found.p_expert_given_label[:, 1].tolist() == [2 / 5, 3 / 5]


@pytest.mark.filterwarnings("error")
def test_what_was_never_counted_has_no_share_and_warns_of_nothing():
    found = label_lift(np.array([[4, 0], [0, 0]]))
    assert np.isnan(found.p_label_given_expert[1]).all()
    assert np.isnan(found.p_expert_given_label[:, 1]).all()
    assert np.isnan(found.lift).tolist() == [[False, True], [True, True]]
    assert np.isnan(label_lift(np.zeros((2, 2), int)).expected).all()


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(1, 10**9)))
def test_agrees_with_scipy_and_averages_to_one(table):
    found = label_lift(table)
    assert found.expected == pytest.approx(expected_freq(table), rel=1e-12)
    shares = found.expected / float(table.sum())
    assert float((found.lift * shares).sum()) == pytest.approx(1)
