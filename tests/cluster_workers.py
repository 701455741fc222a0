"""Workers for the tests of the cluster: they write down what they trace, and die where they are told to."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from moe_probe.cluster.worker import Greeting, Worker


@contextmanager
def local_cluster() -> Iterator[str]:
    """Give the address of Ray on this machine, connected to; its workers find the modules of the tests."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(__file__).parent))
        ray.init(
            address="local",
            num_cpus=3,
            object_store_memory=100_000_000,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


class Mortal:
    """A worker that notes each shard in `folder` before it makes it.

    At the shard whose number stands in the file `dies_at` it kills itself, as often as `times` says.
    """

    def __init__(self, folder: str) -> None:
        self._inner, self._folder = Worker(), Path(folder)

    def greet(self) -> Greeting:
        return self._inner.greet()

    def open(self, *arguments: Any) -> Any:
        return self._inner.open(*arguments)

    def trace(self, text: Any) -> Any:
        with (self._folder / "traced").open("a") as file:
            file.write(f"{text.number} {os.getpid()}\n")
        at, times = (int(word) for word in (self._folder / "dies_at").read_text().split())
        if text.number == at and attempts(self._folder)[at] <= times:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._inner.trace(text)


def begun(folder: Path) -> list[tuple[int, int]]:
    """Return each shard that was begun and the process that did, in order."""
    lines = [line.split() for line in (folder / "traced").read_text().splitlines()]
    return [(int(number), int(process)) for number, process in lines]


def attempts(folder: Path) -> Counter[int]:
    """Return how often each shard was begun."""
    return Counter(number for number, _ in begun(folder))
