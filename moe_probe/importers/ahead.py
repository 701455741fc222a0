"""Works on the next things in a thread while the last ones are being used: a few, not more, and always in order.

It does not know what the things are.
"""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE_SECONDS = 0.01


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


@contextmanager
def ahead(items: Iterable[T], most: int = 2) -> Iterator[Iterator[T]]:
    """Give what `items` gives, in its order, while a thread makes the next of it; at most `most` wait to be taken.

    An error of `items` is raised where its next item would have come. The thread has ended when the block is left,
    however it is left. It sees the context variables of the caller.

    Example:
        >>> with ahead(iter(range(3))) as numbers:
        ...     list(numbers)
        [0, 1, 2]
    """
    waiting: queue.Queue[_Item[T] | _End] = queue.Queue(most)
    left = threading.Event()

    def work() -> None:
        try:
            for item in items:
                if left.is_set():
                    return
                waiting.put(_Item(item))
            waiting.put(_End(None))
        except BaseException as error:  # it is the caller's, who raises it
            waiting.put(_End(error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="ahead", daemon=True)
    thread.start()
    try:
        yield _taken(waiting)
    finally:
        left.set()
        while thread.is_alive():
            with suppress(queue.Empty):  # make room, in case the thread waits for it
                waiting.get_nowait()
            thread.join(_PATIENCE_SECONDS)


def _taken(waiting: queue.Queue[_Item[T] | _End]) -> Iterator[T]:
    while isinstance(found := waiting.get(), _Item):
        yield found.value
    if found.error is not None:
        raise found.error
