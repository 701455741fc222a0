"""How strongly two things that were counted together hang together, over occurrences.

Every occurrence counts here, so that a common word counts often: a router that is a hash of the token seems to know a
quarter of a bit of syntax. Read these numbers beside those of `specialisation`, where every token type counts once.

It does not know where counts come from, nor what a label is called. Mutual information: Cover and Thomas (2006),
sections 2.1 and 2.3. Its mean under independence: Vinh, Epps and Bailey (2010), "Information theoretic measures for
clusterings comparison", section 3. Cramér's V: Cramér (1946), section 21.9; its correction: Bergsma (2013), "A
bias-correction for Cramér's V and Tschuprow's T".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.intervals import jackknife_interval

_EXACT_MEAN = 1000.0
"""Above this expected count a Taylor series stands for the sum over the distribution; it is right to 1e-9 bits."""


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


def entropy_bits(counts: NDArray[np.number]) -> NDArray[np.float64]:
    """Return the entropy of counts, in bits; 0 where nothing was counted.

    Args:
        counts: (..., categories); leading axes are distributions of their own.

    Example:
        >>> entropy_bits(np.array([[4, 4], [8, 0]])).tolist()
        [1.0, 0.0]
    """
    table = np.asarray(counts, dtype=np.float64)
    total = table.sum(axis=-1, keepdims=True)
    share = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
    logarithms = np.log2(share, out=np.zeros_like(share), where=share > 0)
    entropy: NDArray[np.float64] = np.abs((share * logarithms).sum(axis=-1))  # abs: -0.0 is no entropy
    return entropy


def expected_information_bits(counts: NDArray[np.integer]) -> float:
    """Return the mean information of all tables with the row and column sums of this one, in bits; 0 if it is empty.

    What the size of a table alone gives, exactly: nothing is drawn.

    Args:
        counts: (rows, columns).

    Example:
        >>> round(expected_information_bits(np.array([[1, 0], [0, 1]])), 3)  # both tables with these sums tell all
        1.0
    """
    rows, columns = counts.sum(axis=1, dtype=np.int64), counts.sum(axis=0, dtype=np.int64)
    total = int(rows.sum())
    if total == 0:
        return 0.0
    cells = float(expected_n_log_n(rows, columns, total).sum())
    margins = float(_n_log_n(rows).sum() + _n_log_n(columns).sum())
    return max(0.0, (cells - margins) / total + math.log2(total))


def expected_n_log_n(rows: NDArray[np.integer], columns: NDArray[np.integer], total: int) -> NDArray[np.float64]:
    """Return the mean of n·log2 n in each cell of a table where rows and columns are independent, sums being fixed.

    n is hypergeometric. Sums that occur twice are worked out once.

    Args:
        rows: (rows,) sums.
        columns: (columns,) sums; rows and columns need not add up to the total, if this is a part of a table.
        total: of the whole table.

    Returns:
        (rows, columns).

    Example:
        >>> expected_n_log_n(np.array([2]), np.array([4, 0]), 4).tolist()  # both fall into the first column
        [[2.0, 0.0]]
    """
    row_sums, row_of = np.unique(rows, return_inverse=True)
    column_sums, column_of = np.unique(columns, return_inverse=True)
    means = np.zeros((row_sums.size, column_sums.size))
    if total == 0:
        return means[row_of][:, column_of]
    for row, size in zip(means, row_sums.tolist(), strict=True):
        row[:] = _mean_n_log_n(size, column_sums.astype(np.float64), total)
    return means[row_of][:, column_of]


def mutual_information_bits(counts: NDArray[np.integer], *, seed: int = 0, n_draws: int = 200) -> Information | None:
    """Return the information between expert and label over occurrences, less what independence would give.

    Independence is that of all tables with the same numbers of tokens for each expert and each label, whose mean is
    exact. It corrects for the size of the table only: a router that hashes the token still seems to know syntax.

    Args:
        counts: (clusters, experts, labels), a cluster being a document or a group of them, which gives an interval;
            or (experts, labels), which gives none.
        seed: of the draws.
        n_draws: how many tables are drawn for p; with 0 there is none.

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
    null = expected_information_bits(table)
    interval = jackknife_interval(raw, null, information_bits(table - by_cluster)) if counts.ndim == 3 else None
    low, high = interval or (None, None)
    p = None
    if n_draws:
        draws = information_bits(_tables_with_margins(table, seed, n_draws))
        p = (1 + int(np.count_nonzero(draws >= raw - 1e-12))) / (1 + n_draws)
    return Information(raw - null, low, high, raw, null, p, int(table.sum()))


