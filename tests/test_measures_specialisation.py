from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import mutual_info_score

from moe_probe.measures.intervals import clustered_ratio, jackknife_interval, student_t
from moe_probe.measures.specialisation import (
    commonest,
    count_pairs,
    held_out_bits,
    information_bits,
    mutual_information_bits,
    type_folds,
    type_labels,
    type_level_bits,
    type_level_bits_of_routers,
    whole_unit_null_bits,
)

TABLES = arrays(np.int64, st.tuples(st.integers(2, 6), st.integers(2, 5)), elements=st.integers(0, 40))


def types_going_to(experts: np.ndarray, labels: np.ndarray, occurrences: np.ndarray, shape: tuple[int, int]):
    """Counts of types whose every token has the given expert and label."""
    rows = np.arange(len(experts))
    expert_counts = np.zeros((len(experts), shape[0]), dtype=np.int64)
    label_counts = np.zeros((len(experts), shape[1]), dtype=np.int64)
    expert_counts[rows, experts] = occurrences
    label_counts[rows, labels] = occurrences
    return expert_counts, label_counts


def a_hash_router(seed: int, *, by_frequency: bool):
    """2,000 Zipfian types whose expert is a hash of the token (or of its frequency), whose label hangs on frequency."""
    rng = np.random.default_rng(seed)
    occurrences = np.minimum(rng.zipf(1.3, 2000), 5000)
    octave = np.frexp(occurrences.astype(float))[1]
    labels = np.where(octave > 4, rng.integers(0, 3, 2000), rng.integers(0, 12, 2000))
    experts = (octave + rng.integers(0, 3, 2000)) % 8 if by_frequency else rng.integers(0, 8, 2000)
    return types_going_to(experts, labels, occurrences, (8, 12))


FOLDS = type_folds([f"word{number}" for number in range(2000)])


def test_a_perfect_split_of_two_labels_over_two_experts_is_one_bit():
    assert information_bits(np.array([[7, 0], [0, 7]])) == 1.0
    assert mutual_information_bits(np.array([[7, 0], [0, 7]])).raw_bits == 1.0
    counts = np.array([[9, 0], [0, 9]] * 100)
    assert type_level_bits(counts, counts, np.arange(200) % 64).raw_bits == 1.0


def test_a_hand_made_table_has_its_hand_made_information():
    # I = H(expert) + H(label) - H(both): (.75 .25), (.5 .5), (.5 .25 .25).
    h = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert information_bits(np.array([[2, 1], [0, 1]])) == pytest.approx(h + 1 - 1.5, abs=1e-14)


def test_an_empty_table_holds_no_information():
    assert information_bits(np.zeros((3, 4))) == 0.0


@settings(max_examples=60, deadline=None)
@given(TABLES)
def test_raw_information_agrees_with_scikit_learn(table):
    expected = mutual_info_score(None, None, contingency=table) / math.log(2) if table.any() else 0.0
    assert information_bits(table) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(TABLES, st.randoms(use_true_random=False))
def test_relabelling_experts_or_labels_changes_nothing(table, random):
    rows = random.sample(range(table.shape[0]), table.shape[0])
    columns = random.sample(range(table.shape[1]), table.shape[1])
    assert information_bits(table[rows][:, columns]) == pytest.approx(float(information_bits(table)), abs=1e-12)


def test_relabelling_experts_changes_no_headline():
    expert_counts, label_counts = a_hash_router(3, by_frequency=False)
    renamed = expert_counts[:, [3, 1, 0, 2, 7, 6, 5, 4]]
    assert type_level_bits(renamed, label_counts, FOLDS, n_permutations=50).bits == pytest.approx(
        type_level_bits(expert_counts, label_counts, FOLDS, n_permutations=50).bits, abs=1e-12
    )
    assert held_out_bits(renamed, label_counts, FOLDS).value == pytest.approx(
        held_out_bits(expert_counts, label_counts, FOLDS).value, abs=1e-12
    )


def test_independent_counts_are_zero_after_correction():
    for seed in range(5):
        counts = np.random.default_rng(seed).multinomial(3000, np.full(8 * 12, 1 / 96)).reshape(8, 12)
        found = mutual_information_bits(counts, seed=seed)
        assert found.raw_bits > 0.015
        assert abs(found.bits) < 0.01
        # Miller and Madow's bias, (E-1)(C-1) / 2N ln 2, is an independent statement of the same null.
        assert found.null_bits == pytest.approx(7 * 11 / (2 * 3000 * math.log(2)), rel=0.06)


