"""Syntax: which kinds of token each expert takes more than its share of."""

from __future__ import annotations

import streamlit as st

from moe_probe import charts
from moe_probe_app import library, selection
from moe_probe_app.components import figure, plain, sidebar
from moe_probe_app.components.download import csv_button

SLOTS = {"first": "0", "any": "any"}
VALUES = {
    "lift": "Lift",
    "p_label_given_expert": "Share of the expert's tokens",
    "p_expert_given_label": "Share of the label's tokens",
    "assignments": "Counts",
}
LARGEST_MINIMUM = 10_000
MOST_EXPERTS = 64  # of more, those with something to say are drawn; the table has all

chosen = sidebar.choose()
run, now = chosen.run, chosen.selection
lead = "Which kinds of token does each expert take?"
plain.heading("Syntax", lead if run.counts_only else f"{lead} Click a cell to see those tokens in the text.")
names = [label_set.name for label_set in run.labels]
if not names:
    plain.no_labels(run, has_text=library.has_text(run))
    st.stop()

first, second, third = st.columns([2, 3, 2], vertical_alignment="bottom")
st.session_state.setdefault("syntax_label", now.label if now.label in names else names[0])
label = first.selectbox("Labels", names, key="syntax_label", persist_state="session")
value = second.selectbox(
    "Show", list(VALUES), key="syntax_value", format_func=VALUES.__getitem__, persist_state="session"
)
minimum = third.number_input(
    "Expected at least",
    min_value=0,
    max_value=LARGEST_MINIMUM,
    value=int(charts.MINIMUM_EXPECTED),
    key="syntax_minimum",
    persist_state="session",
    help="Cells where chance alone would put fewer tokens are left blank: their lift is noise.",
)

table = library.label_table(run, label)
everywhere = table.filter(domain="all")
slot = SLOTS[now.slot]
drawn = everywhere.filter(everywhere["expert"].is_in(list(now.focus))) if now.focus else everywhere
cell = figure.clicked(
    lambda: charts.label_heatmap(
        drawn,
        now.router,
        slot=slot,
        value=value,
        minimum_expected=minimum,
        selectable=not run.counts_only,
        most=MOST_EXPERTS,
    ),
    "syntax_heatmap",
    leads="nowhere" if run.counts_only else "away",
)
if run.counts_only:
    plain.note(
        "This run holds counts only: it has no words to test, so that no cell is called specialised, and no text to "
        "open. A cell that holds over documents says “not enough data”."
    )
elif value == "lift":
    plain.note(
        "Full colour: the expert is specialised in the label. It takes at least 1.2 times its share of it, and not by "
        "chance: that holds over documents, and over words. Faint: it was not shown, or there is too little text to "
        "tell; point at a cell to see which."
    )
if cell:
    expert, picked = cell["customdata"][-2:]
    selection.change(focus=(int(expert),), label=label, value=str(picked), token=None)
    st.switch_page("text.py")

here = drawn.filter(router=now.router, slot=slot)
plain.section(
    "The same in numbers",
    "Lift is how many times more often than by chance, with its 95 % interval; 1 is chance. "
    + ("The focused experts only." if now.focus else "All experts."),
)
st.dataframe(
    here.select(
        "expert",
        "label",
        "lift",
        "ci_low",
        "ci_high",
        "verdict",
        "assignments",
        "expected",
        "p_label_given_expert",
        "p_expert_given_label",
    ).sort("assignments", descending=True),
    hide_index=True,
    height=330,
    key="syntax_table",
    column_config={
        "expert": st.column_config.NumberColumn("expert", format="%d"),
        "assignments": st.column_config.NumberColumn("count", format="localized"),
        "expected": st.column_config.NumberColumn("expected", format="%.1f"),
        "lift": st.column_config.NumberColumn("lift", format="%.2f"),
        "ci_low": st.column_config.NumberColumn("from", format="%.2f", help="Lower end of the 95 % interval of lift."),
        "ci_high": st.column_config.NumberColumn("to", format="%.2f", help="Upper end of the 95 % interval of lift."),
        "verdict": st.column_config.TextColumn("verdict"),
        "p_label_given_expert": st.column_config.NumberColumn("of the expert's", format="percent"),
        "p_expert_given_label": st.column_config.NumberColumn("of the label's", format="percent"),
    },
)
csv_button(table, label)
