"""Which experts each domain's tokens need most, as ESFT chooses experts to fine-tune, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS, find_label, load_rows, refuse_wide
from moe_probe.counts.clusters import Clusters, unit_for
from moe_probe.errors import BadInputError
from moe_probe.measures.affinity import Means, clustered_means, ranks, smallest_set
from moe_probe.measures.shares import clustered_shares
from moe_probe.tables.columns import EXPERT, LAYER, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.counts import TokenRows
    from moe_probe.store import Run

ALL_TASKS = "all"
DOMAIN_OF_DOCUMENT = "domain"

_ESFT = "Wang et al. 2024, Let the Expert Stick to His Last (arXiv 2407.01906), 3.2"
_OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060), 5.3, Domain Specialization"

AFFINITY_COLUMNS = (
    Column(
        DOMAIN_OF_DOCUMENT,
        pl.String,
        "all, or a domain",
        "The tokens counted: all, or those of documents of one domain; or with one value of the label asked for.",
    ),
    LAYER,
    ROUTER,
    EXPERT,
    SLOT,
    TOKENS,
    Column(
        "token_share",
        pl.Float64,
        "0 to 1",
        "Assignments of the expert over tokens times slots; dropped slots count below the line.",
        f"{_ESFT}, token selection ratio",
    ),
    Column(
        "token_share_ci_low",
        pl.Float64,
        "0 to 1",
        "Lower end of token_share at 95 % (Wilson's, with the effective number of tokens).",
    ),
    Column("token_share_ci_high", pl.Float64, "0 to 1", "Upper end of token_share at 95 %."),
    Column("uniform", pl.Float64, "0 to 1", "token_share under even load, 1/E: its baseline."),
    Column(
        "domain_specialisation",
        pl.Float64,
        "0 to 1",
        "Share of the tokens that the expert is chosen for: token_share times the number of slots.",
        _OLMOE,
    ),
    Column(
        "domain_specialisation_uniform", pl.Float64, "0 to 1", "The same under even load, k/E: its baseline.", _OLMOE
    ),
    Column(
        "gate_score",
        pl.Float64,
        "factor",
        "Mean over tokens of the weight of the expert, 0 where it is not chosen. Null where a weight is no number.",
        f"{_ESFT}, average gate score",
    ),
    Column("gate_score_ci_low", pl.Float64, "factor", "Lower end of gate_score at 95 %."),
    Column("gate_score_ci_high", pl.Float64, "factor", "Upper end of gate_score at 95 %."),
    Column("gate_uniform", pl.Float64, "factor", "Mean of gate_score over experts: its baseline."),
    Column("rank", pl.Int64, "from 1", "Place by descending token_share; of equal ones the lower expert is first."),
    Column(
        "in_set",
        pl.Boolean,
        "true, false",
        "Whether it is among the first experts by descending token_share whose sum reaches p (by default 0.2).",
        _ESFT,
    ),
    Column(
        "in_gate_set",
        pl.Boolean,
        "true, false",
        "The same by gate_score. Null where one is not known.",
        _ESFT,
    ),
    Column(
        "cluster_unit",
        pl.String,
        "document, block",
        "What one draw is for the intervals: a document or, where fewer than five have a token, a block of 256 tokens; "
        "what is said then holds for this text only.",
    ),
    Column("n", pl.Int64, "tokens", "Tokens measured: of whole documents, at most two million of the run's tokens."),
)


@dataclass(frozen=True, eq=False)
class _Task:
    """The tokens of a domain: which rows they are, and their clusters, (tokens,) each."""

    name: str
    rows: NDArray[np.int64]
    clusters: NDArray[np.int64]
    cluster_unit: str
    tokens: str


def affinity(run: Run, *, p: float = 0.2, by: str = DOMAIN_OF_DOCUMENT) -> pl.DataFrame:
    """Return how much of each domain's work each expert does, and the fewest experts that do a given part of it.

    Args:
        run: an open run.
        p: the part that the chosen experts' scores must reach, above 0 and at most 1.
        by: "domain", the documents' domain, or one of the run's label sets.

    Returns:
        The columns of affinity.csv: rows over all tokens first, then of each domain.

    Raises:
        BadInputError: `p` is out of range, the run has no such label, or it has a router of more than 16,384 experts.
    """
    run.need_tokens("the table affinity")
    refuse_wide(run, "affinity")
    if not 0 < p <= 1:
        raise BadInputError(f"p {p!r}: the part that the experts must reach lies above 0 and is at most 1")
    columns = [] if by == DOMAIN_OF_DOCUMENT else [find_label(run, by).name]
    rows = load_rows(run, columns)
    tasks = list(_tasks(run, rows, by))
    frames = []
    for router in run.routers if tasks else []:
        experts, weights = rows.experts(router), rows.weights(router)
        for place, task in enumerate(tasks):
            frame = _task_rows(router, task, experts[task.rows], weights[task.rows], p)
            frames.append(frame.with_columns(place=pl.lit(place)))
    if not frames:
        return stack_rows(AFFINITY_COLUMNS, [])
    return stack_rows(AFFINITY_COLUMNS, [pl.concat(frames).sort("place", "router", "expert")])


def _tasks(run: Run, rows: TokenRows, by: str) -> Iterator[_Task]:
    frame = rows.frame.with_row_index("place").filter(pl.col("window_position") >= schema.SINK_POSITIONS)
    tokens = ALL_TASKS
    if by == DOMAIN_OF_DOCUMENT:
        frame = frame.with_columns(task=pl.col("domain_of_document"))
    else:
        frame = frame.with_columns(task=pl.col(by).cast(pl.String)).filter(pl.col("task") != schema.UNTAGGED)
        if find_label(run, by).word_level:
            frame, tokens = frame.filter(~pl.col("task").is_in(schema.NOT_WORDS)), "word_initial"
    names = frame["task"].drop_nulls().unique().sort().to_list()
    for name in [None, *names]:
        part = frame if name is None else frame.filter(pl.col("task") == name)
        if not part.is_empty():
            documents = part["document"].to_numpy()
            unit = unit_for(len(np.unique(documents)))
            clusters = Clusters(run, unit).of(documents, part["position"].to_numpy())
            places = part["place"].to_numpy().astype(np.int64)
            yield _Task(ALL_TASKS if name is None else name, places, clusters, unit, tokens)


def _task_rows(
    router: schema.Router, task: _Task, experts: NDArray[np.int32], weights: NDArray[np.float32], p: float
) -> pl.DataFrame:
    """A row an expert, from (tokens, slots)."""
    n_experts, n_slots = router.n_experts, router.n_slots
    # A column more takes the dropped slots, so that shares are of tokens times slots.
    held = np.where(experts == schema.DROPPED, n_experts, experts).astype(np.int64)
    codes = (task.clusters[:, None] * (n_experts + 1) + held).ravel()
    shape = (N_CLUSTERS, n_experts + 1)
    shares = clustered_shares(np.bincount(codes, minlength=shape[0] * shape[1]).reshape(shape))
    gates, known = _gate_scores(task, held, weights, shape)
    token_share, gate_score = shares.share[:n_experts], np.where(known, gates.value, np.nan)
    all_known = bool(known.all())
    columns = {
        "expert": np.arange(n_experts),
        "token_share": token_share,
        "token_share_ci_low": shares.low[:n_experts],
        "token_share_ci_high": shares.high[:n_experts],
        "domain_specialisation": token_share * n_slots,
        "gate_score": gate_score,
        "gate_score_ci_low": np.where(known, gates.low, np.nan),
        "gate_score_ci_high": np.where(known, gates.high, np.nan),
        "rank": ranks(token_share),
        "in_set": smallest_set(token_share, p),
    }
    same = {
        "domain": task.name,
        "cluster_unit": task.cluster_unit,
        "uniform": 1 / n_experts,
        "domain_specialisation_uniform": n_slots / n_experts,
        "gate_uniform": float(gate_score.mean()) if all_known else None,
        "n": task.rows.size,
    }
    frame = router_rows(router, ANY_SLOT, task.tokens, columns, same)
    chosen = pl.Series(smallest_set(gate_score, p)) if all_known else pl.lit(None, pl.Boolean)
    return frame.with_columns(chosen.alias("in_gate_set"), gate_uniform=pl.col("gate_uniform").cast(pl.Float64))


def _gate_scores(
    task: _Task, held: NDArray[np.int64], weights: NDArray[np.float32], shape: tuple[int, int]
) -> tuple[Means, NDArray[np.bool_]]:
    """Mean weights, (experts,), and which are known: those of which every weight is a number."""
    number = np.isfinite(weights)
    codes = (task.clusters[:, None] * shape[1] + held).ravel()
    sums = np.bincount(codes, np.where(number, weights, 0).ravel(), shape[0] * shape[1]).reshape(shape)[:, :-1]
    known = np.bincount(held[~number], minlength=shape[1])[:-1] == 0
    return clustered_means(sums, np.bincount(task.clusters, minlength=shape[0])), known
