"""Confidence intervals for totals over clusters of tokens.

Tokens of one document resemble each other, so a document (or a group of documents, or of words) counts as one draw.
It does not know what a cluster is. Source of the procedures: linearised variance with Student's t, as in survey
sampling (Cochran 1977, sections 6.3 and 9A.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `low` and `high` are None where fewer than two clusters cannot give one."""

    value: float
    low: float | None
    high: float | None


def student_t(degrees_of_freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return t such that Student's distribution holds `confidence` of its mass between -t and t.

    Args:
        degrees_of_freedom: at least 1; need not be whole.
        confidence: between 0 and 1, both excluded.

    Example:
        >>> round(student_t(1), 3), round(student_t(63), 3)
        (12.706, 1.998)
    """
    return float(stdtrit(degrees_of_freedom, (1 + confidence) / 2))


def clustered_ratio(numerators: NDArray[np.number], denominators: NDArray[np.number]) -> Estimate | None:
    """Return Σ numerators / Σ denominators with an interval in which a cluster is one draw.

    The degrees of freedom are those of the *effective* number of clusters, (Σd)² / Σd², less one: a corpus of one
    long and many short documents has few.

    Args:
        numerators: (clusters,) the sum of what is averaged, cluster by cluster.
        denominators: (clusters,) how many it was summed over; clusters with none are left out.

    Returns:
        None where nothing was counted at all.

    Example:
        >>> clustered_ratio(np.array([3, 5]), np.array([10, 10])).value
        0.4
    """
    held = denominators > 0
    total = float(denominators[held].sum())
    if not held.any():
        return None
    value = float(numerators[held].sum()) / total
    n_clusters = int(held.sum())
    if n_clusters < 2:
        return Estimate(value, None, None)
    residuals = (numerators[held] - value * denominators[held]) / total
    error = math.sqrt(n_clusters / (n_clusters - 1) * float(np.sum(residuals**2)))
    effective = float(effective_clusters(denominators))
    half = student_t(max(effective - 1, 1.0)) * error
    return Estimate(value, value - half, value + half)


def effective_clusters(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return how many equally large clusters would be worth these, (Σn)² / Σn², column by column.

    Source: Kish (1965), Survey Sampling, section 11.7.

    Args:
        counts: (clusters, …) what each cluster holds.

    Returns:
        (…), nan where nothing was counted.

    Example:
        >>> effective_clusters(np.array([[4, 9], [4, 1], [4, 0]])).round(2).tolist()
        [3.0, 1.22]
    """
    held = np.asarray(counts, dtype=np.float64)
    squares = np.square(held).sum(axis=0)
    effective: NDArray[np.float64] = np.divide(
        np.square(held.sum(axis=0)), squares, out=np.full(squares.shape, np.nan), where=squares > 0
    )
    return effective


def jackknife_interval(
    value: float, null: float, left_out: NDArray[np.float64], confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return the interval of `value - null`, from `value` with each fold left out.

    `value - null - t·se` to `max(value - null, G·value - (G-1)·mean(left_out)) + t·se` with G - 1 degrees of freedom.
    The upper end takes in the jackknife's own correction, since the null corrects for more than the bias wherever
    there is something to be found.

    Args:
        value: the statistic over all folds.
        null: its mean where there is nothing to be found.
        left_out: (folds,) the statistic without each fold in turn; fewer than two give None.
        confidence: between 0 and 1, both excluded.
    """
    n_folds = left_out.size
    if n_folds < 2:
        return None
    mean = float(left_out.mean())
    error = math.sqrt((n_folds - 1) / n_folds * float(np.sum((left_out - mean) ** 2)))
    half = student_t(n_folds - 1, confidence) * error
    corrected = n_folds * value - (n_folds - 1) * mean
    return value - null - half, max(value - null, corrected) + half
