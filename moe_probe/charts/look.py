"""What all charts share: transparent dress, escaped text, axes of whole numbers, an empty picture that says why."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

GREY = "#767676"
"""Readable on white and on near-black."""

DIVERGING = ((0.0, "#2C6BB3"), (0.25, "#8FB8DE"), (0.5, "#D9D9D9"), (0.75, "#F0B26B"), (1.0, "#B8600B"))
"""Less than the baseline in blue, more in orange."""

_FAINT = "rgba(128,128,128,0.25)"
_MOST_CELLS = 20_000
_MOST_BARS = 2_000
MOST_EXPERTS = 1_024
"""Of more experts, those of the greatest load are drawn."""

_AXIS = {
    "gridcolor": _FAINT,
    "linecolor": _FAINT,
    "zeroline": False,
    "zerolinecolor": _FAINT,
    "automargin": True,
    "title": {"font": {"size": 13}, "standoff": 8},
}
_TEMPLATE = go.layout.Template(
    layout={
        "font": {"color": GREY, "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "title": {"font": {"size": 17}, "x": 0, "xanchor": "left"},
    }
)


def escape(text: str) -> str:
    """Return text that plotly shows as it is, on one line.

    Example:
        >>> escape("<b>$x$</b>")
        '&lt;b&gt;&#36;x&#36;&lt;/b&gt;'
    """
    return html.escape(" ".join(text.split()), quote=False).replace("$", "&#36;")


def of_slot(frame: pl.DataFrame, slot: str) -> pl.DataFrame:
    """Return the rows of one slot of a table."""
    return frame.filter(pl.col("slot") == slot)


def busiest(rows: pl.DataFrame, focus: Sequence[int] = ()) -> pl.DataFrame:
    """Return the rows of at most 1,024 experts: those that the reader picked, and those with the most assignments.

    Args:
        rows: with the columns expert and assignments, of one slot.
        focus: experts that are kept whatever their load.
    """
    if rows["expert"].n_unique() <= MOST_EXPERTS:
        return rows
    totals = rows.group_by("expert").agg(pl.col("assignments").sum())
    ranked = totals.sort(pl.col("expert").is_in(list(focus)), "assignments", -pl.col("expert"), descending=True)
    return rows.filter(pl.col("expert").is_in(ranked["expert"].head(MOST_EXPERTS).to_list()))


def busiest_text(drawn: int, there: int) -> str:
    """Return what a subtitle says of experts that are not drawn; nothing where all are."""
    return "" if drawn == there else f" Drawn: top {drawn:,} of {there:,} experts by load."


def grid(
    values: NDArray[np.float64], y: NDArray[np.int64], x: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    """Return values at their places of a (rows, columns) array, nan elsewhere."""
    placed = np.full(shape, np.nan)
    placed[y, x] = values
    return placed


def add_cells(figure: go.Figure, x: NDArray[np.integer], y: NDArray[np.integer], places: NDArray[np.generic]) -> None:
    """Lay an invisible bar on cells of a heatmap, since plotly lets a page select bars and points, but no cells.

    What lies on top also speaks for what lies below, so a bar says what its cell does. Above 2,000 cells points take
    the place of bars: a small cell is where its point is nearest, and points need not be drawn to be found. Above
    20,000 cells, where what they say would cost more than the picture, there is nothing.

    Args:
        figure: holds one heatmap, whose hover text uses its `customdata` alone.
        x: (cells,) columns.
        y: (cells,) rows.
        places: (cells, names) what a click should say; it ends the bar's `customdata`.
    """
    if len(x) > _MOST_CELLS:
        return
    (heatmap,) = figure.data
    said = heatmap.customdata[y, x]  # (cells, facts)
    told = {
        "customdata": np.hstack([said, places.astype(object)]),
        "hovertemplate": heatmap.hovertemplate,
        "showlegend": False,
    }
    if len(x) > _MOST_BARS:
        unseen = {"opacity": 0, "maxdisplayed": 1}
        figure.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=unseen, **told))
        return
    clear = {"color": "rgba(0,0,0,0)", "line": {"width": 0}}
    figure.add_trace(go.Bar(x=x, y=np.ones(len(x)), base=y - 0.5, width=1, marker=clear, **told))
    figure.update_layout(barmode="overlay")


def integer_ticks(count: int) -> dict[str, object]:
    """Return the ticks and the range of an axis of cells 0, 1, 2 …, with at most 32 ticks."""
    step = 1
    while count / step > 32:
        step *= 2
    return {"tickmode": "linear", "tick0": 0, "dtick": step, "range": [-0.5, count - 0.5]}


def named_ticks(names: Sequence[str]) -> dict[str, object]:
    """Return the ticks and the range of an axis of cells 0, 1, 2 … that have names, with at most 40 ticks.

    As categories, names such as "1" or "2024-01-01" would be taken for numbers and dates.
    """
    every = -(-len(names) // 40) or 1
    ticks = {"tickvals": list(range(0, len(names), every)), "ticktext": list(names[::every])}
    return {"tickmode": "array", **ticks, "range": [-0.5, len(names) - 0.5]}


def downwards(axis: dict[str, object], count: int) -> dict[str, object]:
    """Return an axis of `count` cells with the first at the top."""
    return {**axis, "range": [count - 0.5, -0.5]}


def colour_bar(title: str, **more: object) -> dict[str, object]:
    """Return a thin colour bar with its title along it."""
    return {"title": {"text": title, "side": "right", "font": {"size": 13}}, "thickness": 12, "outlinewidth": 0, **more}


def rows_text(rows: pl.DataFrame) -> str:
    """Return what the rows say of themselves: which tokens, which slot."""
    slot = {"any": "any slot", "0": "first choice"}.get(rows["slot"][0], f"slot {rows['slot'][0]}")
    return f"{rows['tokens'][0].replace('_', '-')} tokens, {slot}, without the first four of a window"


def range_text(counts: pl.Series) -> str:
    """Return the least and the greatest of some counts, or the one number that they all are."""
    low, high = int(counts.to_numpy().min()), int(counts.to_numpy().max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def dress(figure: go.Figure, title: str, baseline: str, counted: str, *, height: int) -> None:
    """Give a figure its title, two lines below it, its height, and the template.

    Args:
        figure: changed in place.
        title: what the picture answers.
        baseline: what is drawn and what to compare it with.
        counted: which tokens, and how many.
        height: in pixels.
    """
    subtitle = {"text": f"{baseline}<br>{counted}", "font": {"size": 12}}
    figure.update_layout(
        template=_TEMPLATE,
        title={"text": title, "subtitle": subtitle},
        height=height,
        margin={"l": 10, "r": 10, "t": 104, "b": 10},
    )


def nothing(title: str) -> go.Figure:
    """Return an empty picture that says why it is."""
    figure = go.Figure()
    dress(figure, title, "Not enough data: no token was counted.", "", height=200)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
