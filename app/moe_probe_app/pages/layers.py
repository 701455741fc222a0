"""Layers: how the work is shared out among the experts, over depth and in one layer."""

from __future__ import annotations

from typing import Literal

import plotly.graph_objects as go
import streamlit as st

from moe_probe import charts
from moe_probe_app import library, selection
from moe_probe_app.components import figure, plain, sidebar
from moe_probe_app.components.download import csv_button

SLOTS = {"first": "0", "any": "any"}
TALLEST = 560


def open_in_text(router: int, expert: int) -> None:
    """Go to the text, at a router and an expert."""
    selection.change(router=router, focus=(expert,))
    st.switch_page("text.py")


chosen = sidebar.choose()
run, now = chosen.run, chosen.selection
slot = SLOTS[now.slot]
leads: Literal["away", "nowhere"] = "nowhere" if run.counts_only else "away"
lead = "How evenly is each layer's work shared out?"
plain.heading("Layers", f"{lead} Click a cell or a bar to see it in the text." if leads == "away" else lead)

load = library.load_table(run)


def load_heatmap() -> go.Figure:
    """Draw all layers, and say so where there are too many cells to click."""
    drawn = charts.load_heatmap(load, slot=slot, selectable=leads == "away")
    if leads == "away" and len(drawn.data) == 1:
        plain.note("So many cells cannot be clicked: choose a layer in the sidebar, then click one of its bars.")
    return drawn


cell = figure.clicked(load_heatmap, "layers_heatmap", tallest=TALLEST, leads=leads)
if cell:
    router, expert = cell["customdata"][-2:]
    open_in_text(int(router), int(expert))

bar = figure.clicked(
    lambda: charts.load_histogram(load, now.router, slot=slot, focus=now.focus),
    "layers_histogram",
    leads=leads,
)
if bar:
    open_in_text(now.router, int(bar["customdata"][3]))
csv_button(load, "load")

balance = library.balance(run)
left, right = st.columns(2, gap="large")
with left:
    title = "How sure are tokens, how even the load?"
    figure.show(
        charts.depth_lines(balance, ["mean_token_entropy_bits", "load_entropy_bits"], title=title), "layers_entropy"
    )
with right:
    title = "How far is the load from even?"
    figure.show(charts.depth_lines(balance, ["max_violation", "coefficient_of_variation"], title=title), "layers_even")
csv_button(balance, "balance")
