"""How often two routings of the same tokens chose the same experts, and how their loads differ.

The share of assignments that both made is OLMoE's *router saturation* where the two are checkpoints of one training
(Muennighoff et al. 2024, OLMoE, arXiv 2409.02060, section 5.1). Beside each share stands what random pairs of tokens
would give: two routers that love the same few experts agree often without agreeing on anything.

Intervals are Wilson's, with the tokens divided by the design effect of their clusters (see `shares`).
It does not know what a run or a label is, nor whether an expert's index means the same in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from moe_probe.measures.intervals import effective_clusters, student_t
from moe_probe.measures.shares import wilson

MIN_DISAGREEMENTS = 5
"""With fewer, clusters cannot tell how much disagreements cluster."""

N_DECILES = 10


@dataclass(frozen=True)
class Agreed:
    """One share of agreement.

    `value` and `chance` lie between 0 and 1; `chance` is the mean of `value` over random pairs of one token of each
    routing. `low` and `high` are its interval at 95 %, None where all tokens are of one cluster. `design_effect` is
    how much wider than for independent tokens the interval was made, squared; at least 1.
    """

    value: float
    chance: float
    low: float | None
    high: float | None
    design_effect: float


@dataclass(frozen=True)
class Agreement:
    """Three shares of one group of tokens.

    `set_overlap` is of the assignments, those that both made over those that the fuller of the two made;
    `first_choice` of the tokens, those with the same expert in slot 0; `exact_set` of the tokens, those with the same
    experts in any order. `n` counts the tokens for which either routing executed an expert.
    """

    set_overlap: Agreed
    first_choice: Agreed
    exact_set: Agreed
    n: int


@dataclass(frozen=True, eq=False)
class ShareDifference:
    """The loads of two routings, each (experts,): shares, second less first, its interval and p.

    `low`, `high` and `p` are nan where all tokens are of one cluster.
    """

    share_a: NDArray[np.float64]
    share_b: NDArray[np.float64]
    difference: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    p: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Compared:
    """Two routings token by token, each (tokens,); a code stands for a set of experts."""

    sizes_a: NDArray[np.int64]
    sizes_b: NDArray[np.int64]
    shared: NDArray[np.int64]
    same_first: NDArray[np.bool_]
    codes_a: NDArray[np.int64]
    codes_b: NDArray[np.int64]


@dataclass(frozen=True)
class _Share:
    """Successes of trials, with what the clusters say of them; `design_effect` None where they cannot say."""

    value: float
    trials: float
    effective_clusters: float
    clusters: int
    design_effect: float | None


def agreements(
    experts_a: NDArray[np.integer],
    experts_b: NDArray[np.integer],
    clusters: NDArray[np.integer],
    groups: Sequence[NDArray[np.integer]],
    *,
    n_experts: int,
    lenders: Sequence[int] = (),
) -> list[Agreement | None]:
    """Return how often two routings agree, in groups of tokens.

    The design effect is that of the clusters where there are 5 disagreements and 5 agreements or more, else the median
    of the lenders that have them; never below 1.

    Args:
        experts_a: (tokens, slots), slot 0 the first choice, -1 where a slot held none.
        experts_b: the other routing of the same tokens.
        clusters: (tokens,) which tokens were drawn together.
        groups: for each group, the places of its tokens.
        n_experts: how many there are to choose from.
        lenders: which groups lend their design effect to those with too few disagreements.

    Returns:
        One a group; None where neither routing executed anything on its tokens.

    Example:
        >>> a, b = np.array([[0, 1], [2, 3]]), np.array([[1, 0], [2, 0]])
        >>> (both,) = agreements(a, b, np.array([0, 1]), [np.arange(2)], n_experts=4)
        >>> both.set_overlap.value, both.first_choice.value, both.exact_set.value
        (0.75, 0.5, 0.5)
    """
    compared = _compare(experts_a, experts_b, n_experts)
    executed = (compared.sizes_a > 0) | (compared.sizes_b > 0)
    kept = [np.asarray(group)[executed[group]] for group in groups]
    shares = [_shares(compared, clusters, rows) if rows.size else None for rows in kept]
    lent = [_median([shares[lender] for lender in lenders], measure) for measure in range(3)]
    found: list[Agreement | None] = []
    for rows, share in zip(kept, shares, strict=True):
        if share is None:
            found.append(None)
            continue
        chances = _chances(compared, experts_a[rows], experts_b[rows], rows, n_experts)
        overlap, first, exact = (
            _with_interval(one, chance, one.design_effect or borrowed or 1.0)
            for one, chance, borrowed in zip(share, chances, lent, strict=True)
        )
        found.append(Agreement(overlap, first, exact, rows.size))
    return found


def margin_deciles(margins: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the decile of each margin, 1 the closest to a tie; 0 where the margin is not known.

    Equal margins are of one decile, so that deciles may be uneven and some empty.

    Args:
        margins: (tokens,), nan where not known.

    Example:
        >>> margin_deciles(np.array([0.3, 0.1, np.nan, 0.2])).tolist()
        [7, 1, 0, 4]
    """
    known = ~np.isnan(margins)
    ranked = np.sort(margins[known])
    deciles = np.zeros(margins.shape, np.int64)
    if ranked.size:
        last = np.ceil(ranked.size * np.arange(1, N_DECILES) / N_DECILES).astype(np.int64) - 1
        deciles[known] = np.searchsorted(ranked[last], margins[known], side="left") + 1
    return deciles


