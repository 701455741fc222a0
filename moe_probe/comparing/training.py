"""saturation.html: how early in a training each layer settles on the experts that it has at the end.

It computes nothing: it draws the table of `tables.between.saturation` and says what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from moe_probe.charts.agreement import saturation_lines
from moe_probe.comparing.page import AGREED
from moe_probe.counts import BLOCK_POSITIONS, FEWEST_DOCUMENTS
from moe_probe.report.page import Field, Page, figure, html, shown, table

if TYPE_CHECKING:
    from moe_probe.store import Run

_SAME_TRAINING = (
    "Experts are compared by their index: that is right for checkpoints of one training, where expert 3 stays expert 3,"
    " and for nothing else."
)
_FIELDS = (Field("run"), Field("step"), Field("layer"), Field("router"), *AGREED, Field("n", "tokens"))


def saturation_page(runs: Sequence[Run], reference: Run, settled: pl.DataFrame) -> Page:
    """Return the page about the checkpoints of a training.

    Args:
        runs: in the order of training.
        reference: what they are compared with.
        settled: from `tables.between.saturation`.
    """
    page = Page(
        title="How early does each layer settle on its experts?",
        lead=_lead(settled, _name(reference)),
        kicker="moe_probe · checkpoints of one training",
    )
    page.add_opening(html(f"<ul>{''.join(f'<li>{shown(said)}</li>' for said in _warnings(runs, reference))}</ul>"))
    page.add_section(
        "Experts in common",
        "Of the assignments of a checkpoint, those that the reference makes too: OLMoE's router saturation. Chance is"
        " what random pairs of tokens would share, given the loads of both: early on, a router may agree with its later"
        " self for no better reason than that both load one expert most.",
        figure(saturation_lines(settled), table(settled, columns=_FIELDS, limit=len(settled))),
    )
    page.add_section(
        "Same first choice",
        "The expert with the largest weight. It may change while the set does not.",
        figure(saturation_lines(settled, measure="first_choice")),
    )
    page.add_section(
        "Same set of experts",
        "All slots, in any order: the strictest of the three.",
        figure(saturation_lines(settled, measure="exact_set")),
    )
    return page


def _lead(settled: pl.DataFrame, reference: str) -> str:
    if settled.is_empty():
        return "Not enough data: no token was compared."
    first = settled.filter(pl.col("checkpoint") == settled["checkpoint"].min()).sort("set_overlap", "router")
    slowest, fastest = first.row(0, named=True), first.row(-1, named=True)
    last = settled.filter(pl.col("checkpoint") == settled["checkpoint"].max())
    ends = last["set_overlap"].to_numpy()
    name = str(slowest["run"]) if slowest["step"] is None else f"step {slowest['step']:,}"
    low, high = (
        f"{row['set_overlap']:.1%} (layer {row['layer']}, chance {row['set_overlap_chance']:.1%})"
        for row in (slowest, fastest)
    )
    return (
        f"At {name}, the first checkpoint given, layers share {low} to {high} of their experts with the reference,"
        f" {reference}; at the last checkpoint, {ends.min():.1%} to {ends.max():.1%}."
    )


def _warnings(runs: Sequence[Run], reference: Run) -> list[str]:
    said = [_SAME_TRAINING]
    windows = {str(run.manifest.get("settings", {}).get("context")) for run in (*runs, reference)}
    if len(windows) > 1:
        said.append(
            f"The windows differ ({', '.join(sorted(windows))} tokens): part of the disagreement may come from the"
            " other text that a model saw before a token."
        )
    if reference.n_documents < FEWEST_DOCUMENTS:
        said.append(
            f"There are fewer than {FEWEST_DOCUMENTS} documents: intervals are over blocks of {BLOCK_POSITIONS} tokens"
            " and hold for this text only."
        )
    return said + [f"{_name(run)}: {warning}" for run in (*runs, reference) for warning in run.warnings]


def _name(run: Run) -> str:
    return run.path.resolve().name
