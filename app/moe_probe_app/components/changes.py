"""A text with each token coloured by how much worse or better it is foretold: a component of its own for the browser.

Colours have a sign that is also a line below the word, and every number is in the tooltip.
"""

from __future__ import annotations

from importlib.resources import files

import polars as pl
import streamlit as st

_HTML = '<div class="mpc-root" data-testid="changes"></div>\n'


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


_view = st.components.v2.component("moe_probe_changes", html=_HTML, css=_read("changes.css"), js=_read("changes.js"))


def show(tokens: pl.DataFrame, *, label: str, bound: float, key: str) -> None:
    """Show tokens of one document.

    Args:
        tokens: from `effects.by_token.token_changes`, of one document.
        label: the label set to name in the tooltip.
        bound: where the scale ends, in bits.
        key: the component's, of this text only.
    """
    columns = {"position": "position", "text": "text", "piece": "token", "label": label}
    columns |= {"surprisal": "surprisal_bits", "change": "change_bits"}
    data = {name: tokens[column].to_list() for name, column in columns.items()}
    _view(data={"tokens": data, "labelName": label, "bound": bound}, key=key)
