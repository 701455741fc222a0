"""The sidebar: run, document, layer, focused experts and slot, the same on every page and mirrored in the address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import streamlit as st

from moe_probe.errors import MoeProbeError
from moe_probe.store import Run
from moe_probe.tokenview import router_titles
from moe_probe_app import library, selection, settings
from moe_probe_app.components import plain
from moe_probe_app.selection import FOCUS_LIMIT, Selection

_SLOTS = {"first": "First choice", "any": "Any slot"}


@dataclass(frozen=True)
class Chosen:
    """What is looked at: an open run and the selection that fits it."""

    run: Run
    selection: Selection


def choose(own: Mapping[str, str | None] | None = None) -> Chosen:
    """Draw the sidebar and return what is chosen; where there is nothing to choose, say what to do and stop.

    Args:
        own: what the address is to hold of the page itself, by name; what is None is left out.
    """
    root = settings.current().root
    names = library.run_names(root)
    if not names:
        plain.callout(
            "info",
            "No runs yet",
            f"There is no run under {root}. Trace a sentence on the page Trace, or trace a text from the command line:",
            f"moe-probe trace tiny-mixtral my_text.txt --out {root}/first",
        )
        st.stop()
    name = _run_name(names)
    with st.sidebar:
        _pick_run(names, name)
        try:
            run = library.open_named(root, name)
        except (MoeProbeError, OSError) as error:
            plain.callout("error", "This run cannot be opened", f"{error}. Choose another run.")
            st.stop()
        chosen = _selection(name, run)
        if not run.n_tokens:
            plain.callout("info", "This run holds no token yet", "Go on with it: trace again with --resume.")
            st.stop()
        selection.remember(chosen)
        _draw(run, chosen)
    query = selection.as_query(chosen, run.routers)
    query |= {name: value for name, value in (own or {}).items() if value is not None}
    if st.query_params.to_dict() != query:
        st.query_params.from_dict(query)
    return Chosen(run, chosen)


def _run_name(names: list[str]) -> str:
    """Return the run to show: the session's, else the address's, else the one that was asked for, else the newest."""
    before = selection.remembered()
    wanted = [before.run if before else None, st.query_params.get("run"), settings.current().first_run]
    return next((name for name in wanted if name in names), names[0])


def _selection(name: str, run: Run) -> Selection:
    before = selection.remembered()
    if before is None:
        return selection.from_query(st.query_params, name, run)
    if before.run != name:
        # Another run has other documents; the layer and the picked experts may well mean something there too.
        before = replace(before, run=name, document=0, token=None, label=None, value=None)
    return selection.fit(before, run)


def _pick_run(names: list[str], name: str) -> None:
    def changed() -> None:
        before = selection.remembered()
        picked = names[st.session_state["sidebar_run"]]
        selection.remember(replace(before, run=picked) if before else Selection(picked))

    st.session_state["sidebar_run"] = names.index(name)
    st.selectbox("Run", range(len(names)), key="sidebar_run", format_func=names.__getitem__, on_change=changed)


def _draw(run: Run, chosen: Selection) -> None:
    """Draw the widgets. The session's selection remembers, not they: a click in a chart moves them too."""
    documents = library.document_names(run)
    _keep("sidebar_document", chosen.document)
    st.selectbox(
        "Document",
        range(len(documents)),
        key="sidebar_document",
        format_func=documents.__getitem__,
        on_change=lambda: selection.change(document=st.session_state["sidebar_document"], token=None),
    )
    titles = router_titles(run.routers)
    _keep("sidebar_layer", chosen.router)
    st.selectbox(
        "Layer",
        range(len(titles)),
        key="sidebar_layer",
        format_func=titles.__getitem__,
        on_change=lambda: selection.change(router=st.session_state["sidebar_layer"]),
    )
    _keep("sidebar_focus", list(chosen.focus))
    st.multiselect(
        "Focused experts",
        range(max(router.n_experts for router in run.routers)),
        key="sidebar_focus",
        format_func=lambda expert: f"Expert {expert}",
        max_selections=FOCUS_LIMIT,
        placeholder="All experts",
        on_change=lambda: selection.change(focus=tuple(st.session_state["sidebar_focus"])),
    )
    _keep("sidebar_slot", chosen.slot)
    st.radio(
        "Count",
        list(_SLOTS),
        key="sidebar_slot",
        format_func=_SLOTS.__getitem__,
        horizontal=True,
        on_change=lambda: selection.change(slot=st.session_state["sidebar_slot"]),
    )
    router = run.routers[chosen.router]
    if router.n_slots == router.n_experts > 1:
        plain.note("In this layer every token goes to every expert: first choices tell them apart, slots do not.")


def _keep(key: str, value: object) -> None:
    st.session_state[key] = value