def share_difference(loads_a: NDArray[np.integer], loads_b: NDArray[np.integer]) -> ShareDifference | None:
    """Return how the experts' shares of two routings of the same tokens differ.

    The interval is that of the difference within clusters: what both have in common does not widen it.

    Args:
        loads_a: (clusters, experts) assignments.
        loads_b: those of the other routing.

    Returns:
        None where either routing has no assignment at all.

    Example:
        >>> share_difference(np.array([[8, 2], [6, 4]]), np.array([[5, 5], [5, 5]])).difference.round(3).tolist()
        [-0.2, 0.2]
    """
    total_a, total_b = float(loads_a.sum()), float(loads_b.sum())
    if not total_a or not total_b:
        return None
    share_a, share_b = loads_a.sum(axis=0) / total_a, loads_b.sum(axis=0) / total_b
    residuals_a = (loads_a - loads_a.sum(axis=1, keepdims=True) * share_a) / total_a
    residuals_b = (loads_b - loads_b.sum(axis=1, keepdims=True) * share_b) / total_b
    difference = share_b - share_a
    both = loads_a + loads_b
    n_clusters = int(np.count_nonzero(both.sum(axis=1)))
    if n_clusters < 2:
        nothing = np.full(share_a.shape, np.nan)
        return ShareDifference(share_a, share_b, difference, nothing, nothing, nothing)
    error = np.sqrt(n_clusters / (n_clusters - 1) * np.square(residuals_b - residuals_a).sum(axis=0))
    effective = np.minimum(effective_clusters(both), effective_clusters(both.sum(axis=1)))
    df = np.maximum(np.nan_to_num(effective) - 1, 1.0)  # an expert that neither run used has no clusters
    half = np.array([student_t(one) for one in df]) * error
    # Where no cluster changed, nothing changed: 0 with certainty.
    t = np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)
    p = 2 * stdtr(df, -np.abs(t))
    return ShareDifference(share_a, share_b, difference, difference - half, difference + half, p)


def _compare(experts_a: NDArray[np.integer], experts_b: NDArray[np.integer], n_experts: int) -> _Compared:
    held_a, held_b = experts_a >= 0, experts_b >= 0
    shared = np.zeros(len(experts_a), np.int64)
    for slot in range(experts_a.shape[1]):
        chosen = experts_a[:, slot, None]
        shared += ((experts_b == chosen) & (chosen >= 0)).any(axis=1)
    codes = _set_codes(np.concatenate([experts_a, experts_b]), n_experts)
    return _Compared(
        sizes_a=held_a.sum(axis=1),
        sizes_b=held_b.sum(axis=1),
        shared=shared,
        same_first=experts_a[:, 0] == experts_b[:, 0],
        codes_a=codes[: len(experts_a)],
        codes_b=codes[len(experts_a) :],
    )


def _set_codes(experts: NDArray[np.integer], n_experts: int) -> NDArray[np.int64]:
    """Return a number for each row, (rows,), the same for the same set of experts."""
    ordered = np.sort(experts, axis=1).astype(np.int64) + 1
    codes = np.zeros(len(experts), np.int64)
    largest = 1  # codes are below it
    for column in ordered.T:
        if largest > np.iinfo(np.int64).max // (n_experts + 1):
            # Numbered anew by what occurs: 256 experts in 8 slots make more sets than 64 bits hold.
            different, codes = np.unique(codes, return_inverse=True)
            largest = different.size
        codes = codes * (n_experts + 1) + column
        largest *= n_experts + 1
    return codes


