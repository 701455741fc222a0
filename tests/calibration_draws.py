"""One draw of a simulated router, judged by the procedures of `moe_probe.measures`: how many of how many were wrong.

Beside each procedure stands what is usually published instead: intervals that take every token for a draw of its own, a
test over types without strata, labels permuted across documents.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, ndtri
from simulated_routers import (
    LABELS,
    N_TYPES,
    Routing,
    draw_corpus,
    hashed_routing,
    planted_routing,
    random_routing,
    sense_routing,
)

from moe_probe.measures.cells import Cells, cell_estimates
from moe_probe.measures.given_token import given_token, token_labels
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.shares import clustered_shares, wilson
from moe_probe.measures.specialisation import held_out_bits, information_bits, type_folds, type_level_bits
from moe_probe.measures.type_test import TypeTest, type_test
from moe_probe.measures.verdicts import SPECIALISED, enough_for_cells, label_verdicts

ODDS = 1.5
ODDS_OF_WORDS = 4.0
MANY_EXPECTED = 50
MANY_EXPECTED_OF_TYPES = 100
BOTH_SLOTS, FIRST_CHOICE = (0, 1), (0,)
N_CORPORA_OF_TRUTH = 40

Tally = dict[str, tuple[float, float]]
"""For each figure's name: how many of how many, in one draw."""

Draw = Callable[[np.random.Generator, int, int], Routing]


def _null_routers() -> dict[str, Draw]:
    def of(make: Callable[..., Routing], **how: bool) -> Draw:
        return lambda rng, n_experts, n_documents: make(rng, draw_corpus(rng, n_documents), n_experts, **how)

    return {
        "random": of(random_routing),
        "random, by document": of(random_routing, document_effects=True),
        "hash": of(hashed_routing),
        "hash + frequency": of(hashed_routing, by_frequency=True),
        "hash + documents": of(hashed_routing, document_effects=True),
    }


NULL_ROUTERS = _null_routers()
RANDOM = ("random", "random, by document")
"""Routers that know nothing of the token; the others know the word and nothing of its label."""

DOCUMENT_TEST = "document test, p < .05"
LIFT_COVERED = "lift, 95 % intervals that cover"
ANY_Q = "a table with any q < .05 in the document test"
MANY_Q = "cells with q < .05 in the document test, a table"
TYPE_TEST = "type test, p < .05"
FALSE_CELLS = "cells called specialised, a table"
LOAD_COVERED = "load, 95 % intervals that cover"
PUBLISHED_LIFT = "lift, intervals without clusters that cover"
PUBLISHED_LOAD = "load, intervals without clusters that cover"
UNSTRATIFIED = "type test without strata, p < .05"
FOUND_BY_DOCUMENTS = f"planted cells (≥ {MANY_EXPECTED} expected) with p < .05 in the document test"
FOUND_RARE = f"planted cells (< {MANY_EXPECTED} expected) with p < .05 in the document test"
FOUND_BY_TYPES = f"planted cells (≥ {MANY_EXPECTED_OF_TYPES} expected) with p < .05 in the type test"
FOUND_RARE_BY_TYPES = f"planted cells (< {MANY_EXPECTED_OF_TYPES} expected) with p < .05 in the type test"
FOUND_UNWEIGHTED = f"planted cells (≥ {MANY_EXPECTED_OF_TYPES} expected) with p < .05 in a type test without weights"
CALLED = "planted cells called specialised"
BITS_COVERED = "type_level_bits, 95 % intervals that cover"
BITS_P = "type_level_bits, p < .05"
BITS_UNSTRATIFIED = "type_level_bits without strata, p < .05"
HELD_OUT = "held_out_bits, interval above 0"
GIVEN_P = "given_token_p < .05"
GIVEN_BOTH = "given_token_p < .05 and at least .005 bits"
GIVEN_BITS = "given_token_bits, mean"
GIVEN_NAIVE = "given_token_bits, mean, labels permuted within the word in all documents"


def judge_null(draw: Draw, knows_words: bool, n_experts: int, n_documents: int, rng: np.random.Generator) -> Tally:
    """Judge a router that knows nothing of labels by both tests, the verdict, and the intervals of lift and load."""
    routing = draw(rng, n_experts, n_documents)
    by_slot = {slots: cell_estimates(routing.clustered(slots)) for slots in (BOTH_SLOTS, FIRST_CHOICE)}
    types = type_test(routing.expert_counts(), routing.corpus.label_counts())
    cells = by_slot[BOTH_SLOTS]
    tested = (cells.expected >= 5) & np.isfinite(cells.p)
    covered = (cells.low <= routing.lift()) & (routing.lift() <= cells.high)
    verdicts, q = _verdicts(by_slot.values(), types)
    loads = routing.clustered().sum(axis=2)
    shares, truth = clustered_shares(loads), routing.shares()
    found = {
        DOCUMENT_TEST: _share(cells.p < 0.05, tested),
        LIFT_COVERED: _share(covered, tested),
        TYPE_TEST: _share(types.p < 0.05, np.isfinite(types.p)),
        FALSE_CELLS: (float((verdicts == SPECIALISED).sum()), 1),
        LOAD_COVERED: _share((shares.low <= truth) & (truth <= shares.high), np.isfinite(truth)),
    }
    if not knows_words:  # of those that do, the document test is right to find most cells unlike the others
        found |= {ANY_Q: (float((q < 0.05).any()), 1)} if n_experts == 8 else {MANY_Q: (float((q < 0.05).sum()), 1)}
    return found | (_judge_published(routing, tested) if n_experts == 8 else {})


