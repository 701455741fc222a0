"""One expert: the mix of labels that it is given, and how much of each layer's work its number does."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from moe_probe.charts.look import GREY, downwards, dress, escape, named_ticks, nothing, of_slot, range_text, rows_text
from moe_probe.measures.verdicts import SPECIALISED
from moe_probe.palette import CONTEXT

MOST_LABELS = 14
"""Of more labels, those that the expert is given most of are drawn."""

_NAME_CHARACTERS = 20
_LEAST_LIFT = 1 / 32
"""Where the log scale of lift ends, on either side: nothing where something was expected is infinitely far from 1."""


def expert_mix(
    frame: pl.DataFrame, router: int, expert: int, *, label_set: str, slot: str = "any", colour: str = CONTEXT
) -> go.Figure:
    """Draw which labels an expert is given: their shares of its tokens beside those of all, and lift with intervals.

    The `customdata` of a bar ends with expert and label.

    Args:
        frame: from `tables.label_table`.
        router: the router's index.
        expert: whose.
        label_set: the name of the labels, for the title.
        slot: "any" or "0".
        colour: that the expert wears.
    """
    title = f"What is expert {expert} given, by {escape(label_set)}?"
    router_rows = of_slot(frame, slot).filter(pl.col("router") == router, pl.col("domain") == "all")
    rows = _mix(router_rows, expert)
    if rows.is_empty():
        return nothing(title)
    labels = rows["label"].to_list()
    every = router_rows["label"].n_unique()
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.08, column_widths=[0.5, 0.5])
    for trace in _share_traces(rows, expert, colour):
        figure.add_trace(trace, row=1, col=1)
    figure.add_trace(_lift_trace(rows, colour), row=1, col=2)
    figure.add_vline(x=1, line={"color": GREY, "width": 1.5, "dash": "dash"}, row=1, col=2)
    fewer = f" The {len(labels)} of {every} labels that it is given most." if every > len(labels) else ""
    dress(
        figure,
        title,
        "Left: share of its tokens; baseline, the upright mark: share of all experts' tokens. Right: lift with its "
        "95 % interval; baseline, dashed: 1. Full dots: specialised; open: not shown, or not enough data." + fewer,
        f"n = {int(rows['given'][0]):,} of {int(rows['n'][0]):,} assignments: {rows_text(router_rows)}.",
        height=150 + 26 * len(labels),
    )
    figure.update_layout(bargap=0.3, showlegend=False)
    figure.update_xaxes(title="share of its tokens", tickformat=".0%", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title="lift", row=1, col=2, **_lift_axis(rows))
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(_short(labels)), len(labels)))
    return figure


def expert_load(load: pl.DataFrame, expert: int, router: int, *, slot: str = "any", colour: str = CONTEXT) -> go.Figure:
    """Draw the share of each layer's work that the expert of one number does, with intervals and even use.

    Experts of one number in two layers have nothing else in common, so the points are not joined. The `customdata` of
    a bar ends with its router.

    Args:
        load: from `tables.load_table`.
        expert: the number.
        router: the chosen layer's, drawn in the expert's colour.
        slot: which of its slots.
        colour: that the expert wears in that layer.
    """
    title = f"How much of each layer's work does an expert {expert} do?"
    rows = of_slot(load, slot).filter(pl.col("expert") == expert, pl.col("share").is_not_null()).sort("router")
    if rows.is_empty():
        return nothing(title)
    places = list(range(len(rows)))
    share = rows["share"]
    facts = zip(
        rows["layer"],
        [_interval(*ends) for ends in rows.select("ci_low", "ci_high", "verdict").iter_rows()],
        rows["assignments"],
        rows["n"],
        rows["router"],
        strict=True,
    )
    figure = go.Figure(
        go.Bar(
            x=places,
            y=share.to_list(),
            marker={
                "color": [colour if index == router else CONTEXT for index in rows["router"]],
                "line": {"color": GREY, "width": 1},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (rows["ci_high"] - share).fill_null(0).to_list(),
                "arrayminus": (share - rows["ci_low"]).fill_null(0).to_list(),
                "color": GREY,
                "thickness": 1.5,
                "width": 3,
            },
            customdata=list(facts),
            hovertemplate="<b>layer %{customdata[0]}</b><br>share %{y:.1%}<br>%{customdata[1]}"
            "<br>%{customdata[2]:,} of %{customdata[3]:,} assignments<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_trace(
        go.Scatter(
            x=places,
            y=rows["uniform"].to_list(),
            mode="lines+markers" if len(places) == 1 else "lines",
            line={"color": GREY, "width": 1.5, "dash": "dash"},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    dress(
        figure,
        title,
        "Share of the assignments, with its 95 % interval. Baseline, dashed: even use. Coloured: the chosen layer; in "
        "another layer the same number is another expert.",
        f"n = {range_text(rows['n'])} assignments a layer: {rows_text(rows)}.",
        height=320,
    )
    figure.update_layout(bargap=0.25)
    figure.update_xaxes(title="layer", showgrid=False, **named_ticks(_layer_names(rows)))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def _mix(rows: pl.DataFrame, expert: int) -> pl.DataFrame:
    """The expert's labels, those that it is given most first, with the share of each in all text."""
    shares = rows.group_by("label").agg(pl.col("assignments").sum().alias("of_all"))
    own = rows.filter(pl.col("expert") == expert, pl.col("p_label_given_expert").is_not_null())
    own = own.join(shares, on="label").with_columns(
        p_label=pl.col("of_all") / pl.col("n"), given=pl.col("assignments").sum()
    )
    own = own.filter(pl.col("of_all") > 0)
    return own.sort("assignments", "of_all", "label", descending=[True, True, False]).head(MOST_LABELS)


