"""A progress bar for work that takes more than a moment; nothing when the output is piped.

It does not know what the work is: it draws the `Progress` values that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class Step(Protocol):
    """What a long piece of work says about itself."""

    @property
    def phase(self) -> str:
        """What is being done now, in a word or two."""

    @property
    def tokens_done(self) -> int:
        """Tokens of this phase that are done."""

    @property
    def tokens_total(self) -> int | None:
        """Tokens of this phase in all, or None where nobody knows yet."""

    @property
    def tokens_per_second(self) -> float:
        """Speed since the phase began."""


@contextmanager
def progress_bar() -> Iterator[Callable[[Step], None] | None]:
    """Yield the function to hand every step to, or None when standard error is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("tokens · {task.fields[speed]} · left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def draw(step: Step) -> None:
            speed = f"{step.tokens_per_second:,.0f} tokens/s"
            if step.phase not in tasks:
                tasks[step.phase] = bar.add_task(step.phase, total=step.tokens_total, speed=speed)
            bar.update(tasks[step.phase], completed=step.tokens_done, total=step.tokens_total, speed=speed)

        yield draw
