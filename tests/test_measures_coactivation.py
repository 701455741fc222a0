from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.measures.coactivation import coactivation, expected_pairs
from moe_probe.measures.distinct_draws import change_together, expected_together, fit_draws

ALL_SETS = {(8, 2): list(itertools.combinations(range(8), 2))}


def counted(chosen: np.ndarray, clusters: np.ndarray, n_slots: int, n_clusters: int = 64):
    """The clustered pairs, loads and sizes of tokens; `chosen` (tokens, experts) says which experts each holds."""
    n_experts = chosen.shape[1]
    together = np.zeros((n_clusters, n_experts, n_experts), dtype=np.int64)
    loads = np.zeros((n_clusters, n_experts), dtype=np.int64)
    sizes = np.zeros((n_clusters, n_slots + 1), dtype=np.int64)
    for cluster in range(n_clusters):
        held = chosen[clusters == cluster].astype(np.int64)
        pairs = held.T @ held
        loads[cluster] = np.diagonal(pairs)
        together[cluster] = pairs - np.diag(loads[cluster])
        sizes[cluster] = np.bincount(held.sum(axis=1), minlength=n_slots + 1)
    return together, loads, sizes


def by_enumeration(weights: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loads and pairs of distinct draws with these odds, over every set there is."""
    n_experts = weights.size
    loads, pairs = np.zeros(n_experts), np.zeros((n_experts, n_experts))
    for size, tokens in enumerate(sizes):
        sets = [list(one) for one in itertools.combinations(range(n_experts), size)]
        chances = np.array([np.prod(weights[one]) for one in sets])
        for one, chance in zip(sets, chances / chances.sum(), strict=True):
            loads[one] += tokens * chance
            for a, b in itertools.permutations(one, 2):
                pairs[a, b] += tokens * chance
    return loads, pairs


def draw(n_tokens: int, weights: np.ndarray, seed: int) -> np.ndarray:
    """Sets of two of eight experts by chance alone, (tokens, experts)."""
    sets = np.zeros((28, 8), dtype=bool)
    np.put_along_axis(sets, np.array(ALL_SETS[8, 2]), True, axis=1)
    chances = np.array([weights[list(one)].prod() for one in ALL_SETS[8, 2]])
    return sets[np.random.default_rng(seed).choice(28, n_tokens, p=chances / chances.sum())]


EVEN = np.ones(8)
UNEVEN = np.exp(np.linspace(-1.5, 1.5, 8))
UPPER = np.triu_indices(8, 1)


def test_under_even_routing_to_two_of_eight_the_mean_lift_is_one_and_not_a_half():
    chosen = draw(40_000, EVEN, 0)
    found = coactivation(*counted(chosen, np.arange(40_000) % 64, 2))
    assert np.mean(found.lift[UPPER]) == pytest.approx(1.0, abs=0.003)
    loads = chosen.sum(axis=0)
    naive = found.together / (np.outer(loads, loads) / 40_000)
    assert np.mean(naive[UPPER]) == pytest.approx(4 / 7, abs=0.003)  # the trap


def test_three_tokens_counted_by_hand():
    # Sets {0,1} {0,1} {0,2} of three experts: the loads 3, 2, 1 leave no choice.
    found = expected_pairs([3, 2, 1], [0, 0, 3])
    assert found == pytest.approx(np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]]))
    # Even loads of two of four: each of six pairs as often.
    assert expected_pairs([3, 3, 3, 3], [0, 0, 6])[np.triu_indices(4, 1)].tolist() == pytest.approx([1.0] * 6)


@pytest.mark.parametrize(
    ("n_experts", "sizes", "spread"),
    [
        (4, [0, 0, 900], 1.0),
        (6, [0, 0, 0, 500], 2.0),
        (7, [0, 0, 0, 0, 0, 40], 1.0),
        (5, [30, 20, 100, 900], 1.5),  # dropped slots leave smaller sets
        (6, [0, 300, 0, 0, 0, 0, 10], 3.0),
    ],
)
def test_loads_that_draws_give_lead_back_to_the_pairs_of_these_draws(n_experts, sizes, spread):
    weights = np.exp(np.random.default_rng(n_experts).normal(0, spread, n_experts))
    loads, pairs = by_enumeration(weights, np.array(sizes))
    assert expected_pairs(loads, sizes) == pytest.approx(pairs, rel=1e-7, abs=1e-7)


def test_experts_without_a_load_and_experts_that_every_token_goes_to():
    # Expert 0 always, expert 4 never; the second slot is one of three, even.
    found = expected_pairs([90, 30, 30, 30, 0], [0, 0, 90])
    assert found[0].tolist() == [0, 30, 30, 30, 0]
    assert found[1:].tolist() == [[30, 0, 0, 0, 0]] * 3 + [[0] * 5]
    # All but one token go to expert 0.
    nearly = expected_pairs([10**6 - 1, 500_001, 250_000, 250_000], [0, 0, 10**6])
    assert nearly.sum(axis=1).tolist() == pytest.approx([10**6 - 1, 500_001, 250_000, 250_000], rel=1e-8)
    assert nearly[1, 2:].sum() + nearly[2, 3] == pytest.approx(1.0, rel=1e-5)  # the one token without it
    assert expected_pairs([0, 0, 0], [7, 0, 0]).tolist() == [[0, 0, 0]] * 3
    assert expected_pairs([5, 5], [0, 0, 5]).tolist() == [[0, 5], [5, 0]]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("n_experts", "n_slots", "spread"), [(64, 8, 2.0), (256, 8, 1.0), (1024, 8, 3.0), (12, 10, 2.0)]
)
def test_every_expert_meets_as_many_as_its_tokens_have_other_slots(n_experts, n_slots, spread):
    rng = np.random.default_rng(n_experts)
    keys = rng.gumbel(size=(2000, n_experts)) + spread * rng.normal(size=n_experts)
    chosen = np.argpartition(-keys, n_slots - 1, axis=1)[:, :n_slots]
    loads = np.bincount(chosen.ravel(), minlength=n_experts)
    found = expected_pairs(loads, [0] * n_slots + [2000])
    assert found.sum(axis=1) == pytest.approx((n_slots - 1.0) * loads, rel=1e-8)
    assert found.min() >= 0
    assert (found <= np.minimum.outer(loads, loads) * (1 + 1e-8)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 9), st.integers(0, 10**6), st.floats(0, 0.4))
def test_renaming_experts_renames_the_pairs_and_all_pairs_are_accounted_for(n_experts, seed, drop):
    rng = np.random.default_rng(seed)
    chosen = np.zeros((60, n_experts), dtype=bool)
    np.put_along_axis(
        chosen, np.argsort(rng.random(chosen.shape) * np.arange(1, n_experts + 1), axis=1)[:, :3], True, 1
    )
    chosen &= rng.random(chosen.shape) >= drop
    sizes = np.bincount(chosen.sum(axis=1), minlength=4)
    found = expected_pairs(chosen.sum(axis=0), sizes)
    assert found.sum() == pytest.approx(float(sizes @ (np.arange(4) * (np.arange(4) - 1))), rel=1e-6)
    order = rng.permutation(n_experts)
    renamed = expected_pairs(chosen[:, order].sum(axis=0), sizes)
    assert renamed == pytest.approx(found[np.ix_(order, order)], rel=1e-5, abs=1e-5)


def test_the_change_with_a_clusters_weight_is_that_of_a_new_fit():
    rng = np.random.default_rng(3)
    keys = rng.gumbel(size=(500, 6)) + rng.normal(size=6)
    chosen = np.zeros((500, 6), dtype=bool)
    np.put_along_axis(chosen, np.argsort(-keys, axis=1)[:, :3], True, axis=1)
    chosen &= rng.random(chosen.shape) > 0.1
    loads, sizes = chosen.sum(axis=0).astype(float), np.bincount(chosen.sum(axis=1), minlength=4).astype(float)
    part = chosen[:50]
    more, more_sizes = part.sum(axis=0), np.bincount(part.sum(axis=1), minlength=4)
    draws = fit_draws(loads, sizes)
    change = change_together(draws, expected_together(draws), more, more_sizes)
    step = 1e-3
    ends = [expected_pairs(loads + sign * step * more, sizes + sign * step * more_sizes) for sign in (1, -1)]
    assert change == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4, abs=1e-3)


def test_chance_alone_is_rejected_in_five_of_a_hundred_and_the_interval_covers_one():
    p, covered = [], []
    rng = np.random.default_rng(0)
    for seed in range(40):
        clusters = rng.integers(0, 64, 100)[np.arange(4000) // 40]
        found = coactivation(*counted(draw(4000, UNEVEN, seed), clusters, 2))
        p.append(found.p[UPPER])
        covered.append((found.low[UPPER] <= 1) & (found.high[UPPER] >= 1))
    rejected = np.nanmean(np.array(p) < 0.05)
    assert 0.025 < rejected < 0.08  # 1,120 dependent pairs
    assert 0.92 < np.mean(covered) < 0.98


def test_a_planted_pair_is_found_and_its_rivals_are_repelled():
    chosen = draw(4000, EVEN, 1)
    chosen[:600] = False
    chosen[:600, [0, 1]] = True
    found = coactivation(*counted(chosen, np.random.default_rng(0).integers(0, 64, 4000), 2))
    assert found.low[0, 1] > 1.5
    assert found.p[0, 1] < 1e-6
    assert found.high[0, 2] < 1
    assert found.b_given_a[0, 1] == found.together[0, 1] / chosen[:, 0].sum()


def test_documents_that_differ_make_the_interval_wide():
    # One document in two always sends its tokens to experts 0 and 1.
    documents = np.repeat(np.arange(16), 100)
    chosen = draw(1600, EVEN, 2)
    chosen[documents % 2 == 0] = np.arange(8) < 2
    by_document = coactivation(*counted(chosen, documents, 2))
    by_token = coactivation(*counted(chosen, np.arange(1600) % 64, 2))
    width = [np.log(one.high[0, 1] / one.low[0, 1]) for one in (by_document, by_token)]
    assert width[0] > 3 * width[1]
    assert by_document.geff[0, 1] < 16


def test_adjacent_ranks_are_two_of_k_pairs_and_chance_knows_it():
    rng = np.random.default_rng(5)
    ranked = np.argsort(rng.random((20_000, 8)), axis=1)[:, :4]
    chosen = np.zeros((20_000, 8), dtype=bool)
    np.put_along_axis(chosen, ranked, True, axis=1)
    together, loads, sizes = counted(chosen, np.arange(20_000) % 64, 4)
    adjacent = np.zeros_like(together)
    for one, other in ((0, 1), (1, 2), (2, 3)):
        np.add.at(adjacent, (np.arange(20_000) % 64, ranked[:, one], ranked[:, other]), 1)
        np.add.at(adjacent, (np.arange(20_000) % 64, ranked[:, other], ranked[:, one]), 1)
    everything, neighbours = coactivation(together, loads, sizes), coactivation(adjacent, loads, sizes, adjacent=True)
    assert neighbours.together.sum() == everything.together.sum() / 2  # 2/k, k = 4
    assert neighbours.expected[UPPER] == pytest.approx(everything.expected[UPPER] / 2)
    assert np.mean(neighbours.lift[UPPER]) == pytest.approx(1.0, abs=0.01)


def test_chance_of_adjacent_ranks_knows_that_small_sets_lose_fewer_pairs():
    # Half of the tokens hold all four experts, in any order, half of them two, by uneven odds.
    rng = np.random.default_rng(6)
    ranked = np.full((40_000, 4), -1)
    ranked[:20_000] = rng.permuted(np.tile(np.arange(4), (20_000, 1)), axis=1)
    twos = list(itertools.combinations(range(4), 2))
    odds = np.array([(8, 4, 2, 1)[a] * (8, 4, 2, 1)[b] for a, b in twos])
    ranked[20_000:, :2] = np.array(twos)[rng.choice(6, 20_000, p=odds / odds.sum())]
    cluster = np.arange(40_000) % 64
    loads = np.zeros((64, 4), dtype=np.int64)
    sizes = np.zeros((64, 5), dtype=np.int64)
    adjacent = np.zeros((64, 4, 4), dtype=np.int64)
    np.add.at(sizes, (cluster, (ranked >= 0).sum(axis=1)), 1)
    for slot in range(4):
        held = ranked[:, slot] >= 0
        np.add.at(loads, (cluster[held], ranked[held, slot]), 1)
        if slot < 3:
            both = held & (ranked[:, slot + 1] >= 0)
            np.add.at(adjacent, (cluster[both], ranked[both, slot], ranked[both, slot + 1]), 1)
            np.add.at(adjacent, (cluster[both], ranked[both, slot + 1], ranked[both, slot]), 1)
    found = coactivation(adjacent, loads, sizes, adjacent=True)
    upper = np.triu_indices(4, 1)
    assert found.lift[upper] == pytest.approx(np.ones(6), abs=0.04)
    assert found.expected[upper].sum() == pytest.approx(found.together[upper].sum())


@pytest.mark.filterwarnings("error")
def test_where_nothing_can_be_said_there_is_no_number():
    assert coactivation(np.zeros((64, 4, 4), int), np.ones((64, 4), int), np.full((64, 2), [0, 4])) is None
    chosen = draw(500, EVEN, 0)
    alone = coactivation(*counted(chosen, np.zeros(500, int), 2))
    assert np.isfinite(alone.lift[UPPER]).all()
    assert np.isnan(alone.low).all()
    assert np.isnan(alone.p).all()
    assert np.isnan(np.diagonal(alone.expected)).all()
    # Two experts always together: no cluster differs from another, and nothing was to be chosen.
    always = coactivation(*counted(np.ones((100, 2), bool), np.arange(100) % 64, 2))
    assert (always.lift[0, 1], always.expected[0, 1]) == (1.0, 100.0)
    assert np.isnan(always.low[0, 1])
    never = coactivation(*counted(np.hstack([chosen, np.zeros((500, 1), bool)]), np.arange(500) % 64, 2))
    assert np.isnan(never.lift[8, 0])
    assert np.isnan(never.b_given_a[8, 0])
    assert never.b_given_a[0, 8] == 0


def test_pairs_with_few_expected_are_not_tested():
    found = coactivation(*counted(draw(100, EVEN, 0), np.arange(100) % 64, 2))
    assert (found.expected[UPPER] < 5).any()
    assert np.isnan(found.p[found.expected < 5]).all()


def test_loads_that_do_not_fit_the_sizes_are_refused():
    with pytest.raises(ValueError, match="loads sum to 5 and reach 3, but 4 routed tokens fill 8 slots"):
        expected_pairs([3, 2], [0, 0, 4])
    with pytest.raises(ValueError, match="give the loads and the set sizes of the same tokens"):
        expected_pairs([6, 2], [0, 0, 4])
