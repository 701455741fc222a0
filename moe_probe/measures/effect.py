"""What switching an expert off does to tokens of one label, more than to others, and more than its controls do.

d is the paired change of a token's surprisal, in bits: with the expert off, less with it on. From sums of d by cluster
of documents and label follow its mean, the *difference* (mean over a label less mean over all other labels), and the
difference of two interventions' differences; the pairing stays within each cluster, so that an interval is many times
narrower than that of two unpaired means. Linearised variance with Student's t and the effective number of clusters, as
in survey sampling (Cochran 1977, sections 6.3 and 9A.2). "More than any other" is an intersection-union test (Berger
1982): the least of the lower ends, one-sided at 97.5 %.

It does not know models, experts or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from moe_probe.measures.intervals import CONFIDENCE, effective_clusters

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contrast:
    """A number for each label with its 95 % interval and p, all (labels,), nan where undefined."""

    value: Floats
    low: Floats
    high: Floats
    p: Floats


def label_clusters(counts: NDArray[np.integer]) -> Floats:
    """Return how many equally large clusters each label is worth, (labels,): the lesser of its own and of the rest's.

    Args:
        counts: (clusters, labels) tokens.
    """
    own = np.asarray(counts, dtype=np.float64)
    rest = own.sum(axis=1, keepdims=True) - own
    return np.minimum(effective_clusters(own), effective_clusters(rest))


def mean_effect(sums: Floats, counts: NDArray[np.integer]) -> Contrast:
    """Return the mean of d over the tokens of each label.

    Args:
        sums: (clusters, labels) sums of d.
        counts: (clusters, labels) tokens.

    Example:
        >>> mean_effect(np.array([[2.0], [4.0]]), np.array([[2], [2]])).value.tolist()
        [1.5]
    """
    counted = np.asarray(counts, dtype=np.float64)
    mean, influence = _mean(sums, counted)
    return _contrast(mean, influence, effective_clusters(counted), [counted])


def difference(sums: Floats, counts: NDArray[np.integer]) -> Contrast:
    """Return, for each label, the mean of d over its tokens less that over the tokens of all other labels.

    Of two interventions on the same tokens, hand in the difference of their sums.

    Args:
        sums: (clusters, labels) sums of d.
        counts: (clusters, labels) tokens.

    Example:
        >>> difference(np.array([[2.0, 0.0], [4.0, 1.0]]), np.array([[2, 2], [2, 2]])).value.tolist()
        [1.25, -1.25]
    """
    own = np.asarray(counts, dtype=np.float64)
    rest = own.sum(axis=1, keepdims=True) - own
    mean, influence = _mean(sums, own)
    mean_rest, influence_rest = _mean(sums.sum(axis=1, keepdims=True) - sums, rest)
    return _contrast(mean - mean_rest, influence - influence_rest, label_clusters(counts), [own, rest])


def over_any(sums: Floats, others: Floats, counts: NDArray[np.integer]) -> Floats:
    """Return, for each label, by how much the difference surely exceeds that of *every* other intervention, (labels,).

    Args:
        sums: (clusters, labels) of the intervention.
        others: (interventions, clusters, labels) of those that it is compared with.
        counts: (clusters, labels) tokens.

    Returns:
        The least of the lower ends; above 0 it does more than any other. nan where one is undefined, or none is given.
    """
    if len(others) == 0:
        return np.full(sums.shape[1], np.nan)
    lows: Floats = np.array([difference(sums - other, counts).low for other in others])
    return np.where(np.isnan(lows).any(axis=0), np.nan, lows.min(axis=0, initial=np.inf, where=~np.isnan(lows)))


def _mean(sums: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Means (labels,) and the clusters' influences on them (clusters, labels); nan where nothing was counted."""
    total = counts.sum(axis=0)
    mean = np.divide(sums.sum(axis=0), total, out=np.full(total.shape, np.nan), where=total > 0)
    influence = np.divide(sums - mean * counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
    return mean, influence


def _contrast(value: Floats, influence: Floats, geff: Floats, parts: Sequence[Floats]) -> Contrast:
    """Give a value its interval; `parts` are the counts, (clusters, labels), each of which needs two clusters."""
    n_clusters = np.any([part > 0 for part in parts], axis=0).sum(axis=0).astype(np.float64)  # (labels,)
    enough = np.all([(part > 0).sum(axis=0) >= 2 for part in parts], axis=0)
    nothing = np.full(value.shape, np.nan)
    factor = np.divide(n_clusters, n_clusters - 1, out=nothing.copy(), where=enough)
    error = np.sqrt(factor * (influence**2).sum(axis=0))
    freedom = np.maximum(geff - 1, 1.0)
    half = stdtrit(freedom, (1 + CONFIDENCE) / 2) * error
    ratio = np.divide(np.abs(value), error, out=nothing, where=error > 0)
    return Contrast(value, value - half, value + half, 2 * stdtr(freedom, -ratio))
