from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_probe.measures.random_pairs import meet, random_pair_chance, token_chance
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


@pytest.mark.parametrize(("n_experts", "n_slots"), [(1, 1), (8, 2), (16, 9), (128, 64), (1024, 64)])
def test_tokens_meet_where_their_sets_have_an_expert_in_common(n_experts, n_slots):
    rng = np.random.default_rng(n_experts)
    left, right = (draw_sets(400, n_experts, n_slots, seed).T for seed in (1, 2))
    for experts in (left, right):
        experts[rng.random(experts.shape) < 0.3] = -1
        experts[:, :5] = -1
    shared = [bool({*one} & {*other} - {-1}) for one, other in zip(left.T.tolist(), right.T.tolist(), strict=True)]
    before = left.copy(), right.copy()
    assert meet(left, right).tolist() == shared
    assert meet(left[:, :0], right[:, :0]).tolist() == []
    assert meet(left[:, 7:], left[:, 7:]).tolist() == (left[:, 7:] >= 0).any(axis=0).tolist()
    assert (left == before[0]).all()
    assert (right == before[1]).all()
    assert not any(shared[:5])


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


def test_shares_near_one_have_an_interval_that_stays_below_it():
    documents, positions = places(12, 50)
    experts = np.zeros((600, 1), dtype=np.int32)
    experts[::97] = 1
    found = repetition(experts, documents, positions, positions, 2)
    assert 0.9 < found.first.low < found.first.value < found.first.high <= 1
    always = repetition(experts * 0, documents, positions, positions, 2)
    assert always.first.value == always.first.high == 1
    assert always.first.low < 1  # 588 of 588 pairs do not prove that every pair repeats


def test_the_load_chance_is_exact_within_each_domain():
    # Domain 0 has choices 0 0 0 1, domain 1 has 1 1 1 1; three pairs each.
    experts = np.array([0, 0, 0, 1, 1, 1, 1, 1])[:, None]
    documents, positions = places(2, 4)
    pooled = repetition(experts, documents, positions, positions, 2)
    assert pooled.load_first == pytest.approx((3 * 2 + 5 * 4) / (8 * 7))
    apart = repetition(experts, documents, positions, positions, 2, domains=np.array([7] * 4 + [3] * 4))
    assert apart.load_first == pytest.approx((6 / 12 + 12 / 12) / 2)
    assert apart.document_first == pooled.document_first == apart.load_first


def test_the_document_chance_counts_pairs_of_tokens_within_each_document():
    rng = np.random.default_rng(3)
    documents = np.repeat([0, 1, 2], [9, 14, 5])
    positions = np.concatenate([np.arange(9), np.arange(14), np.arange(5)])
    experts = np.array([rng.permutation(6)[:2] for _ in documents])
    found = repetition(experts, documents, positions, positions, 6)
    first, either = 0.0, 0.0
    for document, length in enumerate((9, 14, 5)):
        rows = experts[documents == document].tolist()
        pairs = list(itertools.permutations(rows, 2))
        first += (length - 1) / 25 * np.mean([a[0] == b[0] for a, b in pairs])
        either += (length - 1) / 25 * np.mean([bool({*a} & {*b}) for a, b in pairs])
    assert found.document_first == pytest.approx(first)
    assert found.document_either == pytest.approx(either)


def test_documents_that_differ_exceed_the_load_but_not_the_document():
    rng = np.random.default_rng(4)
    documents, positions = places(60, 100)
    of_document = rng.dirichlet(np.full(8, 0.5), 60)
    experts = (rng.random((6000, 1)) > of_document[documents].cumsum(axis=1)).sum(axis=1).clip(0, 7)[:, None]
    found = repetition(experts, documents, positions, positions, 8)
    assert found.first.low > found.load_first + 0.05
    assert found.first.value == pytest.approx(found.document_first, abs=0.02)


@pytest.mark.parametrize("n_types", [1, 4, 9])
def test_the_token_chance_is_that_of_all_other_occurrences(n_types):
    rng = np.random.default_rng(n_types)
    types = rng.integers(0, n_types, 45)
    experts = np.array([rng.permutation(5)[:2] for _ in types]).T
    before = np.arange(44)
    found = token_chance(experts, types, before, 5)
    often = np.isin(types, np.flatnonzero(np.bincount(types) >= 5))
    assert found.eligible.tolist() == (often[:-1] & often[1:]).tolist()
    firsts, eithers = [], []
    for one in before[found.eligible]:
        twins = types[one] == types[one + 1]
        hidden = ({one, one + 1}, {one, one + 1}) if twins else ({one}, {one + 1})
        lefts, rights = (
            [other for other in np.flatnonzero(types == types[place]) if other not in gone]
            for place, gone in zip((one, one + 1), hidden, strict=True)
        )
        pairs = [(a, b) for a in lefts for b in rights if a != b]
        firsts.append(np.mean([experts[0, a] == experts[0, b] for a, b in pairs]))
        eithers.append(np.mean([bool({*experts[:, a]} & {*experts[:, b]}) for a, b in pairs]))
    assert found.first == pytest.approx(np.array(firsts), abs=1e-12)
    assert found.either == pytest.approx(np.mean(eithers), abs=0.006)
    assert token_chance(experts, types, before, 5, seed=1).either != found.either
    assert token_chance(experts, types, before, 5).either == found.either


