from __future__ import annotations

import itertools

import numpy as np
import pytest
import reference_procedures as slow
from scipy import stats

from moe_probe.measures.type_test import stratum_weights, type_test


def counts_of(rng, n_types=120, n_experts=4, n_labels=3):
    occurrences = np.maximum(1, (400 / np.arange(1, n_types + 1)).astype(int))
    experts = np.stack([rng.multinomial(n, rng.dirichlet(np.ones(n_experts))) for n in occurrences])
    labels = np.eye(n_labels, dtype=int)[rng.integers(0, n_labels, n_types)] * occurrences[:, None]
    return experts, labels


def moments_by_hand(expert_counts, label_counts, expert, label, floor=3):
    """Mean of U, its variance and its skewness over every way of giving the labels out within the strata."""
    n = expert_counts.sum(axis=1)
    types = [v for v in range(len(n)) if n[v] >= floor]
    weights = slow.octave_weights(expert_counts, floor)
    share = {v: weights[int(n[v]).bit_length() - 1] * expert_counts[v, expert] / n[v] for v in types}
    has = {v: int(label_counts[v].argmax() == label) for v in types}
    strata: dict[int, list[int]] = {}
    for v in types:
        strata.setdefault(int(n[v]).bit_length(), []).append(v)
    sums = np.zeros(1)
    for members in strata.values():
        mean = sum(share[v] for v in members) / len(members)
        ways = itertools.combinations(members, sum(has[v] for v in members))
        of_stratum = np.array([sum(share[v] - mean for v in way) for way in ways])
        sums = (sums[:, None] + of_stratum[None, :]).ravel()
    observed = sum(
        share[v] - sum(share[w] for w in members) / len(members)
        for members in strata.values()
        for v in members
        if has[v]
    )
    return observed, sums


def test_z_and_p_come_from_the_moments_of_all_permutations_within_strata():
    rng = np.random.default_rng(3)
    occurrences = np.repeat([3, 5, 9], [6, 7, 5])
    experts = np.stack([rng.multinomial(n, [0.5, 0.3, 0.2]) for n in occurrences])
    labels = np.eye(2, dtype=int)[rng.integers(0, 2, occurrences.size)] * 4
    found = type_test(experts, labels, min_types=1)
    for expert in range(3):
        observed, sums = moments_by_hand(experts, labels, expert, 0)
        z = observed / sums.std()
        assert found.z[expert, 0] == pytest.approx(z)
        curve = stats.pearson3(stats.skew(sums))
        assert found.p[expert, 0] == pytest.approx(2 * min(curve.cdf(z), curve.sf(z)))


def test_without_skewness_p_is_that_of_the_normal_curve():
    # Half of the types have the label, so that every draw has its mirror image.
    experts = np.array([[2, 1], [3, 0], [1, 2], [0, 3], [2, 1], [3, 0], [1, 2], [3, 0]] * 2)
    labels = np.array([[1, 0], [0, 1]] * 8)
    found = type_test(experts, labels)
    assert found.p == pytest.approx(2 * stats.norm.sf(np.abs(found.z)))


def test_beyond_the_end_of_the_skewed_curve_the_normal_one_holds():
    # One stratum is symmetric and shuns the label; the other has a lone type that makes the whole skewed to the right.
    experts = np.array([[3, 5]] * 2 + [[5, 3]] * 2 + [[4, 0]] + [[0, 4]] * 24)
    labels = np.array([[9, 0]] * 2 + [[0, 9]] * 2 + [[0, 9]] * 24 + [[9, 0]])
    found = type_test(experts, labels, min_types=1)
    weights = slow.octave_weights(experts)
    of_eight, of_four = weights[3], weights[2]
    variance = of_eight**2 * 2 * 2 / (4 * 3) * 4 * 0.125**2 + of_four**2 * 0.04 * 0.96
    skewness = of_four**3 * 0.04 * 0.96 * 0.92 / variance**1.5
    excess = -2 * 0.125 * of_eight - 0.04 * of_four
    assert found.z[0, 0] == pytest.approx(excess / np.sqrt(variance), rel=1e-4)
    assert found.z[0, 0] < -2 / skewness
    assert found.p[0, 0] == pytest.approx(2 * stats.norm.sf(-found.z[0, 0]))