def test_the_null_of_a_table_that_its_margins_decide_is_the_table():
    assert mutual_information_bits(np.array([[30, 0], [1, 0], [0, 0]])) is None
    found = mutual_information_bits(np.array([[5, 5], [0, 0]]))
    assert (found.raw_bits, found.null_bits, found.p) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("by_frequency", [False, True])
def test_a_router_that_hashes_the_token_is_not_credited_with_syntax(by_frequency):
    covered = rejected = 0
    for seed in range(60):
        expert_counts, label_counts = a_hash_router(seed, by_frequency=by_frequency)
        found = type_level_bits(expert_counts, label_counts, FOLDS, seed=seed, n_permutations=200)
        covered += found.low <= 0 <= found.high
        rejected += found.p < 0.05
    assert covered >= 57
    assert rejected <= 8  # 3 expected; 9 or more has a probability of 0.002


def test_by_occurrences_a_hash_seems_to_know_syntax_unless_whole_types_are_permuted():
    rng = np.random.default_rng(0)
    labels, occurrences = rng.integers(0, 12, 300), 10_000 // np.arange(1, 301)
    expert_counts, label_counts = types_going_to(rng.integers(0, 8, 300), labels, occurrences, (8, 12))
    by_occurrence = mutual_information_bits(expert_counts.T @ (label_counts > 0))
    assert by_occurrence.bits > 0.5
    assert by_occurrence.p < 0.05
    null = whole_unit_null_bits(expert_counts, labels, n_permutations=200)
    assert null == pytest.approx(by_occurrence.raw_bits, abs=0.15)
    by_type = type_level_bits(expert_counts, label_counts, FOLDS[:300])
    assert by_type.low < 0 < by_type.high


def test_routers_that_share_permutations_get_what_each_would_get_alone():
    counts = [a_hash_router(seed, by_frequency=False) for seed in (1, 2)]
    label_counts = counts[0][1]
    experts = [counts[0][0], counts[1][0], counts[1][0][:, :1], counts[1][0].copy()]
    experts[3][:700] = 0  # this router dropped every token of some types
    alone = [type_level_bits(each, label_counts, FOLDS, seed=3, n_permutations=40) for each in experts]
    routers = [(commonest(each), each.shape[1]) for each in experts]
    together = type_level_bits_of_routers(routers, type_labels(label_counts, FOLDS), seed=3, n_permutations=40)
    assert together == alone
    assert (together[2], together[3].n < together[0].n) == (None, True)


def test_the_null_is_the_mean_over_permutations_within_octaves_by_brute_force():
    rng = np.random.default_rng(0)
    labels, occurrences = rng.integers(0, 3, 60), rng.integers(3, 30, 60)
    experts = np.where(rng.random(60) < 0.7, labels, rng.integers(0, 4, 60))
    counts = types_going_to(experts, labels, occurrences, (4, 3))
    found = type_level_bits(*counts, np.arange(60) % 64, n_permutations=1000)
    nulls = []
    for _ in range(600):
        moved = labels.copy()
        for octave in range(1, 5):
            of_octave = np.flatnonzero(np.floor(np.log2(occurrences)) == octave)
            moved[of_octave] = rng.permutation(labels[of_octave])
        nulls.append(mutual_info_score(experts, moved) / math.log(2))
    assert found.null_bits == pytest.approx(np.mean(nulls), abs=4 * np.std(nulls) / math.sqrt(400))
    assert found.raw_bits == pytest.approx(mutual_info_score(experts, labels) / math.log(2), abs=1e-12)


def test_permutations_never_leave_their_octave():
    # Of two octaves each has one label only: every permutation is the table itself.
    occurrences = np.repeat([3, 20], 10)
    counts = types_going_to(np.repeat([0, 1], 10), np.repeat([0, 1], 10), occurrences, (2, 2))
    found = type_level_bits(*counts, np.arange(20), n_permutations=50)
    assert (found.raw_bits, found.null_bits, found.bits, found.p) == (1.0, pytest.approx(1.0), pytest.approx(0.0), 1.0)


def test_types_of_a_label_can_be_left_out():
    label_counts = np.array([[3, 0, 0], [0, 3, 0], [0, 0, 9], [1, 0, 2]])
    types = type_labels(label_counts, np.arange(4), without=[2])
    assert types.labels.tolist() == [0, 1, -1, -1]
    assert types.label_entropy_bits == 1.0
    assert type_labels(label_counts[:0], np.zeros(0, int)).label_entropy_bits == 0.0


