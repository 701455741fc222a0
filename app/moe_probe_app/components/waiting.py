"""How far a task of the desk is, and a button that stops it."""

from __future__ import annotations

from typing import Any

import streamlit as st

from moe_probe_app.components.ablation import Task

PHASES = {
    "reading": "Reading the text",
    "tracing": "Finding where each token is sent",
    "switching experts off": "Comparing with and without",
}


@st.fragment(run_every=0.5)
def watch(task: Task[Any], key: str) -> None:
    """Show how far a task is; when it is done, run the page again."""
    if task.done:
        st.rerun()
    progress = task.progress
    if task.cancel.is_set():
        st.progress(0.0, "Stopping …")
    elif task.state == "waiting":
        st.progress(0.0, "Waiting for other work with a model to end …")
    elif task.state == "loading":
        st.progress(0.0, "Loading the model …")
    elif progress is None or not progress.tokens_total:
        st.progress(0.0, "Reading the text …")
    else:
        left = progress.seconds_left
        rest = f", {left:.0f} s left" if left else ""
        st.progress(
            min(1.0, progress.tokens_done / progress.tokens_total),
            f"{PHASES.get(progress.phase, progress.phase)}: {progress.tokens_done:,} of "
            f"{progress.tokens_total:,} tokens through the model{rest}",
        )
    if st.button("Stop", disabled=task.cancel.is_set(), key=key):
        task.cancel.set()
