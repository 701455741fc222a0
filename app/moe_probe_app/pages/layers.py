"""Layers: how the work is shared out among the experts, over depth and in one layer."""

from __future__ import annotations

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
plain.heading("Layers", "How evenly is each layer's work shared out? Click a cell or a bar to see it in the text.")

load = library.load_table(run)
heatmap = charts.load_heatmap(load, slot=slot, selectable=True)
many = len(heatmap.data) == 1
cell = figure.clicked(heatmap, "layers_heatmap", tallest=TALLEST)
if many:
    plain.note("So many cells cannot be clicked: choose a layer in the sidebar, then click one of its bars.")
if cell:
    router, expert = cell["customdata"][-2:]
    open_in_text(int(router), int(expert))

bar = figure.clicked(charts.load_histogram(load, now.router, slot=slot, focus=now.focus), "layers_histogram")
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
