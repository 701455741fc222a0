"""A chart on a page: the same tools on each, and what was clicked in it."""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go
import streamlit as st

CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "pan2d"]}
ROOM_FOR_TOP_LABELS = 150


def show(figure: go.Figure, key: str, *, tallest: int | None = None) -> None:
    """Show a chart that only speaks."""
    st.plotly_chart(_fit(figure, tallest), key=key, config=CONFIG)


def clicked(figure: go.Figure, key: str, *, tallest: int | None = None) -> dict[str, Any] | None:
    """Show a chart whose bars or cells can be clicked, and return the one that was.

    A bar has an `x`; a cell of a heatmap drawn with `selectable=True` ends its `customdata` with its place.
    """
    event: Any = st.plotly_chart(
        _fit(_with_cells(figure), tallest), key=key, on_select="rerun", selection_mode="points", config=CONFIG
    )
    points: list[dict[str, Any]] = event.selection.points
    return points[0] if points else None


def _fit(figure: go.Figure, tallest: int | None) -> go.Figure:
    if tallest is not None:
        figure.update_layout(height=min(int(figure.layout.height), tallest))
    if figure.layout.xaxis.side == "top":
        # The labels stand where the subtitle would otherwise run into them.
        figure.update_layout(margin_t=ROOM_FOR_TOP_LABELS, height=int(figure.layout.height) + 40)
    # Clicks choose; a drag that zoomed by mistake would hide cells.
    figure.update_layout(dragmode=False, clickmode="event+select")
    return figure


def _with_cells(figure: go.Figure) -> go.Figure:
    """Turn the invisible points of a heatmap into invisible bars that fill its cells.

    Plotly selects points and bars but no cells, and a point is hit only near its middle. What lies on top also speaks
    for what lies below, so each bar says what its cell would.
    """
    heatmap, points = figure.data[0], figure.data[-1]
    if heatmap.type != "heatmap" or points.type != "scattergl":
        return figure
    columns, rows = [list(map(int, axis)) for axis in (points.x, points.y)]
    known = len(heatmap.customdata[0][0])
    facts = [
        [*_plain(heatmap.customdata[y][x]), *_plain([heatmap.z[y][x]]), x, *_plain(place)]
        for x, y, place in zip(columns, rows, points.customdata, strict=True)
    ]
    said = heatmap.hovertemplate.replace("%{z", f"%{{customdata[{known}]").replace(
        "%{x}", f"%{{customdata[{known + 1}]}}"
    )
    cells = go.Bar(
        x=columns,
        y=[1] * len(rows),
        base=[y - 0.5 for y in rows],
        width=1,
        marker={"color": "rgba(0,0,0,0)", "line": {"width": 0}},
        customdata=facts,
        hovertemplate=said,
        showlegend=False,
    )
    return go.Figure([heatmap, cells], figure.layout).update_layout(barmode="overlay")


def _plain(values: Any) -> list[Any]:
    return [value.item() if hasattr(value, "item") else value for value in values]
