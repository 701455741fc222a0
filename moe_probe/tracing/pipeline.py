"""Traces a run's shards: the model runs, while the next shard is labelled and the last one written.

It does not know how texts are read, nor how a forward, a row or a file is made.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import RoutingError
from moe_probe.store.plan import Layout, ShardStart, shard_windows
from moe_probe.store.shards import RoutingBlock
from moe_probe.store.writer import RunWriter, ShardFacts
from moe_probe.tracing.batches import group, place
from moe_probe.tracing.forward import ForwardPass, Outcome
from moe_probe.tracing.rows import RowMaker, ShardText, with_surprisal
from moe_probe.tracing.spool import Spool
from moe_probe.watching import Cancelled, Watch

# A thread that runs Python gives way after this long, not after Python's usual 5 ms: the forward takes the interpreter
# back after every tensor operation, and would wait that long each time.
_SWITCH_SECONDS = 1e-4


@dataclass(eq=False)
class Pipeline:
    """The shards of a run, and what it takes to make them."""

    writer: RunWriter
    publish: Callable[[], None]
    layout: Layout
    spool: Spool
    rows: RowMaker
    forward: ForwardPass
    batch_tokens: int
    watch: Watch

    def run(self) -> None:
        """Trace the shards that are not there yet, and publish each when it is whole.

        Cancelled or on Ctrl-C, the shards that are whole stay and are the run.
        """
        todo = [shard for shard in self.layout.shards if not self.writer.has_shard(shard.number)]
        total = int(self.layout.rows.sum())
        self.watch.begin("tracing", total - sum(shard.rows for shard in todo), total)
        stop = threading.Event()
        try:
            with _fair_threads(), ThreadPoolExecutor(1) as labelling, ThreadPoolExecutor(1) as writing:
                try:
                    self._run(todo, self._labelled(todo, labelling, stop), writing)
                finally:
                    stop.set()
        except Cancelled:
            self._publish_if_empty()
        except KeyboardInterrupt:
            self._publish_if_empty()
            raise
        if not self.layout.shards:  # a corpus without tokens
            self.publish()

    def _run(self, todo: Sequence[ShardStart], labelled: Iterator[_Labelled], writing: ThreadPoolExecutor) -> None:
        done = int(self.layout.rows.sum()) - sum(shard.rows for shard in todo)
        written: Future[None] | None = None
        for shard, labelled_shard in zip(todo, labelled, strict=True):
            text, tokens = labelled_shard
            traced = self._trace(shard, text, done)
            done += shard.rows
            if written is not None:
                written.result()
            written = writing.submit(self._write, shard.number, traced, tokens.result())
        if written is not None:
            written.result()

    def _labelled(
        self, todo: Sequence[ShardStart], labelling: ThreadPoolExecutor, stop: threading.Event
    ) -> Iterator[_Labelled]:
        """Yield each shard's text and the rows being made of it, when those of the next shard are under way."""
        ahead: _Labelled | None = None
        for shard in todo:
            windows = list(shard_windows(self.layout, shard.number))
            documents = self.spool.read(windows[0].document, windows[-1].document + 1)
            text = ShardText({encoded.number: encoded for encoded in documents}, windows)
            following = (text, labelling.submit(self.rows.make, text, stop))
            if ahead is not None:
                yield ahead
            ahead = following
        if ahead is not None:
            yield ahead

    def _trace(self, shard: ShardStart, text: ShardText, done: int) -> _Traced:
        """Run the model over one shard."""
        windowing = self.layout.windowing
        ids_of = {number: encoded.ids for number, encoded in text.documents.items()}
        traced: _Traced | None = None
        for windows in group(place(text.windows, windowing), windowing, self.batch_tokens):
            for outcome in self.forward.run(windows, ids_of):
                if traced is None:
                    traced = self._open(outcome, shard.rows)
                traced.fill(outcome)
                done += len(outcome.batch.rows)
                self.watch.step(done)
        assert traced is not None, "a shard has a window at least"
        return traced

    def _open(self, outcome: Outcome, rows: int) -> _Traced:
        """Make room for a shard whose first batch is there."""
        routers = outcome.routing.routers
        scores = tuple(
            outcome.routing.entropy(index) is not None and outcome.routing.margin(index) is not None
            for index in range(len(routers))
        )
        known = self.writer.scores
        if known is not None and scores != known:
            changed = next(index for index, pair in enumerate(zip(scores, known, strict=True)) if pair[0] != pair[1])
            raise RoutingError(
                f"{routers[changed].name}: its entropy and margin were {'' if known[changed] else 'not '}known in the"
                f" shards before and are {'' if scores[changed] else 'not '}now; trace anew, into another folder"
            )
        surprisal = None if outcome.surprisal is None else np.full(rows, np.nan, np.float32)
        return _Traced(RoutingBlock(routers, scores, rows), surprisal, self.forward.self_check)

    def _write(self, number: int, traced: _Traced, tokens: pa.Table) -> None:
        if traced.surprisal is not None:
            tokens = with_surprisal(tokens, traced.surprisal)
        block = traced.block
        if traced.filled != block.n_rows:
            raise RoutingError(
                f"shard {number}: {traced.filled} rows were traced of {block.n_rows}; this is a fault, please report it"
            )
        facts = ShardFacts(tuple(block.scores), traced.self_check, tuple(traced.warnings))
        self.writer.write_shard(number, tokens, block.to_table(), facts)
        self.publish()

    def _publish_if_empty(self) -> None:
        if not self.writer.shards:
            self.publish()


@dataclass(eq=False)
class _Traced:
    """What the model gave for one shard, batch by batch."""

    block: RoutingBlock
    surprisal: npt.NDArray[np.float32] | None
    self_check: str
    filled: int = 0
    warnings: list[str] = field(default_factory=list)

    def fill(self, outcome: Outcome) -> None:
        kept, rows, routing = outcome.batch.kept, outcome.batch.rows, outcome.routing
        chosen = slice(None) if len(kept) == routing.n_tokens else kept  # all of them need no copy
        for index in range(len(self.block.routers)):
            entropy, margin = routing.entropy(index), routing.margin(index)
            self.block.fill(
                index,
                rows,
                routing.experts(index)[chosen],
                routing.weights(index)[chosen],
                None if entropy is None else entropy[chosen],
                None if margin is None else margin[chosen],
            )
        if self.surprisal is not None and outcome.surprisal is not None:
            self.surprisal[rows] = outcome.surprisal
        self.filled += len(rows)
        if outcome.halved and _HALVED not in self.warnings:
            self.warnings.append(_HALVED)


_HALVED = (
    "memory was too small for a batch, which was halved: experts are as they would have been, the lowest bits of some"
    " weights may not be"
)
_Labelled: TypeAlias = tuple[ShardText, "Future[pa.Table]"]


@contextmanager
def _fair_threads() -> Iterator[None]:
    """Let threads take turns quickly while the block runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
