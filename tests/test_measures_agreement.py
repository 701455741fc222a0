from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from statsmodels.stats.proportion import proportion_confint

from moe_probe.measures.agreement import agreements, margin_deciles, share_difference

MEASURES = ("set_overlap", "first_choice", "exact_set")


def agree(a, b, clusters=None, n_experts=8):
    """The agreement of all tokens; by default each is of another cluster."""
    a, b = np.asarray(a), np.asarray(b)
    clusters = np.arange(len(a)) % 64 if clusters is None else np.asarray(clusters)
    return agreements(a, b, clusters, [np.arange(len(a))], n_experts=n_experts)[0]


def values(found):
    return [getattr(found, name).value for name in MEASURES]


def chances(found):
    return [getattr(found, name).chance for name in MEASURES]


@st.composite
def routings(draw, n_experts=5, n_slots=3):
    """Two routings of the same tokens, some slots dropped."""
    n_tokens = draw(st.integers(1, 12))
    order = hnp.arrays(np.float64, (2, n_tokens, n_experts), elements=st.floats(0, 1, width=16), unique=False)
    experts = np.argsort(draw(order) + np.arange(n_experts) * 1e-9, axis=2)[:, :, :n_slots]
    dropped = draw(hnp.arrays(np.bool_, experts.shape))
    a, b = np.where(dropped, -1, experts)
    return a, b


def by_brute_force(pairs):
    """Overlap, first choice and exact set over pairs of tokens, straight from their definitions."""
    sets = [({*a} - {-1}, {*b} - {-1}, a[0], b[0]) for a, b in pairs]
    shared = sum(len(a & b) for a, b, _, _ in sets)
    fuller = sum(max(len(a), len(b)) for a, b, _, _ in sets)
    return [
        shared / fuller,
        sum(first_a == first_b for _, _, first_a, first_b in sets) / len(sets),
        sum(a == b for a, b, _, _ in sets) / len(sets),
    ]


def test_three_tokens_by_hand():
    found = agree([[0, 1], [2, 3], [4, 5]], [[1, 0], [2, 0], [4, 5]])
    assert values(found) == pytest.approx([5 / 6, 2 / 3, 2 / 3])
    # Expert 0 is in a third of a's sets and two thirds of b's, and so on; of nine pairs, first choices meet in two.
    assert chances(found) == pytest.approx([(1 * 2 + 1 + 1 + 0 + 1 + 1) / 9 / 2, 2 / 9, 2 / 9])
    assert found.n == 3


def test_a_routing_agrees_with_itself_wholly_and_with_its_complement_never():
    a = np.array([[0, 1], [2, 3], [-1, 4]] * 5)
    found = agree(a, a)
    assert values(found) == [1, 1, 1]
    assert found.set_overlap.high == 1
    assert 0 < found.set_overlap.low < 1
    opposite = agree([[0, 1], [2, 3]], [[2, 3], [0, 1]])
    assert values(opposite) == [0, 0, 0]
    assert chances(opposite) == [0.5, 0.5, 0.5]


def test_one_expert_and_one_slot_agree_always_and_so_they_would_by_chance():
    found = agree(np.zeros((9, 1), int), np.zeros((9, 1), int), n_experts=1)
    assert values(found) == chances(found) == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(routings())
def test_shares_and_chances_are_those_of_their_definitions(pair):
    a, b = pair
    kept = ((a >= 0) | (b >= 0)).any(axis=1)
    found = agree(a, b, n_experts=5)
    if not kept.any():
        assert found is None
        return
    rows_a, rows_b = a[kept].tolist(), b[kept].tolist()
    assert found.n == len(rows_a)
    assert values(found) == pytest.approx(by_brute_force(list(zip(rows_a, rows_b, strict=True))))
    assert chances(found) == pytest.approx(by_brute_force(list(itertools.product(rows_a, rows_b))))


@settings(max_examples=30, deadline=None)
@given(routings(), st.permutations(range(5)), st.randoms(use_true_random=False))
def test_neither_the_experts_names_nor_the_order_of_slots_or_runs_matter(pair, names, random):
    a, b = pair
    before = agree(a, b, n_experts=5)
    renamed = np.array([*names, -1])
    assert agree(renamed[a], renamed[b], n_experts=5) == before
    if before is None:
        return
    turned = agree(b, a, n_experts=5)
    assert values(turned) == pytest.approx(values(before))
    assert chances(turned) == pytest.approx(chances(before))
    order = [0, *random.sample([1, 2], 2)]
    shuffled = agree(a[:, order], b, n_experts=5)
    assert values(shuffled) == pytest.approx(values(before))
    assert chances(shuffled) == pytest.approx(chances(before))


