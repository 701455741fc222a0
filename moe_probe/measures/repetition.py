"""How often consecutive tokens go to the same expert, and how often chance alone would do it.

Mixtral's Table 5 compares with experts drawn uniformly, 1/8. Two chances are given here: uniform, and *load-aware*,
that of two random tokens of the same text. An untrained model repeats more than a trained one: what exceeds even the
load-aware chance still holds the drift of a document and the smoothing of attention. It is no syntax.

It does not know layers, domains or labels: call it for each. Jiang et al. (2024), "Mixtral of Experts", section 5 and
Table 5, for the measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.intervals import Estimate, clustered_ratio

_EXACT_SETS = 2048
_SAMPLED_PAIRS = 400_000


@dataclass(frozen=True)
class Repetition:
    """Shares of consecutive pairs that repeat an expert, beside chance.

    `first`: both tokens have the same first choice. `either`: their sets of experts meet. `uniform_*` is the chance
    of experts drawn uniformly, `load_*` of two random tokens among those measured. The intervals take a document as
    one draw. `pairs` is how many pairs were seen.
    """

    pairs: int
    first: Estimate
    either: Estimate
    uniform_first: float
    uniform_either: float
    load_first: float
    load_either: float


def uniform_chance(n_experts: int, n_slots: int) -> tuple[float, float]:
    """Return the chance that two tokens share their first choice, and that their sets meet, under uniform routing.

    Example:
        >>> first, either = uniform_chance(8, 2)
        >>> round(first, 4), round(either, 4)
        (0.125, 0.4643)
    """
    disjoint = math.comb(n_experts - n_slots, n_slots) / math.comb(n_experts, n_slots)
    return 1 / n_experts, 1 - disjoint


def repetition(
    experts: NDArray[np.integer],
    documents: NDArray[np.integer],
    positions: NDArray[np.integer],
    window_positions: NDArray[np.integer],
    n_experts: int,
    *,
    seed: int = 0,
) -> Repetition | None:
    """Measure how often a token goes where the token before it in the same window went.

    Args:
        experts: (tokens, slots) the experts of one router, slot 0 heaviest, -1 dropped. Rows in the order of the run.
            A token whose slot 0 is dropped makes no pair.
        documents: (tokens,) which document each token is of.
        positions: (tokens,) within the document.
        window_positions: (tokens,) within the window. Two rows are consecutive where document is the same and both
            positions go up by one, so leaving rows out (sinks, for example) leaves out pairs and invents none.
        n_experts: of the router.
        seed: of the random pairs for `load_either`, used where more than 2,048 different sets occur; below that it is
            exact.

    Returns:
        None where there is no consecutive pair.

    Example:
        >>> rows = np.arange(6)
        >>> same = repetition(np.array([[0, 1]] * 6), rows * 0, rows, rows, 8)
        >>> same.first.value, same.either.value, same.pairs
        (1.0, 1.0, 5)
    """
    held = experts[:, 0] >= 0
    follows = (np.diff(documents) == 0) & (np.diff(positions) == 1) & (np.diff(window_positions) == 1)
    before = np.flatnonzero(follows & held[:-1] & held[1:])
    if before.size == 0:
        return None
    first = experts[before, 0] == experts[before + 1, 0]
    either = _meet(experts[before], experts[before + 1])
    in_pairs = np.zeros(held.size, dtype=np.bool_)
    in_pairs[before] = True
    in_pairs[before + 1] = True
    uniform_first, uniform_either = uniform_chance(n_experts, experts.shape[1])
    load_first, load_either = load_chance(experts[in_pairs], n_experts, seed=seed)
    return Repetition(
        pairs=int(before.size),
        first=_share(first, documents[before]),
        either=_share(either, documents[before]),
        uniform_first=uniform_first,
        uniform_either=uniform_either,
        load_first=load_first,
        load_either=load_either,
    )


def load_chance(experts: NDArray[np.integer], n_experts: int, *, seed: int = 0) -> tuple[float, float]:
    """Return the chance that two different random tokens share their first choice, and that their sets meet.

    The second is taken from the sets that occurred, never from a formula over the load: experts are chosen together,
    and the product of their loads was off by half on a real layer.

    Args:
        experts: (tokens, slots) at least two tokens; -1 dropped.
        n_experts: of the router.
        seed: of the random pairs, where more than 2,048 different sets occur.

    Example:
        >>> load_chance(np.array([[0, 1], [0, 1], [2, 3]]), 4)
        (0.3333333333333333, 0.3333333333333333)
    """
    n_tokens = experts.shape[0]
    loads = np.bincount(experts[:, 0], minlength=n_experts).astype(np.float64)
    first = float(np.sum(loads * (loads - 1))) / (n_tokens * (n_tokens - 1))
    # A look at the first rows saves sorting millions of them where there are too many sets anyway.
    if len(np.unique(np.sort(experts[: 16 * _EXACT_SETS], axis=1), axis=0)) > _EXACT_SETS:
        return first, _sampled_overlap(experts, seed)
    sets, counts = np.unique(np.sort(experts, axis=1), axis=0, return_counts=True)
    if len(sets) > _EXACT_SETS:
        return first, _sampled_overlap(experts, seed)
    chosen = np.zeros((len(sets), n_experts + 1), dtype=np.float32)
    chosen[np.arange(len(sets))[:, None], sets] = 1  # a dropped slot, -1, marks the last column
    chosen[:, -1] = 0
    meets = chosen @ chosen.T > 0
    weights = counts.astype(np.float64)
    itself = float(np.sum(weights[np.diagonal(meets)]))
    return first, (float(weights @ meets @ weights) - itself) / (n_tokens * (n_tokens - 1))


def _sampled_overlap(experts: NDArray[np.integer], seed: int) -> float:
    rng = np.random.default_rng(seed)
    left = rng.integers(0, len(experts), _SAMPLED_PAIRS)
    right = (left + rng.integers(1, len(experts), _SAMPLED_PAIRS)) % len(experts)  # never the same token
    return float(_meet(experts[left], experts[right]).mean())


def _meet(left: NDArray[np.integer], right: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether two tokens share an expert, row by row; dropped slots meet nothing."""
    met = np.zeros(len(left), dtype=np.bool_)
    for slot in range(left.shape[1]):
        one = left[:, slot, None]
        met |= ((one == right) & (one >= 0)).any(axis=1)
    return met


def _share(hits: NDArray[np.bool_], documents: NDArray[np.integer]) -> Estimate:
    _, cluster = np.unique(documents, return_inverse=True)
    share = clustered_ratio(np.bincount(cluster, weights=hits), np.bincount(cluster))
    assert share is not None  # the caller has at least one pair
    return share
