"""A table in which a row can be picked, with the mouse or the keyboard."""

from __future__ import annotations

from typing import Any

import polars as pl
import streamlit as st


def picked(frame: pl.DataFrame, columns: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Show some columns of a table and return the whole row that was picked in it.

    Args:
        frame: the table.
        columns: what is shown, in order, and how: names and Streamlit's column configurations.
        key: the widget's.
    """
    event: Any = st.dataframe(
        frame.select(list(columns)),
        hide_index=True,
        key=key,
        column_config=columns,
        on_select="rerun",
        selection_mode="single-row",
    )
    chosen = event.selection.rows
    return frame.row(chosen[0], named=True) if chosen and chosen[0] < len(frame) else None
