"""What chance gives where a token's experts are distinct: draws without repetition, matched to the loads.

A router that sends each token to k *different* experts makes any pair meet less often than the product of their loads
says: under even routing to 2 of 8, N_a·N_b/T is 1.75 times too high, and every pair looks repelled. Chance is therefore
the *conditional Bernoulli* distribution: independent coins, one an expert, given that k of them fell heads. Of all
distributions over sets it is the one that knows the loads and nothing else (the greatest entropy). Tokens that lost a
slot hold fewer experts; chance then draws as many as each token held.

All sums are of positive terms, elementary symmetric polynomials built up from both ends, so that neither an expert that
nearly every token goes to nor a thousand rare ones cost digits. It does not know what was observed together. Chen,
Dempster and Liu (1994), "Weighted finite population sampling to maximize entropy", Biometrika 81.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_STEPS = 200
_PRECISION = 1e-9
_LONGEST_STEP = 4.0
_MOST_EXPONENT = 600.0  # of a product of weights; doubles reach e^709
_LEAST_CEILING = 30.0
_RIDGE = 1e-13
_PROBE = 1e-6


@dataclass(frozen=True, eq=False)
class DistinctDraws:
    """Chance, fitted to loads and set sizes; get one from `fit_draws`.

    `always` are the experts that every routed token goes to, `free` those that chance has a say in; experts without a
    load are neither. `log_weights` (free,) are the logarithms of the coins' odds but for a constant, and `information`
    (free, free) is the covariance of the loads that chance gives.
    """

    loads: NDArray[np.float64]
    sizes: NDArray[np.float64]
    always: NDArray[np.int64]
    free: NDArray[np.int64]
    log_weights: NDArray[np.float64]
    information: NDArray[np.float64]


def fit_draws(loads: NDArray[np.number], sizes: NDArray[np.number]) -> DistinctDraws:
    """Find the draws that give every expert its load.

    Args:
        loads: (experts,) tokens whose set holds each expert.
        sizes: (slots + 1,) tokens by how many experts their set holds, from none on.

    Raises:
        ValueError: loads that no sets of these sizes can have.
    """
    held: NDArray[np.float64] = np.asarray(loads, dtype=np.float64)
    of_size: NDArray[np.float64] = np.asarray(sizes, dtype=np.float64)
    routed, filled = float(of_size[1:].sum()), float(of_size @ np.arange(of_size.size))
    most = float(held.max(initial=0.0))
    if abs(float(held.sum()) - filled) > _PRECISION * filled or held.min(initial=0.0) < 0 or most > routed:
        raise ValueError(
            f"loads sum to {held.sum():,.0f} and reach {most:,.0f}, but {routed:,.0f} routed tokens fill "
            f"{filled:,.0f} slots; give the loads and the set sizes of the same tokens"
        )
    always = np.flatnonzero((held == routed) & (held > 0))
    free = np.flatnonzero((held > 0) & (held < routed))
    free_sizes = of_size[always.size :]
    log_weights = _fit(held[free], free_sizes)
    return DistinctDraws(held, of_size, always, free, log_weights, _covariance(log_weights, free_sizes))


def expected_together(draws: DistinctDraws, share: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
    """Return how many tokens hold both experts of each pair by chance, (experts, experts), 0 on the diagonal.

    Args:
        draws: from `fit_draws`.
        share: (slots + 1,) which part of the pairs of a token of each set size is counted; all by default.
    """
    return _together(draws, draws.log_weights, share * draws.sizes)


def change_together(
    draws: DistinctDraws,
    expected: NDArray[np.float64],
    loads: NDArray[np.number],
    sizes: NDArray[np.number],
    share: NDArray[np.float64] | float = 1.0,
) -> NDArray[np.float64]:
    """Return how fast `expected_together` grows with the weight of some of the tokens, (experts, experts).

    Args:
        draws: from `fit_draws`.
        expected: (experts, experts) from `expected_together`.
        loads: (experts,) the loads of those tokens, of which there is at least one.
        sizes: (slots + 1,) their set sizes.
        share: as for `expected_together`.
    """
    more = np.asarray(sizes, dtype=np.float64)
    by_chance = _inclusions(draws.log_weights, more[draws.always.size :])[1]
    direction = _solve(draws.information, np.asarray(loads, dtype=np.float64)[draws.free] - by_chance)
    # A small step: the polynomials are smooth, so that their derivative needs no code of its own.
    step = _PROBE / max(float(np.abs(direction).max(initial=0.0)), float(more.sum() / draws.sizes.sum()))
    moved = _together(draws, draws.log_weights + step * direction, share * (draws.sizes + step * more))
    change: NDArray[np.float64] = (moved - expected) / step
    return change


def _fit(loads: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log weights whose draws have these loads, (experts,): Newton's method on a concave likelihood."""
    n_tokens = float(sizes.sum())
    left_to_chance = sizes[1 : loads.size]  # a set of none or of all of the experts is no choice
    if not left_to_chance.any():
        return np.zeros(loads.size)
    log_weights = _centred(np.log(loads) - np.log(n_tokens - loads), sizes.size - 1)
    likelihood = _likelihood(log_weights, loads, sizes)
    for _ in range(_MOST_STEPS):
        gap = loads - _inclusions(log_weights, sizes)[1]
        if np.all(np.abs(gap) <= _PRECISION * loads):
            return log_weights
        step = _solve(_covariance(log_weights, sizes), gap)
        step *= min(1.0, _LONGEST_STEP / float(np.abs(step).max()))
        tried = _centred(log_weights + step, sizes.size - 1)
        reached = _likelihood(tried, loads, sizes)
        while reached < likelihood - 1e-12 * abs(likelihood):
            step /= 2
            tried = _centred(log_weights + step, sizes.size - 1)
            reached = _likelihood(tried, loads, sizes)
        log_weights, likelihood = tried, reached
    raise ArithmeticError(f"no draws found for {loads.size} experts, loads {loads.min():,.0f} to {loads.max():,.0f}")


