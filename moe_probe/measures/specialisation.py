"""How much an expert tells about a token's label, in bits.

Three answers, from the strictest to the loosest:

- `type_level_bits`: every token type (every vocabulary entry) counts once. The headline: an untrained router is a hash
  of the token, and counted by occurrences it seems to know a quarter of a bit of syntax.
- `held_out_bits`: can the label of a type be predicted from its expert, with the link learnt on *other* types?
- `mutual_information_bits`: the usual figure, over occurrences. To be reported beside the others, never alone.

It does not know where counts come from, nor what a label is called. Mutual information: Cover and Thomas (2006),
section 2.3. Permutation within strata and the jackknife over folds of types were chosen by simulation on routers that
know nothing of syntax.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.intervals import Estimate, jackknife_interval, student_t

N_FOLDS = 64
TYPE_FLOOR = 3
"""A token type counts if it occurs at least so often; every type-level figure rises with it."""

N_PERMUTATIONS = 1000
_SMOOTHING = 16.0
_WORD_MARKERS = "▁Ġ"


@dataclass(frozen=True)
class Information:
    """Bits of information above chance.

    `bits` is `raw_bits` less `null_bits`, the mean of what chance gives. `low` and `high` bound `bits` at 95 %, None
    where fewer than two folds cannot give them. `p` is the share of chance draws that reach `raw_bits`, None where
    none were drawn. `n` counts the types (or tokens) measured.
    """

    bits: float
    low: float | None
    high: float | None
    raw_bits: float
    null_bits: float
    p: float | None
    n: int


def information_bits(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return the mutual information of rows and columns, uncorrected, in bits.

    Args:
        counts: (..., rows, columns) counts; leading axes are tables of their own. An empty table gives 0.

    Returns:
        (...) bits, never negative.

    Example:
        >>> float(information_bits(np.array([[5, 0], [0, 5]])))
        1.0
    """
    table = np.asarray(counts, dtype=np.float64)
    total = table.sum(axis=(-2, -1), keepdims=True)
    expected = table.sum(axis=-1, keepdims=True) * table.sum(axis=-2, keepdims=True)  # times the total
    ratio = np.divide(table * total, expected, out=np.ones_like(table), where=table > 0)
    bits: NDArray[np.float64] = (table * np.log2(ratio)).sum(axis=(-2, -1)) / np.maximum(total[..., 0, 0], 1)
    return np.maximum(bits, 0.0)


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
    majority = _majorities(expert_counts, label_counts, folds, floor)
    if majority is None:
        return None
    experts, labels, kept_folds, occurrences = majority
    n_experts, n_labels = expert_counts.shape[1], label_counts.shape[1]
    by_fold = _count_by_fold(experts, labels, kept_folds, n_experts, n_labels)
    table = by_fold.sum(axis=0)
    raw = float(information_bits(table))
    null = _permuted_bits(experts, labels, _strata(occurrences), (n_experts, n_labels), seed, n_permutations)
    interval = jackknife_interval(raw, float(null.mean()), information_bits(table - by_fold))
    # A draw may equal the raw table exactly: rounding must not decide whether it reached it.
    reached = int(np.count_nonzero(null >= raw - 1e-12))
    low, high = interval or (None, None)
    p = (1 + reached) / (1 + n_permutations)
    return Information(raw - float(null.mean()), low, high, raw, float(null.mean()), p, experts.size)


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
    majority = _majorities(expert_counts, label_counts, folds, floor)
    if majority is None:
        return None
    experts, labels, kept_folds, _ = majority
    held = _count_by_fold(experts, labels, kept_folds, expert_counts.shape[1], label_counts.shape[1])
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


