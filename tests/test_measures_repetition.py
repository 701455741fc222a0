from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_probe.measures.repetition import load_chance, repetition, uniform_chance


def draw_sets(n_tokens: int, n_experts: int, n_slots: int, seed: int) -> np.ndarray:
    """Distinct uniform experts, (tokens, slots)."""
    keys = np.random.default_rng(seed).random((n_tokens, n_experts))
    return np.argsort(keys, axis=1)[:, :n_slots]


def places(n_documents: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    return np.repeat(np.arange(n_documents), length), np.tile(np.arange(length), n_documents)


def test_hand_counted_repetition():
    experts = np.array([[0, 1], [0, 2], [2, 0], [3, 1], [3, 0]])
    rows = np.arange(5)
    found = repetition(experts, rows * 0, rows, rows, 4)
    assert found.pairs == 4
    assert found.first.value == 2 / 4  # 0-0, 3-3
    assert found.either.value == 3 / 4  # {2,0} and {3,1} do not meet
    assert (found.first.low, found.first.high) == (None, None)  # one document gives no interval
    # First choices 0 0 2 3 3: 2·1 + 2·1 ordered pairs of 5·4.
    assert found.load_first == pytest.approx(4 / 20)
    meets = [bool({*a} & {*b}) for a, b in itertools.permutations(experts.tolist(), 2)]
    assert found.load_either == pytest.approx(np.mean(meets))


def test_uniform_chance_is_that_of_the_paper():
    first, either = uniform_chance(8, 2)
    assert (round(100 * first, 1), round(100 * either, 1)) == (12.5, 46.4)
    assert uniform_chance(4, 3) == (0.25, 1.0)
    assert uniform_chance(1, 1) == (1.0, 1.0)


def test_uniform_routing_is_at_both_chances():
    documents, positions = places(200, 50)
    found = repetition(draw_sets(10_000, 8, 2, 0), documents, positions, positions, 8)
    assert found.first.low < 0.125 < found.first.high
    assert found.either.low < found.uniform_either < found.either.high
    assert found.load_first == pytest.approx(0.125, abs=0.002)
    assert found.load_either == pytest.approx(found.uniform_either, abs=0.002)


def test_an_uneven_load_repeats_by_chance_alone():
    rng = np.random.default_rng(1)
    documents, positions = places(300, 40)
    experts = rng.choice(8, 12_000, p=[0.6, 0.2, 0.05, 0.05, 0.04, 0.03, 0.02, 0.01])[:, None]
    found = repetition(experts, documents, positions, positions, 8)
    assert found.first.low > 0.125
    assert found.first.low < found.load_first < found.first.high


def test_no_pair_crosses_a_window_a_document_or_a_gap():
    experts = np.zeros((6, 1), dtype=np.int32)
    documents = np.array([0, 0, 0, 1, 1, 1])
    positions = np.array([0, 1, 2, 0, 1, 3])
    windows = np.array([0, 1, 0, 0, 1, 3])
    assert repetition(experts, documents, positions, windows, 2).pairs == 2


def test_leaving_out_rows_invents_no_pair():
    documents, positions = places(3, 20)
    experts = draw_sets(60, 8, 2, 4)
    kept = positions >= 4
    found = repetition(experts[kept], documents[kept], positions[kept], positions[kept], 8)
    assert found.pairs == 3 * 15


def test_dropped_slots_meet_nothing_and_dropped_tokens_make_no_pair():
    experts = np.array([[0, -1], [1, -1], [-1, -1], [1, 0], [1, -1]])
    rows = np.arange(5)
    found = repetition(experts, rows * 0, rows, rows, 2)
    assert found.pairs == 2
    assert found.first.value == 0.5
    assert found.either.value == 0.5
    # Tokens in pairs: {0} {1} {1,0} {1}; ordered pairs that meet: all but the two with {0} and either {1}.
    assert found.load_either == pytest.approx((12 - 4) / 12)


def test_without_a_pair_there_is_no_number():
    nothing = np.zeros(0, dtype=np.int64)
    assert repetition(np.zeros((0, 2), np.int32), nothing, nothing, nothing, 8) is None
    one = np.zeros(1, dtype=np.int64)
    assert repetition(np.zeros((1, 2), np.int32), one, one, one, 8) is None
    rows = np.arange(4)
    assert repetition(np.full((4, 2), -1), rows * 0, rows, rows, 8) is None


def test_relabelling_experts_changes_nothing():
    documents, positions = places(20, 30)
    experts = draw_sets(600, 8, 2, 2)
    renamed = np.array([5, 3, 1, 7, 0, 2, 4, 6])[experts]
    assert repetition(renamed, documents, positions, positions, 8) == repetition(
        experts, documents, positions, positions, 8
    )


def test_the_sampled_chance_agrees_with_the_exact_one():
    experts = draw_sets(30_000, 64, 8, 3)  # nearly as many sets as tokens
    _, sampled = load_chance(experts, 64)
    assert sampled == pytest.approx(uniform_chance(64, 8)[1], abs=0.004)
    assert load_chance(experts, 64) == load_chance(experts, 64)
    assert load_chance(experts, 64, seed=1)[1] != sampled


def test_sets_that_become_many_late_are_still_counted():
    few = np.tile([[0, 1]], (40_000, 1))
    _, either = load_chance(np.vstack([few, draw_sets(40_000, 64, 2, 0)]), 64)
    # By hand over the halves: 1/4 of pairs both {0,1}, 1/4 both uniform, 1/2 one of each; all sets of 2 fit.
    uniform = uniform_chance(64, 2)[1]
    assert either == pytest.approx(0.25 + 0.25 * uniform + 0.5 * uniform, abs=0.003)


def test_intervals_take_a_document_as_one_draw():
    # Every document repeats always or never: 10 draws, not 1,000.
    documents, positions = places(10, 100)
    always = documents % 2 == 0
    experts = np.where(always, 0, positions % 2)[:, None]
    found = repetition(experts, documents, positions, positions, 2)
    assert found.first.value == 0.5
    assert found.first.high - found.first.low > 0.6
