"""Two runs over the same tokens, as tables: how often both chose the same experts, and whose load moved.

Two runs over different text, or through different routers, are refused. It does not know whether an expert's index
means the same in both: `comparison_warnings` says what a reader must know.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS, find_label
from moe_probe.errors import BadInputError
from moe_probe.measures.agreement import (
    N_DECILES,
    Agreed,
    Agreement,
    agreements,
    margin_deciles,
    share_difference,
)
from moe_probe.measures.multiplicity import q_values
from moe_probe.tables.columns import EXPERT, LAYER, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.paired import Pair, comparison_warnings, pair_runs
from moe_probe.tables.rows import ANY_SLOT, FIRST_CHOICE, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

__all__ = [
    "AGREEMENT_COLUMNS",
    "ALL",
    "LOAD_DIFFERENCE_COLUMNS",
    "SATURATION_COLUMNS",
    "agreement",
    "agreement_table",
    "as_columns",
    "comparison_warnings",
    "decile_groups",
    "label_groups",
    "load_difference",
    "load_difference_table",
    "saturation",
    "training_step",
]

ALL = "all"
"""What `label_set`, `label` and `decile` say of rows over every token."""

_STEP = re.compile(r"step[-_ ]?(\d+)", re.IGNORECASE)

_OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060), 5.1: there router saturation, for checkpoints"


def _shares(name: str, meaning: str, chance: str, source: str = "") -> tuple[Column, ...]:
    return (
        Column(name, pl.Float64, "0 to 1", meaning, source),
        Column(f"{name}_chance", pl.Float64, "0 to 1", f"Baseline of {name}: {chance}"),
        Column(
            f"{name}_ci_low",
            pl.Float64,
            "0 to 1",
            f"Lower end of {name} at 95 %: Wilson's interval for as many independent tokens as the clusters are worth.",
        ),
        Column(f"{name}_ci_high", pl.Float64, "0 to 1", f"Upper end of {name} at 95 %."),
    )


_MEASURED = (
    *_shares(
        "set_overlap",
        "Assignments that both runs made, over those that the fuller of the two made: the mean of |A ∩ B| / k where no "
        "slot was dropped.",
        "its mean over all pairs of a token of one run and a token of the other, among the tokens of the row.",
        _OLMOE,
    ),
    *_shares(
        "first_choice",
        "Share of the tokens whose slot 0 held the same expert.",
        "the sum over experts of the product of both runs' shares of first choices, among the tokens of the row.",
    ),
    *_shares(
        "exact_set",
        "Share of the tokens that were sent to the same experts, in whatever order.",
        "the sum over sets that occurred of the product of both runs' shares, among the tokens of the row.",
    ),
    Column(
        "cluster_unit",
        pl.String,
        "document, block",
        "What counts as one draw. block: fewer than 5 documents, so blocks of 256 tokens, and the interval holds for "
        "this text only.",
    ),
    Column("n", pl.Int64, "tokens", "Tokens compared: those for which either run executed an expert."),
)

AGREEMENT_COLUMNS = (
    LAYER,
    ROUTER,
    TOKENS,
    Column("label_set", pl.String, "name", "Which labels; all: tokens whatever their label."),
    Column("label", pl.String, "name", "The label's value in the first run; all: whatever it is."),
    Column(
        "decile",
        pl.String,
        "all, 1 to 10",
        "Tenth of the tokens by the first run's margin, 1 the closest to a tie; equal margins lie in one. All: every "
        "token. There are none where the first run has no margins.",
    ),
    Column(
        "margin_low",
        pl.Float64,
        "selection score",
        "Least margin of the first run in the row; a margin is the last chosen less the first unchosen selection "
        "score. Null where it is not known, or larger than float16 holds.",
    ),
    Column("margin_high", pl.Float64, "selection score", "Greatest margin of the first run in the row."),
    *_MEASURED,
)

SATURATION_COLUMNS = (
    Column("checkpoint", pl.Int64, "index", "Place of the run among those given, counted from 0."),
    Column("run", pl.String, "name", "The run's folder."),
    Column(
        "step",
        pl.Int64,
        "training steps",
        "The checkpoint's step, as the name of the run, its model or its revision says (step-000060, step5000); null "
        "where none does.",
    ),
    LAYER,
    ROUTER,
    TOKENS,
    *_MEASURED,
)

LOAD_DIFFERENCE_COLUMNS = (
    LAYER,
    ROUTER,
    SLOT,
    TOKENS,
    EXPERT,
    Column("assignments_a", pl.Int64, "count", "Assignments of the expert in the first run."),
    Column("assignments_b", pl.Int64, "count", "Assignments of the expert in the second run."),
    Column("share_a", pl.Float64, "0 to 1", "The expert's share of the first run's assignments."),
    Column("share_b", pl.Float64, "0 to 1", "The expert's share of the second run's assignments."),
    Column("difference", pl.Float64, "-1 to 1", "share_b less share_a. Baseline: 0, no change."),
    Column(
        "ci_low",
        pl.Float64,
        "-1 to 1",
        "Lower end of difference at 95 %, linearised within clusters: what both runs share does not widen it.",
        "Cochran 1977, Sampling Techniques, 6.3",
    ),
    Column("ci_high", pl.Float64, "-1 to 1", "Upper end of difference at 95 %."),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        "Least false discovery rate at which the difference is called one, over the whole table; null with fewer than "
        "5 documents.",
        "Benjamini & Hochberg 1995, Controlling the False Discovery Rate",
    ),
    Column("uniform", pl.Float64, "0 to 1", "1/E: the share of every expert under even use."),
    Column("cluster_unit", pl.String, "document, block", "What counts as one draw, as in agreement."),
    Column("n", pl.Int64, "tokens", "Tokens compared."),
)


def agreement(run_a: Run, run_b: Run, *, by: str | Sequence[str] | None = None) -> pl.DataFrame:
    """Return how often two runs over the same tokens chose the same experts, by layer and by run_a's margin.

    All tokens are compared but the first four of a window; of runs above two million tokens, as many whole documents
    as that. Read `comparison_warnings` beside it.

    Args:
        run_a: an open run; its margins make the deciles.
        run_b: another of the same documents.
        by: one or more of run_a's label sets, which add a row for each value; of labels that cut the text into words
            only word-initial tokens are counted. Tokens that are `untagged` are in the total alone.

    Returns:
        The columns of agreement.csv. Intervals are null where all tokens are of one cluster.

    Raises:
        BadInputError: the runs are of different text (the message says where they first differ) or of different
            routers, or run_a has no such label.
    """
    labels = [by] if isinstance(by, str) else list(by or ())
    return agreement_table(pair_runs(run_a, run_b, labels), labels)


def agreement_table(pair: Pair, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return what `agreement` does, of runs that are paired already with the labels of `by`."""
    named = [labelled for label in by for labelled in label_groups(pair, label)]
    frames = []
    for router in pair.run_a.routers:
        margins = pair.margins(router)
        groups = [({}, np.arange(pair.tokens.height)), *decile_groups(margins), *named]
        n_deciles = sum("decile" in facts for facts, _ in groups)
        measured = agreements(
            *pair.experts(router),
            pair.clusters,
            [rows for _, rows in groups],
            n_experts=router.n_experts,
            lenders=range(1, 1 + n_deciles) or [0],
        )
        everywhere = {"label_set": ALL, "label": ALL, "decile": ALL, "tokens": "all", "cluster_unit": pair.cluster_unit}
        rows = [
            everywhere | facts | _margin_range(margins, group) | as_columns(found)
            for (facts, group), found in zip(groups, measured, strict=True)
            if found is not None
        ]
        if rows:
            frames.append(_of_router(router, rows))
    return stack_rows(AGREEMENT_COLUMNS, frames)


