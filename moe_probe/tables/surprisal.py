"""What one run costs in surprisal beside another over the same tokens, as a table.

Each token is compared with itself: what makes it hard to foretell is in both runs and falls out. It does not know why
the runs differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS
from moe_probe.errors import BadInputError
from moe_probe.measures.effect import mean_effect
from moe_probe.measures.multiplicity import q_values
from moe_probe.tables.between import ALL, label_groups
from moe_probe.tables.columns import TOKENS, Column
from moe_probe.tables.paired import Pair, pair_runs
from moe_probe.tables.rows import stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

SURPRISAL_COLUMNS = (
    TOKENS,
    Column("label_set", pl.String, "name", "Which labels; all: tokens whatever their label."),
    Column("label", pl.String, "name", "The label, in the first run, of the token that is foretold."),
    Column("surprisal_a", pl.Float64, "bits", "Mean surprisal of the row's tokens in the first run."),
    Column("surprisal_b", pl.Float64, "bits", "Mean surprisal of the same tokens in the second run."),
    Column(
        "difference",
        pl.Float64,
        "bits",
        "surprisal_b less surprisal_a. Baseline: 0, no change; above it, the second run foretells worse.",
    ),
    Column(
        "ci_low",
        pl.Float64,
        "bits",
        "Lower end of difference at 95 %, paired token by token, a cluster being one draw. Null where all tokens are "
        "of one cluster.",
        "Cochran 1977, Sampling Techniques, 6.3 and 9A.2 (linearised variance)",
    ),
    Column("ci_high", pl.Float64, "bits", "Upper end of difference at 95 %."),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        "Least false discovery rate at which the difference is called one, over the whole table; null with fewer than "
        "5 documents.",
        "Benjamini & Hochberg 1995, Controlling the False Discovery Rate",
    ),
    Column(
        "cluster_unit",
        pl.String,
        "document, block",
        "What counts as one draw. block: fewer than 5 documents, so blocks of 256 tokens, and the interval holds for "
        "this text only.",
    ),
    Column("n", pl.Int64, "tokens", "Tokens compared: those whose surprisal is known in both runs."),
)


def surprisal_difference(run_a: Run, run_b: Run, *, by: str | Sequence[str] | None = None) -> pl.DataFrame:
    """Return by how much the surprisal of the same tokens differs between two runs, over all tokens and by label.

    Args:
        run_a: an open run with surprisal.
        run_b: another of the same documents.
        by: one or more of run_a's label sets, which add a row for each value; of labels that cut the text into words
            only word-initial tokens are counted. Tokens that are `untagged` are in the total alone.

    Returns:
        The columns of surprisal.csv.

    Raises:
        BadInputError: a run has no surprisal, the runs are of different text or routers, or run_a has no such label.
    """
    labels = [by] if isinstance(by, str) else list(by or ())
    return surprisal_table(pair_runs(run_a, run_b, labels), labels)


def has_surprisal(run: Run) -> bool:
    """Say whether a run holds the surprisal of its tokens."""
    return schema.SURPRISAL_COLUMN in run.token_columns


def surprisal_table(pair: Pair, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return what `surprisal_difference` does, of runs that are paired already with the labels of `by`."""
    rows = pair.tokens["row"].to_numpy().astype(np.int64)
    # The runs hold the same tokens in the same order: a row of one is that row of the other.
    bits_a, bits_b = (_surprisal(run, rows) for run in (pair.run_a, pair.run_b))
    known = np.isfinite(bits_a) & np.isfinite(bits_b)
    everyone: dict[str, object] = {"label_set": ALL, "label": ALL, "tokens": "all"}
    groups = [(everyone, np.arange(rows.size)), *(found for label in by for found in label_groups(pair, label))]
    kept = [(facts, group[known[group]]) for facts, group in groups]
    measured = [facts | _compared(bits_a, bits_b, pair.clusters, group) for facts, group in kept if group.size]
    if not measured:
        return stack_rows(SURPRISAL_COLUMNS, [])
    table = pl.DataFrame(measured, infer_schema_length=None).with_columns(cluster_unit=pl.lit(pair.cluster_unit))
    p = table["p"].to_numpy()
    tested = q_values(p) if pair.cluster_unit == "document" else np.full(p.shape, np.nan)
    return stack_rows(SURPRISAL_COLUMNS, [table.with_columns(q_value=pl.Series(tested, dtype=pl.Float64))])


def _compared(
    bits_a: NDArray[np.float64], bits_b: NDArray[np.float64], clusters: NDArray[np.int64], rows: NDArray[np.intp]
) -> dict[str, object]:
    """Return the columns of one group of tokens, and `p`."""
    where = clusters[rows]
    change = bits_b[rows] - bits_a[rows]
    sums = np.bincount(where, change, minlength=N_CLUSTERS).astype(np.float64)[:, None]
    # A group at a time: one that lies in a single cluster has no interval, whatever the others have.
    found = mean_effect(sums, np.bincount(where, minlength=N_CLUSTERS)[:, None])
    # Where no cluster changed, nothing changed: 0 with certainty.
    unchanged = not change.any() and bool(np.isfinite(found.low[0]))
    return {
        "surprisal_a": float(bits_a[rows].mean()),
        "surprisal_b": float(bits_b[rows].mean()),
        "difference": float(found.value[0]),
        "ci_low": float(found.low[0]),
        "ci_high": float(found.high[0]),
        "p": 1.0 if unchanged else float(found.p[0]),
        "n": rows.size,
    }


def _surprisal(run: Run, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the surprisal at rows of a run, (rows,), nan where it is not known."""
    if not has_surprisal(run):
        raise BadInputError(f"{run.path}: has no surprisal; trace it again with surprisal=True (--surprisal)")
    bits = np.full(rows.size, np.nan)
    start = 0
    for shard in run.iter_shards():
        first, last = np.searchsorted(rows, [start, start + shard.rows])
        if first < last:
            column = shard.tokens([schema.SURPRISAL_COLUMN])[schema.SURPRISAL_COLUMN].cast(pl.Float64)
            bits[first:last] = column.fill_null(np.nan).to_numpy()[rows[first:last] - start]
        start += shard.rows
    return bits
