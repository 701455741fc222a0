"""Two panes over one text inside Streamlit: two runs, or two layers of one run, mirrored in each other.

The documents come by the token view's own loader, once each; the panes' code comes once too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import streamlit as st

from moe_probe import tokenview as library_view
from moe_probe_app.components import tokenview
from moe_probe_app.library import PackedDocument

_HTML = '<div class="moe-root" data-testid="panes"><p style="opacity:.7">Loading the documents …</p></div>\n'
_KEY = "panes"


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


_STYLE = f"{library_view.stylesheet()}\n{_read('panes.css')}"
_CODE = (
    library_view.javascript(),
    files(library_view).joinpath("panes.js").read_text(encoding="utf-8"),
    f"const STYLE = {json.dumps(_STYLE)};",
    _read("panes.js"),
)
_bring = st.components.v2.component("moe_probe_panes_code", js="\n".join(_CODE))
_place = st.components.v2.component(
    "moe_probe_panes", html=_HTML, css=":host { display: block; }\n", js=_read("panes_place.js")
)


def show(
    documents: tuple[PackedDocument, PackedDocument],
    titles: tuple[str, str],
    state: Mapping[str, Any],
    *,
    revision: int,
    on_change: Callable[[Mapping[str, Any]], None],
) -> None:
    """Show two documents over the same tokens, or one twice.

    Args:
        documents: the left one and the right one.
        titles: what to call them.
        state: the panes' state; see PANES_START in panes.js.
        revision: changes whenever `state` holds what the browser does not know yet.
        on_change: called with the panes' new state when the reader changed it.
    """
    keys = [document.key for document in documents]

    def changed() -> None:
        shown = st.session_state[_KEY].get("shown")
        if isinstance(shown, Mapping) and shown.get("keys") == keys:
            on_change(shown)

    _place(
        data={"keys": keys, "titles": list(titles), "state": dict(state), "revision": revision},
        key=_KEY,
        on_shown_change=changed,
    )
    _bring(key="panes_code", height=1)
    for side, document in enumerate(documents[: len(set(keys))]):
        tokenview.bring(document, key=f"panes_document_{side}")
