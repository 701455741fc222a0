"""The one selection that every page shows, and its mirror in the address.

A `Selection` always fits its run: whatever comes from a link, a widget or the browser goes through `fit` first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import streamlit as st

from moe_probe.schema import Router
from moe_probe.store import Run
from moe_probe_app.library import label_values

FOCUS_LIMIT = 8
FIND_LIMIT = 200
NAME_LIMIT = 400
_STATE = "selection"
_REVISION = "selection_revision"


@dataclass(frozen=True)
class Selection:
    """What is looked at: a run's document and router, and how its text is shown.

    `router` is an index into the run's routers; `token` counts within the document; `label` and `value` go together.
    `against` is another run to compare with, `other` the router to compare with, None where it is the same as `router`;
    `difference` shows only what changed between them.
    """

    run: str
    document: int = 0
    router: int = 0
    focus: tuple[int, ...] = ()
    slot: Literal["first", "any"] = "first"
    token: int | None = None
    view: Literal["one", "three"] = "one"
    numbers: bool = False
    label: str | None = None
    value: str | None = None
    find: str = ""
    against: str | None = None
    other: int | None = None
    difference: bool = False


def fit(wanted: Selection, run: Run) -> Selection:
    """Return `wanted` with whatever the run does not have replaced by its default."""
    routers = run.routers
    focus = [e for e in dict.fromkeys(wanted.focus) if 0 <= e < max(router.n_experts for router in routers)]
    label = wanted.label if wanted.label in [label_set.name for label_set in run.labels] else None
    value = wanted.value if label and wanted.value in label_values(run, label) else None
    return replace(
        wanted,
        document=wanted.document if 0 <= wanted.document < run.n_documents else 0,
        router=wanted.router if 0 <= wanted.router < len(routers) else 0,
        focus=tuple(focus[:FOCUS_LIMIT]),
        slot="any" if wanted.slot == "any" else "first",
        token=wanted.token if wanted.token is not None and wanted.token >= 0 else None,
        view="three" if wanted.view == "three" else "one",
        numbers=bool(wanted.numbers),
        label=label if value is not None else None,
        value=value,
        find=wanted.find[:FIND_LIMIT],
        against=wanted.against if wanted.against and len(wanted.against) <= NAME_LIMIT else None,
        other=wanted.other if wanted.other is not None and 0 <= wanted.other < len(routers) else None,
        difference=bool(wanted.difference),
    )


def from_query(query: Mapping[str, str], run_name: str, run: Run) -> Selection:
    """Read a selection from an address; what is missing, malformed or out of range becomes its default."""
    router = _router(query, "router", "layer", run)
    focus = [_whole(part) for part in query.get("focus", "").split(",")]
    return fit(
        Selection(
            run=run_name,
            document=_whole(query.get("document")) or 0,
            router=router or 0,
            focus=tuple(e for e in focus if e is not None),
            slot="any" if query.get("slot") == "any" else "first",
            token=_whole(query.get("token")),
            view="three" if query.get("view") == "three" else "one",
            numbers=query.get("numbers") == "1",
            label=query.get("label"),
            value=query.get("value"),
            find=query.get("find", ""),
            against=query.get("against"),
            other=_router(query, "other_router", "other_layer", run),
            difference=query.get("difference") == "1",
        ),
        run,
    )


def as_query(selection: Selection, routers: list[Router]) -> dict[str, str]:
    """Return the address's parameters: the run and the layer always, the rest where it is not the default."""
    query = {"run": selection.run, "document": str(selection.document)}
    for index, by_layer, by_router in (
        (selection.router, "layer", "router"),
        (selection.other, "other_layer", "other_router"),
    ):
        if index is not None:
            query[by_layer] = str(routers[index].layer)
            if [one.layer for one in routers].count(routers[index].layer) > 1:
                query[by_router] = str(index)
    if selection.focus:
        query["focus"] = ",".join(map(str, selection.focus))
    if selection.token is not None:
        query["token"] = str(selection.token)
    query |= {name: "1" for name in ("numbers", "difference") if getattr(selection, name)}
    if selection.against is not None:
        query["against"] = selection.against
    if selection.label is not None and selection.value is not None:
        query |= {"label": selection.label, "value": selection.value}
    for name in ("slot", "view", "find"):
        value = getattr(selection, name)
        if value != getattr(Selection(selection.run), name):
            query[name] = value
    return query


def remembered() -> Selection | None:
    """Return this session's selection, or None before its first page."""
    found: Selection | None = st.session_state.get(_STATE)
    return found


def remember(selection: Selection, *, from_view: bool = False) -> None:
    """Make `selection` this session's. `from_view`: the token view shows it already and need not be told."""
    if selection != remembered() and not from_view:
        st.session_state[_REVISION] = revision() + 1
    st.session_state[_STATE] = selection


def change(*, from_view: bool = False, **changes: Any) -> None:
    """Change some fields of this session's selection."""
    before = remembered()
    if before is not None:
        remember(replace(before, **changes), from_view=from_view)


def revision() -> int:
    """Count the changes that the token view does not know of yet."""
    return int(st.session_state.get(_REVISION, 0))


def view_state(selection: Selection) -> dict[str, Any]:
    """Return the part of a selection that the token view shows, under the view's own names."""
    names = {"router", "focus", "slot", "token", "view", "numbers", "label", "value", "find"}
    state = {field.name: getattr(selection, field.name) for field in fields(selection) if field.name in names}
    return state | {"focus": list(selection.focus)}


def from_view_state(selection: Selection, state: Mapping[str, Any], run: Run) -> Selection:
    """Return `selection` as the token view says it is now; values of the wrong type are left out."""

    def integer(value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    router = integer(state.get("router"))
    focus = state.get("focus")
    text = {name: state.get(name) for name in ("label", "value", "find")}
    return fit(
        replace(
            selection,
            router=selection.router if router is None else router,
            focus=tuple(e for e in focus if integer(e) is not None) if isinstance(focus, list) else (),
            token=integer(state.get("token")),
            slot="any" if state.get("slot") == "any" else "first",
            view="three" if state.get("view") == "three" else "one",
            numbers=state.get("numbers") is True,
            label=text["label"] if isinstance(text["label"], str) else None,
            value=text["value"] if isinstance(text["value"], str) else None,
            find=text["find"] if isinstance(text["find"], str) else "",
        ),
        run,
    )


def panes_state(selection: Selection) -> dict[str, Any]:
    """Return the part of a selection that two panes show, under the panes' own names."""
    names = ("router", "other", "difference", "slot", "token", "numbers")
    return {name: getattr(selection, name) for name in names} | {"focus": list(selection.focus)}


def from_panes_state(selection: Selection, state: Mapping[str, Any], run: Run) -> Selection:
    """Return `selection` as two panes say it is now; values of the wrong type are left out."""
    view = from_view_state(selection, {**view_state(selection), **state}, run)
    other = state.get("other")
    return fit(
        replace(
            view,
            other=other if isinstance(other, int) and not isinstance(other, bool) else None,
            difference=state.get("difference") is True,
        ),
        run,
    )


def _router(query: Mapping[str, str], by_router: str, by_layer: str, run: Run) -> int | None:
    """Return the router that an address names by its index, else by its layer."""
    index = _whole(query.get(by_router))
    if index is not None:
        return index
    layer = _whole(query.get(by_layer))
    return next((one.index for one in run.routers if one.layer == layer), None) if layer is not None else None


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None
