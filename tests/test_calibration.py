"""The tests and intervals of cells and loads are wrong as often as they say, on routers whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import calibration_draws as draws
import numpy as np
import pytest
import reference_procedures as slow
from calibration_draws import NULL_ROUTERS
from calibration_figures import Bounds, Figure, as_table, pooled
from calibration_studies import STUDIES, figures_of
from simulated_routers import (
    LABELS,
    Routing,
    draw_corpus,
    hashed_routing,
    planted_routing,
    random_routing,
    sense_routing,
)

from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.shares import clustered_shares
from moe_probe.measures.type_test import type_test

PROOFS = [group for group in STUDIES if not group.startswith(("bits", "given"))]
GROUPS = [group for group in PROOFS if any(study.quick for study in STUDIES[group])]
QUICK_SEEDS, PROOF_SEEDS = 20, 200


@pytest.mark.parametrize("group", GROUPS)
def test_twenty_seeds_lie_where_they_should(group: str):
    assert not [str(figure) for figure in figures_of(group, QUICK_SEEDS, only_quick=True) if not figure.held]


@pytest.mark.prove
@pytest.mark.parametrize("group", PROOFS)
def test_two_hundred_seeds_lie_where_they_should(group: str):
    found = figures_of(group, PROOF_SEEDS)
    print(as_table(found))
    assert not [str(figure) for figure in found if not figure.held]


def test_what_is_usually_published_is_seen_to_be_wrong():
    # If these were held, the figures above would hold anything.
    hashed, by_document = (
        {one.name: one for one in figures_of(router, QUICK_SEEDS, only_quick=True) if one.n_documents == 30}
        for router in ("hash", "random, by document")
    )
    assert not replace(hashed[draws.PUBLISHED_LIFT], should_be=Bounds(0.93, 0.97)).held
    assert not replace(hashed[draws.DOCUMENT_TEST], should_be=Bounds(0.04, 0.06)).held
    assert not replace(by_document[draws.PUBLISHED_LOAD], should_be=Bounds(0.93, 0.97)).held


def test_a_figure_is_held_within_three_standard_errors_of_its_bounds():
    def held(value: float, *bounds: float | None) -> bool:
        return Figure("a rate", "a router", 8, 30, value, 0.01, Bounds(*bounds), 20).held

    assert [held(value, 0.93, 0.97) for value in (0.89, 0.91, 0.99, 1.01)] == [False, True, True, False]
    assert [held(value, None, 0.05) for value in (0.0, 0.07, 0.09)] == [True, True, False]
    assert [held(value, 0.9) for value in (0.86, 0.88, 1.0)] == [False, True, True]
    assert held(0.3)


def test_a_pooled_rate_by_hand():
    # 1 of 4 and 3 of 4: a rate of 1/2, two draws a quarter off either way.
    assert pooled([(1, 4), (3, 4)]) == (0.5, pytest.approx(0.25))
    value, error = pooled([(1, 2), (2, 6), (5, 8)])
    residuals = np.array([1, 2, 5]) - 0.5 * np.array([2, 6, 8])
    assert (value, error) == (0.5, pytest.approx(np.sqrt(3 / 2 * np.sum(residuals**2)) / 16))


def simulate(name: str, seed: int) -> Routing:
    rng = np.random.default_rng(seed)
    if name in NULL_ROUTERS:
        return NULL_ROUTERS[name](rng, 5, 60)
    corpus = draw_corpus(rng, 60)
    if name == "planted in senses":
        return sense_routing(rng, corpus, 5, 0.5)
    return planted_routing(rng, corpus, 5, 2.0, in_words=name == "planted in words")[0]


@pytest.mark.parametrize("name", [*NULL_ROUTERS, "planted in tokens", "planted in words", "planted in senses"])
def test_the_truth_of_a_simulated_router_is_what_its_corpora_give_on_average(name: str):
    off = []
    for seed in range(25):
        routing = simulate(name, seed)
        seen = np.stack([routing.clustered((slot,)).sum(axis=0) for slot in (0, 1)]) / len(routing.experts)
        assert routing.truth.sum(axis=(1, 2)) == pytest.approx([1, 1])
        off.append(seen - routing.truth)
    mean, error = np.mean(off, axis=0), np.std(off, axis=0, ddof=1) / 5
    deviations = (mean / np.maximum(error, 1e-6)).ravel()
    assert np.abs(deviations).max() < 5.5
    assert np.sqrt(np.mean(deviations**2)) < 1.5


def test_the_two_experts_of_a_simulated_token_differ():
    for name in (*NULL_ROUTERS, "planted in words"):
        experts = simulate(name, 0).experts
        assert (experts[:, 0] != experts[:, 1]).all()
        assert experts.min() >= 0
        assert experts.max() < 5


def test_a_corpus_is_as_long_as_asked_and_documents_differ_in_words_and_habits():
    corpus = draw_corpus(np.random.default_rng(0), 40, n_tokens=9_000)
    assert corpus.labels.shape == corpus.token_ids.shape == corpus.documents.shape == (9_000,)
    assert (np.diff(corpus.documents) >= 0).all()
    assert set(corpus.labels.tolist()) == set(range(len(LABELS)))
    # More tokens of a document share a word than of the corpus: Σ p² within and over all.
    whole = np.bincount(corpus.token_ids) / 9_000
    own = np.bincount(corpus.token_ids[corpus.documents == 0]) / (corpus.documents == 0).sum()
    assert (own**2).sum() > 1.2 * (whole**2).sum()


@pytest.fixture(scope="module")
def small() -> Routing:
    rng = np.random.default_rng(3)
    return hashed_routing(rng, draw_corpus(rng, 40, n_tokens=6_000, n_types=900), 4, document_effects=True)


def test_cells_equal_their_slow_transcription(small: Routing):
    clustered = small.clustered()
    found = cell_estimates(clustered)
    for expert in range(4):
        for label in range(len(LABELS)):
            expected = slow.cell(clustered, expert, label)
            assert {name: getattr(found, name)[expert, label] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_the_type_test_equals_its_slow_transcription_and_its_permutations(small: Routing):
    went, had = small.expert_counts(), small.corpus.label_counts()
    found = type_test(went, had)
    assert np.isfinite(found.z).any()
    for expert, label in zip(*np.nonzero(np.isfinite(found.z)), strict=True):
        assert found.z[expert, label] == pytest.approx(slow.type_z(went, had, expert, label), rel=1e-9)
    for expert, label in [(0, 0), (1, 4), (2, 5)]:
        share = slow.permuted_share(went, had, expert, label, n_permutations=4_000, seed=0)
        # 4,000 permutations tell p to within .025; twice the smaller tail is the definition of both.
        assert found.p[expert, label] == pytest.approx(share, abs=0.05)


def test_shares_equal_their_slow_transcription(small: Routing):
    loads = small.clustered().sum(axis=2)
    found = clustered_shares(loads)
    for expert in range(4):
        expected = slow.share(loads, expert)
        assert {name: getattr(found, name)[expert] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_q_values_equal_their_definition():
    p = np.random.default_rng(0).random(40) ** 2
    assert q_values(p).tolist() == pytest.approx(slow.benjamini_hochberg(p.tolist()), abs=1e-12)


def test_random_experts_have_the_load_that_was_drawn():
    rng = np.random.default_rng(0)
    corpus = draw_corpus(rng, 30, n_tokens=20_000)
    routing = random_routing(rng, corpus, 6)
    assert routing.lift((0,)) == pytest.approx(np.ones((6, len(LABELS))))
    assert np.bincount(routing.experts[:, 0]) / 20_000 == pytest.approx(routing.shares((0,)), abs=0.02)
