"""How faithful a token is to an expert: the share of its commonest one, against what the load alone would give.

A type that occurs once always goes to one expert; so the usual mean over all types, OLMoE's vocabulary specialisation,
is .74 to .78 where experts are drawn at random. Here a type counts from ten occurrences on, and beside each share
stands its mean where every occurrence draws its expert from the router's load. *Context independence* asks how much of
the uncertainty about the expert the token takes away, as a share of what it would leave if it were shuffled.

It does not know texts or layers. Muennighoff et al. (2024), "OLMoE", section 5.4, for the share; the mean of a
conditional entropy under shuffling is that of Vinh, Epps and Bailey (2010), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.association import entropy_bits, expected_n_log_n
from moe_probe.measures.intervals import clustered_ratio

VOCABULARY_FLOOR = 10
"""Types that occur less often are left out of what is measured by type."""

_STEPWISE = 64  # up to here each number of occurrences is simulated, beyond it some are and the others lie between
_GROWTH = 1.1
_MANY_DRAWS = 4000
_FEW_DRAWS = (200, 1000)
_MOST_CELLS = 64_000  # of few draws, experts times draws
_ROUNDING = 1e-12


@dataclass(frozen=True)
class ContextIndependence:
    """How far the token alone decides the expert.

    `value` is 1 - H(expert | token) / H(expert | shuffled token): 0 where the token says nothing, 1 where it says all,
    and below 0 where experts are spread more evenly over tokens than chance would do it. `low` and `high` bound it at
    95 %, a fold of types being one draw. `raw` is 1 - H(expert | token) / H(expert), `null` the same of shuffled
    tokens. Each is None where it cannot be given: where no type occurs twice, or there is but one expert.
    """

    value: float | None
    low: float | None
    high: float | None
    raw: float | None
    null: float | None


def top_shares(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the share of the commonest expert of each type, (types,); nan for types without an expert.

    Args:
        counts: (types, experts) how often each type went to each expert.

    Example:
        >>> top_shares(np.array([[9, 1], [5, 5]])).tolist()
        [0.9, 0.5]
    """
    sizes = counts.sum(axis=1)
    shares: NDArray[np.float64] = np.divide(
        counts.max(axis=1, initial=0), sizes, out=np.full(len(counts), np.nan), where=sizes > 0
    )
    return shares


def chance_top_shares(
    occurrences: NDArray[np.integer], loads: NDArray[np.integer], *, seed: int = 0
) -> NDArray[np.float64]:
    """Return the mean share of the commonest expert where each occurrence draws its expert from the load.

    Simulated: the same sequences of draws, read after each number of occurrences up to 64, and after some numbers
    beyond; the mean of the others lies on a line over 1/√n. The standard error is about .002.

    Args:
        occurrences: (types,) of each type.
        loads: (experts,) assignments of each expert.
        seed: of the draws.

    Returns:
        (types,); nan for types without an occurrence, and for all if the load is empty.

    Example:
        >>> chance_top_shares(np.array([1, 1000]), np.array([5, 5])).round(2).tolist()
        [1.0, 0.51]
    """
    total = loads.sum()
    if occurrences.size == 0 or total == 0:
        return np.full(occurrences.size, np.nan)
    simulated, means = _simulated_top_shares(loads / total, int(occurrences.max()), seed)
    at = -1 / np.sqrt(np.maximum(occurrences, 1))
    shares: NDArray[np.float64] = np.interp(at, -1 / np.sqrt(simulated), means)
    return np.where(occurrences > 0, shares, np.nan)


def context_independence(counts: NDArray[np.integer], folds: NDArray[np.integer]) -> ContextIndependence:
    """Return how far the token decides the expert, less what shuffling would give.

    Shuffling gives every occurrence the expert of another one; its mean is exact, nothing is drawn.

    Args:
        counts: (types, experts) how often each type went to each expert.
        folds: (types,) from `specialisation.type_folds`, for the interval.

    Example:
        >>> context_independence(np.array([[20, 0], [0, 20]]), np.array([0, 1])).value
        1.0
    """
    sizes, loads = counts.sum(axis=1, dtype=np.int64), counts.sum(axis=0, dtype=np.int64)
    left = _by_fold(folds, _n_log_n(sizes) - _n_log_n(counts).sum(axis=1))
    return _independence(left, _shuffled(sizes, folds, loads[None])[:, 0], float(entropy_bits(loads) * loads.sum()))


