"""How routing changes with the place in the window: shares of outcomes in buckets of positions.

Buckets are octaves, 4-7, 8-15, 16-31 …: early places differ most, and a few buckets hold any length. An outcome is
whatever is shared out: an expert, dropped or not, repeated or not.

It does not know what an outcome is. Xue et al. (2024), "OpenMoE" (arXiv 2402.01739), section 4, found that routers of
limited capacity drop the tokens towards the end of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.shares import Shares, clustered_shares


@dataclass(frozen=True, eq=False)
class BucketShares:
    """Shares of the outcomes within one bucket: positions `first` to `last`, both included, and the draws counted."""

    first: int
    last: int
    shares: Shares
    n: int


def octaves(positions: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the octave of each position, (positions,): 0 for 0 and 1, 1 for 2 and 3, 2 for 4 to 7, and so on.

    Example:
        >>> octaves(np.array([4, 7, 8, 1000])).tolist()
        [2, 2, 3, 9]
    """
    # frexp gives the exponent exactly, where a logarithm may round 8 down to 7.99…
    return np.maximum(np.frexp(positions.astype(np.float64))[1].astype(np.int64) - 1, 0)


def bucket_shares(
    buckets: NDArray[np.int64], outcomes: NDArray[np.integer], clusters: NDArray[np.int64], n_outcomes: int
) -> list[BucketShares]:
    """Return the share of each outcome within each bucket that holds a draw, in the order of the buckets.

    Args:
        buckets: (draws,) from `octaves`.
        outcomes: (draws,) 0 to n_outcomes - 1.
        clusters: (draws,) which draws belong together; intervals take a cluster as one.
        n_outcomes: how many there are.

    Example:
        >>> early, late = bucket_shares(np.array([2, 2, 3, 3]), np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]), 2)
        >>> early.first, early.last, early.shares.share.tolist(), late.shares.share.tolist()
        (4, 7, [0.5, 0.5], [0.0, 1.0])
    """
    if buckets.size == 0:
        return []
    n_buckets, n_clusters = int(buckets.max()) + 1, int(clusters.max()) + 1
    codes = (buckets * n_clusters + clusters) * n_outcomes + outcomes
    counted = np.bincount(codes, minlength=n_buckets * n_clusters * n_outcomes)
    found = []
    for bucket, counts in enumerate(counted.reshape(n_buckets, n_clusters, n_outcomes)):
        n = int(counts.sum())
        if n:
            first = 2**bucket if bucket else 0
            found.append(BucketShares(first, 2 ** (bucket + 1) - 1, clustered_shares(counts), n))
    return found
