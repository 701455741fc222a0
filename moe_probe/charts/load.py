"""How the work of each layer is spread over its experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl

from moe_probe.charts.look import (
    GREY,
    add_cells,
    colour_bar,
    downwards,
    dress,
    grid,
    integer_ticks,
    named_ticks,
    nothing,
    of_slot,
    range_text,
    rows_text,
)
from moe_probe.palette import CONTEXT, expert_colours

_LOAD_FACTS = ("share", "uniform", "assignments", "n")


def load_heatmap(load: pl.DataFrame, *, slot: str = "any", selectable: bool = False) -> go.Figure:
    """Draw the load of every expert of every router, relative to even use.

    Args:
        load: from `tables.load_table`.
        slot: which of its slots.
        selectable: let a page select cells; `customdata` then ends with router and expert. Left out above 20,000 cells.
    """
    rows = of_slot(load, slot)
    title = "Which experts does each layer use?"
    if rows.is_empty():
        return nothing(title)
    routers = rows.select("router", "layer").unique().sort("router")
    names = _router_names(routers)
    place = {router: index for index, router in enumerate(routers["router"])}
    y = rows["router"].replace_strict(place).to_numpy()
    x = rows["expert"].to_numpy()
    shape = (len(names), int(x.max()) + 1)
    relative = (rows["share"] / rows["uniform"]).fill_null(math.nan).to_numpy()
    facts = [rows[name].cast(pl.Float64).fill_null(math.nan).to_numpy() for name in _LOAD_FACTS]
    details = [grid(fact, y, x, shape) for fact in [*facts, relative, x.astype(np.float64)]]
    said = np.full(shape, "", dtype=object)
    said[y, x] = _interval_texts(rows)
    highest = float(np.nanmax(relative)) if np.isfinite(relative).any() else 2.0
    figure = go.Figure(
        go.Heatmap(
            z=grid(relative, y, x, shape),
            customdata=np.dstack([*details, np.array([[name] * shape[1] for name in names], dtype=object), said]),
            hovertemplate="<b>%{customdata[6]}, expert %{customdata[5]:.0f}</b><br>%{customdata[4]:.2f} × even use"
            "<br>share %{customdata[0]:.2%} (even: %{customdata[1]:.2%})<br>%{customdata[7]}"
            "<br>%{customdata[2]:,.0f} of %{customdata[3]:,.0f} assignments<extra></extra>",
            hoverongaps=False,
            colorscale="Cividis",
            zmin=0,
            zmax=max(2.0, highest),
            xgap=1 if shape[1] <= 64 else 0,
            ygap=1 if shape[0] <= 64 else 0,
            colorbar=colour_bar("× even use"),
        )
    )
    if selectable:
        held = rows["share"].is_not_null().to_numpy()
        add_cells(figure, x[held], y[held], rows.select("router", "expert").to_numpy()[held])
    dress(
        figure,
        title,
        "Share of the assignments, over 1/E. Baseline: 1, even use.",
        f"n = {range_text(rows['n'])} assignments a router: {rows_text(rows)}.",
        height=min(900, 190 + 22 * shape[0]),
    )
    figure.update_xaxes(title="expert", showgrid=False, **integer_ticks(shape[1]))
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(names), len(names)))
    return figure


def load_histogram(load: pl.DataFrame, router: int, *, slot: str = "any", focus: Sequence[int] = ()) -> go.Figure:
    """Draw one router's load, a bar an expert with its interval, and the line of even use.

    Args:
        load: from `tables.load_table`.
        router: the router's index.
        slot: which of its slots.
        focus: experts that the reader picked, where there are more than eight.
    """
    rows = of_slot(load, slot).filter(pl.col("router") == router).sort("expert")
    title = "How is the work of this layer shared out?"
    if rows.is_empty() or rows["share"].null_count() == len(rows):
        return nothing(title)
    loads = rows["assignments"].to_list()
    wears = expert_colours(loads, focus)
    uniform = float(rows["uniform"][0])
    chosen = round(uniform * len(loads))  # 1, or the number of slots in the olmoe convention
    figure = go.Figure(
        go.Bar(
            x=rows["expert"].to_list(),
            y=rows["share"].to_list(),
            marker={
                "color": [wears.get(expert, CONTEXT) for expert in rows["expert"]],
                "line": {"color": GREY, "width": 1 if len(loads) <= 64 else 0},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": (rows["ci_high"] - rows["share"]).to_list(),
                "arrayminus": (rows["share"] - rows["ci_low"]).to_list(),
                "color": GREY,
                "thickness": 1.5 if len(loads) <= 64 else 0.75,
                "width": 3 if len(loads) <= 64 else 0,
            },
            customdata=list(zip(rows["assignments"], rows["n"], _interval_texts(rows), strict=True)),
            hovertemplate="<b>expert %{x}</b><br>share %{y:.2%}<br>%{customdata[2]}"
            "<br>%{customdata[0]:,} of %{customdata[1]:,} assignments<extra></extra>",
        )
    )
    figure.add_hline(y=uniform, line={"color": GREY, "width": 1.5, "dash": "dash"})
    dress(
        figure,
        f"How is the work of layer {rows['layer'][0]} shared out?",
        f"Share of the {'assignments' if chosen == 1 else 'tokens'}, with its 95 % interval. "
        f"Baseline, dashed: even use, {chosen}/{len(loads)} = {uniform:.1%}.",
        f"n = {int(rows['n'][0]):,} assignments: {rows_text(rows)}.",
        height=320,
    )
    figure.update_layout(bargap=0.15 if len(loads) <= 64 else 0)
    figure.update_xaxes(title="expert", showgrid=False, **integer_ticks(len(loads)))
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure


def _interval_texts(rows: pl.DataFrame) -> list[str]:
    """`95 %: 11.0% to 14.0%, at chance` for each row; the verdict alone where there is no interval."""
    facts = rows.select("ci_low", "ci_high", "verdict").iter_rows()
    return [verdict if low is None else f"95 %: {low:.2%} to {high:.2%}, {verdict}" for low, high, verdict in facts]


def _router_names(routers: pl.DataFrame) -> list[str]:
    """`layer 3`, and `layer 3 · 1`, `layer 3 · 2` where a layer has two routers."""
    ranked = routers.with_columns(rank=pl.int_range(1, pl.len() + 1).over("layer"), of=pl.len().over("layer"))
    return [
        f"layer {layer}" + (f" · {rank}" if of > 1 else "") for layer, rank, of in ranked["layer", "rank", "of"].rows()
    ]
