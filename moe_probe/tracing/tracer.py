"""trace(): a model and documents become a run.

Documents are read and tokenised once, into a spool in the run's folder; from their token counts follow the windows and
the shards. Then, shard by shard, the model runs over batches of windows, while the token rows and labels of the next
shard are made and the shard before is written. Nothing grows with the corpus but a few integers a document.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from moe_probe.cluster import choose_engine
from moe_probe.corpus import Input
from moe_probe.errors import MoeProbeError
from moe_probe.models import LanguageModel
from moe_probe.store.counted import CountsWriter
from moe_probe.store.plan import Windowing
from moe_probe.store.run import Run, open_run
from moe_probe.store.writer import SPOOL_FILE, RunWriter
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.job import check_context, n_embeddings, open_job
from moe_probe.tracing.profile import READ, OnProfile
from moe_probe.tracing.reading import Corpus, read_corpus, stream_documents
from moe_probe.tracing.spool import Spool
from moe_probe.tracing.work import Engine
from moe_probe.watching import Cancelled, OnProgress, Watch

DEFAULT_CONTEXT = 4_096


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
    probabilities: bool = False,
    counts_only: bool = False,
    shard_rows: int | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    on_profile: OnProfile | None = None,
    cancel: threading.Event | None = None,
    engine: str | Engine = "local",
    ray_address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
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
        probabilities: record every router's whole distribution over its experts too, 2 bytes a token and expert. A
            token with a router whose logits are no numbers is then flagged in a warning, not an error.
        counts_only: keep counts of assignments by expert, label and cluster of documents, and nothing of a token: the
            run grows with labels and documents, not with tokens. Load, balance, label tables, divergence and the part
            of specialisation that needs no word types can be told of it, of five documents or more.
        shard_rows: rows in a shard at most; if None chosen from the corpus' size and the width of a row.
        resume: go on with a run that is there; without one, start.
        on_progress: called after each batch.
        on_profile: called once at the end with where the time went, see `Profile`.
        cancel: once set, the trace stops after the batch in hand and returns what is whole.
        engine: who makes the shards: "local" (this process), "ray" (a Ray cluster), or a function, see
            `tracing.work`. The bytes do not depend on it.
        ray_address: with "ray": of a cluster that is there, as "host:port" or "auto"; if None that of the environment's
            RAY_ADDRESS, or Ray is started on this machine for the trace.
        workers: with "ray": how many processes load the model; if None as many as there is room for.
        gpus_per_worker: with "ray": GPUs of each; if None as many as the model is on here.

    Returns:
        The run, complete unless it was cancelled.

    Raises:
        BadInputError: an argument or an input cannot be used.
        RunError: a run is there already, was made from something else, or is being written by another process.
        RoutingError: what was recorded cannot be what the experts executed.
        MoeProbeError: the disk is full or has no room for probabilities, a single window does not fit into memory, or
            a Ray cluster cannot be used.
    """
    chosen = choose_engine(engine, lm, ray_address=ray_address, workers=workers, gpus_per_worker=gpus_per_worker)
    encoder = Encoder(lm.tokenizer, lm.name, n_embeddings(lm))
    windowing = Windowing(
        min(lm.context, DEFAULT_CONTEXT) if context is None else check_context(lm, context),
        stride,
        len(encoder.prefix),
        special,
    )
    job = open_job(
        lm,
        encoder,
        windowing,
        labels=labels,
        language=language,
        tagger=tagger,
        batch_tokens=batch_tokens,
        shard_rows=shard_rows,
        surprisal=surprisal,
        probabilities=probabilities,
        counts_only=counts_only,
        on_progress=on_progress,
        on_profile=on_profile,
        cancel=cancel,
        engine=chosen,
    )
    documents = stream_documents(inputs, language)
    opened = CountsWriter(out, resume=resume) if counts_only else RunWriter(out, resume=resume)
    with opened as writer, Spool(writer.path / SPOOL_FILE) as spool:
        growing = read_corpus(encoder.encode(documents), list(job.labellers.values()), spool, max_tokens)
        with job.stopwatch.part(READ):
            corpus = _read(job.watch, growing)
        job.carry_out(writer, spool, corpus, {"max_tokens": max_tokens})
    return open_run(out)


def _read(watch: Watch, growing: Iterator[Corpus]) -> Corpus:
    watch.begin("reading", 0, None)
    corpus = Corpus()
    try:
        for corpus in growing:
            watch.step(corpus.n_tokens)
    except Cancelled:
        raise MoeProbeError("cancelled while the inputs were being read; nothing was traced") from None
    return corpus
