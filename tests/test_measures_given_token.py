from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulated_routers import draw_corpus, hashed_routing, random_routing, sense_routing
from sklearn.metrics import mutual_info_score

from moe_probe.measures.given_token import given_token, token_labels


def some_tokens(seed: int, n: int = 300):
    rng = np.random.default_rng(seed)
    return (
        rng.integers(0, 3, n),  # labels
        rng.integers(0, 8, n),  # types
        np.sort(rng.integers(0, 12, n)),  # documents
        rng.integers(0, 4, n),  # experts
    )


def test_one_word_that_is_sent_by_its_label_is_worth_one_bit():
    labels, documents = np.tile([0, 1], 200), np.arange(400) // 20
    found = given_token(token_labels(labels, np.zeros(400, int), documents, documents), labels, 2)
    assert found.raw_bits == 1.0
    assert found.bits > 0.9
    assert found.p == pytest.approx(4 * 2.0**-19)  # four cells; twenty clusters that agree, by a coin for each
    assert found.n == 400


def test_words_that_keep_their_label_or_their_expert_tell_nothing():
    documents = np.arange(40) // 4
    one_label = token_labels(np.repeat([0, 1], 20), np.repeat([0, 1], 20), documents, documents)
    assert one_label is None
    torn = token_labels(np.tile([0, 1], 20), np.repeat([0, 1], 20), documents, documents)
    found = given_token(torn, np.repeat([0, 1], 20), 2)
    assert (found.bits, found.p, found.low, found.high) == (0.0, 1.0, None, None)


def test_tokens_of_words_with_one_label_count_as_nothing_in_the_mean():
    labels, documents = np.tile([0, 1], 100), np.arange(200) // 20
    alone = given_token(token_labels(labels, np.zeros(200, int), documents, documents), labels, 2)
    more = token_labels(
        np.concatenate([labels, np.zeros(200, int)]),
        np.repeat([0, 1], 200),
        np.tile(documents, 2),
        np.tile(documents, 2),
    )
    both = given_token(more, np.concatenate([labels, np.tile([0, 1], 100)]), 2)
    assert both.n == 400
    assert both.raw_bits == pytest.approx(alone.raw_bits / 2)
    assert both.bits == pytest.approx(alone.bits / 2)


def test_a_label_of_whole_documents_cannot_be_told_apart_from_the_document():
    documents = np.arange(60) // 6
    assert token_labels(documents % 2, np.zeros(60, int), documents, documents) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_the_raw_information_is_scikit_learns_averaged_over_types(seed):
    labels, types, documents, experts = some_tokens(seed)
    found = given_token(token_labels(labels, types, documents, documents, n_permutations=20), experts, 4)
    expected = sum(
        mutual_info_score(experts[types == v], labels[types == v]) * np.mean(types == v) for v in np.unique(types)
    )
    assert found.raw_bits == pytest.approx(expected / math.log(2), abs=1e-12)


def test_permutations_keep_the_labels_of_each_type_and_document_and_do_move_them():
    labels, types, documents, _ = some_tokens(1)
    kept = token_labels(labels, types, documents, documents, n_permutations=7)
    cell = types[kept.rows] * 100 + documents[kept.rows]
    before = np.sort(cell * 10 + labels[kept.rows])
    for drawn in kept.drawn:
        assert (np.sort(cell * 10 + drawn) == before).all()
    assert (kept.drawn != kept.labels).mean() > 0.2


def test_a_permutation_within_a_cell_is_a_fair_one():
    # Labels 0 1 2 in one cell: each of the six orders comes about equally often.
    kept = token_labels(np.arange(3), np.zeros(3, int), np.zeros(3, int), np.zeros(3, int), n_permutations=6000)
    orders, counts = np.unique(kept.drawn, axis=0, return_counts=True)
    assert len(orders) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_the_null_is_the_mean_over_permutations_by_brute_force():
    labels, types, documents, experts = some_tokens(2, 120)
    kept = token_labels(labels, types, documents, documents, n_permutations=15)
    found = given_token(kept, experts, 4)
    nulls = []
    for drawn in kept.drawn:
        moved = labels.copy()
        moved[kept.rows] = drawn
        nulls.append(
            sum(mutual_info_score(experts[types == v], moved[types == v]) * np.mean(types == v) for v in set(types))
        )
    assert found.null_bits == pytest.approx(np.mean(nulls) / math.log(2), abs=1e-12)


def test_p_is_that_of_a_t_test_over_clusters_of_the_likeliest_cell_by_brute_force():
    labels, types, documents, experts = some_tokens(3)
    clusters = documents
    found = given_token(token_labels(labels, types, documents, clusters, n_permutations=20), experts, 4)
    deviations = np.zeros((12, 4, 3))
    for t in range(len(labels)):
        same = types == types[t]
        for e in range(4):
            for c in range(3):
                deviations[clusters[t], e, c] += ((experts[t] == e) - np.mean(experts[same] == e)) * (
                    (labels[t] == c) - np.mean(labels[same] == c)
                )
    p = stats.ttest_1samp(deviations, 0, axis=0).pvalue
    assert found.p == pytest.approx(min(1.0, 12 * p.min()))