def test_all_of_a_labels_types_in_one_expert_are_found_and_renaming_changes_nothing():
    labels = np.repeat(np.eye(3, dtype=int) * 7, 30, axis=0)
    found = type_test(labels, labels)
    assert (found.z.diagonal() > 8).all()
    assert (found.z[~np.eye(3, dtype=bool)] < -4).all()
    assert (found.p.diagonal() < 1e-12).all()
    assert found.types.tolist() == [30, 30, 30]
    rng = np.random.default_rng(0)
    experts, tags = counts_of(rng)
    one = type_test(experts, tags)
    two = type_test(experts[:, [2, 0, 3, 1]], tags[:, [1, 2, 0]])
    assert np.allclose(one.z[[2, 0, 3, 1]][:, [1, 2, 0]], two.z, equal_nan=True)


def test_the_order_of_types_does_not_matter_nor_does_their_frequency_where_the_type_decides_all():
    rng = np.random.default_rng(1)
    experts, labels = counts_of(rng)
    order = rng.permutation(len(experts))
    assert np.allclose(type_test(experts, labels).z, type_test(experts[order], labels[order]).z, equal_nan=True)
    home = np.eye(4, dtype=int)[np.arange(len(experts)) % 4] * experts.sum(axis=1, keepdims=True)
    assert np.allclose(type_test(home * 4, labels, floor=12).z, type_test(home, labels).z, rtol=1e-3, equal_nan=True)


def weights_of(experts):
    n = experts.sum(axis=1)
    return stratum_weights(experts / n[:, None], n, np.unique(np.frexp(n)[1], return_inverse=True)[1])


def test_strata_weigh_alike_where_the_type_decides_and_by_their_tokens_where_it_does_not():
    rng = np.random.default_rng(2)
    occurrences = np.repeat([4, 16, 64, 256], 300)
    home = np.eye(8, dtype=int)[rng.integers(0, 8, occurrences.size)] * occurrences[:, None]
    assert weights_of(home) == pytest.approx(np.ones(4), abs=0.02)
    drawn = np.stack([rng.multinomial(n, np.full(8, 1 / 8)) for n in occurrences])
    assert weights_of(drawn) == pytest.approx([4, 16, 64, 256], rel=0.2)
    # Of types that decide a tenth: 1 / (1/n + .1·(1 - 1/n)).
    tastes = rng.dirichlet(np.full(8, 9 / 8), occurrences.size)  # Σ Var = (1 - 1/8) / (9 + 1)
    between = np.stack([rng.multinomial(n, taste) for n, taste in zip(occurrences, tastes, strict=True)])
    assert weights_of(between) == pytest.approx([1 / (1 / n + 0.1 * (1 - 1 / n)) for n in (4, 16, 64, 256)], rel=0.1)


def test_weights_equal_the_root_of_their_equation():
    rng = np.random.default_rng(7)
    for _ in range(20):
        experts, _ = counts_of(rng, n_types=int(rng.integers(5, 200)), n_experts=int(rng.integers(2, 9)))
        kept = experts[experts.sum(axis=1) >= 3]
        by_hand = slow.octave_weights(experts)
        assert weights_of(kept) == pytest.approx([by_hand[octave] for octave in sorted(by_hand)], rel=1e-4)


def test_a_preference_token_by_token_is_found_among_many_experts():
    rng = np.random.default_rng(8)
    found = []
    for _ in range(10):
        occurrences = (4000 / np.arange(1, 1200)).astype(int) + 1
        tags = rng.integers(0, 4, occurrences.size)
        pull = np.ones((4, 64))
        pull[np.arange(64) % 4, np.arange(64)] = 1.5
        experts = np.stack(
            [rng.multinomial(n, pull[tag] / pull[tag].sum()) for n, tag in zip(occurrences, tags, strict=True)]
        )
        found += (type_test(experts, np.eye(4, dtype=int)[tags]).p[np.arange(64), np.arange(64) % 4] < 0.05).tolist()
    assert np.mean(found) > 0.8  # .30 if all types weigh alike