def test_planted_specialisation_is_found_and_predicts_unseen_types():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 2000)
    experts = np.where(rng.random(2000) < 0.7, labels, rng.integers(0, 8, 2000))
    counts = types_going_to(experts, labels, rng.integers(3, 40, 2000), (8, 4))
    found = type_level_bits(*counts, FOLDS)
    # The truth, from the joint distribution: p(e|c) = .7·[e=c] + .3/8.
    joint = (0.7 * np.eye(8, 4) + 0.3 / 8) / 4
    truth = float(stats.entropy(joint.ravel(), (joint.sum(1)[:, None] * joint.sum(0)).ravel(), base=2))
    assert found.low < truth < found.high
    assert found.p == pytest.approx(1 / 1001)
    held = held_out_bits(*counts, FOLDS)
    assert held.low < truth < held.high + 0.02
    assert held.value < found.raw_bits


def test_held_out_bits_of_a_hash_are_not_above_zero():
    values = [held_out_bits(*a_hash_router(seed, by_frequency=False), FOLDS) for seed in range(20)]
    assert np.mean([found.value for found in values]) < 0
    assert sum(found.low > 0 for found in values) <= 2


def test_held_out_bits_by_hand():
    # Two folds. Fold 0: types (e0,c0), (e1,c1). Fold 1: type (e0,c0), (e1,c1). Learnt on one, told of the other:
    # q(c) = 1/2, q(c0|e0) = (1 + 16/2) / (1 + 16) = 9/17: log2(18/17) for all four.
    counts = types_going_to(np.array([0, 1, 0, 1]), np.array([0, 1, 0, 1]), np.full(4, 3), (2, 2))
    found = held_out_bits(*counts, np.array([0, 0, 1, 1]))
    assert found.value == pytest.approx(math.log2(18 / 17), abs=1e-14)


def test_a_label_that_no_other_fold_holds_counts_zero_bits():
    counts = types_going_to(np.array([0, 0, 0]), np.array([0, 0, 1]), np.full(3, 3), (2, 2))
    found = held_out_bits(*counts, np.array([0, 1, 1]))
    # Fold 0 is told from {c0, c1}: q = 1/2 whatever the expert. Fold 1 from {c0}: certain, and c1 unknown.
    assert found.value == 0.0


def test_types_below_the_floor_and_types_without_an_expert_are_left_out():
    expert_counts, label_counts = types_going_to(
        np.array([0, 1, 0, 1, 0]), np.array([0, 1, 0, 1, 1]), np.array([3, 3, 3, 3, 2]), (2, 2)
    )
    expert_counts = np.vstack([expert_counts, [[0, 0]]])
    label_counts = np.vstack([label_counts, [[0, 50]]])
    found = type_level_bits(expert_counts, label_counts, np.arange(6), n_permutations=10)
    assert (found.n, found.raw_bits) == (4, 1.0)
    assert type_level_bits(expert_counts, label_counts, np.arange(6), n_permutations=10, floor=2).n == 5


def test_ties_go_to_the_lower_index():
    expert_counts = np.array([[2, 2], [0, 4], [2, 2], [0, 4]])
    label_counts = np.array([[2, 2], [0, 4], [2, 2], [0, 4]])
    assert type_level_bits(expert_counts, label_counts, np.arange(4), n_permutations=10).raw_bits == 1.0


@pytest.mark.parametrize(
    ("experts", "labels"),
    [
        (np.zeros((0, 2), int), np.zeros((0, 2), int)),
        (np.array([[5, 0]]), np.array([[0, 5]])),
        (np.array([[5], [5]]), np.array([[5, 0], [0, 5]])),
        (np.array([[5, 0], [0, 5]]), np.array([[5], [5]])),
        (np.array([[5, 0], [0, 5]]), np.array([[5, 0], [5, 0]])),
        (np.array([[0, 0], [0, 0]]), np.array([[5, 0], [0, 5]])),
        (np.array([[1, 0], [0, 1]]), np.array([[1, 0], [0, 1]])),
    ],
    ids=["no type", "one type", "one expert", "one label", "one label used", "all dropped", "all below the floor"],
)
def test_where_nothing_can_be_measured_there_is_no_number(experts, labels):
    assert type_level_bits(experts, labels, np.arange(len(experts))) is None
    assert held_out_bits(experts, labels, np.arange(len(experts))) is None


