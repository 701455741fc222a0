"""The shards of a run that are still to be made, for whoever makes them, and the one place where they reach the disk.

An engine takes the text of each shard from here, makes the shard however it likes, and hands it back. It does not know
how a shard is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from moe_probe.errors import RoutingError
from moe_probe.models import LanguageModel
from moe_probe.schema import Router
from moe_probe.store.counted import CountsWriter
from moe_probe.store.plan import Layout, shard_windows
from moe_probe.store.writer import RunWriter
from moe_probe.tracing.counted import CountedShard
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.profile import Stopwatch
from moe_probe.tracing.rows import ShardText
from moe_probe.tracing.shard import Recipe, TracedShard
from moe_probe.tracing.spool import Spool
from moe_probe.watching import Watch


@dataclass(eq=False)
class Work:
    """What of a run is still to be made.

    Attributes:
        lm: the model, as whoever asked for the trace loaded it.
        encoder: its tokenizer.
        recipe: what the shards' bytes follow from, beside model and text.
        routers: where the model chooses experts.
        layout: all shards of the run.
        watch: who hears of progress, and may cancel.
        stopwatch: where time goes.
    """

    lm: LanguageModel
    encoder: Encoder
    recipe: Recipe
    routers: Sequence[Router]
    layout: Layout
    watch: Watch
    stopwatch: Stopwatch
    spool: Spool
    writer: RunWriter | CountsWriter
    publish: Callable[[], None]

    @property
    def todo(self) -> list[int]:
        """The numbers of the shards that are not on the disk, in order."""
        return [shard.number for shard in self.layout.shards if not self.writer.has_shard(shard.number)]

    @property
    def rows(self) -> int:
        """Token rows of the whole run."""
        return int(self.layout.rows.sum())

    @property
    def rows_done(self) -> int:
        """Token rows that are on the disk."""
        return sum(self.layout.shards[number].rows for number in self.writer.shards)

    def text(self, number: int) -> ShardText:
        """Return what a shard is made from. Reads the spool: one thread at a time."""
        windows = list(shard_windows(self.layout, number))
        documents = self.spool.read(windows[0].document, windows[-1].document + 1)
        return ShardText(number, {encoded.number: encoded for encoded in documents}, windows)

    def stage(self, number: int, tokens: pa.Table) -> None:
        """Put the rows of a shard on the disk while the model runs, where nothing of the model goes into them.

        Until `commit` they are a temporary file. One thread at a time, which may be another one than that of `commit`.

        Raises:
            MoeProbeError: if the disk is full.
        """
        if isinstance(self.writer, RunWriter) and not self.recipe.surprisal:
            self.writer.stage_tokens(number, tokens)

    def commit(self, shard: TracedShard | CountedShard) -> None:
        """Put a shard on the disk and publish it. In any order; one thread at a time; each shard once.

        Raises:
            RoutingError: if it has not the scores that the shards before have.
            MoeProbeError: if the disk is full.
        """
        self._check_scores(shard)
        if isinstance(shard, CountedShard):
            assert isinstance(self.writer, CountsWriter), "shards are made by the recipe that the writer was opened for"
            self.writer.add_shard(shard.number, shard.rows, shard.facts, shard.sets)
        else:
            assert isinstance(self.writer, RunWriter), "shards are made by the recipe that the writer was opened for"
            self.writer.write_shard(shard.number, shard.tokens, shard.routing, shard.facts, shard.probabilities)
        self.publish()

    def _check_scores(self, shard: TracedShard | CountedShard) -> None:
        known, scores = self.writer.scores, shard.facts.scores
        if known is None or scores == known:
            return
        changed = next(index for index, pair in enumerate(zip(scores, known, strict=True)) if pair[0] != pair[1])
        raise RoutingError(
            f"{self.routers[changed].name}: its entropy and margin were {'' if known[changed] else 'not '}known in the"
            f" shards before and are {'' if scores[changed] else 'not '}now; trace anew, into another folder"
        )


Engine: TypeAlias = Callable[[Work], None]
"""Makes every shard of `work.todo` and commits it. It lets `Cancelled`, which `work.watch.step` raises, go through."""