def test_dropped_tokens_are_left_out():
    labels, types, documents, experts = some_tokens(4)
    labels[types < 3] = 0  # words of one label count in n only, and only where they were executed
    dropped = np.arange(300) % 5 == 0
    found = given_token(token_labels(labels, types, documents, documents), np.where(dropped, -1, experts), 4)
    kept = ~dropped
    without = given_token(token_labels(labels[kept], types[kept], documents[kept], documents[kept]), experts[kept], 4)
    assert found.n == 240
    assert found.raw_bits == pytest.approx(without.raw_bits, abs=1e-12)
    assert found.p == pytest.approx(without.p)
    assert found.null_bits == pytest.approx(without.null_bits, abs=0.02)
    assert given_token(token_labels(labels, types, documents, documents), np.full(300, -1), 4) is None


def test_one_expert_and_no_tokens_give_no_number():
    labels, types, documents, experts = some_tokens(5)
    assert given_token(token_labels(labels, types, documents, documents), experts * 0, 1) is None
    empty = np.zeros(0, int)
    assert token_labels(empty, empty, empty, empty) is None
    assert given_token(None, experts, 4) is None


def test_few_clusters_give_no_interval_and_one_no_p():
    labels, types, documents, experts = some_tokens(6)
    few = given_token(token_labels(labels, types, documents, documents % 4), experts, 4)
    assert (few.low, few.high) == (None, None)
    assert few.p is not None
    assert given_token(token_labels(labels, types, documents, documents * 0), experts, 4).p is None


def test_two_clusters_that_agree_to_the_last_digit_are_no_evidence():
    labels = np.tile([0, 1], 8)
    found = given_token(token_labels(labels, np.zeros(16, int), np.arange(16) // 8, np.arange(16) // 8), labels, 2)
    assert found.p == 1.0


def test_relabelling_experts_changes_nothing():
    labels, types, documents, experts = some_tokens(7)
    kept = token_labels(labels, types, documents, documents, n_permutations=20)
    one, other = given_token(kept, experts, 4), given_token(kept, np.array([2, 0, 3, 1])[experts], 4)
    assert (one.bits, one.low, one.p) == pytest.approx((other.bits, other.low, other.p), abs=1e-12)


def test_a_seed_decides_every_draw():
    labels, types, documents, experts = some_tokens(8)
    found = [
        given_token(token_labels(labels, types, documents, documents, seed=seed, n_permutations=20), experts, 4)
        for seed in (4, 4, 5)
    ]
    assert found[0] == found[1]
    assert found[0].null_bits != found[2].null_bits


@pytest.mark.parametrize("kind", ["random", "hash", "hash and documents"])
def test_a_router_that_knows_only_words_and_documents_is_credited_with_nothing(kind):
    rejected = covered = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        corpus = draw_corpus(rng, 40, n_tokens=6_000, n_types=1_000)
        if kind == "random":
            routing = random_routing(rng, corpus, 8, document_effects=True)
        else:
            routing = hashed_routing(rng, corpus, 8, document_effects=kind != "hash")
        kept = token_labels(corpus.labels, corpus.token_ids, corpus.documents, corpus.token_clusters, n_permutations=40)
        found = given_token(kept, routing.experts[:, 0], 8)
        assert abs(found.bits) < 0.01
        rejected += found.p < 0.05
        covered += found.low <= 0 <= found.high
    assert rejected <= 3  # 0.6 expected; 4 or more has a probability of 0.002
    assert covered >= 11


def test_permuting_within_the_type_alone_would_credit_document_effects():
    rng = np.random.default_rng(0)
    corpus = draw_corpus(rng, 40, n_tokens=15_000, n_types=1_000)
    experts = random_routing(rng, corpus, 8, document_effects=True).experts[:, 0]
    # A router of documents' loads, a label of documents' habits: within documents there is nothing.
    experts = np.where(rng.random(experts.size) < 0.5, corpus.documents % 8, experts)
    labels = np.where(rng.random(experts.size) < 0.5, corpus.documents % 8, corpus.labels)
    clusters = corpus.token_clusters
    within = given_token(token_labels(labels, corpus.token_ids, corpus.documents, clusters), experts, 8)
    alone = given_token(token_labels(labels, corpus.token_ids, corpus.documents * 0, clusters), experts, 8)
    assert abs(within.bits) < 0.01 < 0.1 < alone.bits


def test_words_that_are_sent_by_their_part_of_speech_are_found():
    rng = np.random.default_rng(0)
    corpus = draw_corpus(rng, 60)
    routing = sense_routing(rng, corpus, 8, 0.5)
    kept = token_labels(corpus.labels, corpus.token_ids, corpus.documents, corpus.token_clusters)
    found = given_token(kept, routing.experts[:, 0], 8)
    assert found.low > 0.005
    assert found.p < 0.01
