"""The explorer's entry: its pages. Streamlit runs this file from its top at every change.

It lies among the pages because Streamlit takes a folder `pages` *beside* its entry for a navigation of its own.
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from moe_probe_app.components import refusal

PAGES = Path(__file__).parent

# Drawn here: a Material icon or an emoji would be fetched from the internet.
ICON = (
    '<svg viewBox="0 0 32 32"><rect x="3" y="3" width="12" height="12" rx="3" fill="#7878F0"/>'
    '<rect x="17" y="3" width="12" height="12" rx="3" fill="#F0A51E"/>'
    '<rect x="3" y="17" width="12" height="12" rx="3" fill="#1ED2A5"/>'
    '<rect x="17" y="17" width="12" height="12" rx="3" fill="#D25A96"/></svg>'
)

st.set_page_config(page_title="moe_probe", page_icon=ICON, layout="wide", initial_sidebar_state="auto")
page = st.navigation(
    [
        st.Page(PAGES / "text.py", title="Text", default=True),
        st.Page(PAGES / "layers.py", title="Layers", url_path="layers"),
        st.Page(PAGES / "syntax.py", title="Syntax", url_path="syntax"),
        st.Page(PAGES / "domains.py", title="Domains", url_path="domains"),
        st.Page(PAGES / "experts.py", title="Experts", url_path="experts"),
        st.Page(PAGES / "coactivation.py", title="Co-activation", url_path="coactivation"),
        st.Page(PAGES / "paths.py", title="Paths", url_path="paths"),
        st.Page(PAGES / "compare.py", title="Compare", url_path="compare"),
        st.Page(PAGES / "ablate.py", title="Ablate", url_path="ablate"),
        st.Page(PAGES / "trace.py", title="Trace", url_path="trace"),
        st.Page(PAGES / "runs.py", title="Runs", url_path="runs"),
    ],
    position="top",
)
refusal.show(page.run)
