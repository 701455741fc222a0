"""How the work of each layer is spread over its experts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from moe_probe.charts.look import (
    GREY,
    add_cells,
    busiest,
    busiest_text,
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

_IN_ORDER = 256  # bars of more experts are too thin to be found by their number: they are sorted by load
_DIGITS = 8
_FEW_CELLS = 500
_UP_TO = 0.99  # of many cells
_LOAD_FACTS = ("share", "uniform", "assignments", "n")


def load_heatmap(load: pl.DataFrame, *, slot: str = "any", selectable: bool = False) -> go.Figure:
    """Draw the load of every expert of every router, relative to even use.

    Args:
        load: from `tables.load_table`.
        slot: which of its slots.
        selectable: let a page select cells; `customdata` then ends with router and expert. Left out above 20,000 cells.
    """
    every = of_slot(load, slot)
    rows = busiest(every)
    title = "Which experts does each layer use?"
    if rows.is_empty():
        return nothing(title)
    routers = rows.select("router", "layer").unique().sort("router")
    names = _router_names(routers)
    place = {router: index for index, router in enumerate(routers["router"])}
    y = rows["router"].replace_strict(place).to_numpy()
    numbers = rows["expert"].unique().sort()
    x = rows["expert"].replace_strict({number: column for column, number in enumerate(numbers)}).to_numpy()
    shape = (len(names), len(numbers))
    relative = (rows["share"] / rows["uniform"]).fill_null(math.nan).to_numpy()
    facts = [rows[name].cast(pl.Float64).fill_null(math.nan).to_numpy() for name in _LOAD_FACTS]
    # Rounded, since every digit of every cell is sent to the page.
    shown = [np.round(fact, _DIGITS) for fact in [*facts, relative, rows["expert"].to_numpy().astype(np.float64)]]
    details = [grid(fact, y, x, shape) for fact in shown]
    said = np.full(shape, "", dtype=object)
    said[y, x] = _interval_texts(rows)
    ceiling, ends = _ceiling(relative)
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
            zmax=ceiling,
            xgap=1 if shape[1] <= 64 else 0,
            ygap=1 if shape[0] <= 32 else 0,
            colorbar=colour_bar("× even use"),
        )
    )
    if selectable:
        held = rows["share"].is_not_null().to_numpy()
        add_cells(figure, x[held], y[held], rows.select("router", "expert").to_numpy()[held])
        if len(figure.data) > 1:  # the cells on top say it all
            figure.data[0].update(customdata=None, hovertemplate=None, hoverinfo="skip")
    dress(
        figure,
        title,
        "Share of the assignments, over 1/E. Baseline: 1, even use."
        + busiest_text(len(numbers), every["expert"].n_unique())
        + ends,
        f"n = {range_text(rows['n'])} assignments a router: {rows_text(rows)}.",
        height=min(900, 190 + 22 * shape[0]),
    )
    figure.update_xaxes(title="expert", showgrid=False, **_expert_ticks(numbers.to_list()))
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(names), len(names)))
    return figure


def _ceiling(relative: NDArray[np.float64]) -> tuple[float, str]:
    """Return where the colours end, and what is said of that: of many cells a few would take them all."""
    held = relative[np.isfinite(relative)]
    highest = max(2.0, float(held.max(initial=0.0)))
    ceiling = max(2.0, float(np.quantile(held, _UP_TO))) if len(held) > _FEW_CELLS else highest
    if ceiling == highest:
        return highest, ""
    return ceiling, f" Colours end at {ceiling:.1f}; the busiest has {highest:.1f}."


def load_histogram(load: pl.DataFrame, router: int, *, slot: str = "any", focus: Sequence[int] = ()) -> go.Figure:
    """Draw one router's load, a bar an expert with its interval, and the line of even use.

    Args:
        load: from `tables.load_table`.
        router: the router's index.
        slot: which of its slots.
        focus: experts that the reader picked, where there are more than eight.
    """
    every = of_slot(load, slot).filter(pl.col("router") == router)
    crowded = len(every) > _IN_ORDER
    rows = busiest(every, focus).sort("expert")
    rows = rows.sort("assignments", descending=True, maintain_order=True) if crowded else rows
    title = "How is the work of this layer shared out?"
    if rows.is_empty() or rows["share"].null_count() == len(rows):
        return nothing(title)
    loads = every.sort("expert")["assignments"].to_list()
    wears = expert_colours(loads, focus)
    uniform = float(rows["uniform"][0])
    chosen = round(uniform * len(loads))  # 1, or the number of slots in the olmoe convention
    figure = go.Figure(
        go.Bar(
            x=list(range(len(rows))) if crowded else rows["expert"].to_list(),
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
            customdata=list(zip(rows["assignments"], rows["n"], _interval_texts(rows), rows["expert"], strict=True)),
            hovertemplate="<b>expert %{customdata[3]}</b><br>share %{y:.2%}<br>%{customdata[2]}"
            "<br>%{customdata[0]:,} of %{customdata[1]:,} assignments<extra></extra>",
        )
    )
    digits = 1 if uniform >= 0.01 else 2
    figure.add_hline(y=uniform, line={"color": GREY, "width": 1.5, "dash": "dash"})
    dress(
        figure,
        f"How is the work of layer {rows['layer'][0]} shared out?",
        f"Share of the {'assignments' if chosen == 1 else 'tokens'}, with its 95 % interval. "
        f"Baseline, dashed: even use, {chosen}/{len(loads)} = {uniform:.{digits}%}."
        + busiest_text(len(rows), len(every))
        + (" Sorted by load." if crowded else ""),
        f"n = {int(rows['n'][0]):,} assignments: {rows_text(rows)}.",
        height=320,
    )
    figure.update_layout(bargap=0.15 if len(loads) <= 64 else 0)
    title = "expert, by load" if crowded else "expert"
    figure.update_xaxes(title=title, showgrid=False, **_expert_ticks(rows["expert"].to_list()))
    highest = float(rows["share"].fill_null(0).to_numpy().max())
    figure.update_yaxes(tickformat=".0%" if highest > 0.04 else ".1%", rangemode="tozero")
    return figure


def _expert_ticks(experts: Sequence[int]) -> dict[str, object]:
    """Return the ticks of an axis whose cells 0, 1, 2 … are experts."""
    if list(experts) == list(range(len(experts))):
        return integer_ticks(len(experts))
    return named_ticks([str(expert) for expert in experts])


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
