"""Trace: paste or upload a text, choose a model, and look at where its tokens were sent."""

from __future__ import annotations

from concurrent.futures import Future

import streamlit as st

from moe_probe.errors import BadInputError
from moe_probe_app import selection, settings
from moe_probe_app.components import estimate, plain, upload, waiting
from moe_probe_app.components.desk import ANY_LANGUAGE, ENGLISH, PRECISIONS, Job, Request, explain, open_desk
from moe_probe_app.components.estimate import Estimate
from moe_probe_app.selection import Selection

TEXT_LIMIT = 100_000
FORM_WIDTH = 880
EXAMPLE = "The quick brown fox jumps over the lazy dog, and 12 geese fly south before the first snow."
JOB, ESTIMATE, STOPPED = "trace_job", "trace_estimate", "trace_stopped"
UPLOAD_HELP = (
    "Instead of the text above. Plain text and Markdown are one document; of JSONL, CSV, TSV and Parquet each row with "
    "a column text is one; CoNLL-U brings its tags along. All but Parquet may be packed as .gz or .zst."
)


def draw_form() -> None:
    """Ask for a text or a file, a model and a precision."""
    models = settings.models()
    with st.form("trace_form", border=False, width=FORM_WIDTH):
        text = st.text_area("Text", EXAMPLE, height=200, max_chars=TEXT_LIMIT, key="trace_text")
        file = st.file_uploader(
            "Or a file of texts", type=[*upload.KINDS, *upload.COMPRESSIONS], key="trace_file", help=UPLOAD_HELP
        )
        left, middle, right = st.columns([2, 2, 2], vertical_alignment="bottom")
        model = left.selectbox("Model", range(len(models)), format_func=models.__getitem__, key="trace_model")
        precision = middle.selectbox("Precision of the experts", list(PRECISIONS), key="trace_precision")
        english = right.checkbox("Tag parts of speech", value=True, help="For English text", key="trace_english")
        with st.container(horizontal=True):
            asked = st.form_submit_button("Trace", type="primary", key="trace_go")
            first = st.form_submit_button("Estimate first", key="trace_ask", help="Memory and time, before it begins.")
    if not (asked or first):
        return
    try:
        title, documents = upload.read_texts(
            text, file.name if file else None, file.getvalue() if file else b"", english
        )
    except BadInputError as error:
        plain.callout("error", "This text cannot be traced", f"{error}.")
        return
    if not documents:
        plain.callout("warning", "There is no text", "Type or paste some, or choose a file, then press Trace.")
        return
    labels = (*(ENGLISH if english else ANY_LANGUAGE), *(("domain",) if any(one.domain for one in documents) else ()))
    request = Request(title, documents, models[model or 0], PRECISIONS[precision or "4 bits"], labels)
    if asked:
        begin(request)
    else:
        st.session_state[ESTIMATE] = (request, estimate.ask(open_desk(), request))
    st.rerun()


def begin(request: Request) -> None:
    """Queue a trace, and forget what was said of others."""
    st.session_state[JOB] = open_desk().submit(request, settings.current().root)
    for said in (ESTIMATE, STOPPED):
        st.session_state.pop(said, None)


@st.fragment(run_every=0.5)
def watch(job: Job) -> None:
    """Show how far a trace is; when it is done, open its run."""
    if job.done:
        st.rerun()
    part, said = waiting.how_far(job, open_desk().ahead(job.future))
    st.progress(part, said, width=FORM_WIDTH)
    st.button("Stop", disabled=job.cancel.is_set(), key="trace_stop", on_click=job.stop)
    draw_others(job)


@st.fragment(run_every=0.5)
def watch_estimate(future: Future[Estimate]) -> None:
    """Wait for an estimate."""
    if future.done():
        st.rerun()
    ahead = open_desk().ahead(future)
    said = f"Waiting: {ahead} before this one …" if ahead else "Loading the model, and timing the first tokens …"
    st.progress(0.0, said, width=FORM_WIDTH)


@st.fragment(run_every=2.0)
def draw_others(mine: Job | None = None) -> None:
    """Show the traces of other pages that wait or are under way: a page that was closed leaves its trace running."""
    for job in open_desk().jobs():
        if job is mine:
            continue
        part, said = waiting.how_far(job, open_desk().ahead(job.future))
        plain.note(f"{job.name}: {said} ({part:.0%})")
        st.button(
            "Stop it", disabled=job.cancel.is_set(), key=f"trace_stop_{job.name}", on_click=job.stop, type="tertiary"
        )


def draw_estimate() -> None:
    """Show what a trace will take, and begin it if the reader agrees."""
    asked: tuple[Request, Future[Estimate]] | None = st.session_state.get(ESTIMATE)
    if asked is None:
        return
    request, future = asked
    if not future.done():
        watch_estimate(future)
        return
    problem = explain(future)
    if problem is not None:
        plain.callout("error", "This trace would not work", problem)
        return
    plain.callout("info", f"What it takes: {request.title[:60]}", future.result().text())
    st.button("Trace this", key="trace_agreed", type="primary", on_click=begin, args=(request,))


def draw_stopped() -> None:
    """Say what is left of a trace that was stopped, and lead to it."""
    stopped: tuple[str, int] | None = st.session_state.get(STOPPED)
    if stopped is None:
        return
    name, kept = stopped
    plain.callout("info", "Stopped", f"The first {kept:,} tokens are traced and kept as “{name}”.")
    if st.button("Look at them", key="trace_look"):
        selection.remember(Selection(name))
        st.switch_page("text.py")


def finish(job: Job) -> None:
    """Open the run of a trace that is done, or say what came of it."""
    del st.session_state[JOB]
    problem = job.problem()
    if problem is None and job.complete:
        selection.remember(Selection(job.name))
        st.switch_page("text.py")
    elif problem is None:
        st.session_state[STOPPED] = (job.name, job.kept or 0)
    elif job.cancel.is_set():
        plain.callout("info", "Stopped", f"{problem[:1].upper()}{problem[1:]}.")
    else:
        plain.callout("error", "The trace did not work", problem)


plain.heading("Trace", "Paste or upload a text and see which experts of a model each of its tokens is sent to.")
job: Job | None = st.session_state.get(JOB)
if job is not None and job.done:
    finish(job)
    job = None
if job is not None:
    watch(job)
else:
    draw_stopped()
    draw_estimate()
    draw_others()
    draw_form()
