"""How differently the tokens of two values of a label (two domains, say) are spread over a router's experts.

The Jensen-Shannon divergence of the two loads, in bits: 0 where they are the same, 1 where no expert has both. Two
loads are never the same, so beside it stands what chance gives: whole clusters of documents exchange the two values.
A cluster that has both values swaps them or not; of those that have one, each is given to either.

It does not know values' names. Lin (1991), "Divergence measures based on the Shannon entropy", section IV; scipy and
others give its square root, the distance of Endres and Schindelin (2003), "A new metric for probability distributions".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.association import entropy_bits
from moe_probe.measures.intervals import jackknife_interval

N_EXCHANGES = 1000
FEWEST_CLUSTERS = 5
"""A value that fewer clusters have gets no interval: a jackknife over four documents is a guess."""


@dataclass(frozen=True)
class Divergence:
    """The divergence of two loads.

    `bits` is the divergence itself, `null_bits` its mean where clusters exchange the values, `excess_bits` what it has
    above that, with `low` and `high` at 95 %, None where fewer than five clusters have one of the values. `p` is the
    share of the exchanges that reach `bits`; it cannot fall below one over their number, nor below what few clusters
    allow.
    """

    bits: float
    null_bits: float
    excess_bits: float
    low: float | None
    high: float | None
    p: float


def jensen_shannon_bits(one: NDArray[np.number], other: NDArray[np.number]) -> float | None:
    """Return the Jensen-Shannon divergence of two loads, 0 to 1, or None where one of them is empty.

    Args:
        one: (experts,) assignments, or shares.
        other: (experts,) the same of the other value.

    Example:
        >>> jensen_shannon_bits(np.array([4, 0]), np.array([0, 9]))
        1.0
    """
    if not one.any() or not other.any():
        return None
    return float(_bits(one, other))


def divergence(
    one: NDArray[np.integer], other: NDArray[np.integer], *, seed: int = 0, n_exchanges: int = N_EXCHANGES
) -> Divergence | None:
    """Return the divergence of two loads, with its null and interval.

    Args:
        one: (clusters, experts) assignments of the first value.
        other: (clusters, experts) the same of the second value.
        seed: of the exchanges.
        n_exchanges: how many are drawn.

    Returns:
        None where a value has no assignment.

    Example:
        >>> french, german = np.tile([9, 1], (8, 1)), np.tile([1, 9], (8, 1))
        >>> found = divergence(french, german)
        >>> round(found.bits, 2), found.null_bits < 0.1, found.p < 0.02
        (0.53, True, True)
    """
    bits = jensen_shannon_bits(one.sum(axis=0), other.sum(axis=0))
    if bits is None:
        return None
    held = one.any(axis=1) | other.any(axis=1)
    one, other = one[held], other[held]
    null = _exchanged(one, other, seed, n_exchanges)
    mean = float(null.mean())
    low = high = None
    if min(one.any(axis=1).sum(), other.any(axis=1).sum()) >= FEWEST_CLUSTERS:
        left_out = _bits(one.sum(axis=0) - one, other.sum(axis=0) - other)
        low, high = jackknife_interval(bits, mean, left_out) or (None, None)
    p = (1 + int(np.count_nonzero(null >= bits - 1e-12))) / (1 + null.size)
    return Divergence(bits, mean, bits - mean, low, high, p)


def _bits(one: NDArray[np.number], other: NDArray[np.number]) -> NDArray[np.float64]:
    """Divergence of two loads, or of two arrays of loads, (..., experts); none may be empty."""
    shares = [load / load.sum(axis=-1, keepdims=True) for load in (one, other)]
    mixed = entropy_bits((shares[0] + shares[1]) / 2)
    bits: NDArray[np.float64] = np.maximum(mixed - (entropy_bits(shares[0]) + entropy_bits(shares[1])) / 2, 0.0)
    return bits


def _exchanged(
    one: NDArray[np.integer], other: NDArray[np.integer], seed: int, n_exchanges: int
) -> NDArray[np.float64]:
    """Divergence where clusters exchange the two values at random, (exchanges,)."""
    rng = np.random.default_rng(seed)
    has_one: NDArray[np.bool_] = np.asarray(one.any(axis=1))
    both = has_one & np.asarray(other.any(axis=1))
    swapped = rng.random((n_exchanges, int(both.sum()))) < 0.5
    given = np.tile(has_one[~both], (n_exchanges, 1))
    given = rng.permuted(given, axis=1)
    total = (one + other).astype(np.float64)
    # Of the clusters that have both, the first value gets its own load, or the other's.
    load = one[both].sum(axis=0) + swapped @ (other - one)[both].astype(np.float64) + given @ total[~both]
    return _bits(load, total.sum(axis=0) - load)
