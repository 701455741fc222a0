"""Where the time of a trace goes: seconds by the clock on the wall and by the processor, part by part.

It does not know what the parts do, nor how a profile is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

READ, GENERATE, MODEL, COPY, SORT, LABEL, WRITE, IDLE, OTHER = PARTS = (
    "read",
    "generate",
    "model",
    "copy",
    "sort",
    "label",
    "write",
    "idle",
    "other",
)
"""The parts of a trace, in the order of a profile."""

BESIDE = (SORT, LABEL, WRITE)
"""Parts that are done by threads of their own, while the model runs."""

_ALONE = (READ, GENERATE)  # nothing runs beside them, so that all that the process does is theirs


@dataclass(frozen=True)
class Spent:
    """What a part took: seconds by the clock on the wall, and seconds of processors, which may be more or fewer."""

    part: str
    wall_seconds: float
    processor_seconds: float


@dataclass(frozen=True)
class Profile:
    """Where the time of a trace went.

    Attributes:
        n_tokens: token rows that were traced.
        wall_seconds: from the call to the end, by the clock on the wall; all parts but `BESIDE` together.
        processor_seconds: of all threads of the process; all parts together.
        parts: `read` (inputs to token ids), `generate`, `model` (forwards, and whatever torch's own threads do), `copy`
            (what was recorded: taken from the model; on a GPU also sorted and checked), `sort` (the same, beside the
            model), `label` (token rows and labels), `write` (shards put together, files), `idle` (waiting for the three
            before), `other` (plans, batches). Those without a second are left out.
    """

    n_tokens: int
    wall_seconds: float
    processor_seconds: float
    parts: tuple[Spent, ...]

    @property
    def tokens_per_second(self) -> float:
        """Token rows by the clock on the wall."""
        return self.n_tokens / self.wall_seconds if self.wall_seconds > 0 else 0.0

    def of(self, part: str) -> Spent:
        """Return what a part took; nothing where it did not occur.

        Example:
            >>> profile = Profile(10, 2.0, 3.0, (Spent("model", 1.5, 2.5), Spent("other", 0.5, 0.5)))
            >>> profile.of("model").wall_seconds, profile.of("label").wall_seconds
            (1.5, 0.0)
        """
        return next((spent for spent in self.parts if spent.part == part), Spent(part, 0.0, 0.0))


OnProfile = Callable[[Profile], None]


class Stopwatch:
    """Adds up what each part takes, in whatever threads; a part within a part stops the outer one meanwhile."""

    def __init__(self) -> None:
        """Start."""
        self._lock = threading.Lock()
        self._stacks = threading.local()
        self._wall = dict.fromkeys(PARTS, 0.0)
        self._process = dict.fromkeys(PARTS, 0.0)
        self._thread = dict.fromkeys(PARTS, 0.0)
        self._began = _now()
        self._owner = threading.get_ident()

    @property
    def seconds(self) -> float:
        """Seconds since the start; they never run backwards, as the time of day may."""
        return _passed(self._began)[0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the block to a part."""
        stack: list[_Open] | None = getattr(self._stacks, "stack", None)
        if stack is None:
            stack = self._stacks.stack = []
        if stack:
            self._charge(stack[-1])
        stack.append(_Open(name))
        try:
            yield
        finally:
            self._charge(stack.pop())
            if stack:
                stack[-1].restart()

    def _charge(self, one: _Open) -> None:
        wall, process, thread = one.elapsed()
        with self._lock:
            self._wall[one.part] += wall
            self._process[one.part] += process
            self._thread[one.part] += thread

    def profile(self, n_tokens: int) -> Profile:
        """Return what was spent until now; to be called in the thread that began.

        Raises:
            ValueError: if it is called in another thread.
        """
        if threading.get_ident() != self._owner:
            raise ValueError("a profile is made in the thread that started its stopwatch")
        wall, process, thread = _passed(self._began)
        with self._lock:
            walls, threads = dict(self._wall), dict(self._thread)
            processors = threads | {part: self._process[part] for part in _ALONE}
        here = [part for part in PARTS if part not in BESIDE]
        walls[OTHER] = max(0.0, wall - sum(walls[part] for part in here))
        processors[OTHER] = max(0.0, thread - sum(threads[part] for part in here))
        # Threads that are nobody's here are torch's.
        processors[MODEL] = max(0.0, process - sum(processors[part] for part in PARTS if part != MODEL))
        parts = (Spent(part, walls[part], processors[part]) for part in PARTS)
        return Profile(n_tokens, wall, process, tuple(spent for spent in parts if spent.wall_seconds > 0))


class _Open:
    """A part that is going on."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.restart()

    def restart(self) -> None:
        self._since = _now()

    def elapsed(self) -> tuple[float, float, float]:
        return _passed(self._since)


def _now() -> tuple[float, float, float]:
    return time.perf_counter(), time.process_time(), time.thread_time()


def _passed(since: tuple[float, float, float]) -> tuple[float, float, float]:
    wall, process, thread = (now - then for now, then in zip(_now(), since, strict=True))
    return wall, process, thread
