"""Experts: what each expert of a layer is an expert in, with what that rests on."""

from __future__ import annotations

from typing import Any

import streamlit as st

from moe_probe.charts.experts import expert_load, expert_mix
from moe_probe.palette import CONTEXT, expert_colours
from moe_probe.schema import Router
from moe_probe.tokenview import router_titles
from moe_probe_app import library, selection
from moe_probe_app.components import cards, figure, plain, portrait, sidebar
from moe_probe_app.components.cards import Card
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

SLOTS = {"first": "0", "any": "any"}
MOST_CARDS = 1_024
FAR = {
    "within domains": "Holds within domains, too",
    "all text": "Holds over all documents",
    "all text only": "Over all documents; within no one domain",
    "one domain": "Holds within one domain",
    "this text only": "This text only: fewer than five documents",
    "nothing above chance": "No label is shown to be its own",
    "not enough data": "Too little text to tell",
}
LOADS = {
    "above": "more than an even share",
    "below": "less than an even share",
    "at chance": "not told from an even share",
    "dead": "dead: never chosen, in a text that is large enough",
    "unseen": "not chosen in this text",
    "not enough data": "too little text to compare with an even share",
}


def show_expert(expert: int) -> None:
    """Make an expert the one that all pages look at."""
    selection.change(focus=(expert,))


def open_in_text(chosen: Chosen, expert: int, label: str | None = None, value: str | None = None) -> None:
    """Go to the text: this expert's tokens, perhaps only those with a label's value."""
    now = chosen.selection
    place = now.document if label is None or value is None else _document_with(chosen, label, value)
    selection.change(focus=(expert,), label=label, value=value, document=place, token=None)
    st.switch_page("text.py")


def _document_with(chosen: Chosen, label: str, value: str) -> int:
    return library.document_with(chosen.run, label, value, chosen.selection.document)


def show_cards(named: list[dict[str, Any]], colours: dict[int, str], title: str, expert: int) -> None:
    """Show a card an expert."""
    shown = sorted(named, key=lambda row: -(row["share"] or 0))[:MOST_CARDS] if len(named) > MOST_CARDS else named
    cards.show(
        [
            Card(
                row["expert"],
                colours.get(row["expert"], CONTEXT),
                row["name"],
                FAR[row["confidence"]],
                "" if row["share"] is None else f"{row['share']:.1%} of the work",
                row["top_tokens_by_lift"] or row["top_tokens_by_count"] or "",
            )
            for row in shown
        ],
        label=f"Experts of {title}",
        pressed=expert,
        on_pick=show_expert,
    )
    if len(named) > MOST_CARDS:
        plain.note(f"The {MOST_CARDS:,} of {len(named):,} experts that do most of the work.")


def pick_expert(router: Router, expert: int, title: str) -> None:
    """Let the reader choose an expert by its number."""
    st.session_state["experts_expert"] = expert
    st.selectbox(
        f"Expert of {title.lower()}",
        range(router.n_experts),
        key="experts_expert",
        format_func=lambda number: f"Expert {number}",
        on_change=lambda: show_expert(st.session_state["experts_expert"]),
        width=240,
    )


def show_head(chosen: Chosen, row: dict[str, Any], colour: str) -> None:
    """Show the expert's line, how far it holds, and its share of the layer's work."""
    load = library.load_table(chosen.run).filter(router=row["router"], expert=row["expert"], slot="any").to_dicts()
    facts = [FAR[row["confidence"]]]
    for one in load:
        if one["share"] is not None:
            ends = "" if one["ci_low"] is None else f" ({one['ci_low']:.1%} to {one['ci_high']:.1%})"
            facts.append(f"{one['share']:.1%}{ends} of the layer's work, even: {one['uniform']:.1%}")
        facts.append(LOADS[one["verdict"]])
    facts.append(f"n = {row['n']:,} assignments")
    portrait.head(row["expert"], colour, row["name"], facts)


