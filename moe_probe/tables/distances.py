"""How differently tokens of two domains, or of any two values of a label, are spread over experts, as a table."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.counts import load_counts
from moe_probe.measures.divergence import FEWEST_CLUSTERS
from moe_probe.measures.divergence import divergence as measure
from moe_probe.measures.multiplicity import q_values
from moe_probe.tables.columns import LAYER, ROUTER, SLOT, TOKENS, Column, schema_of
from moe_probe.tables.rows import ANY_SLOT, stack_rows, tagged

if TYPE_CHECKING:
    from moe_probe.counts import LabelCounts
    from moe_probe.store import Run

MOST_VALUES = 32
"""Of more values than this, those with the most assignments are compared."""

_LIN = "Lin 1991, Divergence Measures Based on the Shannon Entropy, IV"
_BANDARKAR = (
    "Bandarkar et al. 2025, Multilingual Routing in Mixture-of-Experts (arXiv 2510.04694), compare mean router weights "
    "and divide by their entropy"
)

DIVERGENCE_COLUMNS = (
    LAYER,
    ROUTER,
    SLOT,
    TOKENS,
    Column("label_set", pl.String, "name", "Which labels."),
    Column("value", pl.String, "name", "One value of the label."),
    Column(
        "other_value", pl.String, "name", f"Another one, later in the alphabet; at most {MOST_VALUES} are compared."
    ),
    Column(
        "js_bits",
        pl.Float64,
        "bits, 0 to 1",
        "Jensen-Shannon divergence of the two values' shares of the experts. 0: the same; 1: no expert has both.",
        f"{_LIN}; {_BANDARKAR}",
    ),
    Column(
        "js_distance",
        pl.Float64,
        "0 to 1",
        "Square root of js_bits, which scipy and others call Jensen-Shannon distance.",
        "Endres & Schindelin 2003, A New Metric for Probability Distributions",
    ),
    Column(
        "null_mean_bits",
        pl.Float64,
        "bits",
        "Mean of js_bits over 1,000 exchanges of the two values between whole clusters of documents: its baseline.",
    ),
    Column("excess_bits", pl.Float64, "bits", "js_bits less null_mean_bits. 0 is chance."),
    Column(
        "excess_ci_low",
        pl.Float64,
        "bits",
        f"Lower end of excess_bits at 95 %, by jackknife over clusters. Null if a value has under {FEWEST_CLUSTERS}.",
    ),
    Column("excess_ci_high", pl.Float64, "bits", "Upper end of excess_bits at 95 %."),
    Column(
        "p",
        pl.Float64,
        "0 to 1",
        "Share of the exchanges that reach js_bits. It cannot be small where few clusters leave little to exchange.",
    ),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        "p corrected for all pairs and routers of this table.",
        "Benjamini & Hochberg 1995, Controlling the False Discovery Rate, 3.1",
    ),
    Column(
        "cluster_unit",
        pl.String,
        "document, block",
        "What clusters hold: documents or, where fewer than five have a token, blocks of 256 tokens; what is said then "
        "holds for this text only.",
    ),
    Column("clusters", pl.Int64, "count", "Clusters of the value that has fewer of them."),
    Column("value_n", pl.Int64, "count", "Assignments of the value."),
    Column("other_n", pl.Int64, "count", "Assignments of the other value."),
    Column("n", pl.Int64, "count", "Assignments of both."),
)


def divergence(run: Run, label: str = "domain", *, seed: int = 0) -> pl.DataFrame:
    """Return how far apart the loads of each two values of a label lie, over any slot.

    Args:
        run: an open run.
        label: one of the run's label sets.
        seed: of the exchanges that chance is measured by.

    Returns:
        A row a router and pair; none where the label has fewer than two values.

    Raises:
        BadInputError: the run has no such label.
    """
    counts = load_counts(run, label, ANY_SLOT)
    rows = []
    for router, clustered in zip(run.routers, counts.clustered, strict=True):
        for one, other in combinations(_compared(counts), 2):
            row = _pair_row(clustered[:, :, one], clustered[:, :, other], seed)
            row |= {"label_set": label, "value": counts.labels[one], "other_value": counts.labels[other]}
            row |= {"layer": router.layer, "router": router.index, "slot": ANY_SLOT, "tokens": counts.tokens}
            rows.append(row | {"cluster_unit": counts.cluster_unit})
    frame = pl.DataFrame(rows, schema=schema_of(DIVERGENCE_COLUMNS))
    corrected = q_values(frame["p"].fill_null(np.nan).to_numpy())
    return stack_rows(DIVERGENCE_COLUMNS, [frame.with_columns(q_value=pl.Series(corrected))])


def _compared(counts: LabelCounts) -> list[int]:
    """The labels that are compared, in the order of their names."""
    sizes = np.sum([table.sum(axis=0) for table in counts], axis=0) if len(counts) else np.zeros(0)
    known = [index for index, kept in enumerate(tagged(counts)) if kept]
    largest = sorted(known, key=lambda index: -sizes[index])[:MOST_VALUES]
    return sorted(largest)


def _pair_row(one: NDArray[np.int64], other: NDArray[np.int64], seed: int) -> dict[str, object]:
    """The numbers of one pair, from (clusters, experts) of each."""
    row: dict[str, object] = {
        "clusters": int(min(one.any(axis=1).sum(), other.any(axis=1).sum())),
        "value_n": int(one.sum()),
        "other_n": int(other.sum()),
        "n": int(one.sum() + other.sum()),
    }
    found = measure(one, other, seed=seed)
    if found is None:
        return row
    return row | {
        "js_bits": found.bits,
        "js_distance": found.bits**0.5,
        "null_mean_bits": found.null_bits,
        "excess_bits": found.excess_bits,
        "excess_ci_low": found.low,
        "excess_ci_high": found.high,
        "p": found.p,
    }