def saturation(runs: Sequence[Run], reference: Run) -> pl.DataFrame:
    """Return how often earlier runs chose the experts that a reference chooses, run by run and layer by layer.

    With checkpoints of one training and its end as the reference, `set_overlap` is OLMoE's router saturation.

    Args:
        runs: open runs of the same documents, in the order of training.
        reference: what each is compared with.

    Raises:
        BadInputError: no run is given, or one is of other text or other routers than the reference.
    """
    if not runs:
        raise BadInputError("saturation needs at least one run to compare with the reference, got none")
    frames = []
    for place, run in enumerate(runs):
        pair = pair_runs(run, reference)
        everyone = np.arange(pair.tokens.height)
        for router in run.routers:
            (found,) = agreements(
                *pair.experts(router), pair.clusters, [everyone], n_experts=router.n_experts, lenders=[0]
            )
            if found is not None:
                facts = {
                    "checkpoint": place,
                    "run": run.path.resolve().name,
                    "step": training_step(run),
                    "tokens": "all",
                    "cluster_unit": pair.cluster_unit,
                }
                frames.append(_of_router(router, [facts | as_columns(found)]))
    return stack_rows(SATURATION_COLUMNS, frames)


def training_step(run: Run) -> int | None:
    """Return the step of training that a run's checkpoint is of, or None where no name says so.

    The folder's name is asked first, then that of the model, then its revision.
    """
    model = run.manifest.get("model", {})
    names = (run.path.resolve().name, model.get("name"), model.get("revision"))
    found = (_STEP.search(str(name)) for name in names if name)
    return next((int(match[1]) for match in found if match), None)


