"""compare.html: what the tables of a comparison say, question by question.

It computes nothing: it draws the tables of `tables.between` and `tables.surprisal` and says what they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from moe_probe.charts.agreement import (
    agreement_deciles,
    agreement_labels,
    agreement_lines,
    load_difference_heatmap,
)
from moe_probe.charts.surprisal import surprisal_points
from moe_probe.report.page import Field, Page, Part, figure, html, shown, table
from moe_probe.tables.between import ALL
from moe_probe.tables.paired import Pair, comparison_warnings

if TYPE_CHECKING:
    from moe_probe.store import Run

_SURPRISAL_NOTE = (
    "How many bits more the second run needs for the same token, in the mean: what its disagreements, and all else that"
    " differs, cost in prediction. Each token is compared with itself, so that these intervals are far narrower than"
    " those of either run's own surprisal. Labels are of the token that is foretold."
)
_SHOWN_EXPERTS = 20
_LEVEL = 0.05

AGREED = tuple(
    column
    for name, heading in (
        ("set_overlap", "experts in common"),
        ("first_choice", "same first choice"),
        ("exact_set", "same set"),
    )
    for column in (
        Field(name, heading, ".1%", (f"{name}_ci_low", f"{name}_ci_high")),
        Field(f"{name}_chance", "by chance", ".1%"),
    )
)
"""The columns of agreement, with what chance gives."""

_PLACE = (Field("layer"), Field("router"))
_N = Field("n", "tokens")


def comparison_page(
    pair: Pair, agreed: pl.DataFrame, moved: pl.DataFrame, foretold: pl.DataFrame | None = None
) -> Page:
    """Return the page about two runs.

    Args:
        pair: the runs.
        agreed: from `tables.between.agreement_table`, with every label set that the page shall show.
        moved: from `tables.between.load_difference_table`.
        foretold: from `tables.surprisal.surprisal_table`, with the same label sets; None where a run has no surprisal.
    """
    overall = agreed.filter(label_set=ALL, decile="all")
    page = Page(
        title=f"{_name(pair.run_a)} and {_name(pair.run_b)}: do they route alike?",
        lead=_lead(pair, overall),
        kicker="moe_probe · two runs over the same tokens",
    )
    page.add_opening(*_opening(pair))
    page.add_section(
        "Agreement by layer",
        "Experts in common: of the assignments, those that both runs made. Between checkpoints of one training this is"
        " OLMoE's router saturation. Chance is what random pairs of tokens would share, given the loads of both runs:"
        " runs that both love one expert agree often without agreeing on anything.",
        figure(agreement_lines(agreed), table(overall, columns=[*_PLACE, *AGREED, _N], limit=len(overall))),
    )
    note, parts = _deciles(agreed)
    page.add_section("Agreement by margin", note, *parts)
    for (label_set,) in (
        agreed.filter(pl.col("label_set") != ALL).select("label_set").unique(maintain_order=True).rows()
    ):
        rows = agreed.filter(label_set=label_set)
        page.add_section(
            f"Agreement by {label_set}",
            "Two values differ for sure only where their intervals do not touch. Chance is each value's own. Labels are"
            f" those of {_name(pair.run_a)}.",
            figure(
                agreement_labels(agreed, label_set),
                table(rows, columns=[*_PLACE, Field("label", label_set), *AGREED, _N]),
            ),
        )
    note, parts = _moved(moved)
    page.add_section("Load", note, *parts)
    if foretold is not None:
        page.add_section("Surprisal", _SURPRISAL_NOTE, *_foretold(foretold))
    return page


def _lead(pair: Pair, overall: pl.DataFrame) -> str:
    if overall.is_empty():
        return "Not enough data: no token was compared."
    ordered = overall.sort("set_overlap", "router", descending=[True, False])
    best, worst = ordered.row(0, named=True), ordered.row(-1, named=True)
    n = int(overall["n"].to_numpy().max())
    said = (
        f"Both runs were compared on {n:,} tokens, without the first four of each window. They chose"
        f" {_share(worst, 'set_overlap')} of their experts in common in layer {worst['layer']}"
        f" (chance {worst['set_overlap_chance']:.1%})"
    )
    if len(overall) > 1:
        said += f", where they agree least, and {_share(best, 'set_overlap')} in layer {best['layer']}, where most"
    said += (
        f". The first choice was the same for {_share(worst, 'first_choice')} of the tokens in layer {worst['layer']}."
    )
    if not pair.complete:
        said += f" The runs hold {pair.run_a.n_tokens:,} tokens; whole documents were drawn, by their names."
    return said


def _share(row: dict[str, object], name: str) -> str:
    low, high = row[f"{name}_ci_low"], row[f"{name}_ci_high"]
    return f"{row[name]:.1%}" + ("" if low is None else f" ({low:.1%} to {high:.1%})")


def _opening(pair: Pair) -> list[Part]:
    """What the two runs are, and what a reader must know of them."""
    said = comparison_warnings(pair.run_a, pair.run_b)
    said += [f"{_name(run)}: {warning}" for run in (pair.run_a, pair.run_b) for warning in run.warnings]
    warned = "".join(f"<li>{shown(warning)}</li>" for warning in said)
    facts_a, facts_b = _facts(pair.run_a), _facts(pair.run_b)
    rows = [(name, facts_a[name], facts_b[name]) for name in facts_a if facts_a[name] or facts_b[name]]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("fact", "a", "b"), pl.String), orient="row")
    return [
        table(frame, columns=[Field("fact", " "), Field("a", "first run"), Field("b", "second run")]),
        *([html(f"<ul>{warned}</ul>")] if warned else []),
    ]


def _name(run: Run) -> str:
    return run.path.resolve().name


def _facts(run: Run) -> dict[str, str | None]:
    """What a run says of itself; None where it does not."""
    model, settings = run.manifest.get("model", {}), run.manifest.get("settings", {})
    said = {
        "run": _name(run),
        "model": model.get("name"),
        "revision": model.get("revision"),
        "fingerprint of the weights": (model.get("fingerprint") or "")[:16] or None,
        "quantisation": model.get("quantization") or "none",
        "dtype": model.get("dtype"),
        "device": model.get("device"),
        "tokens in a window": settings.get("context"),
        "tokens": f"{run.n_tokens:,}" + ("" if run.complete else ", not complete"),
        "documents": f"{run.n_documents:,}",
        "self-check": run.manifest.get("self_check"),
    }
    return {name: None if value is None else str(value) for name, value in said.items()}


def _deciles(agreed: pl.DataFrame) -> tuple[str, list[Part]]:
    """The note of the section, then its parts."""
    rows = agreed.filter((pl.col("label_set") == ALL) & (pl.col("decile") != "all"))
    if rows.is_empty():
        return "The first run has no margins, so that nobody knows how close its decisions were.", []
    margin = (Field("margin_low", "margin from", ".4f"), Field("margin_high", "to", ".4f"))
    numbers = table(rows, columns=[*_PLACE, Field("decile"), *margin, *AGREED, _N], limit=len(rows))
    note = (
        "The margin is the selection score of the last expert that was chosen less that of the first that was not: a"
        " small change of the model flips near-ties, in the first tenth, and leaves the last tenth alone. If even the"
        " last tenth disagrees, more than rounding has changed. The margin says nothing of which of the chosen experts"
        " comes first."
    )
    return note, [figure(agreement_deciles(agreed), numbers)]


def _foretold(foretold: pl.DataFrame) -> list[Part]:
    """A picture and its numbers for each label set; the total alone where there is none."""
    fields = (
        Field("label_set", "labels"),
        Field("label"),
        Field("surprisal_a", "bits in the first run", ".3f"),
        Field("surprisal_b", "in the second", ".3f"),
        Field("difference", "difference", "+.4f", ("ci_low", "ci_high")),
        Field("q_value", "q", ".3f"),
        _N,
    )
    named = foretold.filter(pl.col("label_set") != ALL)["label_set"].unique(maintain_order=True).to_list()
    parts = []
    for label_set in named or [None]:
        rows = foretold.filter(pl.col("label_set").is_in([ALL, label_set or ALL]))
        parts.append(figure(surprisal_points(foretold, label_set), table(rows, columns=fields)))
    return parts


def _moved(moved: pl.DataFrame) -> tuple[str, list[Part]]:
    """The note of the section, then its parts."""
    sure = moved.filter(pl.col("q_value") < _LEVEL).sort(pl.col("difference").abs(), descending=True)
    fields = (
        *_PLACE,
        Field("slot"),
        Field("expert"),
        Field("share_a", "share in the first run", ".2%"),
        Field("share_b", "in the second", ".2%"),
        Field("difference", "difference", "+.2%", ("ci_low", "ci_high")),
        Field("q_value", "q", ".3f"),
    )
    note = (
        "Two runs may disagree on many tokens and still load their experts alike. Intervals are of the difference on"
        " the same documents."
    )
    return note, [
        figure(load_difference_heatmap(moved)),
        table(
            sure,
            columns=fields,
            limit=_SHOWN_EXPERTS,
            title="Experts whose share moved, q < .05, the largest first",
            empty="No expert's share moved beyond what its documents' differences allow for (q < .05).",
        ),
    ]
