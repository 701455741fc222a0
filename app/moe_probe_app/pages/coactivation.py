"""Co-activation: which experts of a layer are chosen for the same token more, or less, than chance would have it."""

from __future__ import annotations

import polars as pl
import streamlit as st

from moe_probe import charts
from moe_probe.charts.pair_cells import coactivation_cells
from moe_probe_app import library, selection
from moe_probe_app.components import figure, plain, rows, sidebar
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

ORDERS = {"cluster": "Those chosen together side by side", "index": "By number"}
PAIRS = {
    "more": "Together more than by chance",
    "less": "Together less than by chance",
    "all": "All, most tokens first",
}
LARGEST_MINIMUM = 10_000
LEVEL = 0.05
COLUMNS = {
    "expert_a": st.column_config.NumberColumn("expert", format="%d"),
    "expert_b": st.column_config.NumberColumn("and expert", format="%d"),
    "lift": st.column_config.NumberColumn("lift", format="%.2f", help="Tokens over expected; 1 is chance."),
    "ci_low": st.column_config.NumberColumn("from", format="%.2f", help="Lower end of the 95 % interval of lift."),
    "ci_high": st.column_config.NumberColumn("to", format="%.2f", help="Upper end of the 95 % interval of lift."),
    "q_value": st.column_config.NumberColumn("q", format="%.3f", help="Corrected for all pairs of all layers."),
    "together": st.column_config.NumberColumn("tokens", format="localized"),
    "expected": st.column_config.NumberColumn("expected", format="%.1f", help="By chance, with the same loads."),
    "p_b_given_a": st.column_config.NumberColumn("of the first's", format="percent"),
    "p_a_given_b": st.column_config.NumberColumn("of the second's", format="percent"),
}


def open_in_text(expert: int, other: int) -> None:
    """Go to the text with two experts of the chosen layer in focus, in whatever slot."""
    selection.change(focus=(expert, other), slot="any", token=None, label=None, value=None)
    st.switch_page("text.py")


def ask() -> tuple[str, int]:
    """Ask how to sort the experts and how much a pair must be expected to be drawn."""
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    order = left.radio(
        "Sort experts",
        list(ORDERS),
        format_func=ORDERS.__getitem__,
        horizontal=True,
        key="coactivation_order",
        persist_state="session",
    )
    least = right.number_input(
        "Expected at least",
        min_value=int(charts.MINIMUM_EXPECTED),
        max_value=LARGEST_MINIMUM,
        key="coactivation_minimum",
        persist_state="session",
        help="Pairs for which chance alone would give fewer tokens are left blank: their lift is noise.",
    )
    return order or "cluster", int(least)


def show_pairs(chosen: Chosen, here: pl.DataFrame) -> None:
    """Show the pairs that stand out, in numbers; a row that is picked opens the text."""
    now = chosen.selection
    plain.section(
        "Pairs",
        "Lift with its 95 % interval; told from chance: q below .05. Pick a row to see both experts in the text."
        + (" Pairs of the focused experts only." if now.focus else ""),
    )
    which = st.radio(
        "Pairs",
        list(PAIRS),
        format_func=PAIRS.__getitem__,
        horizontal=True,
        key="coactivation_pairs",
        label_visibility="collapsed",
        persist_state="session",
    )
    told = pl.col("q_value") < LEVEL
    shown = {
        "more": here.filter(told, pl.col("lift") > 1).sort("lift", descending=True),
        "less": here.filter(told, pl.col("lift") < 1).sort("lift"),
        "all": here.sort("together", descending=True),
    }[which or "more"]
    if now.focus:
        shown = shown.filter(pl.any_horizontal(pl.col("expert_a", "expert_b").is_in(list(now.focus))))
    if shown.is_empty():
        plain.callout("info", "No such pair", "None is told from chance here. More text may tell; or show all pairs.")
        return
    row = rows.picked(shown, COLUMNS, f"coactivation_table_{which}")
    if row:
        open_in_text(int(row["expert_a"]), int(row["expert_b"]))


chosen = sidebar.choose()
router = chosen.run.routers[chosen.selection.router]
plain.heading(
    "Co-activation", "Which experts are chosen for the same token? Click a cell to see both experts in the text."
)
if router.n_slots == 1:
    plain.callout(
        "info",
        "Here each token goes to one expert",
        "Nothing is chosen together. See on the page Paths which experts follow each other from layer to layer.",
    )
    st.stop()
if router.n_slots == router.n_experts:
    plain.callout(
        "info",
        "Here each token goes to every expert",
        "Every pair is together in every token. How much each expert counts is in the weights, on the page Text.",
    )
    st.stop()
table = library.coactivation(chosen.run)
if table.filter(router=router.index).is_empty():
    plain.callout(
        "info",
        "There is nothing to count in this layer",
        "Either no token was sent to two experts, or there are more than 1,024 experts. Choose another layer.",
    )
    st.stop()
order, least = ask()
here = table.filter(pl.col("router") == router.index, pl.col("expected") >= least)
cell = figure.clicked(
    lambda: coactivation_cells(
        table.with_columns(expected=pl.when(pl.col("expected") >= least).then("expected")),
        router.index,
        order=order,
        focus=chosen.selection.focus,
    ),
    "coactivation_heatmap",
)
if cell:
    open_in_text(int(cell["customdata"][-2]), int(cell["customdata"][-1]))
show_pairs(chosen, here)
csv_button(table, "coactivation")
