"""How often neighbouring tokens share an expert, layer by layer, beside what chance gives."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from moe_probe.charts.look import GREY, dress, escape, named_ticks, nothing, range_text
from moe_probe.errors import BadInputError
from moe_probe.palette import EXPERT_COLOURS

MEASURES = {
    "first_choice": ("first", "that have the same first choice"),
    "either": ("either", "that share an expert in any slot"),
}
"""What may be drawn: the ending of its columns, and which neighbours it counts."""

_OBSERVED = EXPERT_COLOURS[2]
CHANCES = (
    ("uniform", "chance: even routing", GREY, "dot", "x"),
    ("load", "chance: two tokens of a domain", EXPERT_COLOURS[7], "dash", "square"),
    ("document", "chance: two tokens of a document", EXPERT_COLOURS[3], "longdash", "diamond"),
    ("token", "chance: the same tokens elsewhere", EXPERT_COLOURS[5], "dashdot", "triangle-up"),
)
"""Column, name, colour, dash and mark of each chance, from the one that knows least."""


def repetition_lines(frame: pl.DataFrame, domain: str = "all", *, measure: str = "first_choice") -> go.Figure:
    """Draw how often neighbours share an expert, with its interval, against the four chances.

    Args:
        frame: from `tables.repetition`.
        domain: whose rows.
        measure: "first_choice", or "either" for sets that meet.

    Raises:
        BadInputError: `measure` is neither.
    """
    if measure not in MEASURES:
        raise BadInputError(f"measure {measure!r}: draw one of {', '.join(MEASURES)}")
    ending, counted = MEASURES[measure]
    title = "Do neighbouring tokens go to the same expert?"
    rows = frame.filter((pl.col("domain") == domain) & pl.col(measure).is_not_null()).sort("router")
    if rows.is_empty():
        return nothing(title)
    figure = go.Figure(
        [*(_chance(rows, column, ending, *look) for column, *look in CHANCES), _observed(rows, measure, ending)]
    )
    eligible = range_text(rows["n_token_pairs"])
    documents = "all documents" if domain == "all" else escape(domain)
    dress(
        figure,
        title,
        f"Share of neighbours {counted}; bars: 95 %. Baselines, dashed: four chances. What exceeds them holds "
        "drift and attention: it is not syntax.",
        f"n = {range_text(rows['pairs'])} pairs of consecutive tokens of {documents}, without the first four of a "
        f"window; {eligible} for the last chance, of tokens seen often.",
        height=420,
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "reversed"}
    figure.update_layout(legend=legend, hovermode="x unified", margin={"b": 100})
    figure.update_xaxes(title="layer", showgrid=False, **named_ticks(_names(rows)))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def _names(rows: pl.DataFrame) -> list[str]:
    """`3`, and `3 · 1`, `3 · 2` where a layer has two routers."""
    ranked = rows.select("layer", rank=pl.int_range(1, pl.len() + 1).over("layer"), of=pl.len().over("layer"))
    return [f"{layer}" + (f" · {rank}" if of > 1 else "") for layer, rank, of in ranked.rows()]


def _chance(rows: pl.DataFrame, column: str, ending: str, name: str, colour: str, dash: str, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=list(range(len(rows))),
        y=rows[f"{column}_{ending}"].to_list(),
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 1.5, "dash": dash},
        marker={"symbol": symbol, "size": 7, "line": {"color": GREY, "width": 1}},
        hovertemplate="%{y:.1%}",
    )


def _observed(rows: pl.DataFrame, measure: str, ending: str) -> go.Scatter:
    value, low, high = rows[measure], rows[f"{ending}_ci_low"], rows[f"{ending}_ci_high"]
    return go.Scatter(
        x=list(range(len(rows))),
        y=value.to_list(),
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (high - value).fill_null(0).to_list(),
            "arrayminus": (value - low).fill_null(0).to_list(),
            "thickness": 1.5,
            "width": 4,
        },
        name="observed",
        mode="lines+markers",
        line={"color": _OBSERVED, "width": 2.5},
        marker={"symbol": "circle", "size": 9, "line": {"color": GREY, "width": 1}},
        customdata=rows.select(
            pl.col(f"{ending}_ci_low").fill_null(float("nan")), pl.col(f"{ending}_ci_high").fill_null(float("nan"))
        ).to_numpy(),
        hovertemplate="%{y:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%})",
    )
