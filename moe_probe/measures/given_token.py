"""Does an expert know a label, or only the words? What its choice tells about the label once the token is known.

A word that is now a noun, now a verb, says it: does it change its expert with its label? Two answers, from the rows of
types that have more than one label:

- how much: I(expert; label | type), less its mean where labels are permuted within type *and document*. Permuting
  within the type alone credits what a document does to all its tokens, and gives untrained models .016 bits;
- whether at all: U_g(e, c), the sum over the tokens of cluster g of (1[expert is e] - share of e in the type) times
  (1[label is c] - share of c in the type), Student's t over clusters.

It does not know what types, documents or labels are called, nor how rows were chosen. Conditional information: Cover
and Thomas (2006), section 2.5. Its interval rests on its influence function, the information of the single token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from moe_probe.measures.intervals import clustered_ratio, effective_clusters

_MOST_PERMUTATIONS = 200
_FEWEST_PERMUTATIONS = 20
_MOST_CELLS = 4_000_000  # of what is held of permutations or deviations at one time
_MOST_DRAWN = 10_000_000  # labels of all permutations together
_ROUNDING = 1e-9
_FEWEST_CLUSTERS = 5.0


@dataclass(frozen=True, eq=False)
class TokenLabels:
    """Tokens of types that have more than one label, with permuted labels, ready for any number of routers.

    Of the kept tokens: `rows` (kept,) say which they are, `types` and `labels` (kept,) are codes from 0, `drawn`
    (permutations, kept) labels permuted within type and document. `clusters` (tokens,) are those of all tokens.
    """

    rows: NDArray[np.int64]
    types: NDArray[np.int64]
    labels: NDArray[np.int64]
    clusters: NDArray[np.int64]
    drawn: NDArray[np.unsignedinteger]
    n_labels: int


@dataclass(frozen=True)
class GivenToken:
    """What an expert tells about the label once the token is known.

    `bits` is `raw_bits` less `null_bits`, over all `n` tokens; those of types with one label tell nothing and count 0.
    `low` and `high` bound it at 95 %, None where the tokens that can tell something are not worth five clusters, or
    none tells anything. `p` is that of the least likely cell times the number of cells, at most 1; None where there
    are fewer than two clusters.
    """

    bits: float
    low: float | None
    high: float | None
    raw_bits: float
    null_bits: float
    p: float | None
    n: int


def token_labels(
    labels: NDArray[np.integer],
    types: NDArray[np.integer],
    documents: NDArray[np.integer],
    clusters: NDArray[np.integer],
    *,
    seed: int = 0,
    n_permutations: int | None = None,
) -> TokenLabels | None:
    """Keep the tokens that can tell something, and permute their labels within type and document.

    Args:
        labels: (tokens,) the label of each token, from 0.
        types: (tokens,) its token type, from 0.
        documents: (tokens,) its document, from 0.
        clusters: (tokens,) its cluster of documents, from 0.
        seed: of the permutations.
        n_permutations: how many are drawn; by default 200, fewer (at least 20) where there are so many tokens that
            the mean is as exact.

    Returns:
        None where no token could have exchanged its label: no type has two labels within one document. So it is
        wherever the label is that of the whole document.

    Example:
        >>> kept = token_labels(np.array([0, 1, 0, 0]), np.array([0, 0, 1, 1]), np.zeros(4, int), np.zeros(4, int))
        >>> kept.rows.tolist()
        [0, 1]
    """
    cells = _codes(types.astype(np.int64) * (int(documents.max(initial=0)) + 1) + documents)
    if not _several(cells, labels)[cells].any():
        return None
    rows = np.flatnonzero(_several(types, labels)[types])
    rows = rows[np.argsort(cells[rows], kind="stable")]  # by cell, so that sorted draws lie beside their tokens
    if n_permutations is None:
        n_permutations = min(_MOST_PERMUTATIONS, max(_FEWEST_PERMUTATIONS, _MOST_DRAWN // rows.size))
    return TokenLabels(
        rows,
        _codes(types[rows]),
        labels[rows].astype(np.int64),
        clusters.astype(np.int64),
        _permute_within(cells[rows], labels[rows].astype(np.int64), seed, n_permutations),
        int(labels.max()) + 1,
    )


def given_token(tokens: TokenLabels | None, experts: NDArray[np.integer], n_experts: int) -> GivenToken | None:
    """Return what one router's first choice tells about the label once the token is known.

    Args:
        tokens: from `token_labels`.
        experts: (tokens,) the first choice of every token that `token_labels` was given, -1 where dropped: such a
            token is left out.
        n_experts: of the router.

    Returns:
        None where nothing can be measured: `tokens` is None, there is one expert, or all kept tokens were dropped. A
        router that never sends a word elsewhere tells 0 bits, with p 1 and no interval.

    Example:
        >>> labels = np.tile([0, 1], 200)
        >>> kept = token_labels(labels, np.zeros(400, int), np.arange(400) // 20, np.arange(400) // 20)
        >>> found = given_token(kept, labels, 2)  # one word, sent by its label
        >>> found.raw_bits, found.bits > 0.9, found.p < 1e-4
        (1.0, True, True)
    """
    if tokens is None or n_experts < 2:
        return None
    chosen = experts[tokens.rows].astype(np.int64)
    held = chosen >= 0
    if not held.any():
        return None
    chosen, labels, types, clusters = (
        each[held] for each in (chosen, tokens.labels, tokens.types, tokens.clusters[tokens.rows])
    )
    sizes = np.bincount(tokens.clusters[experts >= 0], minlength=int(tokens.clusters.max()) + 1)
    n = int(sizes.sum())
    told = _token_bits(chosen, labels, types)
    raw = max(0.0, float(told.sum()) / n)
    null = float(_drawn_bits(chosen, tokens.drawn[:, held], types, tokens.n_labels).mean()) / n
    ratio = clustered_ratio(np.bincount(clusters, weights=told, minlength=sizes.size), sizes)
    bits = raw - null
    low = high = None
    if (
        ratio is not None
        and ratio.high is not None
        and raw > 0
        and effective_clusters(np.bincount(clusters)) >= _FEWEST_CLUSTERS
    ):
        low, high = bits - (ratio.high - ratio.value), bits + (ratio.high - ratio.value)
    deviations = _deviations(chosen, labels, types, clusters, (sizes.size, n_experts, tokens.n_labels))
    return GivenToken(bits, low, high, raw, null, _smallest_p(deviations[sizes > 0]), n)


def _codes(values: NDArray[np.integer]) -> NDArray[np.int64]:
    codes: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return codes


def _several(codes: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether each code has more than one label, (codes,)."""
    n_labels = int(labels.max(initial=0)) + 1
    pairs = np.unique(codes.astype(np.int64) * n_labels + labels)
    several: NDArray[np.bool_] = np.bincount(pairs // n_labels) > 1
    return several


def _permute_within(
    cells: NDArray[np.int64], labels: NDArray[np.int64], seed: int, n_permutations: int
) -> NDArray[np.unsignedinteger]:
    """Labels permuted within cells, (permutations, tokens); the tokens lie sorted by cell.

    One sort of (cell, random number, label), packed into 64 bits, permutes all cells at once.
    """
    rng = np.random.default_rng(seed)
    label_bits = int(labels.max()).bit_length()
    places = _codes(cells)
    random_bits = 63 - label_bits - int(places.max()).bit_length()
    base = (places << (random_bits + label_bits)) | labels
    drawn = np.empty((n_permutations, labels.size), dtype=np.min_scalar_type(int(labels.max())))
    size = max(1, _MOST_CELLS // labels.size)
    for start in range(0, n_permutations, size):
        part = drawn[start : start + size]
        keys = base | (rng.integers(0, 1 << random_bits, part.shape) << label_bits)
        keys.sort(axis=1)
        part[:] = keys & ((1 << label_bits) - 1)
    return drawn


def _token_bits(chosen: NDArray[np.int64], labels: NDArray[np.int64], types: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the expert of each token tells about its label among the tokens of its type, (tokens,)."""
    in_type = _own_count(types)
    with_expert, with_label = _own_count(types, chosen), _own_count(types, labels)
    bits: NDArray[np.float64] = np.log2(_own_count(types, chosen, labels) * in_type / (with_expert * with_label))
    return bits


def _own_count(*codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many tokens share all codes of each token, (tokens,)."""
    code = codes[0]
    for other in codes[1:]:
        code = code * (int(other.max()) + 1) + other
    _, place, counts = np.unique(code, return_inverse=True, return_counts=True)
    own: NDArray[np.float64] = counts[place].astype(np.float64)
    return own


def _drawn_bits(
    chosen: NDArray[np.int64], drawn: NDArray[np.unsignedinteger], types: NDArray[np.int64], n_labels: int
) -> NDArray[np.float64]:
    """What `_token_bits` of each permutation sum to, (permutations,)."""
    pairs, pair = np.unique(types * (int(chosen.max()) + 1) + chosen, return_inverse=True)
    pair_type = pairs // (int(chosen.max()) + 1)
    starts = np.flatnonzero(np.diff(pair_type, prepend=-1))  # pairs lie sorted by type
    sizes = np.bincount(types)
    counts = np.arange(int(sizes.max()) + 1, dtype=np.float64)
    n_log_n = counts * np.log2(np.maximum(counts, 1))
    fixed = n_log_n[sizes].sum() - n_log_n[np.bincount(pair)].sum()
    bits = np.empty(len(drawn))
    n_cells = pairs.size * n_labels
    size = max(1, _MOST_CELLS // max(n_cells, chosen.size))
    for start in range(0, len(drawn), size):
        part = drawn[start : start + size]
        codes = pair * n_labels + part + np.arange(len(part))[:, None] * n_cells
        tables = np.bincount(codes.ravel(), minlength=len(part) * n_cells).reshape(len(part), pairs.size, n_labels)
        by_type = np.add.reduceat(tables, starts, axis=1)
        bits[start : start + size] = n_log_n[tables].sum(axis=(1, 2)) - n_log_n[by_type].sum(axis=(1, 2)) + fixed
    return bits


def _deviations(
    chosen: NDArray[np.int64],
    labels: NDArray[np.int64],
    types: NDArray[np.int64],
    clusters: NDArray[np.int64],
    shape: tuple[int, int, int],
) -> NDArray[np.float64]:
    """U of each cluster, expert and label: (clusters, experts, labels)."""
    _, n_experts, n_labels = shape
    types = _codes(types)
    sizes = np.bincount(types)[:, None]
    expert_shares = (
        np.bincount(types * n_experts + chosen, minlength=sizes.size * n_experts).reshape(-1, n_experts) / sizes
    )
    label_shares = np.bincount(types * n_labels + labels, minlength=sizes.size * n_labels).reshape(-1, n_labels) / sizes
    summed = np.zeros(shape)
    order = np.argsort(clusters, kind="stable")
    edges = np.flatnonzero(np.diff(clusters[order])) + 1
    size = max(1, _MOST_CELLS // n_experts)
    for of_cluster in np.split(order, edges):
        for start in range(0, of_cluster.size, size):
            rows = of_cluster[start : start + size]
            experts = -expert_shares[types[rows]]  # (rows, experts)
            experts[np.arange(rows.size), chosen[rows]] += 1
            told = -label_shares[types[rows]]  # (rows, labels)
            told[np.arange(rows.size), labels[rows]] += 1
            summed[clusters[rows[0]]] += experts.T @ told
    return summed


def _smallest_p(deviations: NDArray[np.float64]) -> float | None:
    """Twice-sided p of the cell whose sum is furthest from 0 by Student's t over clusters, times the cells tested.

    No p is less than what a coin for the sign of each cluster could give: two clusters that happen to agree to the
    last digit are no evidence.
    """
    n_clusters = len(deviations)
    tested = (np.abs(deviations) > _ROUNDING).any(axis=0)
    if n_clusters < 2:
        return None
    if not tested.any():
        return 1.0
    cells = deviations[:, tested]  # (clusters, cells)
    error = cells.std(axis=0, ddof=1) / math.sqrt(n_clusters)
    mean = np.abs(cells.mean(axis=0))
    t = np.divide(mean, error, out=np.where(mean > _ROUNDING, np.inf, 0.0), where=error > 0)
    by_signs = 2.0 ** (1 - np.count_nonzero(np.abs(cells) > _ROUNDING, axis=0))
    p = np.maximum(2 * stdtr(n_clusters - 1, -t), by_signs)
    return min(1.0, float(p.min()) * int(tested.sum()))
