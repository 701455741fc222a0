"""How far work of the desk is, in words and as a bar, and a button that stops it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol

import streamlit as st

from moe_probe_app.components.ablation import Task
from moe_probe_app.components.desk import open_desk

if TYPE_CHECKING:
    from moe_probe.watching import Progress

PHASES = {
    "reading": "Reading the text",
    "tracing": "Finding where each token is sent",
    "switching experts off": "Comparing with and without",
}


class Watched(Protocol):
    """What is asked of the desk: a task, or a trace."""

    cancel: threading.Event
    progress: Progress | None
    state: Literal["waiting", "loading", "working"]


def how_far(work: Watched, ahead: int) -> tuple[float, str]:
    """Return how far work is, from 0 to 1, and in words.

    Args:
        work: what was asked of the desk.
        ahead: how many tasks must end before it begins.
    """
    progress = work.progress
    if work.cancel.is_set():
        return 0.0, "Stopping …"
    if work.state == "waiting":
        before = "1 other task" if ahead == 1 else f"{ahead} other tasks"
        return 0.0, f"Waiting: {before} with a model must end first …" if ahead else "About to begin …"
    if work.state == "loading":
        return 0.0, "Loading the model …"
    if progress is None or not progress.tokens_total:
        return 0.0, "Reading the text …"
    left = progress.seconds_left
    rest = f", {left:.0f} s left" if left else ""
    return (
        min(1.0, progress.tokens_done / progress.tokens_total),
        f"{PHASES.get(progress.phase, progress.phase)}: {progress.tokens_done:,} of {progress.tokens_total:,} tokens "
        f"through the model{rest}",
    )


@st.fragment(run_every=0.5)
def watch(task: Task[Any], key: str) -> None:
    """Show how far a task is; when it is done, run the page again."""
    if task.done:
        st.rerun()
    st.progress(*how_far(task, open_desk().ahead(task.future)))
    if st.button("Stop", disabled=task.cancel.is_set(), key=key):
        task.cancel.set()
