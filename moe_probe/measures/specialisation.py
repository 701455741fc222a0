"""How much an expert tells about the label of a word, every token type counting once, in bits.

- `type_level_bits`: information between a type's commonest expert and its commonest label. The headline: an untrained
  router is a hash of the token, and by occurrences (`association`) it seems to know a quarter of a bit of syntax.
- `held_out_bits`: can the label of a type be predicted from its expert, with the link learnt on *other* types?

It does not know where counts come from, nor what a label is called. Permutation within strata and the jackknife over
folds of types were chosen by simulation on routers that know nothing of syntax.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.association import (
    Information,
    entropy_bits,
    information_bits,
    mutual_information_bits,
    whole_unit_null_bits,
)
from moe_probe.measures.intervals import Estimate, jackknife_interval, student_t

__all__ = [
    "N_FOLDS",
    "N_PERMUTATIONS",
    "TYPE_FLOOR",
    "Information",
    "TypeLabels",
    "commonest",
    "count_pairs",
    "held_out_bits",
    "information_bits",
    "mutual_information_bits",
    "type_folds",
    "type_labels",
    "type_level_bits",
    "type_level_bits_of_routers",
    "whole_unit_null_bits",
]

N_FOLDS = 64
TYPE_FLOOR = 3
"""A token type counts if it occurs at least so often; every type-level figure rises with it."""

N_PERMUTATIONS = 1000
_SMOOTHING = 16.0
_WORD_MARKERS = "▁Ġ"
_MOST_CELLS = 4_000_000  # of what is held of the permutations at one time


@dataclass(frozen=True, eq=False)
class TypeLabels:
    """Token types with their commonest label, ready to be asked about any number of routers.

    `labels`, `folds` and `occurrences` are (types,); a label of -1 says that the type is not measured.
    """

    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    occurrences: NDArray[np.int64]
    n_labels: int

    @property
    def label_entropy_bits(self) -> float:
        """Entropy of the labels of the types that are measured."""
        return float(entropy_bits(np.bincount(self.labels[self.labels >= 0], minlength=1)))


def type_folds(tokens: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold of each token type, 0 to 63: a hash of its text without case and blanks.

    `The`, `the` and `▁the` share a fold, so that no fold is predicted from another spelling of its own words.

    Args:
        tokens: one text a type.

    Example:
        >>> folds = type_folds(["▁The", "the", " THE"])
        >>> bool(folds[0] == folds[1] == folds[2])
        True
    """
    keys = (token.strip().lstrip(_WORD_MARKERS).casefold() for token in tokens)
    hashes = (hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest() for key in keys)
    return np.fromiter((int.from_bytes(digest, "little") % N_FOLDS for digest in hashes), np.int64, len(tokens))


