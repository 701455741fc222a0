"""What a trace is made with, and how it is carried out once its documents are in the spool.

Where the documents come from is not known here: they were read, or a model wrote a part of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from moe_probe.errors import BadInputError
from moe_probe.labels import Labeller
from moe_probe.models import LanguageModel
from moe_probe.recording.routers import find_routers
from moe_probe.schema import Router, expert_bits
from moe_probe.store.clusters import FEWEST_DOCUMENTS
from moe_probe.store.counted import CountsWriter
from moe_probe.store.plan import Layout, Windowing, lay_out, plan_json, shard_rows_for
from moe_probe.store.writer import RunWriter
from moe_probe.tracing.batches import group
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.manifest import about_run
from moe_probe.tracing.pipeline import run_here
from moe_probe.tracing.probabilities import check_room, probabilities_bytes
from moe_probe.tracing.profile import OnProfile, Stopwatch
from moe_probe.tracing.reading import Corpus
from moe_probe.tracing.shard import Recipe
from moe_probe.tracing.spool import Spool
from moe_probe.tracing.work import Engine, Work
from moe_probe.watching import Cancelled, OnProgress, Watch

_BATCH_TOKENS_ON_CPU = 2_048
_BATCH_TOKENS_ELSEWHERE = 16_384
_MOST_EXPERTS = 2**14


@dataclass(frozen=True, eq=False)
class Job:
    """What a trace is made with: model, tokenizer, recipe, labels, limits, who watches, and who makes the shards.

    `labellers` holds one for each of the recipe's labels, and one called `phase`. `shard_rows` is None where the corpus
    decides.
    """

    lm: LanguageModel
    encoder: Encoder
    recipe: Recipe
    labellers: Mapping[str, Labeller]
    routers: list[Router]
    shard_rows: int | None
    watch: Watch
    stopwatch: Stopwatch
    on_profile: OnProfile | None
    engine: Engine
    started: float = field(default_factory=time.time)

    def carry_out(
        self,
        writer: RunWriter | CountsWriter,
        spool: Spool,
        corpus: Corpus,
        settings: Mapping[str, object],
        generation: Mapping[str, object] | None = None,
    ) -> None:
        """Trace what is in the spool; nothing is done for a run that is complete.

        Cancelled or on Ctrl-C, the shards that are whole stay and are the run.

        Args:
            writer: the run.
            spool: its documents.
            corpus: what is known of them.
            settings: what else the run depends on, beside what the job itself says.
            generation: how a model wrote a part of the documents.

        Raises:
            RunError: if the run that is there was made from something else.
            BadInputError: if counts alone are to be kept of too few documents.
        """
        recipe = self.recipe
        if recipe.counts_only:
            _check_documents(corpus)
        shard_rows = self.shard_rows
        if shard_rows is None:
            width = _bytes_per_row(self.routers) + recipe.probabilities * probabilities_bytes(1, self.routers)
            shard_rows = shard_rows_for(corpus.n_tokens, width)
        layout = lay_out(corpus.token_counts, recipe.windowing, shard_rows)
        all_settings: dict[str, object] = {
            "context": recipe.windowing.context,
            "stride": recipe.windowing.stride,
            "special": recipe.windowing.special,
            "surprisal": recipe.surprisal,
            **({"probabilities": True} if recipe.probabilities else {}),
            **({"counts_only": True} if recipe.counts_only else {}),
            **settings,
            "batch_tokens": recipe.batch_tokens,
            "shard_rows": shard_rows,
            "labels": {name: self.labellers[name].label_set.source for name in recipe.labels},
        }
        made_from = {
            "inputs": corpus.digest,
            "model": self.lm.fingerprint(),
            "device": self.lm.device.type,
            "settings": all_settings,
        }
        further: dict[str, object] = {}
        if generation is not None:
            made_from["generation"] = generation
            further = {"generation": generation, "seed": generation["seed"]}
        plan = plan_json(made_from, layout)
        if isinstance(writer, CountsWriter):
            writer.publish_plan(plan, self.routers)
        else:
            writer.publish_plan(plan)
        if writer.is_complete() and len(writer.shards) == len(layout.shards):  # a damaged one may have been deleted
            self._tell_profile(0)
            return

        def publish() -> None:
            about = about_run(self.lm, self.encoder, corpus, all_settings, self.started, self.stopwatch.seconds)
            label_sets = [self.labellers[name].label_set for name in recipe.labels]
            whole = len(writer.shards) == len(layout.shards)
            writer.publish(about | further, self.routers, label_sets, complete=whole)

        writer.write_documents(_documents(spool, corpus, layout))
        work = Work(
            self.lm, self.encoder, recipe, self.routers, layout, self.watch, self.stopwatch, spool, writer, publish
        )
        before = work.rows_done
        if recipe.probabilities:
            check_room(writer.path, work.rows - before, self.routers)
        self._make_shards(work)
        self._tell_profile(work.rows_done - before)

    def _tell_profile(self, n_tokens: int) -> None:
        if self.on_profile is not None:
            self.on_profile(self.stopwatch.profile(n_tokens))

    def _make_shards(self, work: Work) -> None:
        nothing_to_do = not work.todo
        self.watch.begin("tracing", work.rows_done, work.rows)
        try:
            if self.recipe.probabilities:
                self.watch.step(work.rows_done)  # whoever watches is to hear how much there is before it takes room
            self.engine(work)
        except (Cancelled, KeyboardInterrupt) as stopped:
            if not work.writer.shards:
                work.publish()
            if not isinstance(stopped, Cancelled):
                raise
        if nothing_to_do:  # a corpus without tokens, or a kill came between the last shard and the manifest
            work.publish()


def open_job(
    lm: LanguageModel,
    encoder: Encoder,
    windowing: Windowing,
    *,
    labels: Sequence[str],
    language: str | None,
    tagger: str | None,
    batch_tokens: int | None,
    shard_rows: int | None,
    surprisal: bool,
    on_progress: OnProgress | None,
    on_profile: OnProfile | None,
    cancel: threading.Event | None,
    engine: Engine | None = None,
    probabilities: bool = False,
    counts_only: bool = False,
) -> Job:
    """Check what a trace is asked to do, before anything is read.

    Raises:
        BadInputError: a label or a number cannot be used, or the model has no router that can be read.
    """
    for name, asked in (("surprisal", surprisal), ("probabilities", probabilities)):
        if counts_only and asked:
            raise BadInputError(
                f"counts_only=True with {name}=True: it is kept of each token, and no token is; leave one out"
            )
    stopwatch = Stopwatch()
    if batch_tokens is None:
        batch_tokens = _BATCH_TOKENS_ON_CPU if lm.device.type == "cpu" else _BATCH_TOKENS_ELSEWHERE
    recipe = Recipe(
        windowing, encoder.prefix, tuple(labels), language, tagger, batch_tokens, surprisal, probabilities, counts_only
    )
    labellers = recipe.open_labellers()
    routers = find_routers(lm.model)
    if counts_only:
        _check_experts(routers)
    group([], windowing, batch_tokens)  # refuses a wrong number before anything is read
    watch = Watch(on_progress, cancel or threading.Event())
    return Job(lm, encoder, recipe, labellers, routers, shard_rows, watch, stopwatch, on_profile, engine or run_here)


def n_embeddings(lm: LanguageModel) -> int:
    """Return how many token ids a model knows."""
    embedding: Any = lm.model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def check_context(lm: LanguageModel, context: int) -> int:
    """Return the number of tokens in a window if a model can see so many at once.

    Raises:
        BadInputError: if it is more than the model was made for.
    """
    if context > lm.context:
        raise BadInputError(
            f"context {context}: {lm.name} was made for {lm.context} tokens at once; use at most {lm.context}"
        )
    return context


def _check_experts(routers: Sequence[Router]) -> None:
    """Refuse to count by label what has a number of experts beyond that, as `counts` does."""
    for router in routers:
        if router.n_experts > _MOST_EXPERTS:
            raise BadInputError(
                f"counts_only=True: router {router.index} ({router.name}) has {router.n_experts:,} experts, and counts"
                f" by label are kept of up to {_MOST_EXPERTS:,}; trace without"
            )


def _check_documents(corpus: Corpus) -> None:
    """Refuse too few documents: what is counted by documents would be of none, and there are no tokens to count anew.

    Raises:
        BadInputError: naming how many there are.
    """
    n_documents = sum(n_tokens > 0 for n_tokens in corpus.token_counts)
    if n_documents < FEWEST_DOCUMENTS:
        raise BadInputError(
            f"counts_only=True: {n_documents} document(s) with a token, and counts are kept by documents, of which they"
            f" need {FEWEST_DOCUMENTS} or more; give more documents, or trace without"
        )


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
