"""trace(): a model and documents become a run; the only place where the two halves of the library meet.

Documents are read and tokenised once, into a spool in the run's folder; from their token counts follow the windows and
the shards. Then, shard by shard, the model runs over batches of windows, while the token rows and labels of the next
shard are made and the shard before is written. Nothing grows with the corpus but a few integers a document.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from moe_probe.corpus import Input
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.labels import Labeller, open_labeller
from moe_probe.models import LanguageModel
from moe_probe.recording.routers import find_routers
from moe_probe.schema import Router, check_label_name, expert_bits
from moe_probe.store.plan import Layout, Windowing, lay_out, plan_json, shard_rows_for
from moe_probe.store.run import Run, open_run
from moe_probe.store.writer import SPOOL_FILE, RunWriter
from moe_probe.tracing.batches import group
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import open_forward
from moe_probe.tracing.manifest import about_run
from moe_probe.tracing.pipeline import Pipeline
from moe_probe.tracing.reading import Corpus, read_corpus, stream_documents
from moe_probe.tracing.rows import RowMaker
from moe_probe.tracing.spool import Spool
from moe_probe.watching import Cancelled, OnProgress, Watch

DEFAULT_CONTEXT = 4_096
BATCH_TOKENS_ON_CPU = 2_048
BATCH_TOKENS_ELSEWHERE = 16_384


def trace(
    lm: LanguageModel,
    inputs: Input | Iterable[Input],
    out: str | Path,
    *,
    labels: Sequence[str] = ("upos", "shape", "domain"),
    language: str | None = None,
    tagger: str | None = None,
    max_tokens: int | None = None,
    batch_tokens: int | None = None,
    context: int | None = None,
    stride: int = 0,
    special: bool = False,
    surprisal: bool = False,
    shard_rows: int | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> Run:
    """Run a model over documents and record, on disk, which experts every token was sent to.

    Each document is cut into windows of at most `context` tokens; every window starts with the special tokens that the
    tokenizer puts before a text, and no window sees another document. A run can be killed at any moment and resumed:
    then it is byte for byte what an undisturbed run would have been, but for the times in run.json. On Ctrl-C the
    shards that are whole become the run (`complete` is false), and KeyboardInterrupt goes on.

    Args:
        lm: from `load`; its model is put into evaluation mode.
        inputs: paths of files or folders, "-" for standard input, or documents. An iterator is read once.
        out: the run's folder: new, empty, or with `resume` that of a run with the same arguments and inputs.
        labels: taxonomies and labels of the documents' own; see `moe_probe.labels`.
        language: of documents that do not say theirs; also the language of the tagger (English without it).
        tagger: the spaCy pipeline for `upos`.
        max_tokens: tokens of text to take, in the order of the inputs; the last document is cut.
        batch_tokens: tokens in a batch, padding included; if None 2,048 on a CPU, else 16,384. One window at least.
        context: tokens in a window, special ones included; if None as many as the model was made for, at most 4,096.
        stride: tokens by which a window repeats the one before it. They are context: a token is recorded once, where
            it is seen first.
        special: record the special tokens at each window's start too, with `position` -1.
        surprisal: record each token's surprisal in bits given the tokens before it in its window.
        shard_rows: rows in a shard at most; if None chosen from the corpus' size and the width of a row.
        resume: go on with a run that is there; without one, start.
        on_progress: called after each batch.
        cancel: once set, the trace stops after the batch in hand and returns what is whole.

    Returns:
        The run, complete unless it was cancelled.

    Raises:
        BadInputError: an argument or an input cannot be used.
        RunError: a run is there already, was made from something else, or is being written by another process.
        RoutingError: what was recorded cannot be what the experts executed.
        MoeProbeError: the disk is full, or a single window does not fit into memory.
    """
    started = time.time()
    encoder = Encoder(lm.tokenizer, lm.name, _n_embeddings(lm))
    windowing = Windowing(choose_context(lm, context), stride, len(encoder.prefix), special)
    labellers = open_labellers(labels, language or "en", tagger)
    routers = find_routers(lm.model)
    if batch_tokens is None:
        batch_tokens = BATCH_TOKENS_ON_CPU if lm.device.type == "cpu" else BATCH_TOKENS_ELSEWHERE
    group([], windowing, batch_tokens)  # refuses a wrong number before anything is read
    documents = stream_documents(inputs, language)
    watch = Watch(on_progress, cancel or threading.Event())
    with RunWriter(out, resume=resume) as writer, Spool(writer.path / SPOOL_FILE) as spool:
        corpus = _read(watch, read_corpus(documents, encoder, list(labellers.values()), spool, max_tokens))
        if shard_rows is None:
            shard_rows = shard_rows_for(corpus.n_tokens, _bytes_per_row(routers))
        layout = lay_out(corpus.token_counts, windowing, shard_rows)
        settings: dict[str, object] = {
            "context": windowing.context,
            "stride": stride,
            "special": special,
            "surprisal": surprisal,
            "max_tokens": max_tokens,
            "batch_tokens": batch_tokens,
            "shard_rows": shard_rows,
            "labels": {name: labellers[name].label_set.source for name in labels},
        }
        made_from = {
            "inputs": corpus.digest,
            "model": lm.fingerprint(),
            "device": lm.device.type,
            "settings": settings,
        }
        writer.publish_plan(plan_json(made_from, layout))
        if writer.is_complete():
            return open_run(out)

        def publish() -> None:
            about = about_run(lm, encoder, corpus, settings, started)
            label_sets = [labellers[name].label_set for name in labels]
            writer.publish(about, routers, label_sets, complete=len(writer.shards) == len(layout.shards))

        writer.write_documents(_documents(spool, corpus, layout))
        rows = RowMaker(encoder, windowing, labellers)
        with open_forward(lm, windowing, encoder.prefix, surprisal=surprisal) as forward:
            Pipeline(writer, publish, layout, spool, rows, forward, batch_tokens, watch).run()
    return open_run(out)


def choose_context(lm: LanguageModel, context: int | None) -> int:
    """Return how many tokens a window holds.

    Raises:
        BadInputError: if it is more than the model was made for.
    """
    if context is None:
        return min(lm.context, DEFAULT_CONTEXT)
    if context > lm.context:
        raise BadInputError(
            f"context {context}: {lm.name} was made for {lm.context} tokens at once; use at most {lm.context}"
        )
    return context


def _n_embeddings(lm: LanguageModel) -> int:
    embedding: Any = lm.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def open_labellers(labels: Sequence[str], language: str, tagger: str | None) -> dict[str, Labeller]:
    """Return the labeller of each label, and of `phase`, which every run has.

    Raises:
        BadInputError: if a label is named twice, cannot have that name, or needs what is not installed.
    """
    for place, name in enumerate(labels):
        if check_label_name(name) in labels[:place]:
            raise BadInputError(f"label {name!r}: named twice")
    return {name: open_labeller(name, language=language, tagger=tagger) for name in ("phase", *labels)}


def _read(watch: Watch, growing: Iterator[Corpus]) -> Corpus:
    watch.begin("reading", 0, None)
    corpus = Corpus()
    try:
        for corpus in growing:
            watch.step(corpus.n_tokens)
    except Cancelled:
        raise MoeProbeError("cancelled while the inputs were being read; nothing was traced") from None
    return corpus


def _bytes_per_row(routers: Sequence[Router]) -> int:
    return sum(router.n_slots * (expert_bits(router.n_experts) // 8 + 2) + 4 for router in routers)


def _documents(spool: Spool, corpus: Corpus, layout: Layout) -> Iterator[pa.Table]:
    """Yield documents.parquet in parts."""
    for texts, start in spool.read_names():
        part = slice(start, start + texts.num_rows)
        rows = layout.rows[part]
        yield pa.table(
            {
                "document": pa.array(np.arange(part.start, part.stop), pa.int32()),
                **{name: texts.column(name).cast(pa.string()) for name in ("name", "domain", "language")},
                "first_shard": pa.array(layout.first_shard[part], pa.int32(), mask=rows == 0),
                "first_row": pa.array(layout.first_row[part], pa.int32(), mask=rows == 0),
                "tokens": pa.array(rows, pa.int64()),
                "characters": pa.array(corpus.character_counts[part], pa.int64()),
            }
        )