def count_pairs(rows: NDArray[np.integer], columns: NDArray[np.integer], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Count how often each row index meets each column index; pairs with a negative index are left out.

    Args:
        rows: (n,) for example the token type or the expert of each token.
        columns: (n,) for example the label of each token.
        shape: how many of each there are.

    Example:
        >>> count_pairs(np.array([0, 1, 1, -1]), np.array([0, 1, 1, 0]), (2, 2)).tolist()
        [[1, 0], [0, 2]]
    """
    kept = (rows >= 0) & (columns >= 0)
    codes = rows[kept].astype(np.int64) * shape[1] + columns[kept]
    return np.bincount(codes, minlength=shape[0] * shape[1]).astype(np.int64, copy=False).reshape(shape)


def commonest(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the column of each row's highest count, the lower of two equal ones, -1 where the row has none.

    Args:
        counts: (types, experts) or (types, labels).

    Example:
        >>> commonest(np.array([[1, 2], [3, 3], [0, 0]])).tolist()
        [1, 0, -1]
    """
    if counts.shape[1] == 0:
        return np.full(counts.shape[0], -1, dtype=np.int64)
    return np.where(counts.any(axis=1), counts.argmax(axis=1), -1)


def type_labels(
    label_counts: NDArray[np.integer],
    folds: NDArray[np.integer],
    *,
    floor: int = TYPE_FLOOR,
    without: Sequence[int] = (),
) -> TypeLabels:
    """Return the commonest label of each type.

    Args:
        label_counts: (types, labels) how often each type had each label.
        folds: (types,) from `type_folds`.
        floor: types that occur less often are not measured.
        without: labels; types whose commonest label is one of them are not measured.

    Example:
        >>> type_labels(np.array([[3, 1], [0, 2], [0, 9]]), np.arange(3)).labels.tolist()
        [0, -1, 1]
    """
    occurrences = label_counts.sum(axis=1, dtype=np.int64)
    labels = commonest(label_counts)
    measured = (occurrences >= floor) & ~np.isin(labels, list(without))
    return TypeLabels(np.where(measured, labels, -1), folds.astype(np.int64), occurrences, label_counts.shape[1])


def type_level_bits(
    expert_counts: NDArray[np.integer],
    label_counts: NDArray[np.integer],
    folds: NDArray[np.integer],
    *,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
    floor: int = TYPE_FLOOR,
) -> Information | None:
    """Return the information between a type's commonest expert and its commonest label, each type counting once.

    Chance permutes the labels among types of like frequency, ⌊log2 n⌋: where routing depends on frequency, as it
    often does, permuting freely would call frequency syntax. Ties go to the lower index.

    Args:
        expert_counts: (types, experts) how often each type went to each expert, first choice.
        label_counts: (types, labels) how often each type had each label.
        folds: (types,) from `type_folds`, for the interval.
        seed: of the permutations.
        n_permutations: how many are drawn.
        floor: types that occur less often are left out.

    Returns:
        None where nothing can be measured: fewer than two types, two experts, or two labels.

    Example:
        >>> counts = np.array([[9, 0], [9, 0], [0, 9], [0, 9]] * 40)
        >>> found = type_level_bits(counts, counts, np.arange(160) % 64)
        >>> found.raw_bits, found.p < 0.01
        (1.0, True)
    """
    types = type_labels(label_counts, folds, floor=floor)
    router = (commonest(expert_counts), expert_counts.shape[1])
    return type_level_bits_of_routers([router], types, seed=seed, n_permutations=n_permutations)[0]


def type_level_bits_of_routers(
    routers: Sequence[tuple[NDArray[np.int64], int]],
    types: TypeLabels,
    *,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> list[Information | None]:
    """Return `type_level_bits` of several routers, from permutations that they share.

    Each number is what the router alone would have got with the same seed.

    Args:
        routers: of each the commonest expert of every type, (types,), -1 where a type has none, and its experts.
        types: the labels.
        seed: of the permutations.
        n_permutations: how many are drawn.

    Returns:
        One for each router, None where nothing can be measured.
    """
    found: list[Information | None] = [None] * len(routers)
    measured: dict[bytes, list[int]] = {}  # routers that have an expert for the same types can share draws
    for index, (experts, n_experts) in enumerate(routers):
        kept = (types.labels >= 0) & (experts >= 0)
        if n_experts > 1 and np.unique(types.labels[kept]).size > 1:
            measured.setdefault(np.packbits(kept).tobytes(), []).append(index)
    for indices in measured.values():
        rows = np.flatnonzero((types.labels >= 0) & (routers[indices[0]][0] >= 0))
        part = TypeLabels(types.labels[rows], types.folds[rows], types.occurrences[rows], types.n_labels)
        group = [(routers[index][0][rows], routers[index][1]) for index in indices]
        nulls = _permuted_bits(group, part, seed, n_permutations)
        for index, (experts, n_experts), null in zip(indices, group, nulls, strict=True):
            found[index] = _above_chance(experts, n_experts, part, null)
    return found


def held_out_bits(
    expert_counts: NDArray[np.integer],
    label_counts: NDArray[np.integer],
    folds: NDArray[np.integer],
    *,
    floor: int = TYPE_FLOOR,
) -> Estimate | None:
    """Return how many bits the expert of an unseen type tells about its label.

    For each fold, label given expert is learnt on the other folds, shrunk towards the labels' own shares by 16
    pseudo-types; the mean of log2 q(label | expert) / q(label) over all types is what was gained. Below 0: what was
    learnt misleads. A label that no other fold holds can be foretold by neither and counts 0.

    Args:
        expert_counts: (types, experts) how often each type went to each expert, first choice.
        label_counts: (types, labels) how often each type had each label.
        folds: (types,) from `type_folds`.
        floor: types that occur less often are left out.

    Returns:
        None where nothing can be measured: fewer than two types, two experts, two labels, or two folds.

    Example:
        >>> counts = np.array([[9, 0], [9, 0], [0, 9], [0, 9]] * 200)
        >>> 0.9 < held_out_bits(counts, counts, np.arange(800) % 64).value < 1
        True
    """
    types = type_labels(label_counts, folds, floor=floor)
    experts = commonest(expert_counts)
    kept = (types.labels >= 0) & (experts >= 0)
    labels, n_experts = types.labels[kept], expert_counts.shape[1]
    if n_experts < 2 or np.unique(labels).size < 2:
        return None
    held = _count_by_fold(experts[kept], labels, types.folds[kept], n_experts, types.n_labels)
    n_folds = held.shape[0]
    if n_folds < 2:
        return None
    others = (held.sum(axis=0) - held).astype(np.float64)  # (folds, experts, labels)
    share = others.sum(axis=1) / others.sum(axis=(1, 2))[:, None]  # (folds, labels)
    expert_types = others.sum(axis=2)[:, :, None]
    given = (others + _SMOOTHING * share[:, None, :]) / (expert_types + _SMOOTHING)
    known = np.broadcast_to(share[:, None, :] > 0, given.shape)
    ratio = np.divide(given, share[:, None, :], out=np.ones_like(given), where=known)
    gains = (held * np.log2(ratio)).sum(axis=(1, 2))  # (folds,)
    sizes = held.sum(axis=(1, 2))
    value = float(gains.sum() / sizes.sum())
    residuals = (gains - value * sizes) / sizes.sum()
    error = math.sqrt(n_folds / (n_folds - 1) * float(np.sum(residuals**2)))
    half = student_t(n_folds - 1) * error
    return Estimate(value, value - half, value + half)


def _above_chance(
    experts: NDArray[np.int64], n_experts: int, types: TypeLabels, null: NDArray[np.float64]
) -> Information:
    by_fold = _count_by_fold(experts, types.labels, types.folds, n_experts, types.n_labels)
    table = by_fold.sum(axis=0)
    raw, mean = float(information_bits(table)), float(null.mean())
    low, high = jackknife_interval(raw, mean, information_bits(table - by_fold)) or (None, None)
    # A draw may equal the raw table exactly: rounding must not decide whether it reached it.
    p = (1 + int(np.count_nonzero(null >= raw - 1e-9))) / (1 + null.size)
    return Information(raw - mean, low, high, raw, mean, p, experts.size)


def _count_by_fold(
    experts: NDArray[np.int64], labels: NDArray[np.int64], folds: NDArray[np.int64], n_experts: int, n_labels: int
) -> NDArray[np.int64]:
    """Tables of types, (folds, experts, labels), one for each fold that holds a type."""
    present, fold = np.unique(folds, return_inverse=True)
    codes = (fold * n_experts + experts) * n_labels + labels
    shape = (present.size, n_experts, n_labels)
    return np.bincount(codes, minlength=math.prod(shape)).reshape(shape)


def _strata(occurrences: NDArray[np.int64]) -> NDArray[np.int64]:
    """⌊log2 n⌋ of each type, exactly."""
    exponents: NDArray[np.int64] = np.frexp(occurrences.astype(np.float64))[1].astype(np.int64)
    return exponents - 1


def _permuted_bits(
    routers: Sequence[tuple[NDArray[np.int64], int]], types: TypeLabels, seed: int, n_permutations: int
) -> NDArray[np.float64]:
    """Information of each router with the labels permuted within strata, (routers, permutations)."""
    rng = np.random.default_rng(seed)
    strata = _strata(types.occurrences)
    order = np.argsort(strata, kind="stable")
    labels = types.labels[order].astype(np.int32)
    edges = [0, *(np.flatnonzero(np.diff(strata[order])) + 1).tolist(), labels.size]
    bits = np.empty((len(routers), n_permutations))
    size = max(1, _MOST_CELLS // labels.size)
    for start in range(0, n_permutations, size):
        drawn = np.tile(labels, (min(size, n_permutations - start), 1))
        for first, last in pairwise(edges):
            drawn[:, first:last] = rng.permuted(drawn[:, first:last], axis=1)
        for row, (experts, n_experts) in zip(bits, routers, strict=True):
            row[start : start + size] = _bits_of_draws(experts[order], n_experts, drawn, types.n_labels)
    return bits


def _bits_of_draws(
    experts: NDArray[np.int64], n_experts: int, drawn: NDArray[np.int32], n_labels: int
) -> NDArray[np.float64]:
    """Information between experts, (types,), and each row of labels, (draws, types), all with the same sums."""
    n_types = experts.size
    n_cells = n_experts * n_labels
    counts = np.arange(n_types + 1, dtype=np.float64)
    n_log_n = counts * np.log2(np.maximum(counts, 1))
    margins = n_log_n[np.bincount(experts)].sum() + n_log_n[np.bincount(drawn[0])].sum()
    sums = np.empty(len(drawn))
    size = max(1, _MOST_CELLS // max(n_cells, n_types))
    for start in range(0, len(drawn), size):
        part = drawn[start : start + size]
        codes = experts * n_labels + part + np.arange(len(part))[:, None] * n_cells
        tables = np.bincount(codes.ravel(), minlength=len(part) * n_cells)
        sums[start : start + size] = n_log_n[tables].reshape(len(part), n_cells).sum(axis=1)
    bits: NDArray[np.float64] = np.maximum((sums - margins + n_log_n[n_types]) / n_types, 0.0)
    return bits
