"""Which ways tokens take through the routers: their first choices, one after the other.

A path is frequent where its experts are, so that its lift is over what the experts' shares alone would give. Over many
routers independence is a low bar: every path that a token took at all is far above it, and those with the highest lift
were chosen from very many. Read the interval, and the text.

It does not know layers nor what tokens are. Linearised variance: Cochran (1977), Sampling Techniques, sections 6.3 and
9A.2, for the product of the experts' shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from moe_probe.measures.intervals import CONFIDENCE, effective_clusters
from moe_probe.measures.shares import clustered_shares

FLOOR = 10
"""A path is ranked by its lift if so many tokens took it: of two tokens any path of rare experts would be first."""

_MOST_CODES = 2**62
_NO_VARIANCE = 1e-20


@dataclass(frozen=True, eq=False)
class Paths:
    """The most frequent paths and those of the highest lift; all but `experts` and `n` are (paths,).

    `experts` (paths, routers) are the first choices. `share` is the share of `n` tokens, between `share_low` and
    `share_high`; `expected` the tokens that independent routers of the same loads would send there, `lift` the tokens
    over it, between `lift_low` and `lift_high`; intervals are at 95 %, a cluster being one draw, nan for fewer than
    two. `count_rank` and `lift_rank` begin at 1; 0 is a path that is not among the top. `example` is the first token
    that took the path.
    """

    experts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    share: NDArray[np.float64]
    share_low: NDArray[np.float64]
    share_high: NDArray[np.float64]
    expected: NDArray[np.float64]
    lift: NDArray[np.float64]
    lift_low: NDArray[np.float64]
    lift_high: NDArray[np.float64]
    count_rank: NDArray[np.int64]
    lift_rank: NDArray[np.int64]
    example: NDArray[np.int64]
    n: int


def find_paths(
    choices: NDArray[np.integer],
    n_experts: Sequence[int],
    clusters: NDArray[np.integer],
    *,
    top: int = 100,
    floor: int = FLOOR,
) -> Paths | None:
    """Find the most frequent paths and those with the highest lift over independence.

    Args:
        choices: (tokens, routers) first choices; a token with a dropped one, -1, is left out.
        n_experts: (routers,) how many experts each router has.
        clusters: (tokens,) what is one draw.
        top: how many to keep by count, and by lift. Of equal ones, those of lower experts.
        floor: the least tokens of a path that is ranked by lift.

    Returns:
        The paths in the order of their counts; None where no token has a first choice in every router.

    Example:
        >>> ways = np.array([[0, 1]] * 30 + [[1, 0]] * 30)
        >>> found = find_paths(ways, [2, 2], np.arange(60) % 6)
        >>> found.experts.tolist(), found.lift.round(9).tolist(), found.share.tolist()
        ([[0, 1], [1, 0]], [2.0, 2.0], [0.5, 0.5])
    """
    places = np.flatnonzero((choices >= 0).all(axis=1))
    if places.size == 0:
        return None
    chosen = choices[places]
    cluster = np.unique(clusters[places], return_inverse=True)[1]
    first, path_of, tokens = _numbered(chosen, n_experts)
    ways = chosen[first].astype(np.int64)  # (paths, routers), sorted
    loads = [np.bincount(chosen[:, router], minlength=size) for router, size in enumerate(n_experts)]
    log_share = sum(np.log(loads[router][ways[:, router]] / places.size) for router in range(len(n_experts)))
    expected = np.exp(np.log(places.size) + log_share)
    lift = tokens / expected
    by_count = np.argsort(-tokens, kind="stable")[:top]
    often = np.flatnonzero(tokens >= floor)
    by_lift = often[np.argsort(-lift[often], kind="stable")][:top]
    kept = np.concatenate([by_count, by_lift[~np.isin(by_lift, by_count)]])
    kept = kept[np.argsort(-tokens[kept], kind="stable")]
    counted = _by_cluster(path_of, kept, cluster)
    shares = clustered_shares(np.column_stack([counted, np.bincount(cluster) - counted.sum(axis=1)]))
    half = _log_lift_half(ways[kept], counted, chosen, loads, cluster)
    return Paths(
        experts=ways[kept],
        tokens=tokens[kept],
        share=tokens[kept] / places.size,
        share_low=shares.low[:-1],
        share_high=shares.high[:-1],
        expected=expected[kept],
        lift=lift[kept],
        lift_low=lift[kept] * np.exp(-half),
        lift_high=lift[kept] * np.exp(half),
        count_rank=_ranks(kept, by_count),
        lift_rank=_ranks(kept, by_lift),
        example=places[first[kept]],
        n=int(places.size),
    )


def _numbered(
    choices: NDArray[np.integer], n_experts: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the first token of each different path, the path of each token, and the tokens of each path.

    Paths are numbered in the order of their experts.
    """
    codes, n_codes = np.zeros(len(choices), dtype=np.int64), 1
    for column, size in zip(choices.T, n_experts, strict=True):
        if n_codes * size > _MOST_CODES:
            values, codes = np.unique(codes, return_inverse=True)
            n_codes = values.size
        codes = codes * size + column
        n_codes *= size
    _, first, path_of, tokens = np.unique(codes, return_index=True, return_inverse=True, return_counts=True)
    return first, path_of, tokens


def _ranks(kept: NDArray[np.int64], ranked: NDArray[np.int64]) -> NDArray[np.int64]:
    place = {int(path): rank for rank, path in enumerate(ranked, start=1)}
    return np.array([place.get(int(path), 0) for path in kept], dtype=np.int64)


def _by_cluster(path_of: NDArray[np.int64], kept: NDArray[np.int64], cluster: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the tokens of the paths that are kept, (clusters, paths)."""
    n_clusters = int(cluster.max()) + 1
    place = np.full(int(path_of.max()) + 1, kept.size)
    place[kept] = np.arange(kept.size)
    codes = cluster * (kept.size + 1) + place[path_of]
    counted = np.bincount(codes, minlength=n_clusters * (kept.size + 1))
    return counted.reshape(n_clusters, kept.size + 1)[:, :-1]


def _log_lift_half(
    ways: NDArray[np.int64],
    counted: NDArray[np.int64],
    choices: NDArray[np.integer],
    loads: Sequence[NDArray[np.int64]],
    cluster: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return half the width of the interval of the log of the lift, (paths,); nan for fewer than two clusters.

    Z_g = X_g/n - Σ_r n_g,r/n_r + (R - 1)·N_g/N over the R routers' experts of the path, as for two in `cells`.
    """
    n_clusters = counted.shape[0]
    if n_clusters < 2:
        return np.full(len(ways), np.nan)
    sizes = np.bincount(cluster)
    influence = counted / counted.sum(axis=0) + (ways.shape[1] - 1) * (sizes / sizes.sum())[:, None]
    geff = effective_clusters(counted)
    for router, load in enumerate(loads):
        by_cluster = np.bincount(cluster * load.size + choices[:, router], minlength=n_clusters * load.size)
        of_path = by_cluster.reshape(n_clusters, load.size)[:, ways[:, router]]
        influence -= of_path / load[ways[:, router]]
        geff = np.minimum(geff, effective_clusters(of_path))
    variance = n_clusters / (n_clusters - 1) * (influence**2).sum(axis=0)
    error = np.sqrt(np.where(variance > _NO_VARIANCE, variance, np.nan))
    half: NDArray[np.float64] = stdtrit(np.maximum(geff - 1, 1.0), (1 + CONFIDENCE) / 2) * error
    return half