def _centred(log_weights: NDArray[np.float64], n_slots: int) -> NDArray[np.float64]:
    """Shift log weights, which changes nothing, so that products of `n_slots` of them neither over- nor underflow."""
    place = min(n_slots, log_weights.size)
    centre = np.partition(log_weights, log_weights.size - place)[log_weights.size - place]
    shifted: NDArray[np.float64] = np.minimum(log_weights - centre, max(_MOST_EXPONENT / n_slots, _LEAST_CEILING))
    return shifted


def _likelihood(log_weights: NDArray[np.float64], loads: NDArray[np.float64], sizes: NDArray[np.float64]) -> float:
    held = np.flatnonzero(sizes)
    symmetric = _prefixes(np.exp(log_weights), sizes.size - 1)[:, -1]
    return float(loads @ log_weights - sizes[held] @ np.log(symmetric[held]))


def _prefixes(weights: NDArray[np.float64], degree: int) -> NDArray[np.float64]:
    """Return the elementary symmetric polynomials of the first 0, 1, 2 … weights, (degree + 1, experts + 1)."""
    prefixes = np.zeros((degree + 1, weights.size + 1))
    prefixes[0] = 1.0
    for power in range(1, degree + 1):
        np.cumsum(weights * prefixes[power - 1, :-1], out=prefixes[power, 1:])
    return prefixes


def _both_sides(weights: NDArray[np.float64], degree: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the polynomials of the weights before each expert, and of those from it on; one more than experts."""
    return _prefixes(weights, degree), _prefixes(weights[::-1], degree)[:, ::-1]


def _inclusions(
    log_weights: NDArray[np.float64], sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each expert's chance of being in a set of each size, (sizes, experts), and its load, (experts,)."""
    weights = np.exp(log_weights)
    degree = sizes.size - 1
    before, after = _both_sides(weights, degree)
    chances = np.zeros((degree + 1, weights.size))
    for size in range(1, min(degree, weights.size) + 1):
        # Of sets with this expert: the others come from before it and from after it.
        others = np.einsum("ie,ie->e", before[:size, :-1], after[size - 1 :: -1, 1:])
        chances[size] = weights * others / before[size, -1]
    return chances, sizes @ chances


def _pairs(log_weights: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected tokens of each pair, (experts, experts), 0 on the diagonal."""
    weights = np.exp(log_weights)
    n_experts, degree = weights.size, sizes.size - 1
    before, after = _both_sides(weights, degree)
    drawn = [size for size in range(2, min(degree, n_experts) + 1) if sizes[size] != 0]
    together = np.zeros((n_experts, n_experts))
    if not drawn:
        return together
    # Row a, column b > a: the polynomial of one power of all weights before b but for that of a.
    without = np.triu(np.ones((n_experts, n_experts)), 1)
    for power in range(max(drawn) - 1):
        if power:
            without *= weights
            np.fill_diagonal(without, before[power, :-1])
            without[:, 1:] = np.cumsum(without, axis=1)[:, :-1]
            without[:, 0] = 0.0
        # The rest of the set comes from after b.
        rest = np.zeros(n_experts)
        for size in drawn:
            if size - 2 >= power:
                rest += sizes[size] / before[size, -1] * after[size - 2 - power, 1:]
        together += without * rest
    together *= np.outer(weights, weights)
    return together + together.T


def _covariance(log_weights: NDArray[np.float64], sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the covariance of the loads, (experts, experts)."""
    chances, loads = _inclusions(log_weights, sizes)
    covariance: NDArray[np.float64] = _pairs(log_weights, sizes) + np.diag(loads) - (chances.T * sizes) @ chances
    return covariance


def _solve(information: NDArray[np.float64], surplus: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the change of log weights that makes up for a surplus of load."""
    size = float(np.diagonal(information).max(initial=0.0))
    if size == 0:
        return np.zeros(surplus.size)
    # Adding the same to all log weights changes nothing, so that one direction needs to be held; the ridge holds
    # another, where some loads are at the edge of what is possible.
    ridge: NDArray[np.float64] = size * (_RIDGE * np.eye(surplus.size) + 1 / surplus.size)
    solved: NDArray[np.float64] = np.linalg.solve(information + ridge, surplus).astype(np.float64, copy=False)
    return solved


def _together(
    draws: DistinctDraws, log_weights: NDArray[np.float64], sizes: NDArray[np.float64]
) -> NDArray[np.float64]:
    free_sizes = sizes[draws.always.size :]
    n_experts = draws.loads.size
    together = np.zeros((n_experts, n_experts))
    together[np.ix_(draws.free, draws.free)] = _pairs(log_weights, free_sizes)
    if draws.always.size == 0:
        return together
    # An expert that every token goes to meets another as often as that one is drawn.
    drawn = np.zeros(n_experts)
    drawn[draws.free] = _inclusions(log_weights, free_sizes)[1]
    drawn[draws.always] = free_sizes.sum()
    together[draws.always] = drawn
    together[:, draws.always] = drawn[:, None]
    np.fill_diagonal(together, 0.0)
    return together
