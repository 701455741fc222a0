"""Does one thing after the other in a thread while the caller makes the next: what waits, or takes long in C++.

Two threads that both call NumPy for a few microseconds at a time wait for each other more than they work. It does not
know what the things are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager


class Behind:
    """Things to be done, in the order in which they are put; at most one waits or is being done when `put` returns."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        """Take a pool of one thread."""
        self._thread = thread
        self._last: Future[None] | None = None

    def put(self, work: Callable[[], None]) -> None:
        """Have something done once the last thing was; an error of the last is raised here, and nothing is done."""
        self.wait()
        self._last = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until all was done; raise its error if it failed."""
        last, self._last = self._last, None
        if last is not None:
            last.result()


@contextmanager
def behind() -> Iterator[Behind]:
    """Do things in a thread; all were done, and the thread has ended, when the block is left, however it is left.

    Example:
        >>> done = []
        >>> with behind() as thread:
        ...     for number in range(3):
        ...         thread.put(lambda number=number: done.append(number))
        >>> done
        [0, 1, 2]
    """
    with ThreadPoolExecutor(1, "behind") as thread:
        found = Behind(thread)
        yield found
        found.wait()