def _judge_published(routing: Routing, tested: NDArray[np.bool_]) -> Tally:
    """What is usually published instead, for comparison."""
    loads, truth = routing.clustered().sum(axis=(0, 2)), routing.shares()
    low, high = wilson(loads, loads.sum(), np.inf)
    return {
        PUBLISHED_LIFT: _share(naive_cover(routing), tested),
        UNSTRATIFIED: _share(*unstratified_test(routing)),
        PUBLISHED_LOAD: _share((low <= truth) & (truth <= high), np.isfinite(truth)),
    }


def judge_planted(in_words: bool, n_experts: int, n_documents: int, rng: np.random.Generator) -> Tally:
    """Look for specialisation that is there."""
    corpus = draw_corpus(rng, n_documents)
    routing, planted = planted_routing(rng, corpus, n_experts, ODDS, in_words=in_words)
    by_slot = {slots: cell_estimates(routing.clustered(slots)) for slots in (BOTH_SLOTS, FIRST_CHOICE)}
    types = type_test(routing.expert_counts(), corpus.label_counts())
    cells = by_slot[FIRST_CHOICE]
    verdicts, _ = _verdicts(by_slot.values(), types)
    truth = routing.lift(FIRST_CHOICE)
    frequent, enough = (planted & (cells.expected >= least) for least in (MANY_EXPECTED, MANY_EXPECTED_OF_TYPES))
    return {
        LIFT_COVERED: _share((cells.low <= truth) & (truth <= cells.high), planted),
        FOUND_BY_DOCUMENTS: _share(cells.p < 0.05, frequent),
        FOUND_RARE: _share(cells.p < 0.05, planted & ~frequent),
        FOUND_BY_TYPES: _share(types.p < 0.05, enough),
        FOUND_RARE_BY_TYPES: _share(types.p < 0.05, planted & ~enough),
        FOUND_UNWEIGHTED: _share(unweighted_test(routing), enough),
        CALLED: _share(verdicts[1] == SPECIALISED, planted),
    }


def judge_bits(
    draw: Draw, truth: Callable[[], float], n_experts: int, n_documents: int, rng: np.random.Generator
) -> Tally:
    """Judge the information at the level of types, against what there is."""
    routing = draw(rng, n_experts, n_documents)
    counts = routing.expert_counts(), routing.corpus.label_counts(), _folds()
    bits, held_out = type_level_bits(*counts, seed=int(rng.integers(2**31))), held_out_bits(*counts)
    # Without strata and without permutations: 2n·ln 2 times the bits has the χ² distribution.
    freedom = (n_experts - 1) * (np.unique(counts[1].argmax(axis=1)).size - 1)
    return {
        BITS_COVERED: (float(bits.low <= truth() <= bits.high), 1),
        BITS_P: (float(bits.p < 0.05), 1),
        BITS_UNSTRATIFIED: (float(chdtrc(freedom, 2 * bits.n * math.log(2) * bits.raw_bits) < 0.05), 1),
        HELD_OUT: (float(held_out.low > 0), 1),
    }


def draw_planted_words(rng: np.random.Generator, n_experts: int, n_documents: int) -> Routing:
    return planted_routing(rng, draw_corpus(rng, n_documents), n_experts, ODDS_OF_WORDS, in_words=True)[0]


@cache
def planted_bits(n_experts: int, n_documents: int) -> float:
    """What type_level_bits would be without chance, for words planted by `ODDS_OF_WORDS`: pooled over many corpora.

    It is the information in the pooled types less that of the same types with expert and label independent among
    types of like frequency.
    """
    pooled_types: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros((n_experts, len(LABELS))))
    for seed in range(N_CORPORA_OF_TRUTH):
        routing = draw_planted_words(np.random.default_rng([seed, 10**6]), n_experts, n_documents)
        label_counts = routing.corpus.label_counts()
        occurrences = label_counts.sum(axis=1)
        pairs = np.stack([routing.expert_counts().argmax(axis=1), label_counts.argmax(axis=1)])
        for octave in range(2, int(occurrences.max()).bit_length() + 1):
            kept = (np.frexp(occurrences)[1] == octave) & (occurrences >= 3)
            np.add.at(pooled_types[octave], tuple(pairs[:, kept]), 1)
    present = [table for table in pooled_types.values() if table.any()]
    independent = sum(table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum() for table in present)
    return float(information_bits(sum(present)) - information_bits(independent))


