"""What a worker does: say who it is, load the model, make shards.

Only what says who it is may be needed to import this file: a worker of other versions must get so far. It does not know
Ray, nor the other workers.
"""

from __future__ import annotations

import os
import platform
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_probe.cluster.likeness import Likeness
    from moe_probe.models.fit import DeviceMap
    from moe_probe.models.loading import Origin
    from moe_probe.tracing.counted import CountedShard
    from moe_probe.tracing.rows import ShardText
    from moe_probe.tracing.shard import Recipe, ShardTracer, TracedShard

_PACKAGES = (
    "moe-probe",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "bitsandbytes",
    "numpy",
    "pyarrow",
    "spacy",
)


@dataclass(frozen=True)
class Greeting:
    """Which process a worker is, and the versions that it has; None for what is not installed."""

    host: str
    process: int
    versions: dict[str, str | None]

    def __str__(self) -> str:
        return f"worker {self.process} on {self.host}"


class Worker:
    """Holds the model, under recording, for as long as the process lives."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._open = ExitStack()
        self._tracer: ShardTracer | None = None

    def greet(self) -> Greeting:
        """Say who this is."""
        return Greeting(socket.gethostname(), os.getpid(), versions())

    def open(self, origin: Origin, device_map: DeviceMap, recipe: Recipe, n_threads: int) -> Likeness:
        """Load the model and begin to record it.

        Args:
            origin: how it was loaded by the process that asks.
            device_map: where to, of what this process may see.
            recipe: how shards are made.
            n_threads: to compute with: sums in another order have other last bits.

        Raises:
            MoeProbeError: as `load` and `trace` do.
        """
        import torch

        from moe_probe.cluster.likeness import likeness
        from moe_probe.tracing.encoding import Encoder
        from moe_probe.tracing.job import n_embeddings
        from moe_probe.tracing.shard import open_shard_tracer

        torch.set_num_threads(n_threads)
        lm = origin.load(device_map)
        found = likeness(lm, recipe)
        encoder = Encoder(lm.tokenizer, lm.name, n_embeddings(lm), prefix=recipe.prefix)
        self._tracer = self._open.enter_context(open_shard_tracer(lm, encoder, recipe))
        return found

    def trace(self, text: ShardText) -> TracedShard | CountedShard:
        """Return a shard; `open` came before."""
        assert self._tracer is not None, "a worker is opened before it traces"
        return self._tracer.trace(text)


def versions() -> dict[str, str | None]:
    """Return the versions, in this process, of everything that a run says was used."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
