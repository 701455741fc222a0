"""Paths: where tokens go from layer to layer, which ways they take, and how often neighbours stay together."""

from __future__ import annotations

import polars as pl
import streamlit as st

from moe_probe.charts.neighbours import repetition_lines
from moe_probe.charts.pair_cells import transition_cells
from moe_probe.charts.paths import MOST_STEPS, path_flow, top_paths
from moe_probe.palette import EXPERT_COLOURS
from moe_probe.schema import Router
from moe_probe.tokenview import router_titles
from moe_probe_app import library, selection
from moe_probe_app.components import figure, plain, rows, sidebar
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

RANKS = {"count": "By tokens", "lift": "By lift"}
MEASURES = {"first_choice": "Same first choice", "either": "Any expert in common"}
STEPS_OF_MANY = 3  # of many experts, hardly two tokens take the same way through more

COLUMNS = {
    "path": st.column_config.TextColumn("path", help="First choices, layer by layer."),
    "tokens": st.column_config.NumberColumn("tokens", format="localized"),
    "share": st.column_config.NumberColumn("share", format="percent"),
    "share_ci_low": st.column_config.NumberColumn("from", format="percent", help="95 % interval of share."),
    "share_ci_high": st.column_config.NumberColumn("to", format="percent", help="95 % interval of share."),
    "expected_if_independent": st.column_config.NumberColumn("expected", format="%.1f", help="By chance."),
    "lift": st.column_config.NumberColumn("lift", format="%.4g"),
    "ci_low": st.column_config.NumberColumn("lift, from", format="%.4g", help="95 % interval of lift."),
    "ci_high": st.column_config.NumberColumn("lift, to", format="%.4g", help="95 % interval of lift."),
    "example": st.column_config.TextColumn("example", width="large", help="The first token that took the path."),
}


def open_in_text(router: int, expert: int) -> None:
    """Go to the text, at a router and an expert."""
    selection.change(router=router, focus=(expert,), slot="first", token=None, label=None, value=None)
    st.switch_page("text.py")


def show_step(chosen: Chosen) -> None:
    """Show where the tokens of the chosen layer go next; a click goes to the text."""
    every = chosen.run.routers
    last = chosen.selection.router == every[-1].index
    router = every[-2] if last else every[chosen.selection.router]
    if last:
        plain.note("No layer with experts follows the chosen one: this is the step that leads to it.")
    table = library.transitions(chosen.run)
    names = dict(enumerate(router_titles(every)))
    cell = figure.clicked(
        lambda: transition_cells(table, router.index, focus=chosen.selection.focus, names=names), "paths_step"
    )
    csv_button(table, "transitions")
    if cell:
        open_in_text(router.index, int(cell["customdata"][-2]))


def choose_stretch(routers: list[Router]) -> list[Router]:
    """Ask which layers the paths go through: at most eight that follow each other."""
    titles = router_titles(routers)
    places = range(len(routers))
    few = max(router.n_experts for router in routers) <= len(EXPERT_COLOURS)
    start, end = st.select_slider(
        "Through layers",
        places,
        value=(0, min(MOST_STEPS if few else STEPS_OF_MANY, len(routers) - 1)),
        format_func=titles.__getitem__,
        key=f"paths_stretch_{len(routers)}",
        persist_state="session",
    )
    stretch = routers[start : end + 1]
    if len(stretch) > MOST_STEPS + 1:
        plain.note(f"Of so many layers the first {MOST_STEPS + 1} are drawn: move the ends together to see others.")
    return stretch[: MOST_STEPS + 1]


def show_paths(chosen: Chosen, stretch: list[Router]) -> None:
    """Show the paths that stand out, and each with an example; a click goes to the text."""
    by = st.radio(
        "Rank paths",
        list(RANKS),
        format_func=RANKS.__getitem__,
        horizontal=True,
        key="paths_rank",
        persist_state="session",
    )
    rank = f"rank_by_{by or 'count'}"
    table = library.paths(chosen.run, tuple(router.layer for router in stretch))
    # Layers are asked for, and one of them may have routers beyond the stretch.
    through = [router for router in chosen.run.routers if router.layer in {one.layer for one in stretch}]
    ranked = table.filter(pl.col(rank).is_not_null()).sort(rank)
    if ranked.is_empty():
        plain.callout(
            "info",
            "No path is frequent enough",
            "Paths are ranked by lift where ten tokens or more took them. Choose fewer layers, or rank by tokens.",
        )
        return
    titles = router_titles(chosen.run.routers)
    names = {router.index: titles[router.index].lower() for router in through}
    cell = figure.clicked(
        lambda: top_paths(table, names, by=by or "count", focus=chosen.selection.focus), f"paths_top_{by}"
    )
    if cell:
        open_in_text(int(cell["customdata"][-2]), int(cell["customdata"][-1]))
    plain.section("The same in numbers", "Pick a row to see the expert in which its path begins in the text.")
    row = rows.picked(ranked, COLUMNS, f"paths_table_{by}")
    csv_button(table, "paths")
    if row:
        open_in_text(through[0].index, int(row["path"].partition(">")[0]))


def show_repetition(chosen: Chosen) -> None:
    """Show how often neighbours share an expert, against four chances."""
    table = library.repetition(chosen.run)
    names = table["domain"].unique(maintain_order=True).to_list()
    left, right = st.columns([2, 3], vertical_alignment="bottom")
    domain = left.selectbox(
        "Neighbours in",
        range(len(names)),
        format_func=lambda place: "all documents" if names[place] == "all" else names[place],
        key="paths_domain",
    )
    measure = right.radio(
        "Counted as the same",
        list(MEASURES),
        format_func=MEASURES.__getitem__,
        horizontal=True,
        key="paths_measure",
        persist_state="session",
    )
    frame = repetition_lines(table, names[domain or 0] if names else "all", measure=measure or "first_choice")
    figure.show(frame, "paths_repetition")
    csv_button(table, "repetition")


chosen = sidebar.choose()
plain.heading(
    "Paths", "Where do tokens go from layer to layer, and do neighbours stay together? Click to see it in the text."
)
if len(chosen.run.routers) > 1:
    show_step(chosen)
    stretch = choose_stretch(list(chosen.run.routers))
    if len(stretch) > 1:
        flow = path_flow(
            library.transitions(chosen.run),
            [router.index for router in stretch],
            focus=chosen.selection.focus,
            names=dict(enumerate(router_titles(chosen.run.routers))),
        )
        figure.show(flow, "paths_flow")
        show_paths(chosen, stretch)
    else:
        plain.callout("info", "A path needs two layers", "Move the ends of the slider apart.")
else:
    plain.callout(
        "info", "This run has one layer with experts", "There is no way from layer to layer; neighbours are below."
    )
show_repetition(chosen)
