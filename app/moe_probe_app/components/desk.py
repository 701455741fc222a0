"""Work with a model beside the pages: one task at a time in a thread of the server, watched and stopped from any page.

The model that was used last stays loaded. It knows nothing of what is on the page.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import streamlit as st

import moe_probe as mp
from moe_probe.errors import MoeProbeError
from moe_probe.schema import ROUTING_FOLDER

if TYPE_CHECKING:
    from moe_probe.models import LanguageModel
    from moe_probe.tracing import Progress

Quantization = Literal["4bit", "8bit"] | None

PRECISIONS: dict[str, Quantization] = {"4 bits": "4bit", "8 bits": "8bit", "As published": None}
"""How a model may be held, as a page asks for it."""
ENGLISH = ("upos", "shape")
ANY_LANGUAGE = ("shape",)
NAME_WORDS = 4
SHARD_ROWS = 2_048
"""Rows after which a part of a short text is whole, and stays if the trace is stopped after it."""
SHARDS_AT_MOST = 256
CHARACTERS_A_TOKEN = 3
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Request:
    """What to trace: documents, with which model, held how, with which labels. Its run is named after `title`."""

    title: str
    documents: tuple[mp.Document, ...]
    model: str
    quantization: Quantization
    labels: tuple[str, ...]


@dataclass(eq=False)
class Job:
    """A trace that waits, is under way or is done. `name` is its run's, relative to the root.

    `kept` counts the tokens that the run has, where it was stopped before its end; None until it is done.
    """

    request: Request
    name: str
    cancel: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = None
    state: Literal["waiting", "loading", "working"] = "waiting"
    future: Future[Path] | None = None
    kept: int | None = None
    complete: bool = False

    @property
    def done(self) -> bool:
        """Whether the thread has finished, well or not."""
        return self.future is not None and self.future.done()

    def stop(self) -> None:
        """Stop after the batch in hand, or never begin."""
        self.cancel.set()
        if self.future is not None:
            self.future.cancel()

    def problem(self) -> str | None:
        """Return what went wrong in words for the reader, or None.

        Raises:
            Exception: whatever the trace raised that no reader can do anything about.
        """
        return None if self.future is None else explain(self.future)


def explain(future: Future[Any]) -> str | None:
    """Return what went wrong in words for the reader; None where nothing did, or it is not done.

    Raises:
        Exception: whatever was raised that no reader can do anything about.
    """
    if not future.done():
        return None
    try:
        future.result()
    except (MoeProbeError, OSError) as error:
        return str(error)
    except ModuleNotFoundError as error:
        return f"This needs {error.name}: pip install 'moe-probe[trace]', then start the explorer again."
    except CancelledError:
        return "It was taken back before it began."
    return None


class Desk:
    """One worker, the model it loaded last, and what was asked for. No model ever runs in another thread."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="trace")
        self._lock = threading.Lock()
        self._loaded: tuple[tuple[str, Quantization], LanguageModel] | None = None
        self._names: set[str] = set()
        self._asked: list[Future[Any]] = []
        self._jobs: list[Job] = []

    def submit(self, request: Request, root: Path) -> Job:
        """Queue a trace into a new run under `root`."""
        with self._lock:
            name = _free_name(request.title, root, self._names)
            self._names.add(name)
        job = Job(request, name)
        job.future = self.queue(lambda: self._trace(job, root / name))
        with self._lock:
            self._jobs = [*(one for one in self._jobs if not one.done), job]
        return job

    def queue(self, task: Callable[[], Answer]) -> Future[Answer]:
        """Let the worker do a task after all that was asked for before."""
        with self._lock:
            future = self._worker.submit(task)
            self._asked = [*(one for one in self._asked if not one.done()), future]
        return future

    def ahead(self, future: Future[Any] | None) -> int:
        """Return how many tasks must end before this one begins."""
        with self._lock:
            place = self._asked.index(future) if future in self._asked else 0
            return sum(not one.done() for one in self._asked[:place])

    def jobs(self) -> list[Job]:
        """Return the traces that wait or are under way, whoever asked for them, in their order."""
        with self._lock:
            return [job for job in self._jobs if not job.done]

    def model(self, name: str, quantization: Quantization) -> LanguageModel:
        """Return a model, loaded if it is not the last one. Only for what runs in the queue."""
        key = (name, quantization)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # let go of one model before the next one comes
            self._loaded = (key, mp.load(name, quantization=quantization))
        return self._loaded[1]

    def _trace(self, job: Job, out: Path) -> Path:
        request = job.request
        job.state = "loading"
        language_model = self.model(request.model, request.quantization)
        if job.cancel.is_set():
            raise MoeProbeError("stopped before the first token; nothing was kept")
        job.state = "working"

        def watch(progress: Progress) -> None:
            job.progress = progress

        try:
            run = mp.trace(
                language_model,
                request.documents,
                out,
                labels=request.labels,
                shard_rows=_shard_rows(request.documents),
                on_progress=watch,
                cancel=job.cancel,
            )
        except MoeProbeError:
            _remove_empty(out)
            raise
        job.kept, job.complete = run.n_tokens, run.complete
        if not run.n_tokens:
            _remove_empty(out)
            raise MoeProbeError("stopped before the first part of the text was whole; nothing was kept")
        return run.path


@st.cache_resource(show_spinner=False)
def open_desk() -> Desk:
    """Return the server's one desk."""
    return Desk()


def _free_name(text: str, root: Path, taken: set[str]) -> str:
    words = re.findall(r"[a-z0-9]+", text.lower())[:NAME_WORDS]
    stem = "-".join(words)[:48] or "trace"
    name, count = stem, 1
    while name in taken or (root / name).exists():
        count += 1
        name = f"{stem}-{count}"
    return name


def _shard_rows(documents: tuple[mp.Document, ...]) -> int:
    """Return the rows of a part of a run that stays if the trace is stopped: few, unless there would be many parts."""
    tokens = sum(len(document.text) for document in documents) // CHARACTERS_A_TOKEN
    return max(SHARD_ROWS, tokens // SHARDS_AT_MOST)


def _remove_empty(out: Path) -> None:
    """Remove the folder of a trace of which no part is whole."""
    if not any(out.glob(f"{ROUTING_FOLDER}/*.parquet")):
        shutil.rmtree(out, ignore_errors=True)