def show_ways_to_text(chosen: Chosen, row: dict[str, Any]) -> None:
    """Offer the expert's tokens in the text, all of them and those that its line is about."""
    with st.container(horizontal=True):
        if st.button("Show its tokens in the text", type="primary", key="experts_text"):
            open_in_text(chosen, row["expert"])
        if row["label"] is not None and st.button("Only those that its line is about", key="experts_named_text"):
            open_in_text(chosen, row["expert"], row["label_set"], row["label"])


def show_mix(chosen: Chosen, expert: int, colour: str) -> None:
    """Show which labels and which domains the expert is given; a click on a bar goes to the text."""
    names = [label_set.name for label_set in chosen.run.labels]
    if not names:
        plain.no_labels(chosen.run, has_text=library.has_text(chosen.run))
        return
    others = [name for name in names if name != "domain"]
    label = pick_label(chosen.selection.label, others) if others else None
    with st.container(key="experts_given"):
        columns = st.columns(2, gap="large") if others and "domain" in names else [st.container()]
    if label is not None:
        with columns[0]:
            draw_mix(chosen, expert, colour, label, "experts_mix")
    if "domain" in names:
        with columns[-1]:
            draw_mix(chosen, expert, colour, "domain", "experts_domains")


def pick_label(filtered: str | None, names: list[str]) -> str:
    """Let the reader choose whose values are drawn."""
    if st.session_state.get("experts_label") not in names:
        st.session_state["experts_label"] = filtered if filtered in names else names[0]
    return st.selectbox("Labels", names, key="experts_label", persist_state="session", width=240) or names[0]


def draw_mix(chosen: Chosen, expert: int, colour: str, label: str, key: str) -> None:
    """Show one label's mix."""
    table = library.label_table(chosen.run, label)
    slot = SLOTS[chosen.selection.slot]
    router = chosen.selection.router
    bar = figure.clicked(
        lambda: expert_mix(table, router, expert, label_set=label, slot=slot, colour=colour),
        f"{key}_{label}_{router}_{expert}",
        explained=True,
    )
    if bar:
        open_in_text(chosen, expert, label, str(bar["customdata"][-1]))


chosen = sidebar.choose()
run, now = chosen.run, chosen.selection
router = run.routers[now.router]
title = router_titles(run.routers)[now.router]
plain.heading("Experts", "What is each expert of a layer an expert in? Press a card to see what its line rests on.")
names = library.expert_names(run)
here = names.filter(router=now.router).sort("expert").to_dicts()
if not here:
    plain.callout("info", "No expert to show", "No token of this run came to an expert of this layer. Choose another.")
    st.stop()
named = next((row["expert"] for row in here if row["label"] is not None), 0)  # one with something to say
expert = next((one for one in now.focus if one < router.n_experts), named)
loads = library.load_table(run).filter(router=now.router, slot="any").sort("expert")["assignments"].to_list()
colours = expert_colours(loads, now.focus)
colour = colours.get(expert, CONTEXT)

show_cards(here, colours, title, expert)
pick_expert(router, expert, title)
show_head(chosen, here[expert], colour)
show_ways_to_text(chosen, here[expert])
with st.container(key="experts_said"):
    left, right = st.columns(2, gap="large")
with left:
    portrait.tokens(
        "Given most often", "Token types by count, any slot: a description.", here[expert]["top_tokens_by_count"]
    )
    portrait.tokens(
        "Given most out of proportion",
        "By lift, of types seen often enough: a description.",
        here[expert]["top_tokens_by_lift"],
    )
with right:
    portrait.snippets(here[expert]["snippets"])
plain.section(
    "What it is given",
    "Bars: shares of its tokens; the upright marks are the shares of all experts' tokens, the baseline. Dots: lift "
    "with its 95 % interval; the dashed line is the baseline, 1. Full dots: specialised; open ones: not shown, or not "
    "enough data. Click a bar to see those tokens in the text.",
)
show_mix(chosen, expert, colour)
layer = figure.clicked(
    lambda: expert_load(library.load_table(run), expert, now.router, slot=SLOTS[now.slot], colour=colour),
    "experts_load",
    leads="here",
)
if layer:
    selection.change(router=int(layer["customdata"][-1]))
    st.rerun()
csv_button(names, "experts")
