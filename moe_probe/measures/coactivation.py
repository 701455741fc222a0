"""Which experts are chosen together more, or less, than distinct draws of the same loads would have it.

The baseline is not N_a·N_b/T, under which every pair looks repelled since a token's experts differ: see
`distinct_draws`. Tokens of one document resemble each other, so that a cluster of documents is one draw; chance is
fitted to the same tokens, and the interval knows it.

It does not know which experts are alike, nor why. Muennighoff et al. (2024), "OLMoE" (arXiv 2409.02060), section 5.2,
for the measure; their published script counts pairs of adjacent ranks only, 2/k of all. Linearised variance: Cochran
(1977), sections 6.3 and 9A.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from moe_probe.measures.distinct_draws import DistinctDraws, change_together, expected_together, fit_draws
from moe_probe.measures.intervals import CONFIDENCE, effective_clusters
from moe_probe.measures.verdicts import enough_for_cells

_NO_VARIANCE = 1e-20


@dataclass(frozen=True, eq=False)
class CoActivation:
    """How often each pair of experts held the same token; all (experts, experts), nan where undefined or a == b.

    `together` are tokens whose set holds both (0 where a == b), `b_given_a` its share of those that hold a, `expected`
    the tokens that distinct draws of the same loads would have, `lift` the one over the other. `low` and `high` bound
    `lift` at 95 % and `p` is the chance of a lift so far from 1; they are nan for pairs that never met and for fewer
    than two clusters, and `p` also where fewer than 5 are expected or `geff`, the lesser of the two experts' effective
    numbers of clusters, is below 5.
    """

    together: NDArray[np.int64]
    b_given_a: NDArray[np.float64]
    expected: NDArray[np.float64]
    lift: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]
    geff: NDArray[np.float64]


def expected_pairs(loads: ArrayLike, sizes: ArrayLike) -> NDArray[np.float64]:
    """Return how many tokens distinct draws of the same loads would have on each pair of experts.

    Args:
        loads: (experts,) tokens whose set holds each expert.
        sizes: (slots + 1,) tokens by how many experts their set holds, from none on.

    Returns:
        (experts, experts), symmetric, 0 on the diagonal.

    Raises:
        ValueError: loads that no sets of these sizes can have.

    Example:
        >>> float(expected_pairs([25] * 8, [0, 0, 100])[0, 1].round(10)), 25 * 25 / 100
        (3.5714285714, 6.25)
    """
    return expected_together(fit_draws(np.asarray(loads), np.asarray(sizes)))


def coactivation(
    together: NDArray[np.integer], loads: NDArray[np.integer], sizes: NDArray[np.integer], *, adjacent: bool = False
) -> CoActivation | None:
    """Measure which experts hold the same tokens more often than chance would have it.

    With X_g the tokens of cluster g that hold the pair and E the expected ones, L = ln(ΣX/E) has the influences
    Z_g = X_g/ΣX - E'_g/E, where E'_g is what the tokens of g add to E as chance is fitted to them too;
    V = G/(G-1)·ΣZ², and the interval is exp(L ± t·√V) with max(Geff - 1, 1) degrees of freedom, Geff being the lesser
    of the two experts' effective numbers of clusters.

    Args:
        together: (clusters, experts, experts) tokens whose set holds both, symmetric, 0 on the diagonal.
        loads: (clusters, experts) tokens whose set holds each expert.
        sizes: (clusters, slots + 1) tokens by how many experts their set holds, from none on.
        adjacent: `together` counts pairs in slots s and s + 1 only; then chance puts the ranks at random, and its
            total is that of the pairs counted.

    Returns:
        None where no token holds two experts.

    Raises:
        ValueError: loads that no sets of these sizes can have.

    Example:
        >>> pairs = np.array([[[0, 30, 10], [30, 0, 10], [10, 10, 0]], [[0, 34, 8], [34, 0, 8], [8, 8, 0]]])
        >>> found = coactivation(pairs, pairs.sum(axis=2), np.array([[0, 0, 50], [0, 0, 50]]))
        >>> found.lift.round(6)[0].tolist()  # two of three: the loads leave no choice
        [nan, 1.0, 1.0]
    """
    counts = together.sum(axis=0, dtype=np.int64)
    if not counts.any():
        return None
    draws = fit_draws(loads.sum(axis=0), sizes.sum(axis=0))
    share = _counted_share(sizes.shape[1] - 1, adjacent)
    expected = expected_together(draws, share)
    total = float(expected.sum())
    variance = _log_lift_variance(together, loads, sizes, draws, share)
    expected *= counts.sum() / total  # 1 unless ranks with a gap between them are adjacent no longer
    load = draws.loads
    nothing = np.full(expected.shape, np.nan)
    lift = np.divide(counts, expected, out=nothing.copy(), where=expected > 0)
    known = (counts > 0) & (variance > _NO_VARIANCE)
    log_lift = np.log(lift, out=nothing.copy(), where=known)
    error = np.sqrt(variance, out=nothing.copy(), where=known)
    carried = effective_clusters(loads)
    geff = np.minimum.outer(carried, carried)
    quantile = stdtrit(np.maximum(carried - 1, 1.0), (1 + CONFIDENCE) / 2)  # the fewer degrees, the greater
    half = np.maximum.outer(quantile, quantile) * error
    tested = known & enough_for_cells(expected, geff)
    p = 2 * stdtr(np.maximum(geff - 1, 1.0), -np.abs(log_lift / error), out=nothing.copy(), where=tested)
    off = ~np.eye(load.size, dtype=np.bool_)
    return CoActivation(
        together=counts,
        b_given_a=np.divide(counts, load[:, None], out=nothing.copy(), where=off & (load[:, None] > 0)),
        expected=np.where(off, expected, np.nan),
        lift=lift,
        low=np.exp(log_lift - half),
        high=np.exp(log_lift + half),
        p=p,
        geff=geff,
    )


def _counted_share(n_slots: int, adjacent: bool) -> NDArray[np.float64]:
    """Return which part of the pairs of a set of each size is counted, (slots + 1,): 2/k where ranks are adjacent."""
    sizes = np.arange(n_slots + 1)
    return np.minimum(2 / np.maximum(sizes, 1), 1.0) if adjacent else np.ones(n_slots + 1)


def _log_lift_variance(
    together: NDArray[np.integer],
    loads: NDArray[np.integer],
    sizes: NDArray[np.integer],
    draws: DistinctDraws,
    share: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Variance of the log of the lift, (experts, experts); nan for fewer than two clusters."""
    routed = np.flatnonzero(sizes[:, 1:].any(axis=1))
    expected, counts = expected_together(draws, share), together.sum(axis=0)
    squares = np.zeros(expected.shape)
    for cluster in routed:
        change = change_together(draws, expected, loads[cluster], sizes[cluster], share)
        part = together[cluster]
        influence = part / np.maximum(counts, 1) - part.sum() / counts.sum() + change.sum() / expected.sum()
        influence -= np.divide(change, expected, out=np.zeros(expected.shape), where=expected > 0)
        squares += influence**2
    if routed.size < 2:
        return np.full(expected.shape, np.nan)
    return squares * (routed.size / (routed.size - 1))
