"""Which simulated routers the procedures are judged on, how often, and what should come out.

The tests and benchmarks/calibration.py share these studies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from calibration_draws import (
    ANY_Q,
    BITS_COVERED,
    BITS_P,
    DOCUMENT_TEST,
    FALSE_CELLS,
    FOUND_BY_DOCUMENTS,
    FOUND_BY_TYPES,
    GIVEN_BOTH,
    GIVEN_P,
    HELD_OUT,
    LIFT_COVERED,
    LOAD_COVERED,
    MANY_Q,
    NULL_ROUTERS,
    ODDS,
    ODDS_OF_WORDS,
    RANDOM,
    TYPE_TEST,
    Tally,
    draw_planted_words,
    draw_senses,
    judge_bits,
    judge_given_token,
    judge_null,
    judge_planted,
    planted_bits,
)
from calibration_figures import Bounds, Figure, pooled


@dataclass(frozen=True)
class Study:
    """One kind of router, judged again and again: `judge` makes one draw; `bounds` name what its figures should be.

    Studies that are not `quick` wait for the long proof.
    """

    router: str
    n_experts: int
    n_documents: int
    judge: Callable[[np.random.Generator], Tally]
    bounds: dict[str, Bounds]
    quick: bool = True

    def figures(self, n_seeds: int) -> list[Figure]:
        """Judge `n_seeds` draws and pool them."""
        tallies: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for seed in range(n_seeds):
            for name, tally in self.judge(np.random.default_rng([seed, self.n_documents, self.n_experts])).items():
                tallies[name].append(tally)
        place = (self.router, self.n_experts, self.n_documents)
        return [
            Figure(name, *place, *pooled(drawn), self.bounds.get(name, Bounds()), n_seeds)
            for name, drawn in tallies.items()
            if sum(of > 0 for _, of in drawn) > n_seeds / 2  # else there is next to nothing to take a rate of
        ]


AS_SAID = Bounds(0.93, 0.97)
"""So many of the 95 % intervals should cover."""


def _null_study(router: str, n_experts: int, n_documents: int) -> Study:
    few = n_documents < 30
    bounds = {
        LIFT_COVERED: Bounds(0.93) if few else AS_SAID,
        TYPE_TEST: Bounds(0.04, 0.06) if n_experts == 8 else Bounds(None, 0.06),
        FALSE_CELLS: Bounds(None, 0.08 if n_experts == 8 else 0.2),
    }
    if router in RANDOM:
        bounds[DOCUMENT_TEST] = Bounds(None if few else 0.04, 0.06)
        bounds |= {ANY_Q: Bounds(None, 0.08)} if n_experts == 8 else {MANY_Q: Bounds(None, 0.2)}
    if n_documents >= 100:
        bounds[LOAD_COVERED] = AS_SAID
    judge = partial(judge_null, NULL_ROUTERS[router], router not in RANDOM, n_experts, n_documents)
    return Study(router, n_experts, n_documents, judge, bounds, quick=n_documents < 200 and n_experts < 256)


def _planted_study(in_words: bool, n_experts: int) -> Study:
    bounds = {LIFT_COVERED: AS_SAID}
    if not in_words:  # words that choose once are few draws, and no test finds odds of 1.5 in them reliably
        bounds |= {FOUND_BY_DOCUMENTS: Bounds(0.9), FOUND_BY_TYPES: Bounds(0.9)}
    name = f"planted in {'words' if in_words else 'tokens'}, odds {ODDS}"
    judge = partial(judge_planted, in_words, n_experts, 100)
    return Study(name, n_experts, 100, judge, bounds, quick=n_experts == 8 or not in_words)


def _bits_study(router: str) -> Study:
    planted = router == PLANTED_WORDS
    draw = draw_planted_words if planted else NULL_ROUTERS[router]
    truth = partial(planted_bits, 8, 100) if planted else partial(float, 0.0)
    bounds = {
        BITS_COVERED: Bounds(0.95),
        BITS_P: Bounds(0.9) if planted else Bounds(None, 0.06),
        HELD_OUT: Bounds(0.9) if planted else Bounds(None, 0.025),
    }
    return Study(router, 8, 100, partial(judge_bits, draw, truth, 8, 100), bounds, quick=router not in RANDOM)


def _given_study(router: str) -> Study:
    planted = router == PLANTED_SENSES
    draw = draw_senses if planted else NULL_ROUTERS[router]
    bound = Bounds(0.9) if planted else Bounds(None, 0.05)
    judge = partial(judge_given_token, draw, 8, 100)
    quick = router in ("hash + documents", PLANTED_SENSES)
    return Study(router, 8, 100, judge, {GIVEN_P: bound, GIVEN_BOTH: bound}, quick)


PLANTED_SENSES = "planted in 3 of 10 words"
PLANTED_WORDS = f"planted in words, odds {ODDS_OF_WORDS:g}"

STUDIES: dict[str, list[Study]] = {
    **{router: [_null_study(router, 8, n_documents) for n_documents in (8, 30, 100, 200)] for router in NULL_ROUTERS},
    "many experts, random": [_null_study("random", n, 100) for n in (64, 256)],
    "many experts, hash": [_null_study("hash", n, 100) for n in (64, 256)],
    "many experts, hash + documents": [_null_study("hash + documents", n, 100) for n in (64, 256)],
    "planted": [_planted_study(in_words, n) for in_words in (False, True) for n in (8, 64)],
    "bits, random": [_bits_study(router) for router in RANDOM],
    "bits, hash": [_bits_study(router) for router in NULL_ROUTERS if router not in RANDOM],
    "bits, planted": [_bits_study(PLANTED_WORDS)],
    **{f"given the token, {router}": [_given_study(router)] for router in (*NULL_ROUTERS, PLANTED_SENSES)},
}
"""Every study, in groups that can be shared out."""


@cache
def figures_of(group: str, n_seeds: int, *, only_quick: bool = False) -> list[Figure]:
    """All figures of one group of studies; none where all of them wait for the long proof."""
    studies = [study for study in STUDIES[group] if study.quick or not only_quick]
    return [figure for study in studies for figure in study.figures(n_seeds)]