def test_sets_of_many_experts_in_many_slots_are_told_apart():
    # In base 256 the least of nine experts is worth a multiple of 2 to the 64: a plain number would lose it.
    rng = np.random.default_rng(0)
    a = np.argsort(rng.random((400, 200)), axis=1)[:, :9] + 40
    a[:, 4] = np.arange(400) % 40
    b = a[:, ::-1].copy()
    b[200:, 4] = (b[200:, 4] + 1) % 40
    found = agree(a, b, n_experts=255)
    assert found.exact_set.value == 0.5
    assert found.set_overlap.value == pytest.approx((9 + 8) / 18)
    assert found.exact_set.chance == pytest.approx(200 / 400**2)


def test_tokens_that_neither_run_sent_anywhere_are_not_counted():
    a = np.array([[-1, -1], [0, 1], [-1, -1]])
    b = np.array([[-1, -1], [0, 1], [2, -1]])
    found = agree(a, b)
    assert found.n == 2
    assert values(found) == [2 / 3, 0.5, 0.5]
    assert agree(a[:1], b[:1]) is None
    assert agreements(a, b, np.arange(3), [np.arange(0)], n_experts=8) == [None]


def test_random_routers_agree_as_often_as_chance_says():
    rng = np.random.default_rng(1)
    a, b = (np.argsort(rng.random((20_000, 8)) * np.linspace(1, 3, 8), axis=1)[:, :2] for _ in range(2))
    found = agree(a, b)
    for name in MEASURES:
        share = getattr(found, name)
        assert share.low < share.chance < share.high
    assert found.set_overlap.chance > 0.29  # loads are uneven: more than the 1/4 of even use


def test_a_group_is_measured_as_if_it_were_alone():
    rng = np.random.default_rng(2)
    a, b = (np.argsort(rng.random((300, 8)), axis=1)[:, :2] for _ in range(2))
    clusters = rng.integers(0, 64, 300)
    rows = np.flatnonzero(rng.random(300) < 0.4)
    everyone, group = agreements(a, b, clusters, [np.arange(300), rows], n_experts=8)
    assert group == agree(a[rows], b[rows], clusters[rows])
    assert everyone == agree(a, b, clusters)


def ten_clusters(agreed_in):
    """Ten clusters of ten tokens; in each so many agree."""
    clusters = np.repeat(np.arange(10), 10)
    a = np.zeros((100, 1), int)
    b = np.concatenate([[0] * agreed + [1] * (10 - agreed) for agreed in agreed_in])[:, None]
    return a, b, clusters


def test_clusters_that_agree_wholly_or_not_at_all_are_worth_a_token_each():
    a, b, clusters = ten_clusters([10, 0] * 5)
    found = agree(a, b, clusters).first_choice
    # V = 10/9 · 10 · 5² / 100² over .25 / 100
    assert found.design_effect == pytest.approx(10 / 9 * 10 * 25 / 100**2 / (0.25 / 100))
    t = 2.2621571628  # of 9 degrees of freedom
    low, high = proportion_confint(4.5, 9, alpha=2 * (1 - _normal_cdf(t)), method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))


def _normal_cdf(z):
    return (1 + math.erf(z / math.sqrt(2))) / 2


def test_clusters_more_alike_than_chance_never_narrow_the_interval():
    a, b, clusters = ten_clusters([4, 6] * 5)  # .44 of the variance of independent tokens
    assert agree(a, b, clusters).first_choice.design_effect == 1


def test_few_disagreements_borrow_the_median_design_effect_of_the_lenders():
    rng = np.random.default_rng(3)
    a = np.zeros((1300, 1), int)
    clusters = np.tile(np.arange(13), 100)
    b = (rng.random(1300) < (clusters % 2) * 0.3).astype(int)[:, None]
    b[1000:] = 0
    of_one_cluster = np.flatnonzero(clusters[1000:] == 5) + 1000
    b[of_one_cluster[:4]] = 1  # four disagreements: one too few
    groups = [np.arange(0, 300), np.arange(300, 650), np.arange(650, 1000), np.arange(1000, 1300)]
    *lenders, few = agreements(a, b, clusters, groups, n_experts=2, lenders=[0, 1, 2, 3])
    own = [lender.first_choice.design_effect for lender in lenders]
    assert min(own) > 1
    assert few.first_choice.design_effect == np.median(own)
    alone = agreements(a, b, clusters, groups, n_experts=2)[3]
    assert alone.first_choice.design_effect == 1
    assert alone.first_choice.low > few.first_choice.low
    b[of_one_cluster[4]] = 1  # the fifth: now its own clusters speak
    assert agreements(a, b, clusters, groups, n_experts=2)[3].first_choice.design_effect > 1


def test_one_cluster_gives_no_interval():
    found = agree([[0], [1]], [[0], [0]], [7, 7])
    assert found.first_choice.value == 0.5
    assert (found.first_choice.low, found.first_choice.high) == (None, None)


