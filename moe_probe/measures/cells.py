"""Does an expert take more, or less, of a label than its share? Lift with its interval, cell by cell.

A cell is one expert and one label. Tokens of one document resemble each other, so that a cluster of documents is one
draw: the variance of the logarithm of the lift is that of the clusters' influences on it, and Student's t has as many
degrees of freedom as there are clusters that carry weight. Counts alone are needed, never the tokens, so that a cell
costs the same for a thousand and for a billion of them.

It does not know what a label or a cluster is, nor how many cells were tested beside this one. An untrained router is a
function of the token and passes this test for most parts of speech: see `type_test` for the other half. Linearised
variance: Cochran (1977), Sampling Techniques, sections 6.3 and 9A.2. Effective number of clusters: Kish (1965), Survey
Sampling, section 11.7.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from moe_probe.measures.intervals import CONFIDENCE, effective_clusters
from moe_probe.measures.lift import label_lift

_NO_VARIANCE = 1e-20
"""Clusters that agree to the last digit leave rounding errors of at most this; a real variance is far above it."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Lift of each expert for each label; all are (experts, labels), nan where undefined.

    `low` and `high` bound `lift` at 95 %; `p` is the chance of a lift so far from 1 under independence. They are nan
    where the expert never met the label, where fewer than two clusters hold a token, or where clusters do not differ
    at all. `expected` is the count that independence would give, `geff` the number of clusters that carry the cell:
    the lesser of the label's and of the expert's.
    """

    lift: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]
    expected: NDArray[np.float64]
    geff: NDArray[np.float64]


def cell_estimates(clustered: NDArray[np.integer]) -> Cells:
    """Return the lift of every expert for every label, with a clustered interval and its p-value.

    With X_g the counts of cluster g, L = ln(n_ec·N / (n_e·n_c)) has the influences

        Z_g = X_g,ec/n_ec + N_g/N - n_g,e/n_e - n_g,c/n_c        V = G/(G-1) · Σ Z_g²

    and the interval exp(L ± t·√V) with max(Geff - 1, 1) degrees of freedom, where Geff is the lesser of
    n_c²/Σ n_g,c² and n_e²/Σ n_g,e².

    Args:
        clustered: (clusters, experts, labels) counts of assignments; clusters without any are no draws.

    Example:
        >>> found = cell_estimates(np.array([[[6, 2], [2, 6]], [[7, 1], [1, 7]], [[5, 3], [3, 5]]]))
        >>> found.lift.tolist(), bool(found.low[0, 0] < 1.5 < found.high[0, 0])
        ([[1.5, 0.5], [0.5, 1.5]], True)
    """
    counts = np.asarray(clustered, dtype=np.float64)
    counts = counts[counts.any(axis=(1, 2))]
    table = counts.sum(axis=0)
    lifted = label_lift(table)
    of_expert = counts.sum(axis=2)  # (clusters, experts)
    of_label = counts.sum(axis=1)  # (clusters, labels)
    geff = np.minimum.outer(effective_clusters(of_expert), effective_clusters(of_label))
    variance = _log_lift_variance(counts, table, of_expert, of_label)
    known = (table > 0) & (variance > _NO_VARIANCE)
    log_lift = np.log(lifted.lift, out=np.full(table.shape, np.nan), where=known)
    error = np.sqrt(variance, out=np.full(table.shape, np.nan), where=known)
    freedom = np.maximum(geff - 1, 1.0)
    half = stdtrit(freedom, (1 + CONFIDENCE) / 2) * error
    return Cells(
        lift=lifted.lift,
        low=np.exp(log_lift - half),
        high=np.exp(log_lift + half),
        p=2 * stdtr(freedom, -np.abs(log_lift / error)),
        expected=lifted.expected,
        geff=geff,
    )


def _log_lift_variance(
    counts: NDArray[np.float64],
    table: NDArray[np.float64],
    of_expert: NDArray[np.float64],
    of_label: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Variance of the log of the lift, (experts, labels); nan for fewer than two clusters."""
    n_clusters = counts.shape[0]
    if n_clusters < 2:
        return np.full(table.shape, np.nan)
    of_cluster = of_label.sum(axis=1)  # (clusters,)
    influences = counts / np.maximum(table, 1)
    influences += (of_cluster / of_cluster.sum())[:, None, None]
    influences -= (of_expert / np.maximum(of_expert.sum(axis=0), 1))[:, :, None]
    influences -= (of_label / np.maximum(of_label.sum(axis=0), 1))[:, None, :]
    variance: NDArray[np.float64] = np.einsum("gec,gec->ec", influences, influences) * n_clusters / (n_clusters - 1)
    return variance
