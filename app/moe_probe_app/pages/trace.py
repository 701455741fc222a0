"""Trace: paste a text, choose a model, and look at where its tokens were sent."""

from __future__ import annotations

import streamlit as st

from moe_probe_app import selection, settings
from moe_probe_app.components import plain
from moe_probe_app.components.desk import PRECISIONS, Job, Request, open_desk
from moe_probe_app.selection import Selection

TEXT_LIMIT = 100_000
FORM_WIDTH = 880
EXAMPLE = "The quick brown fox jumps over the lazy dog, and 12 geese fly south before the first snow."
JOB = "trace_job"


def draw_form() -> None:
    """Ask for a text, a model and a precision."""
    models = settings.models()
    with st.form("trace_form", border=False, width=FORM_WIDTH):
        text = st.text_area("Text", EXAMPLE, height=220, max_chars=TEXT_LIMIT, key="trace_text")
        left, middle, right = st.columns([2, 2, 2], vertical_alignment="bottom")
        model = left.selectbox("Model", range(len(models)), format_func=models.__getitem__, key="trace_model")
        precision = middle.selectbox("Precision of the experts", list(PRECISIONS), key="trace_precision")
        english = right.checkbox("The text is English: tag parts of speech", value=True, key="trace_english")
        asked = st.form_submit_button("Trace", type="primary")
    if not asked:
        return
    if not text.strip():
        plain.callout("warning", "There is no text", "Type or paste some, then press Trace.")
        return
    request = Request(text, models[model or 0], PRECISIONS[precision or "4 bits"], english)
    st.session_state[JOB] = open_desk().submit(request, settings.current().root)
    st.rerun()


@st.fragment(run_every=0.5)
def watch(job: Job) -> None:
    """Show how far a trace is; when it is done, open its run."""
    if job.done:
        st.rerun()
    progress = job.progress
    if job.cancel.is_set():
        st.progress(0.0, "Stopping …", width=FORM_WIDTH)
    elif progress is None or not progress.tokens_total:
        st.progress(0.0, "Loading the model …" if job.loading else "Reading the text …", width=FORM_WIDTH)
    else:
        part = min(1.0, progress.tokens_done / progress.tokens_total)
        said = f"{progress.tokens_done:,} of {progress.tokens_total:,} tokens through the model"
        left = progress.seconds_left
        st.progress(part, said + (f", {left:.0f} s left" if left else ""), width=FORM_WIDTH)
    if st.button("Stop", disabled=job.cancel.is_set(), key="trace_stop"):
        job.cancel.set()


plain.heading("Trace", "Paste a text and see which experts of a model each of its tokens is sent to.")
job: Job | None = st.session_state.get(JOB)
if job is None:
    draw_form()
elif not job.done:
    watch(job)
else:
    del st.session_state[JOB]
    problem = job.problem()
    if problem is None:
        selection.remember(Selection(job.name))
        st.switch_page("text.py")
    else:
        plain.callout("error", "The trace did not work", problem)
        draw_form()
