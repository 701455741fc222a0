from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from moe_probe.measures.balance import load_balance


def test_an_even_load_is_balanced_by_every_measure():
    found = load_balance(np.full(8, 3))
    assert (found.max_violation, found.coefficient_of_variation, found.gini) == (0.0, 0.0, 0.0)
    assert (found.load_entropy_bits, found.normalised_load_entropy) == (3.0, 1.0)
    assert (found.effective_experts, found.unseen) == (8.0, 0)


def test_one_expert_with_everything_is_the_other_end():
    found = load_balance(np.array([0, 12, 0, 0]))
    assert found.max_violation == 3.0  # zero experts are in the mean
    assert found.gini == pytest.approx(3 / 4)
    assert found.coefficient_of_variation == pytest.approx(math.sqrt(3))
    assert math.copysign(1, found.load_entropy_bits) == 1.0
    assert (found.load_entropy_bits, found.normalised_load_entropy, found.effective_experts) == (0.0, 0.0, 1.0)
    assert found.unseen == 3


def test_a_hand_made_load():
    found = load_balance(np.array([1, 2, 5]))
    assert found.max_violation == pytest.approx(5 / (8 / 3) - 1)
    assert found.gini == pytest.approx((2 * (1 + 4 + 3) / 8) / (2 * 3))  # pairs differ by 1, 4 and 3 eighths


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, st.integers(2, 40), elements=st.integers(0, 1000)))
def test_agrees_with_scipy_and_the_formulas_as_written(loads):
    found = load_balance(loads)
    if not loads.any():
        assert found is None
        return
    shares = loads / loads.sum()
    assert found.gini == pytest.approx(np.abs(shares[:, None] - shares).sum() / (2 * loads.size), abs=1e-12)
    assert found.load_entropy_bits == pytest.approx(stats.entropy(shares, base=2), abs=1e-12)
    assert found.coefficient_of_variation == pytest.approx(stats.variation(loads.astype(float)), abs=1e-12)
    assert found.max_violation == pytest.approx(loads.max() / loads.mean() - 1)


def test_no_load_gives_no_number_and_one_expert_no_normalised_one():
    assert load_balance(np.zeros(4, int)) is None
    assert load_balance(np.zeros(0, int)) is None
    only = load_balance(np.array([9]))
    assert only.normalised_load_entropy is None
    assert (only.max_violation, only.gini, only.effective_experts) == (0.0, 0.0, 1.0)
