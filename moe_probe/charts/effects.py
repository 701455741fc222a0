"""What switching experts off does to each label's tokens, beside its controls."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import polars as pl

from moe_probe.charts.look import (
    DIVERGING,
    GREY,
    colour_bar,
    downwards,
    dress,
    escape,
    grid,
    named_ticks,
    nothing,
    range_text,
)
from moe_probe.palette import EXPERT_COLOURS

_FAINT = 0.3
_CONTROLS = {
    "over_random": "when as many assignments are dropped at random",
    "over_matched": "for other experts of half to twice the load",
}
_STANDS = "more than"
"""How the verdicts begin that say of an effect that it stands."""


def effect_bars(frame: pl.DataFrame, experts: str) -> go.Figure:
    """Draw the change of surprisal of each label's tokens, with its interval, beside the random control.

    Args:
        frame: from `effects.effect_table`, or `effect`; of one router.
        experts: the experts that were switched off, as in the table, for example "3" or "0 2".
    """
    rows = frame.filter((pl.col("experts") == experts) & pl.col("difference").is_not_null()).sort(
        "difference", descending=True
    )
    title = f"Which tokens does switching off expert {escape(experts)} hurt more than others?"
    if rows.is_empty():
        return nothing(title)
    names = [escape(label) for label in rows["label"]]
    stands = [verdict.startswith(_STANDS) for verdict in rows["verdict"]]
    value, low, high = (
        rows[name].fill_null(math.nan).to_numpy() for name in ("difference", "difference_ci_low", "difference_ci_high")
    )
    places = list(range(len(names)))
    figure = go.Figure(
        [
            go.Bar(
                x=places,
                y=value,
                name="switched off",
                marker={"color": EXPERT_COLOURS[7], "opacity": [1.0 if one else _FAINT for one in stands]},
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": high - value,
                    "arrayminus": value - low,
                    "color": GREY,
                },
                customdata=np.stack([rows["mean_bits"], rows["n"]], axis=1),
                text=[escape(verdict) for verdict in rows["verdict"]],
                textposition="none",
                hovertemplate="%{y:+.3f} bits more than the others (mean %{customdata[0]:+.3f})<br>%{text}"
                "<br>n = %{customdata[1]:,}<extra></extra>",
            ),
            go.Scatter(
                x=places,
                y=rows["random_difference"].to_list(),  # null, and so not drawn, where experts were rerouted
                name="as many assignments dropped at random",
                mode="markers",
                marker={"symbol": "line-ew-open", "size": 22, "color": GREY, "line": {"width": 2}},
                hovertemplate="random control: %{y:+.3f} bits<extra></extra>",
            ),
        ]
    )
    carried = rows["carried_by"][0]
    dress(
        figure,
        title,
        "Change of surprisal, less that of all other tokens; bars: 95 %. Baselines: 0, and the random control. Faint: "
        "not shown to exceed its controls.",
        f"n = {range_text(rows['n'])} tokens a label, of the token {carried}; layer {rows['layer'][0]}.",
        height=420,
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, margin={"b": 110})
    figure.update_xaxes(showgrid=False, **named_ticks(names))
    figure.update_yaxes(title="bits", zeroline=True)
    return figure


def effect_heatmap(frame: pl.DataFrame, router: int) -> go.Figure:
    """Draw, for every expert of a router and every label, what switching the expert off does beyond chance.

    Args:
        frame: from `effects.effect_table`.
        router: the router's index.
    """
    rows = frame.filter(pl.col("router") == router)
    control = "over_matched" if rows["over_random"].null_count() == len(rows) else "over_random"
    rows = rows.filter(pl.col(control).is_not_null())
    title = "Which labels does each expert carry?"
    if rows.is_empty():
        return nothing(title)
    totals = rows.group_by("label").agg(pl.col("n").max()).sort("n", "label", descending=[True, False])
    labels = totals["label"].to_list()
    experts = sorted(rows["experts"].unique().to_list(), key=lambda name: [int(one) for one in name.split()])
    x = rows["label"].replace_strict({label: place for place, label in enumerate(labels)}).to_numpy()
    y = rows["experts"].replace_strict({expert: place for place, expert in enumerate(experts)}).to_numpy()
    shape = (len(experts), len(labels))
    most = float(np.abs(rows[control].to_numpy()).max()) or 1.0
    stands = rows["verdict"].str.starts_with(_STANDS).to_numpy()
    facts = [
        grid(rows[name].cast(pl.Float64).fill_null(math.nan).to_numpy(), y, x, shape)
        for name in (f"{control}_ci_low", f"{control}_ci_high", "mean_bits", "n")
    ]
    texts = np.full(shape, "", dtype=object)
    texts[y, x] = [escape(one) for one in rows["verdict"].to_list()]
    figure = go.Figure()
    for shown, opacity in ((~stands, _FAINT), (stands, 1.0)):
        values = np.where(shown, rows[control].to_numpy(), math.nan)
        figure.add_trace(
            go.Heatmap(
                z=grid(values, y, x, shape),
                customdata=np.dstack([*facts, texts]),
                hovertemplate="%{z:+.3f} bits (%{customdata[0]:+.3f} to %{customdata[1]:+.3f})<br>%{customdata[4]}"
                "<br>mean change %{customdata[2]:+.3f}, n = %{customdata[3]:,.0f}<extra></extra>",
                hoverongaps=False,
                zmin=-most,
                zmax=most,
                colorscale=DIVERGING,
                opacity=opacity,
                showscale=opacity == 1.0,
                colorbar=colour_bar("bits"),
                xgap=1,
                ygap=1,
            )
        )
    dress(
        figure,
        title,
        f"Change of surprisal more than of other tokens, and more than {_CONTROLS[control]}: the baseline, 0. "
        "Faint: not shown.",
        f"n = {range_text(rows['n'])} tokens a label, of the token {rows['carried_by'][0]}; layer {rows['layer'][0]}.",
        height=min(1200, 240 + 28 * len(experts)),
    )
    figure.update_xaxes(showgrid=False, side="bottom", **named_ticks([escape(label) for label in labels]))
    figure.update_yaxes(title="expert", showgrid=False, **downwards(named_ticks(experts), len(experts)))
    return figure