def _shares(
    compared: _Compared, clusters: NDArray[np.integer], rows: NDArray[np.integer]
) -> tuple[_Share, _Share, _Share]:
    """Return overlap, first choice and exact set of the tokens in `rows`."""
    where = clusters[rows]
    fuller = np.maximum(compared.sizes_a[rows], compared.sizes_b[rows])
    ones = np.ones(rows.size)
    exact = compared.codes_a[rows] == compared.codes_b[rows]
    return (
        _share(np.bincount(where, compared.shared[rows]), np.bincount(where, fuller)),
        _share(np.bincount(where, compared.same_first[rows]), np.bincount(where, ones)),
        _share(np.bincount(where, exact), np.bincount(where, ones)),
    )


def _share(successes: NDArray[np.number], trials: NDArray[np.number]) -> _Share:
    """Return a share from its successes and trials by cluster, (clusters,)."""
    total, agreed = float(trials.sum()), float(successes.sum())
    value = agreed / total
    n_clusters = int(np.count_nonzero(trials))
    design_effect = None
    if n_clusters > 1 and min(agreed, total - agreed) >= MIN_DISAGREEMENTS:
        residuals = successes - value * trials
        clustered = n_clusters / (n_clusters - 1) * float(residuals @ residuals) / total**2
        design_effect = max(clustered / (value * (1 - value) / total), 1.0)
    return _Share(value, total, float(effective_clusters(trials)), n_clusters, design_effect)


def _median(lenders: Sequence[tuple[_Share, _Share, _Share] | None], measure: int) -> float | None:
    effects = [lender[measure].design_effect for lender in lenders if lender is not None]
    known = [effect for effect in effects if effect is not None]
    return float(np.median(known)) if known else None


def _with_interval(share: _Share, chance: float, design_effect: float) -> Agreed:
    low, high = None, None
    if share.clusters > 1:
        n_effective = share.trials / design_effect
        ends = wilson(share.value * n_effective, n_effective, max(share.effective_clusters - 1, 1.0))
        # Rounding must not put the share itself outside.
        low, high = min(float(ends[0]), share.value), max(float(ends[1]), share.value)
    return Agreed(share.value, chance, low, high, design_effect)


def _chances(
    compared: _Compared,
    experts_a: NDArray[np.integer],
    experts_b: NDArray[np.integer],
    rows: NDArray[np.integer],
    n_experts: int,
) -> tuple[float, float, float]:
    """Return what overlap, first choice and exact set are over all pairs of one token of each routing."""
    pairs = float(rows.size) ** 2
    size = experts_a.shape[1] + 1
    # Of two sets drawn apart, expert e is in both with the product of its shares, whatever the sets look like.
    both = float(_counts(experts_a, n_experts) @ _counts(experts_b, n_experts)) / pairs
    sizes_a = np.bincount(compared.sizes_a[rows], minlength=size).astype(np.float64)
    sizes_b = np.bincount(compared.sizes_b[rows], minlength=size).astype(np.float64)
    fuller = float(sizes_a @ np.maximum.outer(np.arange(size), np.arange(size)) @ sizes_b) / pairs
    first = float(
        np.bincount(experts_a[:, 0] + 1, minlength=n_experts + 1).astype(np.float64)
        @ np.bincount(experts_b[:, 0] + 1, minlength=n_experts + 1)
    )
    sets_a, counts_a = np.unique(compared.codes_a[rows], return_counts=True)
    sets_b, counts_b = np.unique(compared.codes_b[rows], return_counts=True)
    _, places_a, places_b = np.intersect1d(sets_a, sets_b, assume_unique=True, return_indices=True)
    exact = float(counts_a[places_a].astype(np.float64) @ counts_b[places_b])
    return both / fuller, first / pairs, exact / pairs


def _counts(experts: NDArray[np.integer], n_experts: int) -> NDArray[np.float64]:
    """Return how many tokens each expert was executed for, (experts,)."""
    return np.bincount(experts[experts >= 0], minlength=n_experts).astype(np.float64)
