"""A chart that can be clicked, under its own title and notes as text of the page, which break into lines."""

from __future__ import annotations

from html import unescape
from typing import Any

import plotly.graph_objects as go

from moe_probe_app.components import figure, plain

_ROOM_FOR_TITLE = 84  # pixels that a chart keeps above itself for a title that the page says instead


def show(chart: go.Figure, key: str) -> None:
    """Show a chart that only speaks."""
    figure.show(_untitled(chart), key)


def clicked(chart: go.Figure, key: str, *, explained: bool = False) -> list[Any] | None:
    """Show a chart whose bars can be clicked, and return the `customdata` of the one that was.

    Args:
        chart: with a `customdata` for every bar.
        key: of the chart on its page.
        explained: the page has said already what is drawn and against what; of the notes, only the last line is shown.
    """
    point = figure.clicked(_untitled(chart, explained=explained), key)
    return None if point is None else point.get("customdata")


def _untitled(chart: go.Figure, *, explained: bool = False) -> go.Figure:
    title = chart.layout.title
    notes = title.subtitle.text or ""
    plain.section(_words(title.text), _words(notes.rpartition("<br>")[2] if explained else notes))
    margin = max(20, int(chart.layout.margin.t) - _ROOM_FOR_TITLE)
    height = int(chart.layout.height) - int(chart.layout.margin.t) + margin
    return chart.update_layout(title={"text": "", "subtitle": {"text": ""}}, margin_t=margin, height=height)


def _words(text: str | None) -> str:
    """Return a chart's text as it is read: the chart escaped it, and the page will again."""
    return unescape((text or "").replace("<br>", " "))
