"""Work with a model beside the pages: one task at a time in a thread of the server, watched and stopped from any page.

The model that was used last stays loaded. It knows nothing of what is on the page.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import streamlit as st

import moe_probe as mp
from moe_probe.errors import MoeProbeError

if TYPE_CHECKING:
    from moe_probe.models import LanguageModel
    from moe_probe.tracing import Progress

Quantization = Literal["4bit", "8bit"] | None

PRECISIONS: dict[str, Quantization] = {"4 bits": "4bit", "8 bits": "8bit", "As published": None}
"""How a model may be held, as a page asks for it."""
ENGLISH = ("upos", "shape")
ANY_LANGUAGE = ("shape",)
NAME_WORDS = 4
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Request:
    """What to trace: a text, with which model, held how, and whether the text is English."""

    text: str
    model: str
    quantization: Quantization
    english: bool


@dataclass
class Job:
    """A trace under way or done. `name` is its run's, relative to the root."""

    request: Request
    name: str
    cancel: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = None
    loading: bool = True
    future: Future[Path] | None = None

    @property
    def done(self) -> bool:
        """Whether the thread has finished, well or not."""
        return self.future is not None and self.future.done()

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

    def submit(self, request: Request, root: Path) -> Job:
        """Queue a trace into a new run under `root`."""
        with self._lock:
            name = _free_name(request.text, root, self._names)
            self._names.add(name)
        job = Job(request, name)
        job.future = self._worker.submit(self._trace, job, root / name)
        return job

    def queue(self, task: Callable[[], Answer]) -> Future[Answer]:
        """Let the worker do a task after all that was asked for before."""
        return self._worker.submit(task)

    def model(self, name: str, quantization: Quantization) -> LanguageModel:
        """Return a model, loaded if it is not the last one. Only for what runs in the queue."""
        key = (name, quantization)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # let go of one model before the next one comes
            self._loaded = (key, mp.load(name, quantization=quantization))
        return self._loaded[1]

    def _trace(self, job: Job, out: Path) -> Path:
        language_model = self.model(job.request.model, job.request.quantization)
        job.loading = False
        request = job.request
        document = mp.Document(name=f"{job.name}.txt", text=request.text, language="en" if request.english else None)

        def watch(progress: Progress) -> None:
            job.progress = progress

        labels = ENGLISH if request.english else ANY_LANGUAGE
        return mp.trace(language_model, [document], out, labels=labels, on_progress=watch, cancel=job.cancel).path


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