def context_independence_of_experts(
    counts: NDArray[np.integer], folds: NDArray[np.integer]
) -> list[ContextIndependence]:
    """Return how far the token decides whether it is each expert that is chosen.

    Args:
        counts: (types, experts) how often each type went to each expert.
        folds: (types,) from `specialisation.type_folds`, for the interval.

    Returns:
        One for each expert; all None for an expert that has no token or every token.

    Example:
        >>> found = context_independence_of_experts(np.array([[20, 0, 0], [0, 10, 10]]), np.array([0, 1]))
        >>> [round(one.value, 2) for one in found]
        [1.0, 0.37, 0.37]
    """
    sizes, loads = counts.sum(axis=1, dtype=np.int64), counts.sum(axis=0, dtype=np.int64)
    other = sizes[:, None] - counts
    left = _by_fold(folds, _n_log_n(sizes)[:, None] - _n_log_n(counts) - _n_log_n(other))  # (folds, experts)
    answers = np.stack([loads, loads.sum() - loads], axis=-1)  # (experts, chosen or not)
    shuffled, whole = _shuffled(sizes, folds, answers), entropy_bits(answers) * loads.sum()
    return [_independence(left[:, e], shuffled[:, e], float(whole[e])) for e in range(loads.size)]


def _independence(left: NDArray[np.float64], shuffled: NDArray[np.float64], whole: float) -> ContextIndependence:
    """From the bits that the token leaves, as it is and shuffled, (folds,), and those that there are without it."""
    if whole <= _ROUNDING:
        return ContextIndependence(None, None, None, None, None)
    raw, null = 1 - float(left.sum()) / whole, 1 - float(shuffled.sum()) / whole
    ratio = clustered_ratio(left, np.where(shuffled > _ROUNDING, shuffled, 0.0))
    if ratio is None:
        return ContextIndependence(None, None, None, raw, null)
    low, high = (None, None) if ratio.low is None or ratio.high is None else (1 - ratio.high, 1 - ratio.low)
    return ContextIndependence(1 - ratio.value, low, high, raw, null)


def _shuffled(sizes: NDArray[np.int64], folds: NDArray[np.integer], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean bits that shuffled tokens leave, times occurrences, (folds, questions).

    Args:
        sizes: (types,) occurrences.
        folds: (types,).
        classes: (questions, answers) occurrences of each answer, the same total for each question.
    """
    different, size = np.unique(sizes, return_inverse=True)
    answers, answer = np.unique(classes, return_inverse=True)
    means = expected_n_log_n(different, answers, int(sizes.sum()))[:, answer.reshape(classes.shape)].sum(axis=-1)
    left = _n_log_n(different)[:, None] - means  # (sizes, questions)
    n_folds = int(folds.max(initial=0)) + 1
    types = np.bincount(folds * different.size + size, minlength=n_folds * different.size).reshape(n_folds, -1)
    shuffled: NDArray[np.float64] = types @ left
    return shuffled


def _by_fold(folds: NDArray[np.integer], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of (types, ...) over each fold's types, (folds, ...)."""
    of_fold = np.arange(int(folds.max(initial=0)) + 1)[:, None] == folds
    summed: NDArray[np.float64] = of_fold.astype(np.float64) @ values
    return summed


def _n_log_n(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = counts.astype(np.float64)
    values *= np.log2(np.maximum(values, 1))
    return values


def _simulated_top_shares(
    shares: NDArray[np.float64], most: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers of occurrences, ascending from 1, and the mean top share at each."""
    rng = np.random.default_rng(seed)
    stepwise = min(most, _STEPWISE)
    ends = np.cumsum(shares)
    drawn = np.searchsorted(ends / ends[-1], rng.random((stepwise, _MANY_DRAWS)), side="right")
    counts = np.zeros((_MANY_DRAWS, shares.size), dtype=np.int64)
    sequences = np.arange(_MANY_DRAWS)
    highest = np.zeros(_MANY_DRAWS, dtype=np.int64)
    means = []
    for step, experts in enumerate(drawn, start=1):
        counts[sequences, experts] += 1
        np.maximum(highest, counts[sequences, experts], out=highest)
        means.append(float(highest.mean()) / step)
    numbers = list(range(1, stepwise + 1))
    counts = counts[: min(max(_MOST_CELLS // shares.size, _FEW_DRAWS[0]), _FEW_DRAWS[1])]
    while numbers[-1] < most:
        further = math.ceil(numbers[-1] * (_GROWTH - 1))
        counts = counts + rng.multinomial(further, shares, len(counts))
        numbers.append(numbers[-1] + further)
        means.append(float(counts.max(axis=1).mean()) / numbers[-1])
    return np.array(numbers), np.array(means)