def judge_given_token(draw: Draw, n_experts: int, n_documents: int, rng: np.random.Generator) -> Tally:
    """Judge what the expert tells of the label once the word is known."""
    routing = draw(rng, n_experts, n_documents)
    corpus = routing.corpus
    rows = (corpus.labels, corpus.token_ids)
    seed = int(rng.integers(2**31))
    within = token_labels(*rows, corpus.documents, corpus.token_clusters, seed=seed)
    across = token_labels(*rows, np.zeros_like(corpus.documents), corpus.token_clusters, seed=seed, n_permutations=20)
    found, naive = (given_token(kept, routing.experts[:, 0], n_experts) for kept in (within, across))
    return {
        GIVEN_P: (float(found.p < 0.05), 1),
        GIVEN_BOTH: (float(found.p < 0.05 and found.bits >= 0.005), 1),
        GIVEN_BITS: (found.bits, 1),
        GIVEN_NAIVE: (naive.bits, 1),
    }


def draw_senses(rng: np.random.Generator, n_experts: int, n_documents: int) -> Routing:
    """Three in ten words have a second expert for their second label."""
    return sense_routing(rng, draw_corpus(rng, n_documents), n_experts, 0.3)


@cache
def _folds() -> NDArray[np.int64]:
    return type_folds([f"word {number}" for number in range(N_TYPES)])


def _verdicts(by_slot: Iterable[Cells], types: TypeTest) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """The verdicts of a table of one router, and its q-values, (slots, experts, labels)."""
    cells = list(by_slot)
    lift, expected, geff, p = (
        np.stack([getattr(one, name) for one in cells]) for name in ("lift", "expected", "geff", "p")
    )
    q = q_values(np.where(enough_for_cells(expected, geff), p, np.nan))
    z, type_q = (np.stack([values] * len(cells)) for values in (types.z, q_values(types.p)))
    return label_verdicts(lift, expected, geff, q, type_q, z), q


def naive_cover(routing: Routing) -> NDArray[np.bool_]:
    """Whether intervals that take every token for a draw of its own cover the lift, (experts, labels)."""
    table = routing.clustered().sum(axis=0).astype(np.float64)
    n_e, n_c, n = table.sum(axis=1, keepdims=True), table.sum(axis=0), table.sum()
    seen = np.maximum(table, 1)
    off = np.log(seen * n / (n_e * n_c)) - np.log(routing.lift())
    return np.abs(off) <= -ndtri(0.025) * np.sqrt(np.maximum(1 / seen - 1 / n_e - 1 / n_c + 1 / n, 0))


def unstratified_test(routing: Routing) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The test over types without strata: which cells it rejects, which it tests, (experts, labels) each."""
    went, had = routing.expert_counts(), routing.corpus.label_counts()
    kept = went.sum(axis=1) >= 3
    shares = went[kept] / went[kept].sum(axis=1, keepdims=True)
    shares -= shares.mean(axis=0)
    of_label = np.eye(len(LABELS))[had[kept].argmax(axis=1)]
    n, m = kept.sum(), of_label.sum(axis=0)
    variance = (shares**2).sum(axis=0)[:, None] * (m * (n - m) / (n * (n - 1)))
    tested = np.broadcast_to(m >= 8, variance.shape)
    excess = shares.T @ of_label
    return np.abs(excess) > -ndtri(0.025) * np.sqrt(variance), tested


def unweighted_test(routing: Routing) -> NDArray[np.bool_]:
    """Which cells a test over types rejects that takes rare and frequent ones for equal evidence, (experts, labels)."""
    went, had = routing.expert_counts(), routing.corpus.label_counts()
    octaves = np.frexp(went.sum(axis=1))[1]
    excess, variance = (np.zeros((routing.n_experts, len(LABELS))) for _ in range(2))
    for octave in range(3, int(octaves.max()) + 1):
        shares = went[octaves == octave] / went[octaves == octave].sum(axis=1, keepdims=True)
        of_label = np.eye(len(LABELS))[had[octaves == octave].argmax(axis=1)]
        n, m = len(shares), of_label.sum(axis=0)
        shares -= shares.mean(axis=0) if n else 0
        excess += shares.T @ of_label
        variance += (shares**2).sum(axis=0)[:, None] * (m * (n - m) / max(n * (n - 1), 1))
    return np.abs(excess) > -ndtri(0.025) * np.sqrt(variance)


def _share(hits: NDArray[np.bool_], of: NDArray[np.bool_]) -> tuple[float, float]:
    return float((hits & of).sum()), float(of.sum())
