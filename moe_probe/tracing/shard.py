"""One shard of a run, from its text to its tables: the same whoever makes it, in whatever order, on whatever machine.

A shard follows from the model, the recipe and the shard's text, and from nothing that happened before: its batches hold
windows of this shard alone, and its labels are made of its documents alone. Memory that is too small is the exception:
where a batch was halved, the lowest bits of some weights may be others, and the shard says so. It does not know files.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from moe_probe.errors import BadInputError, RoutingError
from moe_probe.labels import Labeller, open_labeller
from moe_probe.models import LanguageModel
from moe_probe.recording.routing import Decisions
from moe_probe.schema import LabelSet, check_label_name
from moe_probe.store.plan import Windowing
from moe_probe.store.shards import ProbabilityBlock, RoutingBlock
from moe_probe.store.writer import ShardFacts
from moe_probe.tracing.batches import Batch, group, place
from moe_probe.tracing.counted import CountedShard, Executed, count_shard
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import ForwardPass, Outcome, open_forward
from moe_probe.tracing.profile import COPY, Stopwatch
from moe_probe.tracing.rows import RowMaker, ShardText, with_surprisal

Number = TypeVar("Number", bound=np.generic)

_LARGEST_HALF = 65_504.0
_ROWS_AT_ONCE = 32_768
_HALVED = (
    "memory was too small for a batch, which was halved: experts are as they would have been, the lowest bits of some"
    " weights may not be"
)


@dataclass(frozen=True)
class Recipe:
    """What a shard's bytes follow from, beside the model and the shard's text. Plain values: it can be sent.

    `prefix` are the special tokens at each window's start; `labels` those asked for, without `phase`, which every run
    has.
    """

    windowing: Windowing
    prefix: tuple[int, ...]
    labels: tuple[str, ...]
    language: str | None
    tagger: str | None
    batch_tokens: int
    surprisal: bool
    probabilities: bool = False
    counts_only: bool = False

    def open_labellers(self) -> dict[str, Labeller]:
        """Return the labeller of each label, and of `phase`.

        Raises:
            BadInputError: if a label is named twice, cannot have that name, or needs what is not installed.
        """
        for number, name in enumerate(self.labels):
            if check_label_name(name) in self.labels[:number]:
                raise BadInputError(f"label {name!r}: named twice")
        return {
            name: open_labeller(name, language=self.language or "en", tagger=self.tagger)
            for name in ("phase", *self.labels)
        }


@dataclass(frozen=True, eq=False)
class TracedShard:
    """A shard as it goes to the disk: `tokens`, `routing` and `probabilities` have a row a token, in the same order."""

    number: int
    tokens: pa.Table
    routing: pa.Table
    facts: ShardFacts
    probabilities: pa.Table | None = None


@dataclass(eq=False)
class ShardTracer:
    """A model under recording and what makes token rows, ready to make shards. Get one from `open_shard_tracer`.

    The halves of `trace` may run beside each other: `run_model` needs the model, `rows.make` does not.
    """

    recipe: Recipe
    label_sets: Sequence[LabelSet]
    rows: RowMaker
    forward: ForwardPass
    stopwatch: Stopwatch

    def trace(self, text: ShardText) -> TracedShard | CountedShard:
        """Return a shard.

        Raises:
            RoutingError: what was recorded cannot be what the experts executed.
            MoeProbeError: a single window does not fit into memory.
        """
        tokens = self.rows.make(text, threading.Event())
        return self.finish(text, self.run_model(text), tokens)

    def run_model(self, text: ShardText, step: Callable[[int], None] | None = None) -> Routed | Executed:
        """Run the model over a shard; `step` hears after each batch how many rows are done."""
        windowing = self.recipe.windowing
        ids_of = {number: encoded.ids for number, encoded in text.documents.items()}
        rows = sum(window.rows(windowing) for window in text.windows)
        routed: Routed | Executed | None = None
        groups = group(place(text.windows, windowing), windowing, self.recipe.batch_tokens)
        for outcome in self.forward.run(groups, ids_of):
            with self.stopwatch.part(COPY):
                if routed is None:
                    routed = self._open(outcome, rows)
                routed.fill(outcome)
                if outcome.halved and _HALVED not in routed.warnings:
                    routed.warnings.append(_HALVED)
            if step is not None:
                step(routed.filled)
        assert routed is not None, "a shard has a window at least"
        return routed

    def _open(self, outcome: Outcome, rows: int) -> Routed | Executed:
        """Make room for a shard whose first batch is there."""
        if self.recipe.counts_only:
            return Executed(outcome.routing.routers, rows, self.forward.self_check)
        return _open_routed(outcome, rows, self.forward.self_check, self.recipe.probabilities)

    def finish(self, text: ShardText, routed: Routed | Executed, tokens: pa.Table) -> TracedShard | CountedShard:
        """Put both halves of a shard together.

        Raises:
            RoutingError: if the model did not see every row once.
        """
        if routed.filled != tokens.num_rows:
            raise RoutingError(
                f"shard {text.number}: {routed.filled} rows were traced of {tokens.num_rows}; this is a fault, please"
                " report it"
            )
        if isinstance(routed, Executed):
            return count_shard(text, tokens, routed, self.label_sets)
        routed.pour()
        if routed.surprisal is not None:
            tokens = with_surprisal(tokens, routed.surprisal)
        block = routed.block
        shares = routed.probabilities
        known, flagged = (shares.known, shares.flagged) if shares else ((), 0)
        facts = ShardFacts(tuple(block.scores), routed.self_check, tuple(routed.warnings), known, flagged)
        table = shares.to_table() if shares and any(known) else None
        return TracedShard(text.number, tokens, block.to_table(), facts, table)


@contextmanager
def open_shard_tracer(
    lm: LanguageModel,
    encoder: Encoder,
    recipe: Recipe,
    stopwatch: Stopwatch | None = None,
    *,
    threaded: bool = False,
) -> Iterator[ShardTracer]:
    """Record a model while the block is open, to make shards with it.

    Args:
        lm: the model; the same weights in the same precision on the same kind of device give the same bytes.
        encoder: its tokenizer, with the prefix of the recipe.
        recipe: how shards are made.
        stopwatch: told where the time goes.
        threaded: whether what was recorded of a batch may be sorted while the model sees the next one.

    Raises:
        BadInputError: a label cannot be given.
        UnsupportedModelError: the model's routers cannot be read, or it has no plain head where surprisal is wanted.
    """
    stopwatch = stopwatch or Stopwatch()
    labellers = recipe.open_labellers()
    rows = RowMaker(encoder, recipe.windowing, labellers)
    label_sets = [labeller.label_set for labeller in labellers.values()]
    with open_forward(
        lm,
        recipe.windowing,
        recipe.prefix,
        surprisal=recipe.surprisal,
        stopwatch=stopwatch,
        probabilities=recipe.probabilities,
        scores=not recipe.counts_only,
        threaded=threaded,
    ) as forward:
        yield ShardTracer(recipe, label_sets, rows, forward, stopwatch)


@dataclass(eq=False)
class Routed:
    """What the model gave for one shard, batch by batch.

    Experts, weights and scores wait until `pour` puts those of many batches into their rows at once, so that a small
    shard's are put together by whoever finishes it, beside the model.
    """

    block: RoutingBlock
    surprisal: npt.NDArray[np.float32] | None
    self_check: str
    probabilities: ProbabilityBlock | None = None
    filled: int = 0
    warnings: list[str] = field(default_factory=list)
    _waiting: list[tuple[Batch, Sequence[Decisions]]] = field(default_factory=list)
    _n_waiting: int = 0

    def fill(self, outcome: Outcome) -> None:
        """Take what came out of one forward."""
        batch, decisions = outcome.batch, outcome.routing.decisions
        if self.probabilities is not None:
            for index, decided in enumerate(decisions):
                shares = decided.probabilities
                self.probabilities.fill(index, batch.rows, None if shares is None else shares[batch.kept])
            decisions = [replace(decided, probabilities=None) for decided in decisions]
        if self.surprisal is not None and outcome.surprisal is not None:
            self.surprisal[batch.rows] = outcome.surprisal
        self.filled += len(batch.rows)
        self._waiting.append((batch, decisions))
        self._n_waiting += len(batch.rows)
        if self._n_waiting >= _ROWS_AT_ONCE:
            self.pour()

    def pour(self) -> None:
        """Put what waits into its rows.

        Raises:
            RoutingError: if an expert does not exist, or a weight is no number that float16 can hold.
        """
        waiting, self._waiting, self._n_waiting = self._waiting, [], 0
        if not waiting:
            return
        rows = np.concatenate([batch.rows for batch, _ in waiting])
        begins = np.cumsum([0, *(batch.n_tokens for batch, _ in waiting[:-1])])
        places = np.concatenate([batch.kept + begin for (batch, _), begin in zip(waiting, begins, strict=True)])
        order = np.argsort(rows, kind="stable")  # which is quick at runs that are sorted, as each window's are
        rows, places = rows[order], places[order]
        gapless = len(rows) > 0 and int(rows[-1] - rows[0]) == len(rows) - 1
        where = slice(int(rows[0]), int(rows[-1]) + 1) if gapless else rows
        for index in range(len(self.block.routers)):
            of_router = [decisions[index] for _, decisions in waiting]
            self.block.fill(
                index,
                where,
                _joined([one.experts for one in of_router], places).T,
                _narrowed(_joined([one.weights for one in of_router], places)).T,
                _scores([one.entropy for one in of_router], places),
                _scores([one.margin for one in of_router], places),
            )


def _joined(parts: Sequence[npt.NDArray[Number]], places: npt.NDArray[np.int64]) -> npt.NDArray[Number]:
    """Return some tokens of parts, (…, tokens), that lie one after the other."""
    # To take is some ten times as fast as to index, where the index stands behind a slice.
    taken: npt.NDArray[Number] = np.concatenate(parts, axis=-1).take(places, axis=-1)
    return taken


def _scores(
    parts: Sequence[npt.NDArray[np.float32] | None], places: npt.NDArray[np.int64]
) -> npt.NDArray[np.floating] | None:
    """Return the scores of some tokens, (tokens,); None where those of a part are not known."""
    known = [part for part in parts if part is not None]
    return _narrowed(_joined(known, places)) if len(known) == len(parts) else None


def _narrowed(values: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
    """Return values in float16, as they are kept, by torch, which is some ten times as fast at it as numpy.

    Those that it does not hold are left as they are, for the block to refuse, or to make infinite.
    """
    if values.size and (values.max() > _LARGEST_HALF or values.min() < -_LARGEST_HALF):
        return values
    halves: npt.NDArray[np.float16] = torch.from_numpy(values).half().numpy()
    return halves


def _open_routed(outcome: Outcome, rows: int, self_check: str, with_probabilities: bool) -> Routed:
    """Make room for a shard whose first batch is there."""
    routing = outcome.routing
    scores = tuple(
        routing.entropy(index) is not None and routing.margin(index) is not None
        for index in range(len(routing.routers))
    )
    surprisal = None if outcome.surprisal is None else np.full(rows, np.nan, np.float32)
    shares = None
    if with_probabilities:
        known = [routing.probabilities(index) is not None for index in range(len(scores))]
        shares = ProbabilityBlock(routing.routers, known, rows)
    return Routed(RoutingBlock(routing.routers, scores, rows), surprisal, self_check, shares)
