"""A shard of which counts alone are kept: what the model executed is counted by the shard's labels, and forgotten.

The counts follow from the shard's rows and from nothing before, as the rows of `shard` do; whoever adds up shards adds
integers, in whatever order. It does not know files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from moe_probe.schema import DROPPED, LabelSet, Router
from moe_probe.store.clusters import N_CLUSTERS, name_hash
from moe_probe.store.totals import LabelTotals
from moe_probe.store.writer import ShardFacts
from moe_probe.tracing.counting import Counter
from moe_probe.tracing.forward import Outcome
from moe_probe.tracing.rows import ShardText

_EVERY_SLOT = "phase"
"""The label set of which each slot is counted apart, for the load of each; it has few labels, and every run has it."""

_ROWS_AT_ONCE = 262_144


@dataclass(frozen=True, eq=False)
class CountedShard:
    """A shard as it goes to the disk: how many rows it had, and the counts of each label set."""

    number: int
    rows: int
    sets: Mapping[str, LabelTotals]
    facts: ShardFacts


class Executed:
    """Which experts one shard's tokens were sent to, batch by batch, without anything else; used as `shard.Routed` is.

    What was recorded is in memory by the time it comes here, also on CUDA.

    Attributes:
        routers: where the model chooses experts.
        experts: for each router (slots, rows), -1 where a slot held none.
        self_check: what the recorder's said.
        filled: rows that are there.
        warnings: sentences for the manifest.
    """

    def __init__(self, routers: Sequence[Router], rows: int, self_check: str) -> None:
        """Make room for `rows` tokens."""
        self.routers = tuple(routers)
        self.self_check = self_check
        self.filled = 0
        self.warnings: list[str] = []
        self.experts: list[npt.NDArray[np.int32]] = [
            np.full((router.n_slots, rows), DROPPED, np.int32) for router in routers
        ]

    def fill(self, outcome: Outcome) -> None:
        """Put what came out of one forward into its rows."""
        for kept, rows in outcome.batch.stretches:
            for experts, decided in zip(self.experts, outcome.routing.decisions, strict=True):
                experts[:, rows] = decided.experts[:, kept]
        self.filled += len(outcome.batch.rows)


def count_shard(text: ShardText, tokens: pa.Table, executed: Executed, label_sets: Sequence[LabelSet]) -> CountedShard:
    """Count a shard by each label set, in 64 clusters of documents.

    Args:
        text: the shard.
        tokens: its rows.
        executed: what the model did with them.
        label_sets: what to count by; `tokens` has a column for each.

    Raises:
        RoutingError: if an expert was executed that does not exist.
    """
    names = [label_set.name for label_set in label_sets]
    first = min(text.documents)
    clusters = np.zeros(max(text.documents) - first + 1, dtype=np.int64)
    for number, encoded in text.documents.items():
        clusters[number - first] = name_hash(encoded.document.name) % N_CLUSTERS
    counter = Counter(executed.routers, label_sets, clusters, first=first, apart=[_EVERY_SLOT])
    columns = tokens.select(["document", "window_position", "word_initial", *names])
    for start in range(0, tokens.num_rows, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        counter.add([torch.from_numpy(experts[:, rows]) for experts in executed.experts], columns[rows])
    facts = ShardFacts((False,) * len(executed.routers), executed.self_check, tuple(executed.warnings))
    return CountedShard(text.number, tokens.num_rows, {name: counter.totals(name) for name in names}, facts)
