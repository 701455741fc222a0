"""How far long work on a run has come, for whoever watches it, and whether it is to stop.

It does not know what the work is, nor how its progress is shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """One step of a trace or a labelling.

    Attributes:
        phase: "reading" (and tokenising), then "tracing"; or "labelling".
        tokens_done: tokens of this phase that are done; of "tracing" those too that a resumed run had before.
        tokens_total: tokens of this phase in all, None while they are being read.
        seconds: since the phase began.
        tokens_before: of `tokens_done`, those that were done before the phase began.
    """

    phase: str
    tokens_done: int
    tokens_total: int | None
    seconds: float
    tokens_before: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Speed since the phase began.

        Example:
            >>> Progress("tracing", 300, 500, 2.0, tokens_before=100).tokens_per_second
            100.0
        """
        return (self.tokens_done - self.tokens_before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at this speed; None where nobody knows."""
        if self.tokens_total is None or self.tokens_per_second <= 0:
            return None
        return (self.tokens_total - self.tokens_done) / self.tokens_per_second


OnProgress = Callable[[Progress], None]


class Cancelled(Exception):
    """Whoever watches wants no more."""


@dataclass(eq=False)
class Watch:
    """Tells whoever watches how far the work is, and hears from them when to stop."""

    on_progress: OnProgress | None
    cancel: threading.Event
    _phase: str = field(default="", init=False)
    _before: int = field(default=0, init=False)
    _total: int | None = field(default=None, init=False)
    _began: float = field(default=0.0, init=False)

    def begin(self, phase: str, before: int, total: int | None) -> None:
        """Start a phase of which `before` of `total` tokens are done."""
        self._phase, self._before, self._total, self._began = phase, before, total, time.monotonic()

    def step(self, done: int) -> None:
        """Say that so many tokens of the phase are done.

        Raises:
            Cancelled: if the work is to stop here.
        """
        if self.on_progress is not None:
            seconds = time.monotonic() - self._began
            self.on_progress(Progress(self._phase, done, self._total, seconds, self._before))
        if self.cancel.is_set():
            raise Cancelled
