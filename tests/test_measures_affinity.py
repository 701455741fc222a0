from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from moe_probe.measures.affinity import clustered_means, ranks, smallest_set
from moe_probe.measures.intervals import clustered_ratio


def test_the_smallest_set_by_hand():
    scores = np.array([0.1, 0.4, 0.3, 0.2])
    assert smallest_set(scores, 0.4).tolist() == [False, True, False, False]
    assert smallest_set(scores, 0.41).tolist() == [False, True, True, False]
    assert smallest_set(scores, 1.0).tolist() == [True] * 4


def test_rounding_adds_no_expert_and_an_expert_without_a_score_is_never_taken():
    assert smallest_set(np.array([0.2, 0.1, 0.7 - 1e-9]), 0.7 - 1e-9 + 0.2 + 0.1).tolist() == [True] * 3
    assert smallest_set(np.array([0.1, 0.2, 0.05]), 0.1 + 0.2).tolist() == [True, True, False]
    assert smallest_set(np.array([0.5, 0.0, 0.3]), 1.0).tolist() == [True, False, True]


def test_of_equal_scores_the_lower_expert_comes_first():
    assert ranks(np.array([0.25, 0.5, 0.25])).tolist() == [2, 1, 3]
    assert smallest_set(np.full(4, 0.25), 0.5).tolist() == [True, True, False, False]


@pytest.mark.parametrize("p", [0.0, -0.2, float("nan")])
def test_a_part_that_no_set_can_reach_is_refused(p):
    with pytest.raises(ValueError, match="a set of experts reaches a sum above 0"):
        smallest_set(np.array([0.5, 0.5]), p)


@settings(max_examples=60, deadline=None)
@given(arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 50)), st.floats(0.01, 1))
def test_the_set_is_what_the_published_loop_takes(counts, p):
    scores = counts / max(counts.sum(), 1)
    order = sorted(range(len(scores)), key=lambda expert: -scores[expert])
    taken, reached = set(), 0.0
    for expert in order:
        if reached >= p - 1e-12 or scores[expert] == 0:
            break
        taken.add(expert)
        reached += scores[expert]
    assert set(np.flatnonzero(smallest_set(scores, p)).tolist()) == taken


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (6, 4), elements=st.floats(0, 9)), arrays(np.int64, 6, elements=st.integers(0, 30)))
def test_means_and_intervals_are_those_of_clustered_ratio(sums, sizes):
    found = clustered_means(sums, sizes)
    for expert in range(4):
        alone = clustered_ratio(sums[:, expert], sizes)
        if alone is None:
            assert np.isnan(found.value[expert])
            continue
        assert found.value[expert] == pytest.approx(alone.value)
        if alone.low is None:
            assert np.isnan(found.low[expert])
            assert np.isnan(found.high[expert])
        else:
            assert found.low[expert] == pytest.approx(max(alone.low, 0.0))
            assert found.high[expert] == pytest.approx(alone.high)


# deepseek-ai/ESFT at 18d2350: results/expert_scores/intent/summary.json, token_scores of layers 13 and 16, in units of
# .0001, and what results/expert_configs/intent.json takes of them with p = .2.
PUBLISHED = {
    13: (
        "28 57 63 2 56 210 625 117 65 82 155 367 23 108 99 130 37 209 104 271 54 209 "
        "79 160 111 34 214 77 28 538 224 180 63 424 196 125 195 621 102 121 31 233 72 55 "
        "205 79 42 76 142 203 16 11 82 53 67 417 54 402 205 61 22 338 111 462",
        [6, 37, 29, 63],
    ),
    16: (
        "42 183 46 127 41 180 134 98 75 141 595 73 37 165 182 328 235 291 91 221 729 220 "
        "207 39 587 210 226 23 300 69 220 50 141 275 52 131 114 56 200 66 47 297 3 18 "
        "10 38 46 155 241 39 68 42 20 49 262 301 101 94 186 153 139 180 125 187",
        [20, 10, 24, 15],
    ),
}


@pytest.mark.parametrize("layer", PUBLISHED)
def test_the_published_scores_give_the_published_experts(layer):
    scores, experts = np.array(PUBLISHED[layer][0].split(), dtype=np.float64) / 10_000, PUBLISHED[layer][1]
    assert scores.sum() == pytest.approx(1, abs=0.002)  # divided by the layer's sum, as in the paper
    assert np.flatnonzero(smallest_set(scores, 0.2)).tolist() == sorted(experts)
    assert np.argsort(ranks(scores))[: len(experts)].tolist() == experts
