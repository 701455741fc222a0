"""Which experts a task's tokens go to, and the fewest of them that hold a given part: what ESFT fine-tunes.

Two scores of an expert, over the task's tokens: its share of all assignments (*token selection ratio*), and its mean
weight (*average gate score*), a token that does not choose it weighing 0. Experts are taken by descending score until
their scores first add up to p.

The script that was published with the paper divides, in its latest version, by the sum over *layers*, so that a layer's
scores do not add up to 1; the paper, and the data published with it, divide by the layer's own sum. So does this.

It does not know tasks. Wang et al. (2024), "Let the Expert Stick to His Last" (arXiv 2407.01906), section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.intervals import student_t


@dataclass(frozen=True, eq=False)
class Means:
    """Means over tokens with their intervals, a cluster of documents being one draw; each (experts,).

    All are nan where no token was counted; `low` and `high` are where fewer than two clusters were.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def clustered_means(sums: NDArray[np.number], sizes: NDArray[np.integer]) -> Means:
    """Return sums over tokens, divided by how many tokens there were.

    The interval is that of `intervals.clustered_ratio`, for many experts at once; it does not fall below 0.

    Args:
        sums: (clusters, experts) of a cluster's tokens; for example of their weights.
        sizes: (clusters,) tokens.

    Example:
        >>> clustered_means(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([4, 4])).value.tolist()
        [0.375, 0.125]
    """
    held = sizes > 0
    counted = sizes[held].astype(np.float64)
    total = counted.sum()
    unknown = np.full(sums.shape[1], np.nan)
    if total == 0:
        return Means(unknown, unknown, unknown)
    value = sums[held].sum(axis=0) / total
    n_clusters = counted.size
    if n_clusters < 2:
        return Means(value, unknown, unknown)
    residuals = (sums[held] - value * counted[:, None]) / total
    error = np.sqrt(n_clusters / (n_clusters - 1) * (residuals**2).sum(axis=0))
    half = student_t(max(total**2 / (counted**2).sum() - 1, 1.0)) * error
    return Means(value, np.maximum(value - half, 0.0), value + half)


def ranks(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the place of each expert by descending score, from 1; of equal scores the lower index comes first.

    Args:
        scores: (experts,).

    Example:
        >>> ranks(np.array([0.2, 0.5, 0.2])).tolist()
        [2, 1, 3]
    """
    place = np.empty(scores.size, dtype=np.int64)
    place[np.argsort(-scores, kind="stable")] = np.arange(1, scores.size + 1)
    return place


def smallest_set(scores: NDArray[np.float64], p: float) -> NDArray[np.bool_]:
    """Return which experts are taken, by descending score, until their sum first reaches p.

    Args:
        scores: (experts,) not negative.
        p: above 0. All experts with a score are taken where even their sum does not reach it.

    Raises:
        ValueError: p is not above 0.

    Example:
        >>> smallest_set(np.array([0.15, 0.6, 0.25]), 0.7).tolist()
        [False, True, True]
    """
    if not p > 0:
        raise ValueError(f"p {p!r}: a set of experts reaches a sum above 0; give p between 0 and 1")
    order = np.argsort(-scores, kind="stable")
    before = np.cumsum(scores[order]) - scores[order]
    taken = np.zeros(scores.size, dtype=np.bool_)
    # Rounding must not add an expert where the sum is p: 0.1 + 0.2 of p = 0.3.
    taken[order] = (before < p - 1e-12) & (scores[order] > 0)
    return taken
