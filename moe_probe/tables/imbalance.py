"""How evenly each router spreads its load, as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_probe.counts import ExpertLoads, Scores, iter_expert_loads, load_counts, load_scores, wide_routers
from moe_probe.measures.balance import load_balance
from moe_probe.measures.verdicts import DEAD, UNSEEN
from moe_probe.tables.columns import LAYER, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.load import expert_verdicts
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

BALANCE_COLUMNS = (
    LAYER,
    ROUTER,
    SLOT,
    TOKENS,
    Column(
        "max_violation",
        pl.Float64,
        "ratio - 1",
        "Heaviest load over the mean load, less 1; experts without load are in the mean. 0 is even.",
        "Wang et al. 2024, Auxiliary-Loss-Free Load Balancing (arXiv 2408.15664), MaxVio",
    ),
    Column(
        "coefficient_of_variation",
        pl.Float64,
        "ratio",
        "Standard deviation of the experts' loads over their mean. 0 is even.",
        "Shazeer et al. 2017, Outrageously Large Neural Networks (arXiv 1701.06538), 4",
    ),
    Column(
        "gini",
        pl.Float64,
        "0 to (E-1)/E",
        "Sum of all absolute differences of shares over 2E. 0 is even.",
        "Gini 1912, Variabilità e mutabilità",
    ),
    Column(
        "load_entropy_bits",
        pl.Float64,
        "bits",
        "Entropy of the experts' shares of the load; log2 E is even. Not the entropy of a token.",
        "Cover & Thomas 2006, Elements of Information Theory, 2.1",
    ),
    Column("normalised_load_entropy", pl.Float64, "0 to 1", "load_entropy_bits over log2 E; null for one expert."),
    Column(
        "effective_experts",
        pl.Float64,
        "experts",
        "2 to the load_entropy_bits: so many evenly loaded experts would have that entropy.",
        "Hill 1973, Diversity and Evenness (order 1)",
    ),
    Column(
        "mean_token_entropy_bits",
        pl.Float64,
        "bits",
        "Mean over tokens of the entropy of the router's distribution over experts: softmax of the logits, or sigmoid "
        "scores over their sum. Null where the model gives none.",
    ),
    Column(
        "mean_margin",
        pl.Float64,
        "selection score",
        "Mean over tokens of the last chosen less the first unchosen selection score. Null where the model gives none.",
    ),
    Column("dropped", pl.Int64, "count", "Slots that held no expert (capacity overflow, a skip)."),
    Column(
        "dead",
        pl.Int64,
        "experts",
        "Experts without an assignment in at least 30 documents of at least two domains and so many tokens that their "
        "share is bounded below a tenth of the even one. Null in a run with a router of more than 16,384 experts: all "
        "that have none are unseen there.",
    ),
    Column(
        "unseen",
        pl.Int64,
        "experts",
        "Other experts without an assignment: too little text was seen to call them dead.",
    ),
    Column("n", pl.Int64, "tokens", "Tokens measured."),
)


def balance(run: Run) -> pl.DataFrame:
    """Return how evenly each router spreads its load, over any slot and all tokens.

    Args:
        run: an open run.

    Returns:
        The columns of balance.csv. Entropy and margin are null where the model gives no scores, and in a run that holds
        counts only; all measures are where every slot was dropped.
    """
    if wide_routers(run):
        pairs = zip(iter_expert_loads(run), load_scores(run), strict=True)
        return stack_rows(BALANCE_COLUMNS, [_load_row(loads, scores) for loads, scores in pairs if loads.n])
    counts = load_counts(run, "phase", ANY_SLOT, "all")
    if counts.n == 0:
        return stack_rows(BALANCE_COLUMNS, [])
    frames = []
    all_scores = [Scores(None, None) for _ in run.routers] if run.counts_only else load_scores(run)
    for router, clustered, scores in zip(run.routers, counts.clustered, all_scores, strict=True):
        by_expert = clustered.sum(axis=2)  # (clusters, experts)
        load = by_expert.sum(axis=0)
        measured = load_balance(load)
        verdicts = expert_verdicts(counts, by_expert)
        row: dict[str, object] = {} if measured is None else asdict(measured)
        row |= asdict(scores)
        row |= {name: int(np.count_nonzero(verdicts == name)) for name in (DEAD, UNSEEN)}
        row |= {"dropped": counts.n * router.n_slots - int(load.sum()), "n": counts.n}
        frames.append(router_rows(router, ANY_SLOT, "all", {}, row))
    return stack_rows(BALANCE_COLUMNS, frames)


def _load_row(loads: ExpertLoads, scores: Scores) -> pl.DataFrame:
    """The row of a router of which loads alone are counted."""
    measured = load_balance(loads.load)
    row: dict[str, object] = {} if measured is None else asdict(measured)
    row |= asdict(scores)
    row |= {"unseen": int(np.count_nonzero(loads.load == 0)), "n": loads.n}
    row |= {"dropped": loads.n * loads.router.n_slots - int(loads.load.sum())}
    return router_rows(loads.router, ANY_SLOT, "all", {}, row)
