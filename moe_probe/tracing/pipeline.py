"""Makes a run's shards here: the model runs, while its last batch is sorted, the next shard labelled, the last written.

At most three shards are in memory: one being labelled, one that the model is at, one being written. Where labels or the
disk are slower than the model, it waits for them. It does not know how a forward, a row or a file is made.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from moe_probe.tracing.counted import Executed
from moe_probe.tracing.profile import IDLE, LABEL, WRITE
from moe_probe.tracing.rows import ShardText
from moe_probe.tracing.shard import Routed, ShardTracer, open_shard_tracer
from moe_probe.tracing.work import Work

# A thread that runs Python gives way after this long, not after Python's usual 5 ms: the forward takes the interpreter
# back after every tensor operation, and would wait that long each time.
_SWITCH_SECONDS = 1e-4


def run_here(work: Work) -> None:
    """Make the shards that are to be made, in order, with the model as it was given; an `Engine`."""
    stop = threading.Event()
    with (
        open_shard_tracer(work.lm, work.encoder, work.recipe, work.stopwatch, threaded=True) as tracer,
        _fair_threads(),
        ThreadPoolExecutor(1, "labels") as labelling,
        ThreadPoolExecutor(1, "writer") as writing,
    ):
        try:
            _run(work, tracer, _labelled(work, tracer, labelling, stop), writing)
        finally:
            stop.set()


@dataclass(frozen=True, eq=False)
class _Labelled:
    """A shard's text and its token rows, both being made."""

    text: Future[ShardText]
    tokens: Future[pa.Table]


def _run(work: Work, tracer: ShardTracer, labelled: Iterator[_Labelled], writing: ThreadPoolExecutor) -> None:
    done = work.rows_done
    written: Future[None] | None = None
    for shard in labelled:
        with work.stopwatch.part(IDLE):
            text = shard.text.result()
        routed = tracer.run_model(text, _steps(work, done))
        done += routed.filled
        with work.stopwatch.part(IDLE):
            if written is not None:
                written.result()
            tokens = shard.tokens.result()
        written = writing.submit(_write, work, tracer, text, routed, tokens)
    if written is not None:
        with work.stopwatch.part(IDLE):
            written.result()


def _steps(work: Work, before: int) -> Callable[[int], None]:
    return lambda filled: work.watch.step(before + filled)


def _labelled(
    work: Work, tracer: ShardTracer, labelling: ThreadPoolExecutor, stop: threading.Event
) -> Iterator[_Labelled]:
    """Yield each shard's text and the rows being made of it, when those of the next shard are under way."""
    ahead: _Labelled | None = None
    for number in work.todo:
        text = labelling.submit(_read, work, number)
        following = _Labelled(text, labelling.submit(_label, work, tracer, text, stop))
        if ahead is not None:
            yield ahead
        ahead = following
    if ahead is not None:
        yield ahead


def _read(work: Work, number: int) -> ShardText:
    with work.stopwatch.part(LABEL):
        return work.text(number)


def _label(work: Work, tracer: ShardTracer, text: Future[ShardText], stop: threading.Event) -> pa.Table:
    with work.stopwatch.part(LABEL):
        shard = text.result()  # read before by this same thread
        tokens = tracer.rows.make(shard, stop)
    with work.stopwatch.part(WRITE):
        work.stage(shard.number, tokens)
    return tokens


def _write(work: Work, tracer: ShardTracer, text: ShardText, routed: Routed | Executed, tokens: pa.Table) -> None:
    with work.stopwatch.part(WRITE):
        work.commit(tracer.finish(text, routed, tokens))


@contextmanager
def _fair_threads() -> Iterator[None]:
    """Let threads take turns quickly while the block runs."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
