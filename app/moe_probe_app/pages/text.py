"""Text: a document, each token coloured by the expert that it was sent to in the chosen layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_probe_app import exports, library, selection
from moe_probe_app.components import sidebar, tokenview

chosen = sidebar.choose()
document = library.packed_document(chosen.run, chosen.selection.document)


def shown(state: Mapping[str, Any]) -> None:
    """Take over what the reader did inside the view."""
    now = selection.remembered() or chosen.selection
    selection.remember(selection.from_view_state(now, state, chosen.run), from_view=True)


tokenview.show(
    document,
    selection.view_state(chosen.selection),
    revision=selection.revision(),
    files={
        "run": chosen.selection.run,
        "document": chosen.selection.document,
        "page": exports.fits(chosen.run, chosen.selection.document),
    },
    on_change=shown,
)
