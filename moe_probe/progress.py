"""A progress bar for work that takes more than a moment, nothing when the output is piped; and where the time went.

It does not know what the work is: it draws the `Progress` and `Profile` values that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table


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


class Part(Protocol):
    """What a part of the work took."""

    @property
    def part(self) -> str:
        """What was done, in a word."""

    @property
    def wall_seconds(self) -> float:
        """By the clock on the wall."""

    @property
    def processor_seconds(self) -> float:
        """Of processors."""


class Times(Protocol):
    """Where the time went."""

    @property
    def n_tokens(self) -> int:
        """Tokens that were done."""

    @property
    def wall_seconds(self) -> float:
        """Of everything, by the clock on the wall."""

    @property
    def processor_seconds(self) -> float:
        """Of everything, of processors."""

    @property
    def tokens_per_second(self) -> float:
        """By the clock on the wall."""

    @property
    def parts(self) -> Sequence[Part]:
        """What it was made of."""


def profile_table(times: Times, beside: Sequence[str]) -> Table:
    """Return where the time went, a row a part.

    Args:
        times: of the whole and of its parts.
        beside: parts that were done while others went on; their wall time is no share of the whole.
    """
    table = Table(
        title=f"Where the time went: {times.n_tokens:,} tokens, {times.tokens_per_second:,.0f} tokens/s",
        title_justify="left",
        box=None,
    )
    table.add_column("part")
    for column in ("wall, s", "of the wall", "processor, s", "of the processor"):
        table.add_column(column, justify="right")
    for one in times.parts:
        table.add_row(
            one.part,
            f"{one.wall_seconds:.2f}",
            "beside" if one.part in beside else _share(one.wall_seconds, times.wall_seconds),
            f"{one.processor_seconds:.2f}",
            _share(one.processor_seconds, times.processor_seconds),
        )
    table.add_row("all", f"{times.wall_seconds:.2f}", "", f"{times.processor_seconds:.2f}", "", style="bold")
    return table


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole > 0 else "—"
