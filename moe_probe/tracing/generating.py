"""generate_and_trace(): a model goes on with documents, and what was given and what was written become a run.

The model writes with no hook on it; then one pass over prompt and written tokens records them, in one window a
document. The ids are those that were written, never the text cut anew. What is decided at a token depends only on the
tokens before it, so this pass decides what writing decided, however the tokens were found: greedily, by sampling, by
beams or with an assistant.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moe_probe.corpus import Input
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.labels.align import own
from moe_probe.models import LanguageModel
from moe_probe.store.plan import MAX_SHARD_ROWS, Windowing
from moe_probe.store.run import Run, open_run
from moe_probe.store.writer import SPOOL_FILE, RunWriter
from moe_probe.tracing.encoding import EncodedDocument, Encoder
from moe_probe.tracing.generator import Generator, open_generator
from moe_probe.tracing.job import Job, check_context, n_embeddings, open_job
from moe_probe.tracing.kept import Kept
from moe_probe.tracing.profile import GENERATE, READ, OnProfile
from moe_probe.tracing.prompts import Chat
from moe_probe.tracing.reading import check_labels, read_corpus, stream_documents
from moe_probe.tracing.spelling import spell
from moe_probe.tracing.spool import Spool
from moe_probe.tracing.work import Engine
from moe_probe.watching import Cancelled, OnProgress


def generate_and_trace(
    lm: LanguageModel,
    inputs: Input | Iterable[Input],
    out: str | Path,
    *,
    max_new_tokens: int = 128,
    chat: bool = False,
    generation: Mapping[str, Any] | None = None,
    batch_size: int = 8,
    labels: Sequence[str] = ("upos", "shape", "domain"),
    language: str | None = None,
    tagger: str | None = None,
    batch_tokens: int | None = None,
    context: int | None = None,
    special: bool = False,
    surprisal: bool = False,
    probabilities: bool = False,
    shard_rows: int | None = None,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    on_profile: OnProfile | None = None,
    cancel: threading.Event | None = None,
    engine: Engine | None = None,
) -> Run:
    """Let a model go on with documents, and record which experts every token of both was sent to.

    A document of the run is its prompt and what the model wrote after it, as decoded; `phase` says of each token
    whether it is `prompt` or `generated` (special tokens, such as the end of sequence, are `special` in both). The
    token ids are exactly those that the model wrote. Labels of a document's own hold where they did, and a tagger sees
    the whole text. All prompts are held in memory. What was written is kept in the run, so that a run that was killed
    is resumed without writing it anew.

    Args:
        lm: from `load`; its model is put into evaluation mode.
        inputs: the prompts: paths of files or folders, "-" for standard input, or documents.
        out: the run's folder, as for `trace`.
        max_new_tokens: tokens that a prompt is continued by at most; an end of sequence comes before.
        chat: put each document into the tokenizer's chat template, as what the user says. The template's own text
            becomes part of the document.
        generation: settings of `model.generate`, such as `do_sample`, `temperature`, `num_beams`, `assistant_model`;
            and `seed` (0 without it). Greedy with one beam where it says nothing; anything else as the model's own
            generation config has it.
        batch_size: prompts that are continued together, padded on the left. Assisted decoding and texts that may end
            at a string of their own go one by one.
        labels: as for `trace`.
        language: as for `trace`.
        tagger: as for `trace`.
        batch_tokens: as for `trace`; of the pass that records.
        context: tokens that prompt and continuation may have together, special ones included; if None as many as the
            model was made for.
        special: as for `trace`.
        surprisal: as for `trace`.
        probabilities: as for `trace`.
        shard_rows: as for `trace`.
        resume: go on with a run that is there; without one, start.
        on_progress: called after each batch, in the phases "reading", "generating" and "tracing".
        on_profile: called once at the end with where the time went, see `Profile`.
        cancel: once set, the work stops after the batch in hand; in "tracing" what is whole is the run.
        engine: what makes the shards of the pass that records, see `tracing.work`; None: this process.

    Returns:
        The run, complete unless it was cancelled. Its manifest says under `generation` how it was written.

    Raises:
        BadInputError: an argument or an input cannot be used, a prompt is too long, or the tokenizer has no chat
            template where one is asked for.
        RunError: a run is there already, was made from something else, or is being written by another process.
        RoutingError: what was recorded cannot be what the experts executed.
        MoeProbeError: it was cancelled before anything was traced, the disk is full, or memory too small for one text.
    """
    size = n_embeddings(lm)
    encoder = Encoder(lm.tokenizer, lm.name, size)
    generator = open_generator(lm, max_new_tokens=max_new_tokens, batch_size=batch_size, generation=generation)
    template = Chat(lm, encoder, size) if chat else None
    if template is not None:
        encoder = template.encoder
    context = min(lm.context, MAX_SHARD_ROWS) if context is None else check_context(lm, context)
    job = open_job(
        lm,
        encoder,
        Windowing(context, 0, len(encoder.prefix), special),
        labels=labels,
        language=language,
        tagger=tagger,
        batch_tokens=batch_tokens,
        shard_rows=shard_rows,
        surprisal=surprisal,
        probabilities=probabilities,
        on_progress=on_progress,
        on_profile=on_profile,
        cancel=cancel,
        engine=engine,
    )
    documents = stream_documents(inputs, language)
    encoded = encoder.encode(documents) if template is None else template.prompts(documents)
    with RunWriter(out, resume=resume) as writer, Spool(writer.path / SPOOL_FILE) as spool:
        with job.stopwatch.part(READ):
            prompts = _read_prompts(job, encoded, max_new_tokens)
        about = {"chat": chat, **generator.describe()}
        made_from = {
            "prompts": _digest(prompts, lm, chat),
            "model": lm.fingerprint(),
            "device": lm.device.type,
            "generation": about,
        }
        kept = Kept(writer.path, made_from, resume=resume)
        labellers = list(job.labellers.values())
        with job.stopwatch.part(READ):
            *_, corpus = read_corpus(_continued(job, generator, prompts, kept), labellers, spool, None)
        n_prompt = sum(prompt.n_tokens for prompt in prompts)
        tokens = {"prompt_tokens": n_prompt, "generated_tokens": corpus.n_tokens - n_prompt}
        job.carry_out(writer, spool, corpus, {}, about | tokens)
    return open_run(out)


def _read_prompts(job: Job, groups: Iterable[list[EncodedDocument]], max_new_tokens: int) -> list[EncodedDocument]:
    """Return all prompts, checked before the first is continued: lengths, and whether they can be labelled."""
    prompts: list[EncodedDocument] = []
    brought: set[str] = set()
    n_tokens = 0
    labellers = list(job.labellers.values())
    job.watch.begin("reading", 0, None)
    try:
        for group in groups:
            for labeller in labellers:
                labeller.prepare([one.document for one in group])
            for one in group:
                _check_length(job, one, max_new_tokens)
                brought.update(one.document.labels or ())
                n_tokens += one.n_tokens
            prompts += group
            job.watch.step(n_tokens)
    except Cancelled:
        raise MoeProbeError("cancelled while the prompts were being read; nothing was written or traced") from None
    check_labels(labellers, brought)
    return prompts


def _check_length(job: Job, prompt: EncodedDocument, max_new_tokens: int) -> None:
    n_fed, room = prompt.n_tokens + len(job.encoder.prefix), job.recipe.windowing.context
    if n_fed == 0:
        raise BadInputError(
            f"document {prompt.document.name!r}: it has no token, so that there is nothing to go on from"
        )
    if n_fed + max_new_tokens > room:
        raise BadInputError(
            f"document {prompt.document.name!r}: {n_fed} tokens and {max_new_tokens} more are too many for a context of"
            f" {room}; shorten it, or ask for "
            + (f"{room - n_fed} tokens at most" if n_fed < room else "a longer context")
        )


def _continued(
    job: Job, generator: Generator, prompts: Sequence[EncodedDocument], kept: Kept
) -> Iterator[list[EncodedDocument]]:
    """Yield the prompts continued, a batch at once: those that are kept as they are, others when they are written."""
    before = sum(len(ids) for batch in kept.batches for ids in batch)
    done = before
    job.watch.begin("generating", before, None)
    for number, start in enumerate(range(0, len(prompts), generator.batch_size)):
        batch = prompts[start : start + generator.batch_size]
        if number >= len(kept.batches):
            with job.stopwatch.part(GENERATE):
                kept.add(generator.write(number, [[*job.encoder.prefix, *prompt.ids.tolist()] for prompt in batch]))
            done += sum(len(ids) for ids in kept.batches[number])
            try:
                job.watch.step(done)
            except Cancelled:
                raise MoeProbeError(
                    f"cancelled while text was being written; {min(start + len(batch), len(prompts))} of"
                    f" {len(prompts)} document(s) are kept, --resume goes on"
                ) from None
        written = kept.batches[number]
        yield [_joined(job, prompt, ids) for prompt, ids in zip(batch, written, strict=True)]


def _joined(job: Job, prompt: EncodedDocument, written: Sequence[int]) -> EncodedDocument:
    """Return a prompt and what was written after it as one document."""
    tokenizer = job.lm.tokenizer
    assert tokenizer is not None, "the encoder has refused a model without a tokenizer"

    def decode(ids: list[int]) -> str:
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str), "one list of ids is one text"
        return text

    given = prompt.document.text
    text, spans = spell(decode, [*job.encoder.prefix, *prompt.ids.tolist()], written)
    starts, ends = own(text, spans)
    starts, ends = starts + len(given), ends + len(given)
    if prompt.n_tokens == 0 and len(starts):  # a text without a token: the first one written owns it
        starts[0] = 0
    return replace(
        prompt,
        document=replace(prompt.document, text=given + text),
        ids=np.concatenate([prompt.ids, np.array(written, np.int32)]),
        starts=np.concatenate([prompt.starts, starts]).astype(np.int32),
        ends=np.concatenate([prompt.ends, ends]).astype(np.int32),
        n_prompt=prompt.n_tokens,
    )


def _digest(prompts: Sequence[EncodedDocument], lm: LanguageModel, chat: bool) -> str:
    """Return a digest, in hexadecimal, of all that the model is given."""
    digest = hashlib.sha256(json.dumps([lm.tokenizer.chat_template if chat and lm.tokenizer else None]).encode())
    for prompt in prompts:
        for part in (prompt.document.name.encode(), prompt.document.text.encode(), prompt.ids.tobytes()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    return digest.hexdigest()