@pytest.mark.parametrize("types", [[3] * 7, [3, 5] * 5, [3] * 5 + [5] * 6])
def test_neither_token_of_a_pair_takes_its_own_place_nor_the_others(types):
    # Only the first two tokens share an expert, so that one which stood in for itself would show.
    rows = np.arange(len(types))
    experts = np.maximum(rows, 1)[None] - 1
    kinds = np.array(types)
    found = token_chance(experts, kinds, rows[:-1], len(types))
    assert found.eligible.all()
    assert found.either == pytest.approx(found.first.mean(), abs=0.003)  # sets of one
    by_hand = {7: np.mean([0, 0] + [2 / 20] * 4), 10: np.mean([0, 0] + [1 / 16] * 7), 11: 0}
    if len(types) != 11:
        assert found.first.mean() == pytest.approx(by_hand[len(types)])


def test_types_seen_less_than_five_times_are_not_replaced():
    rows = np.arange(12)
    ids = np.array([1, 1, 1, 1, 1, 9, 9, 9, 9, 1, 1, 1])  # 1 occurs eight times, 9 only four
    experts = np.array([[0, 1]] * 12)
    found = repetition(experts, rows * 0, rows, rows, 4, token_ids=ids)
    assert found.token_pairs == 6
    assert (found.token_first, found.token_either, found.excess_first.value) == (1.0, 1.0, 0.0)
    rare = repetition(experts, rows * 0, rows, rows, 4, token_ids=rows)
    assert (rare.token_first, rare.token_either, rare.excess_first, rare.token_pairs) == (None, None, None, 0)
    with pytest.raises(ValueError, match="floor 4: a type must occur 5 times or more"):
        token_chance(experts.T, ids, rows[:-1], 4, floor=4)


def words(seed: int, *, sticky: float = 0.0, drift: float = 0.0):
    """Zipfian types routed by type, by document (drift) and, in some places, as the token before (sticky)."""
    rng = np.random.default_rng(seed)
    documents, positions = places(40, 150)
    shares = 1 / np.arange(1, 201)
    types = rng.choice(200, 6000, p=shares / shares.sum())
    keys = 3 * rng.normal(size=(200, 8))[types] + drift * rng.normal(size=(40, 8))[documents]
    experts = np.argmax(keys + rng.gumbel(size=keys.shape), axis=1)
    for row in np.flatnonzero((rng.random(6000) < sticky) & (positions > 0)):
        experts[row] = experts[row - 1]
    return repetition(experts[:, None], documents, positions, positions, 8, token_ids=types, clusters=documents)


def test_a_router_that_knows_only_the_word_has_no_excess():
    excesses = [words(seed).excess_first for seed in range(40)]
    assert np.mean([one.low <= 0 <= one.high for one in excesses]) >= 0.85
    assert abs(np.mean([one.value for one in excesses])) < 0.002


def test_a_router_that_stays_or_drifts_has_an_excess_which_is_no_syntax():
    assert words(0, sticky=0.1).excess_first.low > 0.04
    assert words(0, drift=1.5).excess_first.low > 0.01


def test_a_hash_of_the_token_repeats_as_its_tokens_do_and_no_more():
    rng = np.random.default_rng(0)
    documents, positions = places(30, 100)
    types = np.minimum(rng.zipf(1.5, 3000), 999)
    experts = rng.permuted(np.tile(np.arange(8), (1000, 1)), axis=1)[types][:, :2]
    found = repetition(experts, documents, positions, positions, 8, token_ids=types)
    assert found.token_pairs < found.pairs
    assert (found.excess_first.value, found.excess_first.low, found.excess_first.high) == (0, 0, 0)


def test_clusters_take_the_place_of_documents():
    documents, positions = places(30, 40)
    experts = draw_sets(1200, 8, 2, 5)
    by_document = repetition(experts, documents, positions, positions, 8)
    by_three = repetition(experts, documents, positions, positions, 8, clusters=documents % 3)
    assert by_three.first.value == by_document.first.value
    assert by_three.first.high - by_three.first.low != by_document.first.high - by_document.first.low
    alone = repetition(experts, documents, positions, positions, 8, clusters=documents * 0)
    assert (alone.first.low, alone.either.high) == (None, None)


def test_many_experts_and_many_sets_need_no_table_of_them():
    experts = draw_sets(2600, 500, 8, 6) * 2000  # of a million experts
    groups = np.repeat([0, 1], 1300)
    first, either = random_pair_chance(experts.T, groups, np.array([1299, 1299]), 1_000_000)
    assert first == pytest.approx(1 / 500, abs=3e-4)
    assert either == pytest.approx(uniform_chance(500, 8)[1], abs=0.004)
    found = token_chance(experts.T, np.arange(2600) % 10, np.arange(2599), 1_000_000)
    assert found.first.mean() == pytest.approx(1 / 500, abs=3e-4)
