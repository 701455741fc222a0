"""Compare: a second run over the same text beside the chosen one, and where the two part."""

from __future__ import annotations

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
from moe_probe_app import library, settings
from moe_probe_app.components import comparison, figure, plain, sidebar
from moe_probe_app.components.comparison import Comparison
from moe_probe_app.components.download import csv_button
from moe_probe_app.components.sidebar import Chosen

SECOND = "compare_second"
ADDRESS = "with"
SLOTS = {"first": "0", "any": "any"}


def choose_second(chosen: Chosen, asked: str | None) -> str | None:
    """Ask for the second run: at first the one that the address names, else the newest that fits; None without one."""
    root, first = settings.current().root, chosen.selection.run
    others = [name for name in library.run_names(root) if name != first]
    if not others:
        return None
    fit = comparison.fitting(root, others, chosen.run)
    offered = [*fit, *(name for name in others if name not in fit)]
    if st.session_state.get(SECOND) not in offered:
        st.session_state[SECOND] = asked if asked in offered else fit[0] if fit else None
    return st.selectbox(
        "Compare with",
        offered,
        key=SECOND,
        persist_state="session",
        placeholder="Choose a run",
        format_func=lambda name: name if name in fit else f"{name} (other text or other routers)",
        width=520,
    )


def open_second(name: str) -> Run | None:
    """Open the second run, or say why it cannot be opened."""
    try:
        return library.open_named(settings.current().root, name)
    except (MoeProbeError, OSError) as error:
        plain.callout("error", f"“{name}” cannot be opened", f"{error}. Choose another run.")
        return None


def measure(chosen: Chosen, name: str) -> Comparison | None:
    """Compare the chosen run with another, or say why the two cannot be compared."""
    second = open_second(name)
    if second is None:
        return None
    try:
        return comparison.compare(chosen.run, second)
    except (MoeProbeError, OSError) as error:
        plain.callout(
            "warning",
            f"“{chosen.selection.run}” and “{name}” cannot be compared",
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


asked = st.query_params.get(ADDRESS)
chosen = sidebar.choose({ADDRESS: st.session_state.get(SECOND) or asked})
first = chosen.selection.run
plain.heading("Compare", f"Does another run over the same text choose the same experts as “{first}”?")
name = choose_second(chosen, asked)
if name is None:
    plain.callout(
        "info",
        "No other run here is over the same text",
        "Trace the same text with another model, precision or checkpoint into the same folder, and it is offered here. "
        "If other runs are listed above, choose one to read why it does not fit.",
        f"moe-probe trace MODEL my_text.txt --out {settings.current().root}/second",
    )
    st.stop()
if st.query_params.get(ADDRESS) != name:
    st.query_params[ADDRESS] = name
found = measure(chosen, name)
if found is None:
    st.stop()
for warning in found.warnings:
    plain.callout("warning", "Before you read on", warning)
if not found.complete:
    plain.note("The runs are so large that whole documents drawn by name are compared, not all of them.")
show_agreement(found, [label_set.name for label_set in chosen.run.labels])
figure.show(load_difference_heatmap(found.load_difference, slot=SLOTS[chosen.selection.slot]), "compare_load")
csv_button(found.load_difference, "load_difference")
