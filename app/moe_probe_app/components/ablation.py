"""Switching experts off beside the pages, in the queue of the desk: first a text is opened, then experts are chosen.

Opening loads the model, counts the text's tokens and times one forward, so that the page can say which experts there
are and how long it will take. It knows nothing of what is on the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal

import polars as pl

import moe_probe as mp
from moe_probe.counts import FEWEST_DOCUMENTS
from moe_probe.errors import MoeProbeError
from moe_probe.schema import Router
from moe_probe_app.components.desk import Answer, Quantization, explain, open_desk

if TYPE_CHECKING:
    from moe_probe.effects.cost import Cost
    from moe_probe.models import LanguageModel
    from moe_probe.watching import Progress

ENGLISH = ("upos", "shape", "xpos", "stmoe")
ANY_LANGUAGE = ("shape",)
PASTED = "pasted text"
_STOPPED = "stopped before anything was measured"
How = Literal["ablate", "reroute"]
Carrier = Literal["routed", "predicted"]


@dataclass(frozen=True)
class Source:
    """A text and the model that reads it.

    The text is `text`, or of the run at `path` the documents of these `numbers` (all if empty), `max_tokens` of them.
    `run` is the run's name, None of a text that was pasted.
    """

    model: str
    quantization: Quantization
    labels: tuple[str, ...]
    text: str = ""
    english: bool = False
    run: str | None = None
    path: Path | None = None
    numbers: tuple[int, ...] = ()
    max_tokens: int | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Opened:
    """A text that is ready: its documents, the layers that experts can be switched off in, and what it will cost."""

    source: Source
    documents: tuple[mp.Document, ...]
    routers: tuple[Router, ...]
    cost: Cost
    same_model: bool


@dataclass(frozen=True)
class Change:
    """What is done: experts of a router are switched off, or their tokens sent elsewhere; whose labels count."""

    router: Router
    experts: tuple[int, ...]
    how: How
    label: str
    carried_by: Carrier


@dataclass(frozen=True, eq=False)
class Result:
    """What came of it. `table` is None where it was stopped before a label was measured.

    `bound` is where a scale of the tokens' changes ends, in bits; `most_changed` names the document that changes most;
    `sentence` says what the table shows.
    """

    opened: Opened
    change: Change
    experts: str
    tokens: pl.DataFrame
    bound: float
    most_changed: str
    table: pl.DataFrame | None
    sentence: str
    this_text_only: bool
    stopped: bool


@dataclass(eq=False)
class Task(Generic[Answer]):
    """Something asked of the desk, under way or done. `state` is what it is at."""

    cancel: threading.Event = field(default_factory=threading.Event)
    progress: Progress | None = None
    state: Literal["waiting", "loading", "working"] = "waiting"
    future: Future[Answer] | None = None

    @property
    def done(self) -> bool:
        """Whether the thread has finished, well or not."""
        return self.future is not None and self.future.done()

    def problem(self) -> str | None:
        """Return what went wrong in words for the reader, or None."""
        return None if self.future is None else explain(self.future)

    def answer(self) -> Answer:
        """Return what came out of a task that is done and has no problem."""
        assert self.future is not None, "a task is queued where it is made"
        return self.future.result(timeout=0)

    def watch(self, progress: Progress) -> None:
        """Take over how far it is."""
        self.progress = progress


def open_text(source: Source) -> Task[Opened]:
    """Queue the opening of a text."""
    return _queue(lambda task: _open(source, task))


def measure(opened: Opened, change: Change) -> Task[Result]:
    """Queue the measuring of a change."""
    return _queue(lambda task: _measure(opened, change, task))


def _queue(work: Callable[[Task[Answer]], Answer]) -> Task[Answer]:
    task: Task[Answer] = Task()
    task.future = open_desk().queue(lambda: work(task))
    return task


def _load(source: Source, task: Task[Any]) -> LanguageModel:
    """Return the model, unless the task was stopped while it waited or while the model came."""
    if task.cancel.is_set():
        raise MoeProbeError(_STOPPED)
    task.state = "loading"
    model = open_desk().model(source.model, source.quantization)
    if task.cancel.is_set():
        raise MoeProbeError(_STOPPED)
    task.state = "working"
    return model


def _open(source: Source, task: Task[Opened]) -> Opened:
    # Imported here: what needs torch must not keep the page from opening, nor from saying what is not installed.
    from moe_probe.effects.cost import measure_cost
    from moe_probe.effects.texts import documents_of
    from moe_probe.recording.routers import find_routers

    model = _load(source, task)
    if source.path is None:
        documents = [mp.Document(PASTED, source.text, language="en" if source.english else None)]
    else:
        documents = documents_of(mp.open_run(source.path), source.numbers or None, max_tokens=source.max_tokens)
    routers = find_routers(model.model)
    layers = [router.layer for router in routers]
    single = tuple(router for router in routers if layers.count(router.layer) == 1)
    same = source.fingerprint is None or source.fingerprint == model.fingerprint()
    return Opened(source, tuple(documents), single, measure_cost(model, documents), same)


def _measure(opened: Opened, change: Change, task: Task[Result]) -> Result:
    from moe_probe.effects import effect
    from moe_probe.effects.by_token import change_bound, most_changed, token_changes
    from moe_probe.effects.wording import effect_sentence, experts_text

    model = _load(opened.source, task)
    tokens = token_changes(
        model,
        opened.documents,
        change.router.layer,
        change.experts,
        how=change.how,
        labels=[change.label],
        on_progress=task.watch,
        cancel=task.cancel,
    )
    if tokens["change_bits"].drop_nulls().is_empty():
        raise MoeProbeError(
            _STOPPED
            if task.cancel.is_set()
            else "the text has no token that another one foretells; give at least two words"
        )
    table: pl.DataFrame | None = None
    try:
        table = effect(
            model,
            opened.documents,
            change.router.layer,
            change.experts,
            label=change.label,
            carried_by=change.carried_by,
            how=change.how,
            on_progress=task.watch,
            cancel=task.cancel,
        )
    except MoeProbeError:
        if not task.cancel.is_set():  # stopped: what each token lost is there all the same
            raise
    return Result(
        opened,
        change,
        experts_text(change.experts),
        tokens,
        change_bound(tokens),
        most_changed(tokens),
        table,
        "" if table is None else effect_sentence(table, how=change.how),
        this_text_only=len(opened.documents) < FEWEST_DOCUMENTS,
        stopped=task.cancel.is_set(),
    )