def _share_traces(rows: pl.DataFrame, expert: int, colour: str) -> list[go.Bar | go.Scatter]:
    labels = rows["label"].to_list()
    places = list(range(len(labels)))
    facts = zip(
        [escape(label) for label in labels],
        rows["p_label"],
        rows["assignments"],
        [float(one) for one in rows["expected"].fill_null(0)],
        rows["expert"],
        labels,
        strict=True,
    )
    bars = go.Bar(
        x=rows["p_label_given_expert"].to_list(),
        y=places,
        orientation="h",
        marker={"color": colour, "line": {"color": GREY, "width": 1}},
        customdata=list(facts),
        hovertemplate=f"<b>expert {expert}, %{{customdata[0]}}</b><br>%{{x:.1%}} of its tokens (%{{customdata[1]:.1%}} "
        "of all)<br>%{customdata[2]:,} assignments, expected %{customdata[3]:,.1f}<extra></extra>",
    )
    baseline = go.Scatter(
        x=rows["p_label"].to_list(),
        y=places,
        mode="markers",
        marker={"symbol": "line-ns", "size": 15, "line": {"color": GREY, "width": 3}},
        hoverinfo="skip",
    )
    return [bars, baseline]


def _lift_trace(rows: pl.DataFrame, colour: str) -> go.Scatter:
    at = rows.select(pl.col("lift", "ci_low", "ci_high").clip(_LEAST_LIFT, 1 / _LEAST_LIFT))
    specialised = (rows["verdict"] == SPECIALISED).to_list()
    low = (at["lift"] - at["ci_low"]).fill_null(0).to_list()
    high = (at["ci_high"] - at["lift"]).fill_null(0).to_list()
    facts = zip(
        [escape(label) for label in rows["label"]],
        rows["lift"],
        [_lift_range(*ends) for ends in rows.select("ci_low", "ci_high").iter_rows()],
        rows["verdict"],
        strict=True,
    )
    return go.Scatter(
        x=at["lift"].to_list(),
        y=list(range(len(rows))),
        mode="markers",
        marker={
            "symbol": ["circle" if one else "circle-open" for one in specialised],
            "color": [colour if one else GREY for one in specialised],
            "size": 11,
            "line": {"color": GREY, "width": [1 if one else 2 for one in specialised]},
        },
        error_x={
            "type": "data",
            "symmetric": False,
            "array": high,
            "arrayminus": low,
            "color": GREY,
            "thickness": 1.5,
            "width": 4,
        },
        customdata=list(facts),
        hovertemplate="<b>%{customdata[0]}</b><br>lift %{customdata[1]:.2f}%{customdata[2]}: %{customdata[3]}"
        "<extra></extra>",
    )


def _lift_axis(rows: pl.DataFrame) -> dict[str, object]:
    """A log axis of lift that holds every dot, with ticks at powers of two."""
    seen = rows.select(pl.col("lift").clip(_LEAST_LIFT, 1 / _LEAST_LIFT).log(2).abs())["lift"].max()
    reach = min(5, max(1, int(float(seen or 0)) + 1))  # type: ignore[arg-type]
    every = 1 if reach < 3 else 2
    ticks = [tick for tick in range(-reach, reach + 1) if tick % every == 0]
    texts = [f"{2**tick}×" if tick >= 0 else f"1/{2**-tick}" for tick in ticks]
    edge = (reach + 0.25) * 0.30103  # a log axis has its range in powers of ten
    return {
        "type": "log",
        "tickvals": [2.0**tick for tick in ticks],
        "ticktext": texts,
        "range": [-edge, edge],
        "tickangle": 0,
    }


def _interval(low: float | None, high: float | None, verdict: str) -> str:
    return verdict if low is None or high is None else f"95 %: {low:.1%} to {high:.1%}, {verdict}"


def _lift_range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.2f}–{high:.2f})"


def _layer_names(rows: pl.DataFrame) -> list[str]:
    """`3`, and `3 · 1`, `3 · 2` where a layer has two routers."""
    ranked = rows.select("layer", rank=pl.int_range(1, pl.len() + 1).over("layer"), of=pl.len().over("layer"))
    return [f"{layer}" + (f" · {rank}" if of > 1 else "") for layer, rank, of in ranked.iter_rows()]


def _short(names: Sequence[str]) -> list[str]:
    short = [name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…" for name in names]
    return [escape(name) for name in short]
