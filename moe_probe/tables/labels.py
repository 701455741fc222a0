"""Which labels each expert is chosen for, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_probe.counts import load_counts
from moe_probe.measures.lift import label_lift
from moe_probe.tables.columns import ASSIGNMENTS, EXPERT, LAYER, ROUTER, RULES, SLOT, TOKENS, Column
from moe_probe.tables.rows import ANY_SLOT, FIRST_CHOICE, router_rows, stack_rows, tagged

if TYPE_CHECKING:
    from moe_probe.store import Run

LABEL_COLUMNS = (
    LAYER,
    ROUTER,
    SLOT,
    TOKENS,
    EXPERT,
    Column("label", pl.String, "name", "The label's value. Tokens without one (untagged) are left out of the table."),
    ASSIGNMENTS,
    Column(
        "p_label_given_expert",
        pl.Float64,
        "0 to 1",
        "Share of the label among the expert's assignments; null if it has none.",
    ),
    Column(
        "p_expert_given_label",
        pl.Float64,
        "0 to 1",
        "Share of the expert among the label's assignments; null if it has none.",
    ),
    Column(
        "lift",
        pl.Float64,
        "ratio",
        "p_label_given_expert over the label's share of all assignments. Baseline: 1, independence.",
        RULES,
    ),
    Column(
        "expected",
        pl.Float64,
        "count",
        "Assignments if expert and label were independent: the baseline of assignments.",
    ),
    Column("n", pl.Int64, "count", "Assignments of all experts and labels of the router, same slot and tokens."),
)


def label_table(run: Run, label: str) -> pl.DataFrame:
    """Return how often each expert was chosen on tokens of each label, over any slot and for the first choice.

    Labels that cut the text into words are counted on word-initial tokens, others on all. Tokens without a value,
    `untagged`, are left out: an expert for text that nobody tagged would otherwise seem to shun every part of speech.

    Args:
        run: an open run.
        label: one of the run's label sets, such as "upos" or "domain".

    Returns:
        The columns of syntax.csv, a row for every expert and label, those that never met included.

    Raises:
        BadInputError: the run has no such label.
    """
    frames = []
    for slot in (ANY_SLOT, FIRST_CHOICE):
        counts = load_counts(run, label, ANY_SLOT if slot == ANY_SLOT else int(slot))
        known = tagged(counts)
        labels = np.array(counts.labels, dtype=np.object_)[known]
        for router, table in zip(run.routers, counts, strict=True):
            if labels.size == 0:
                continue
            table = table[:, known]
            lift = label_lift(table)
            columns = {
                "expert": np.repeat(np.arange(router.n_experts), labels.size),
                "label": np.tile(labels, router.n_experts),
                "assignments": table.ravel(),
                **{name: values.ravel() for name, values in vars(lift).items()},
            }
            frames.append(router_rows(router, slot, counts.tokens, columns, {"n": int(table.sum())}))
    return stack_rows(LABEL_COLUMNS, frames).sort(
        "router", pl.col("slot") != ANY_SLOT, "expert", "label", maintain_order=True
    )
