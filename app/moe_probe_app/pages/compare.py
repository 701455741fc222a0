"""Compare: the text as a second run, or another layer, routes it beside the chosen one, and where the two part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl
import streamlit as st

from moe_probe.charts.agreement import (
    MEASURES,
    agreement_deciles,
    agreement_labels,
    agreement_lines,
    load_difference_heatmap,
)
from moe_probe.charts.surprisal import surprisal_points
from moe_probe.errors import MoeProbeError
from moe_probe.store import Run
from moe_probe_app import library, selection, settings
from moe_probe_app.components import comparison, figure, panes, plain, sidebar
from moe_probe_app.components.comparison import Comparison
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

SECOND = "compare_second"
OLD_ADDRESS = "with"  # what links called the second run before there were panes
LAYERS = "Another layer of this run"
SLOTS = {"first": "0", "any": "any"}


def other_layer(chosen: Chosen) -> int | None:
    """Return the router to compare with the chosen one: the picked one, else its neighbour; None without one."""
    now, last = chosen.selection, len(chosen.run.routers) - 1
    if now.other is not None:
        return now.other
    return now.router + 1 if now.router < last else now.router - 1 if last else None


def other_runs(chosen: Chosen) -> tuple[list[str], list[str]]:
    """Return the other runs, the newest first, and those of them that may be over the same text."""
    root = settings.current().root
    others = [name for name in library.run_names(root) if name != chosen.selection.run]
    return others, comparison.fitting(root, others, chosen.run)


def choose_second(chosen: Chosen, others: list[str], fit: list[str], asked: str | None) -> str | None:
    """Ask for the second run, or for another layer of this one.

    At first it is the run that the address names, else another layer that it names, else the newest run that fits, else
    another layer. None where there is nothing to compare with.
    """
    now = chosen.selection
    offered = [*fit, *(name for name in others if name not in fit), *([LAYERS] if len(chosen.run.routers) > 1 else [])]
    if not offered:
        return None
    wanted = next((name for name in (now.against, asked) if name in others), None)
    if wanted is None:
        wanted = LAYERS if LAYERS in offered and (now.other is not None or not fit) else fit[0] if fit else None

    def changed() -> None:
        picked = st.session_state[SECOND]
        if picked == LAYERS:
            selection.change(against=None, other=other_layer(chosen))
        else:
            selection.change(against=picked, other=None)

    st.session_state[SECOND] = wanted
    return st.selectbox(
        "Compare with",
        offered,
        key=SECOND,
        placeholder="Choose a run",
        format_func=lambda name: name if name in fit or name == LAYERS else f"{name} (other text or other routers)",
        on_change=changed,
        width=520,
    )


def mirror(chosen: Chosen, name: str) -> Chosen:
    """Keep what is compared in the session's selection and in the address."""
    now = chosen.selection
    changes = {"against": None, "other": other_layer(chosen)} if name == LAYERS else {"against": name}
    now = replace(now, **changes)
    if now != chosen.selection:
        selection.remember(now)
    query = selection.as_query(now, chosen.run.routers)
    if st.query_params.to_dict() != query:
        st.query_params.from_dict(query)
    return Chosen(chosen.run, now)


def show_panes(chosen: Chosen, second: Run | None, titles: tuple[str, str]) -> None:
    """Show the document twice: as both runs route it, or as two layers of one run do."""
    run, now = chosen.run, chosen.selection
    left = library.packed_document(run, now.document)
    right = left
    if second is not None:
        try:
            right = library.packed_document(second, comparison.twin(run, now.document, second))
        except (MoeProbeError, OSError) as error:
            plain.note(f"The two are not shown side by side: {error}.")
            return
    else:
        plain.note("Experts of two layers share nothing but their numbers: a change says that the number differs.")

    def shown(state: Mapping[str, Any]) -> None:
        before = selection.remembered() or now
        selection.remember(selection.from_panes_state(before, state, run), from_view=True)

    panes.show((left, right), titles, selection.panes_state(now), revision=selection.revision(), on_change=shown)


def open_second(name: str) -> Run | None:
    """Open the second run, or say why it cannot be opened."""
    try:
        return library.open_named(settings.current().root, name)
    except (MoeProbeError, OSError) as error:
        plain.callout("error", f"“{name}” cannot be opened", f"{error}. Choose another run.")
        return None


def measure(chosen: Chosen, second: Run) -> Comparison | None:
    """Compare the chosen run with another, or say why the two cannot be compared."""
    try:
        return comparison.compare(chosen.run, second)
    except (MoeProbeError, OSError) as error:
        plain.callout(
            "warning",
            f"“{chosen.selection.run}” and “{chosen.selection.against}” cannot be compared",
            f"{error}. Choose another run.",
        )
        return None


def show_agreement(found: Comparison, labels: list[str]) -> None:
    """Show how often both runs chose the same experts: by layer, by margin and by label."""
    figure.show(agreement_lines(found.agreement), "compare_agreement")
    csv_button(found.agreement, "agreement")
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    measured = left.radio(
        "Agreement of",
        list(MEASURES),
        format_func=MEASURES.__getitem__,
        horizontal=True,
        key="compare_measure",
        persist_state="session",
    )
    measured = measured or "set_overlap"
    if found.agreement.filter(pl.col("decile") != "all").is_empty():
        plain.callout("info", "No margins", "The first run does not know how close its decisions were.")
    else:
        figure.show(agreement_deciles(found.agreement, measure=measured), "compare_deciles")
    if labels:
        label = right.selectbox("By label", labels, key="compare_label", persist_state="session")
        figure.show(agreement_labels(found.agreement, label or labels[0], measure=measured), "compare_labels")
        show_surprisal(found, label or labels[0])
    else:
        show_surprisal(found, None)


def show_surprisal(found: Comparison, label: str | None) -> None:
    """Show which run foretells the text better, where both know their surprisal."""
    if found.surprisal is None:
        plain.section("Does the second run foretell worse?")
        plain.note("Not known: trace both runs with --surprisal, and the difference token by token is shown here.")
        return
    figure.show(surprisal_points(found.surprisal, label), "compare_surprisal")
    csv_button(found.surprisal, "surprisal")


asked = st.query_params.get(OLD_ADDRESS)
chosen = sidebar.choose()
first = chosen.selection.run
plain.heading(
    "Compare", f"Does another run over the same text, or another layer, choose the same experts as “{first}”?"
)
others, fit = other_runs(chosen)
name = choose_second(chosen, others, fit, asked)
if name is None or name == LAYERS:
    if name == LAYERS:
        chosen = mirror(chosen, name)
        show_panes(chosen, None, (first, first))
    if not fit:
        plain.callout(
            "info",
            "No other run here is over the same text",
            "Trace the same text with another model, precision or checkpoint into the same folder, and it is offered "
            "here. If other runs are listed above, choose one to read why it does not fit.",
            f"moe-probe trace MODEL my_text.txt --out {settings.current().root}/second",
        )
    st.stop()
chosen = mirror(chosen, name)
second = open_second(name)
if second is None:
    st.stop()
show_panes(chosen, second, (first, name))
found = measure(chosen, second)
if found is None:
    st.stop()
for warning in found.warnings:
    plain.callout("warning", "Before you read on", warning)
if not found.complete:
    plain.note("The runs are so large that whole documents drawn by name are compared, not all of them.")
show_agreement(found, [label_set.name for label_set in chosen.run.labels])
figure.show(load_difference_heatmap(found.load_difference, slot=SLOTS[chosen.selection.slot]), "compare_load")
csv_button(found.load_difference, "load_difference")