def test_one_fold_gives_a_number_without_an_interval():
    counts = types_going_to(np.array([0, 1]), np.array([0, 1]), np.full(2, 3), (2, 2))
    found = type_level_bits(*counts, np.zeros(2, int), n_permutations=10)
    assert (found.low, found.high, found.raw_bits) == (None, None, 1.0)
    assert held_out_bits(*counts, np.zeros(2, int)) is None


def test_occurrences_of_one_label_or_one_expert_or_none_give_no_number():
    assert mutual_information_bits(np.zeros((2, 2), int)) is None
    assert mutual_information_bits(np.array([[3, 0], [4, 0]])) is None
    assert mutual_information_bits(np.array([[3, 4]])) is None
    assert whole_unit_null_bits(np.array([[3, 4]]), np.array([0])) is None
    assert whole_unit_null_bits(np.array([[3, 4], [1, 1]]), np.array([1, 1])) is None


def test_clusters_give_occurrence_level_bits_an_interval():
    rng = np.random.default_rng(0)
    joint = np.array([[0.4, 0.1], [0.1, 0.4]])
    truth = float(information_bits(joint * 1e6))
    covered = 0
    for _ in range(40):
        counts = np.stack([rng.multinomial(200, joint.ravel()).reshape(2, 2) for _ in range(30)])
        found = mutual_information_bits(counts, n_draws=50)
        covered += found.low <= truth <= found.high
        assert found.n == 6000
    assert covered >= 34


def test_a_seed_decides_every_draw():
    counts = a_hash_router(1, by_frequency=False)
    one, same, other = (type_level_bits(*counts, FOLDS, seed=seed, n_permutations=20) for seed in (4, 4, 5))
    assert one == same
    assert one.null_bits != other.null_bits


def test_spellings_of_one_word_share_a_fold_and_words_spread_over_all():
    folds = type_folds(["The", " the", "▁THE", "Ġthe", "zebra"])
    assert len(set(folds[:4].tolist())) == 1
    assert set(FOLDS.tolist()) == set(range(64))
    assert type_folds([]).size == 0
    assert type_folds(["\ud800"]).size == 1  # a lone surrogate from a byte-level piece


def test_count_pairs_leaves_out_dropped_rows():
    counted = count_pairs(np.array([0, 2, 2, -1, 1]), np.array([1, 0, 0, 1, -1], dtype=np.int8), (3, 2))
    assert counted.tolist() == [[0, 1], [0, 0], [2, 0]]
    # 200 experts times 200 labels overflow the width that either is stored in.
    assert count_pairs(np.array([199], np.uint8), np.array([199], np.uint8), (200, 200))[199, 199] == 1


def test_student_t_has_the_values_of_the_printed_table():
    assert [round(student_t(df), 3) for df in (1, 2, 5, 30, 63)] == [12.706, 4.303, 2.571, 2.042, 1.998]
    assert student_t(1e12) == pytest.approx(1.959964, abs=1e-6)
    assert student_t(1.5) == pytest.approx(stats.t.ppf(0.975, 1.5))


def test_a_ratio_over_equal_clusters_has_the_interval_of_their_mean():
    values = np.array([3.0, 5.0, 4.0, 8.0, 5.0])
    found = clustered_ratio(values, np.full(5, 10))
    low, high = stats.t.interval(0.95, 4, loc=values.mean() / 10, scale=stats.sem(values) / 10)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, low, high))


def test_one_cluster_gives_no_interval_and_none_no_number():
    assert clustered_ratio(np.array([3]), np.array([4])).low is None
    assert clustered_ratio(np.array([3, 0]), np.array([4, 0])).low is None
    assert clustered_ratio(np.array([0]), np.array([0])) is None


def test_the_jackknife_of_a_mean_is_the_interval_of_a_mean():
    values = np.array([1.0, 2.0, 4.0, 8.0])
    left_out = (values.sum() - values) / 3
    low, high = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    assert jackknife_interval(values.mean(), 0.0, left_out) == pytest.approx((low, high))
    assert jackknife_interval(1.0, 0.0, left_out[:1]) is None


def test_the_jackknifes_own_correction_lifts_the_upper_end_only():
    left_out = np.array([0.9, 0.9, 0.9, 0.9])  # no spread: the interval is what lies between the two corrections
    low, high = jackknife_interval(1.0, 0.5, left_out)
    assert (low, high) == pytest.approx((0.5, 4 * 1.0 - 3 * 0.9))
    assert jackknife_interval(1.0, 0.1, left_out + 0.05)[1] == pytest.approx(1.15)
    assert jackknife_interval(1.0, 0.1, left_out + 0.1) == pytest.approx((0.9, 1.0))
