"""A chart on a page, under its title and notes as text that breaks into lines; and what was clicked in it."""

from __future__ import annotations

from collections.abc import Callable
from html import unescape
from typing import Any, Literal

import plotly.graph_objects as go
import streamlit as st

from moe_probe_app.components import plain

CONFIG = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d", "pan2d"]}
_ROOM_FOR_TITLE = 84  # pixels that a chart keeps above itself for a title that the page says instead


def show(chart: go.Figure, key: str) -> None:
    """Show a chart that only speaks."""
    st.plotly_chart(_fit(chart), key=key, config=CONFIG)


def clicked(
    draw: Callable[[], go.Figure],
    key: str,
    *,
    explained: bool = False,
    tallest: int | None = None,
    leads: Literal["away", "here", "nowhere"] = "away",
) -> dict[str, Any] | None:
    """Show a chart whose bars or cells can be clicked, and return the one that was: its `customdata`, its `x`.

    Args:
        draw: makes the chart. It is not called where a click leads away: the reader waits for what comes next.
        key: of the chart on its page.
        explained: the page has said already what is drawn and against what; of the notes, only the last line is shown.
        tallest: the most pixels that it may be high.
        leads: "away" where the page is left for another one as soon as a click is told, "here" where it is drawn again,
            "nowhere" where there is nothing to see behind it: the chart then only speaks, and None is returned.
    """
    if leads == "nowhere":
        st.plotly_chart(_fit(draw(), explained=explained, tallest=tallest), key=key, config=CONFIG)
        return None
    if leads == "away" and (told := st.session_state.get(key)) and told.selection.points:
        return dict(told.selection.points[0])
    event: Any = st.plotly_chart(
        _fit(draw(), explained=explained, tallest=tallest),
        key=key,
        on_select="rerun",
        selection_mode="points",
        config=CONFIG,
    )
    points: list[dict[str, Any]] = event.selection.points
    return points[0] if points else None


def _fit(chart: go.Figure, *, explained: bool = False, tallest: int | None = None) -> go.Figure:
    title = chart.layout.title
    notes = title.subtitle.text or ""
    plain.section(_words(title.text), _words(notes.rpartition("<br>")[2] if explained else notes))
    margin = max(20, int(chart.layout.margin.t) - _ROOM_FOR_TITLE)
    height = int(chart.layout.height) - int(chart.layout.margin.t) + margin
    # Clicks choose; a drag that zoomed by mistake would hide cells.
    return chart.update_layout(
        title={"text": "", "subtitle": {"text": ""}},
        margin_t=margin,
        height=height if tallest is None else min(height, tallest),
        dragmode=False,
        clickmode="event+select",
    )


def _words(text: str | None) -> str:
    """Return a chart's text as it is read: the chart escaped it, and the page will again."""
    return unescape((text or "").replace("<br>", " "))