def whole_unit_null_bits(
    expert_counts: NDArray[np.integer],
    labels: NDArray[np.integer],
    *,
    seed: int = 0,
    n_permutations: int = 1000,
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


def cramers_v(counts: NDArray[np.integer], *, corrected: bool = True) -> float | None:
    """Return Cramér's V of a table, 0 (independent) to 1 (one tells the other): the size of an effect, whatever n is.

    Args:
        counts: (rows, columns); rows and columns without a count are left out.
        corrected: take off what independence gives at this size, as Bergsma (2013) does; it is right for independent
            tokens, which those of one document are not. Without it V is never 0.

    Returns:
        None where fewer than two rows or columns occur, or where the correction leaves nothing of so small a table.

    Example:
        >>> cramers_v(np.array([[30, 0], [0, 30]])), cramers_v(np.array([[10, 10], [10, 10]]))
        (1.0, 0.0)
    """
    table = counts[counts.any(axis=1)][:, counts.any(axis=0)].astype(np.float64)
    n_rows, n_columns = table.shape
    if min(n_rows, n_columns) < 2:
        return None
    n = table.sum()
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / n
    phi = float(((table - expected) ** 2 / expected).sum() / n)
    most = float(min(n_rows, n_columns) - 1)
    if corrected:
        phi = max(0.0, phi - (n_rows - 1) * (n_columns - 1) / (n - 1))
        most = min(size - (size - 1) ** 2 / (n - 1) for size in (n_rows, n_columns)) - 1
    return min(1.0, math.sqrt(phi / most)) if most > 0 else None


def _n_log_n(counts: NDArray[np.integer]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = counts.astype(np.float64)
    values *= np.log2(np.maximum(values, 1))
    return values


def _mean_n_log_n(row: int, columns: NDArray[np.float64], total: int) -> NDArray[np.float64]:
    """Mean of n·log2 n, (columns,), where `row` draws without replacement meet columns of these sizes."""
    mean = row * columns / total
    variance = mean * (1 - columns / total) * ((total - row) / max(total - 1, 1))
    large = mean > _EXACT_MEAN
    result = np.zeros(columns.size)
    if large.any():
        skew = variance * (1 - 2 * columns / total) * (1 - 2 * row / total)
        m, v, s = mean[large], variance[large], skew[large]
        series = v / (2 * m) - s / (6 * m**2) + 3 * v**2 / (12 * m**3)
        result[large] = m * np.log2(m) + series / math.log(2)
    small = ~large & (columns > 0) & (row > 0)
    if small.any():
        result[small] = _summed_n_log_n(row, columns[small], total, mean[small], np.sqrt(variance[small]))
    return result


def _summed_n_log_n(
    row: int, columns: NDArray[np.float64], total: int, mean: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The same as a sum over the distribution, within eight standard deviations (and ten more counts) of its mean."""
    reach = 8 * deviation + 10
    first = np.maximum(np.floor(mean - reach), np.maximum(0, row + columns - total))
    last = np.minimum(np.ceil(mean + reach), np.minimum(row, columns))
    n = first[:, None] + np.arange(int((last - first).max()) + 1)  # (columns, values)
    column = columns[:, None]
    held = n <= last[:, None]
    # Each probability from the one before it: p(n + 1) / p(n) = (row - n)(column - n) / ((n + 1)(total - …)).
    up = np.where(held, (row - n) * (column - n), 1)
    down = np.where(held, (n + 1) * (total - row - column + n + 1), 1)
    steps = np.log(np.maximum(up, 1e-300)) - np.log(down)
    logarithms = np.concatenate([np.zeros((len(n), 1)), np.cumsum(steps[:, :-1], axis=1)], axis=1)
    weights = np.where(held, np.exp(logarithms - np.where(held, logarithms, -np.inf).max(axis=1, keepdims=True)), 0)
    values = n * np.log2(np.maximum(n, 1))
    means: NDArray[np.float64] = (weights * values).sum(axis=1) / weights.sum(axis=1)
    return means


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
