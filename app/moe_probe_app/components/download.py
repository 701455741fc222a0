"""A button that downloads a table as CSV."""

from __future__ import annotations

import polars as pl
import streamlit as st


def csv_button(frame: pl.DataFrame, name: str) -> None:
    """Offer `frame` as `name`.csv; it is written only when somebody asks."""
    st.download_button(
        "Download CSV",
        data=lambda: frame.write_csv().encode(),
        file_name=f"{name}.csv",
        mime="text/csv",
        type="tertiary",
        key=f"csv_{name}",
        on_click="ignore",
    )
