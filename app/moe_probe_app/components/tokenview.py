"""The token view inside Streamlit: one component brings a document's bytes, once; another shows it.

Two, because whatever Python changes later (a layer chosen in the sidebar) then sends a few bytes and not the document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

import streamlit as st

from moe_probe.tokenview import javascript, stylesheet
from moe_probe_app.exports import PAGE
from moe_probe_app.library import PackedDocument
from moe_probe_app.routes import LAYER, PATH

_HTML = '<div class="moe-root" data-testid="tokenview"><p style="opacity:.7">Loading the document …</p></div>\n'


def _script(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


# A component's code travels with its data, so all that is large goes with the loader, whose message never changes.
_CODE = (
    javascript(),
    f"const STYLE = {json.dumps(stylesheet())};",
    _script("adapter.js"),
    f"const ROUTES = {json.dumps({'router': LAYER, 'token': PATH, 'page': PAGE})};",
    _script("loader.js"),
)
_load = st.components.v2.component("moe_probe_loader", js="\n".join(_CODE))
_view = st.components.v2.component(
    "moe_probe_view", html=_HTML, css=":host { display: block; }\n", js=_script("view.js")
)


def show(
    document: PackedDocument,
    state: Mapping[str, Any],
    *,
    revision: int,
    files: Mapping[str, Any],
    on_change: Callable[[Mapping[str, Any]], None],
) -> None:
    """Show a document.

    Args:
        document: what `library.packed_document` returned.
        state: the view's state; see START in tokenview.js.
        revision: changes whenever `state` holds what the browser does not know yet.
        files: what the menu of files is to know: the `run` and the `document`'s place in it, as in the explorer's
            address, and whether it may offer a `page` of its own.
        on_change: called with the view's new state when the reader changed it.
    """

    def changed() -> None:
        shown = st.session_state["tokenview"].get("shown")
        if isinstance(shown, Mapping) and shown.get("key") == document.key:
            on_change(shown)

    _view(
        data={"key": document.key, "state": dict(state), "revision": revision, "files": dict(files)},
        key="tokenview",
        on_shown_change=changed,
    )
    bring(document, key="tokenview_loader")


def bring(document: PackedDocument, *, key: str) -> None:
    """Bring a document to the page, once; `key` is the loader's own on its page."""
    name = document.key.encode()
    _load(data=bytes([document.partly, len(name)]) + name + document.data, key=key, height=1)