def test_rare_types_and_labels_with_few_types_are_left_out():
    experts = np.array([[2, 0]] * 40 + [[3, 0], [0, 3]] * 10)
    labels = np.array([[2, 0]] * 40 + [[3, 0]] * 13 + [[0, 3]] * 7)
    found = type_test(experts, labels)
    assert found.types.tolist() == [13, 7]
    assert np.isnan(found.z[:, 1]).all()
    assert np.isfinite(found.z[:, 0]).all()
    assert np.isfinite(type_test(experts, labels, min_types=7).z).all()
    assert type_test(experts, labels, floor=2).types.tolist() == [53, 7]


def test_a_tie_between_labels_goes_to_the_lower_index():
    labels = np.array([[2, 2]] * 9 + [[1, 2]] * 9)
    assert type_test(np.tile([2, 1], (18, 1)), labels).types.tolist() == [9, 9]


@pytest.mark.filterwarnings("error")
def test_what_cannot_be_tested_is_nan_and_warns_of_nothing():
    one_label = type_test(np.array([[3, 1], [1, 3]] * 10), np.full((20, 1), 4))
    assert np.isnan(one_label.p).all()
    one_expert = type_test(np.full((20, 1), 4), np.array([[4, 0], [0, 4]] * 10))
    assert np.isnan(one_expert.p).all()
    empty = type_test(np.zeros((0, 3), int), np.zeros((0, 2), int))
    assert np.isnan(empty.z).all()
    assert empty.types.tolist() == [0, 0]
    dropped = type_test(np.zeros((30, 3), int), np.full((30, 2), 5))
    assert np.isnan(dropped.p).all()
    alone = type_test(np.array([[2**k, 0] for k in range(2, 14)]), np.array([[4, 0]] * 12))  # a stratum each
    assert np.isnan(alone.p).all()


@pytest.mark.parametrize("n_experts", [8, 64])
def test_a_hash_of_the_token_is_called_in_one_of_twenty_cells(n_experts):
    rng = np.random.default_rng(4)
    rejected = []
    for _ in range(30 if n_experts == 8 else 8):
        occurrences = np.maximum(1, (3000 / np.arange(1, 1200)).astype(int))
        # Frequent types have labels of their own, as function words do.
        tags = np.where(occurrences > 60, rng.integers(0, 3, occurrences.size), rng.integers(1, 5, occurrences.size))
        experts = np.eye(n_experts, dtype=int)[rng.integers(0, n_experts, occurrences.size)] * occurrences[:, None]
        p = type_test(experts, np.eye(5, dtype=int)[tags] * occurrences[:, None]).p
        rejected += (p[np.isfinite(p)] < 0.05).tolist()
    assert 0.03 < np.mean(rejected) < 0.07


def test_routing_by_frequency_is_not_taken_for_syntax():
    rng = np.random.default_rng(5)
    rejected = []
    for _ in range(30):
        occurrences = rng.integers(3, 2000, 900)
        frequent = occurrences > 255  # a border of strata
        tags = np.where(frequent, rng.choice(3, 900, p=[0.8, 0.1, 0.1]), rng.choice(3, 900, p=[0.1, 0.2, 0.7]))
        experts = np.where(frequent, rng.choice(4, 900, p=[0.7, 0.1, 0.1, 0.1]), rng.integers(0, 4, 900))
        went, had = np.eye(4, dtype=int)[experts] * occurrences[:, None], np.eye(3, dtype=int)[tags]
        rejected.append(type_test(went, had).p < 0.05)
    assert 0.02 < np.mean(rejected) < 0.09


def test_among_many_experts_the_tails_call_no_cell():
    # The normal curve calls several of these, since an expert takes so few types that its counts are skewed.
    rng = np.random.default_rng(6)
    occurrences = np.maximum(3, (9000 / np.arange(1, 3000)).astype(int))
    tags = rng.choice(8, occurrences.size, p=[0.3, 0.25, 0.15, 0.1, 0.08, 0.06, 0.04, 0.02])
    experts = np.eye(256, dtype=int)[rng.integers(0, 256, occurrences.size)] * occurrences[:, None]
    found = type_test(experts, np.eye(8, dtype=int)[tags])
    assert np.isfinite(found.p).all()
    assert (stats.false_discovery_control(2 * stats.norm.sf(np.abs(found.z)).ravel()) < 0.05).any()
    assert not (stats.false_discovery_control(found.p.ravel()) < 0.05).any()