def load_difference(run_a: Run, run_b: Run) -> pl.DataFrame:
    """Return how each expert's share of the load differs between two runs over the same tokens.

    Args:
        run_a: an open run.
        run_b: another of the same documents.

    Returns:
        A row for every expert, for any slot and for the first choice, over the tokens that `agreement` compares.

    Raises:
        BadInputError: the runs are of different text or different routers.
    """
    return load_difference_table(pair_runs(run_a, run_b))


def load_difference_table(pair: Pair) -> pl.DataFrame:
    """Return what `load_difference` does, of runs that are paired already."""
    frames = []
    for router in pair.run_a.routers:
        experts = pair.experts(router)
        for slot in (ANY_SLOT, FIRST_CHOICE):
            slots = slice(None) if slot == ANY_SLOT else slice(0, 1)
            loads_a, loads_b = (_loads(one[:, slots], pair.clusters, router.n_experts) for one in experts)
            found = share_difference(loads_a, loads_b)
            if found is None:
                continue
            columns: dict[str, NDArray[np.generic]] = {
                "expert": np.arange(router.n_experts),
                "assignments_a": loads_a.sum(axis=0),
                "assignments_b": loads_b.sum(axis=0),
                "share_a": found.share_a,
                "share_b": found.share_b,
                "difference": found.difference,
                "ci_low": found.low,
                "ci_high": found.high,
                "q_value": found.p,
            }
            same = {"uniform": 1 / router.n_experts, "cluster_unit": pair.cluster_unit, "n": pair.tokens.height}
            frames.append(router_rows(router, slot, "all", columns, same))
    table = stack_rows(LOAD_DIFFERENCE_COLUMNS, frames)
    p = table["q_value"].fill_null(np.nan).to_numpy()
    known = q_values(p) if pair.cluster_unit == "document" else np.full(p.shape, np.nan)
    return table.with_columns(pl.Series("q_value", known, pl.Float64).fill_nan(None))


def decile_groups(margins: NDArray[np.float32] | None) -> Iterator[tuple[dict[str, object], NDArray[np.intp]]]:
    """Yield the columns and the tokens, places among those compared, of each decile that has any."""
    if margins is None:
        return
    deciles = margin_deciles(margins)
    for decile in range(1, N_DECILES + 1):
        rows = np.flatnonzero(deciles == decile)
        if rows.size:
            yield {"decile": str(decile)}, rows


def label_groups(pair: Pair, name: str) -> Iterator[tuple[dict[str, object], NDArray[np.intp]]]:
    """Yield the columns and the tokens, places among those compared, of each value of a label but `untagged`."""
    word_level = find_label(pair.run_a, name).word_level
    values = pair.tokens[name].cast(pl.String)
    passed_over = (schema.UNTAGGED, *(schema.NOT_WORDS if word_level else ()))
    codes = values.rank("dense").fill_null(0).to_numpy()
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    for rows in np.split(order, starts[1:]) if order.size else ():
        value = values[int(rows[0])]
        if value not in passed_over:
            yield {"label_set": name, "label": value, "tokens": "word_initial" if word_level else "all"}, rows


def _margin_range(margins: NDArray[np.float32] | None, rows: NDArray[np.intp]) -> dict[str, object]:
    if margins is None:
        return {}
    known = margins[rows][~np.isnan(margins[rows])]
    ends = {"margin_low": float(known.min()), "margin_high": float(known.max())} if known.size else {}
    return {name: end if np.isfinite(end) else None for name, end in ends.items()}


def as_columns(found: Agreement) -> dict[str, object]:
    """Return the columns of what was measured on one group of tokens."""
    columns: dict[str, object] = {"n": found.n}
    for name in ("set_overlap", "first_choice", "exact_set"):
        share: Agreed = getattr(found, name)
        columns |= {name: share.value, f"{name}_chance": share.chance}
        columns |= {f"{name}_ci_low": share.low, f"{name}_ci_high": share.high}
    return columns


def _of_router(router: schema.Router, rows: Sequence[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(
        layer=pl.lit(router.layer), router=pl.lit(router.index)
    )


def _loads(experts: NDArray[np.int32], clusters: NDArray[np.int64], n_experts: int) -> NDArray[np.int64]:
    """Count the assignments of each cluster and expert."""
    held = experts >= 0
    cells = (clusters[:, None] * n_experts + experts)[held]
    return np.bincount(cells, minlength=N_CLUSTERS * n_experts).reshape(N_CLUSTERS, n_experts)