@pytest.mark.parametrize(("n_documents", "flips", "likeness"), [(8, 0.1, 10), (30, 0.03, 50), (30, 0.5, 5)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(n_documents, flips, likeness):
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(150):
        document = np.repeat(np.arange(n_documents), rng.integers(20, 150, n_documents))
        often = rng.beta(flips * likeness, (1 - flips) * likeness, n_documents)[document]
        b = (rng.random(document.size) < often).astype(int)
        (found,) = agreements(
            np.zeros((document.size, 1), int),
            b[:, None],
            rng.integers(0, 64, n_documents)[document],
            [np.arange(document.size)],
            n_experts=2,
        )
        covered += found.exact_set.low <= 1 - flips <= found.exact_set.high
    assert 0.88 <= covered / 150 <= 0.99


def test_deciles_by_hand_with_ties_together_and_unknown_margins_apart():
    assert margin_deciles(np.arange(20.0)).tolist() == np.repeat(np.arange(1, 11), 2).tolist()
    assert margin_deciles(np.array([np.nan, 5.0, np.inf, np.nan])).tolist() == [0, 1, 6, 0]
    assert set(margin_deciles(np.full(50, 0.25)).tolist()) == {1}
    assert margin_deciles(np.full(3, np.nan)).tolist() == [0, 0, 0]
    assert margin_deciles(np.zeros(0)).size == 0


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float16, st.integers(1, 60), elements=st.floats(0, 4, width=16)))
def test_deciles_rise_with_the_margin_and_hold_no_more_than_a_tenth_below_their_last_tie(margins):
    deciles = margin_deciles(margins)
    order = np.argsort(margins, kind="stable")
    assert (np.diff(deciles[order]) >= 0).all()
    for margin in np.unique(margins):
        assert len(set(deciles[margins == margin].tolist())) == 1
    for decile in range(1, 11):
        below = np.count_nonzero(deciles <= decile)
        assert below >= margins.size * decile / 10 - 1e-9


def test_share_differences_by_hand():
    found = share_difference(np.array([[6, 4], [2, 8]]), np.array([[5, 5], [5, 5]]))
    assert found.share_a.tolist() == [0.4, 0.6]
    assert found.share_b.tolist() == [0.5, 0.5]
    assert found.difference.tolist() == pytest.approx([0.1, -0.1])
    assert (found.low < 0).all()
    assert (found.high > 0).all()
    assert (found.p > 0.5).all()


def test_the_same_loads_differ_by_nothing_for_certain():
    loads = np.random.default_rng(5).integers(0, 50, (64, 8))
    found = share_difference(loads, loads)
    assert not found.difference.any()
    assert not found.low.any()
    assert not found.high.any()
    assert (found.p == 1).all()


def test_a_shift_that_every_document_shares_is_seen_however_different_the_documents_are():
    rng = np.random.default_rng(6)
    share = rng.uniform(0.05, 0.85, 40)
    loads_a = np.stack([np.round(1000 * share), 1000 - np.round(1000 * share)], axis=1).astype(int)
    loads_b = loads_a + np.array([20, -20]) + np.outer(rng.integers(-3, 4, 40), [1, -1])
    found = share_difference(loads_a, loads_b)
    assert found.difference[0] == pytest.approx(0.02, abs=0.001)
    assert found.low[0] > 0.018
    assert found.p[0] < 1e-10


def test_the_interval_of_a_difference_is_that_of_the_jackknife():
    rng = np.random.default_rng(7)
    loads_a = rng.poisson(rng.uniform(20, 200, (64, 1)) * rng.dirichlet([2, 2, 2], 64))
    loads_b = rng.binomial(loads_a, 0.9) + rng.poisson(5, loads_a.shape)
    found = share_difference(loads_a, loads_b)
    left_out = np.array(
        [share_difference(np.delete(loads_a, one, 0), np.delete(loads_b, one, 0)).difference for one in range(64)]
    )
    error = np.sqrt(63 / 64 * np.square(left_out - left_out.mean(axis=0)).sum(axis=0))
    half = (found.high - found.low) / 2
    assert half / error == pytest.approx([2.0] * 3, rel=0.1)


def test_differences_without_a_second_cluster_or_without_assignments():
    loads = np.zeros((64, 2), int)
    loads[3] = [4, 6]
    found = share_difference(loads, loads[:, ::-1])
    assert found.difference.tolist() == pytest.approx([0.2, -0.2])
    assert np.isnan([found.low, found.high, found.p]).all()
    assert share_difference(loads, np.zeros((64, 2), int)) is None


def test_p_of_two_runs_that_differ_by_chance_is_below_one_in_twenty_one_time_in_twenty():
    rng = np.random.default_rng(8)
    below = total = 0
    for _ in range(60):
        kinds = rng.dirichlet([3] * 4, 64)
        loads_a, loads_b = (np.array([rng.multinomial(200, kind) for kind in kinds]) for _ in range(2))
        p = share_difference(loads_a, loads_b).p
        below, total = below + int((p < 0.05).sum()), total + p.size
    assert 0.015 <= below / total <= 0.09