def mutual_information_bits(counts: NDArray[np.integer], *, seed: int = 0, n_draws: int = 200) -> Information | None:
    """Return the information between expert and label over occurrences, less what independence would give.

    Chance draws tables with the same numbers of tokens for each expert and each label. It corrects for the size of
    the table only: a router that hashes the token still seems to know syntax. Read it beside `type_level_bits`.

    Args:
        counts: (clusters, experts, labels), a cluster being a document or a group of them, which gives an interval;
            or (experts, labels), which gives none.
        seed: of the draws.
        n_draws: how many tables are drawn.

    Returns:
        None where nothing can be measured: no tokens, or fewer than two experts or labels that occur.

    Example:
        >>> mutual_information_bits(np.array([[50, 0], [0, 50]])).raw_bits
        1.0
    """
    by_cluster = counts if counts.ndim == 3 else counts[None]
    by_cluster = by_cluster[by_cluster.any(axis=(1, 2))]
    table = by_cluster.sum(axis=0, dtype=np.int64)
    if table.shape[0] < 2 or np.count_nonzero(table.sum(axis=0)) < 2:
        return None
    raw = float(information_bits(table))
    null = information_bits(_tables_with_margins(table, seed, n_draws))
    mean = float(null.mean())
    interval = jackknife_interval(raw, mean, information_bits(table - by_cluster)) if counts.ndim == 3 else None
    low, high = interval or (None, None)
    p = (1 + int(np.count_nonzero(null >= raw - 1e-12))) / (1 + n_draws)
    return Information(raw - mean, low, high, raw, mean, p, int(table.sum()))


def whole_unit_null_bits(
    expert_counts: NDArray[np.integer],
    labels: NDArray[np.integer],
    *,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> float | None:
    """Return the mean information over occurrences where whole units exchange their labels.

    A unit is whatever carries one label: a token type its commonest part of speech, a document its domain. Its tokens
    stay together, so that what a unit's own habits fake is in the null.

    Args:
        expert_counts: (units, experts) assignments of each unit's tokens.
        labels: (units,) the index of each unit's label.
        seed: of the permutations.
        n_permutations: how many are drawn.

    Returns:
        None where fewer than two units or labels leave nothing to permute.

    Example:
        >>> whole_unit_null_bits(np.array([[8, 0], [0, 8]]), np.array([0, 1]))
        1.0
    """
    if labels.size < 2 or np.unique(labels).size < 2:
        return None
    rng = np.random.default_rng(seed)
    counts = expert_counts.astype(np.float64)
    one_hot = np.eye(int(labels.max()) + 1)[labels]  # (units, labels)
    tables = (counts.T @ one_hot[rng.permutation(labels.size)] for _ in range(n_permutations))
    return float(np.mean([information_bits(table) for table in tables]))


def _majorities(
    expert_counts: NDArray[np.integer],
    label_counts: NDArray[np.integer],
    folds: NDArray[np.integer],
    floor: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """Each type's commonest expert, commonest label, fold and occurrences; None where there is nothing to measure."""
    occurrences = label_counts.sum(axis=1, dtype=np.int64)
    # A type whose every token was dropped has occurrences but no expert.
    kept = (occurrences >= floor) & expert_counts.any(axis=1)
    labels = label_counts[kept].argmax(axis=1) if label_counts.shape[1] else np.zeros(0, np.int64)
    if np.unique(labels).size < 2 or expert_counts.shape[1] < 2:
        return None
    return expert_counts[kept].argmax(axis=1), labels, folds[kept].astype(np.int64), occurrences[kept]


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
    experts: NDArray[np.int64],
    labels: NDArray[np.int64],
    strata: NDArray[np.int64],
    shape: tuple[int, int],
    seed: int,
    n_permutations: int,
) -> NDArray[np.float64]:
    """Information with the labels permuted within strata, (permutations,)."""
    rng = np.random.default_rng(seed)
    order = np.argsort(strata, kind="stable")
    base = experts[order] * shape[1]
    shuffled = labels[order]
    edges = np.flatnonzero(np.diff(strata[order])) + 1
    parts = np.split(shuffled, edges)  # views: shuffling them shuffles `shuffled`
    tables = np.empty((n_permutations, *shape), dtype=np.int64)
    for table in tables:
        for part in parts:
            rng.shuffle(part)
        table[:] = np.bincount(base + shuffled, minlength=shape[0] * shape[1]).reshape(shape)
    return information_bits(tables)


def _tables_with_margins(table: NDArray[np.int64], seed: int, n_draws: int) -> NDArray[np.int64]:
    """Random tables with the row and column sums of `table`, (draws, rows, columns).

    A row of such a table is a draw without replacement from what the rows before it have left of the columns.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((n_draws, *table.shape), dtype=np.int64)
    for draw in drawn:
        left = table.sum(axis=0)
        for row, size in enumerate(table.sum(axis=1)):
            draw[row] = rng.multivariate_hypergeometric(left, size, method="marginals")
            left = left - draw[row]
    return drawn
