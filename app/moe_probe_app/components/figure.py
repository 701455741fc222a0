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
        _fit(figure, tallest), key=key, on_select="rerun", selection_mode="points", config=CONFIG
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
