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
from moe_probe.labels import Labeller, open_labeller
from moe_probe.models import LanguageModel
from moe_probe.recording.routers import find_routers
from moe_probe.schema import Router, check_label_name, expert_bits
from moe_probe.store.plan import Layout, Windowing, lay_out, plan_json, shard_rows_for
from moe_probe.store.writer import RunWriter
from moe_probe.tracing.batches import group
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import open_forward
from moe_probe.tracing.manifest import about_run
from moe_probe.tracing.pipeline import Pipeline
from moe_probe.tracing.reading import Corpus
from moe_probe.tracing.rows import RowMaker
from moe_probe.tracing.spool import Spool
from moe_probe.watching import OnProgress, Watch

_BATCH_TOKENS_ON_CPU = 2_048
_BATCH_TOKENS_ELSEWHERE = 16_384


@dataclass(frozen=True, eq=False)
class Job:
    """What a trace is made with: model, tokenizer, windows, labels, limits, and who watches.

    `labellers` holds one for each of `labels`, and one called `phase`. `shard_rows` is None where the corpus decides.
    """

    lm: LanguageModel
    encoder: Encoder
    windowing: Windowing
    labels: tuple[str, ...]
    labellers: Mapping[str, Labeller]
    routers: list[Router]
    batch_tokens: int
    shard_rows: int | None
    surprisal: bool
    watch: Watch
    started: float = field(default_factory=time.time)

    def carry_out(
        self,
        writer: RunWriter,
        spool: Spool,
        corpus: Corpus,
        settings: Mapping[str, object],
        generation: Mapping[str, object] | None = None,
    ) -> None:
        """Trace what is in the spool; nothing is done for a run that is complete.

        Args:
            writer: the run.
            spool: its documents.
            corpus: what is known of them.
            settings: what else the run depends on, beside what the job itself says.
            generation: how a model wrote a part of the documents.

        Raises:
            RunError: if the run that is there was made from something else.
        """
        shard_rows = self.shard_rows
        if shard_rows is None:
            shard_rows = shard_rows_for(corpus.n_tokens, _bytes_per_row(self.routers))
        layout = lay_out(corpus.token_counts, self.windowing, shard_rows)
        all_settings: dict[str, object] = {
            "context": self.windowing.context,
            "stride": self.windowing.stride,
            "special": self.windowing.special,
            "surprisal": self.surprisal,
            **settings,
            "batch_tokens": self.batch_tokens,
            "shard_rows": shard_rows,
            "labels": {name: self.labellers[name].label_set.source for name in self.labels},
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
        writer.publish_plan(plan_json(made_from, layout))
        if writer.is_complete():
            return

        def publish() -> None:
            about = about_run(self.lm, self.encoder, corpus, all_settings, self.started) | further
            label_sets = [self.labellers[name].label_set for name in self.labels]
            writer.publish(about, self.routers, label_sets, complete=len(writer.shards) == len(layout.shards))

        writer.write_documents(_documents(spool, corpus, layout))
        rows = RowMaker(self.encoder, self.windowing, self.labellers)
        with open_forward(self.lm, self.windowing, self.encoder.prefix, surprisal=self.surprisal) as forward:
            Pipeline(writer, publish, layout, spool, rows, forward, self.batch_tokens, self.watch).run()


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
    cancel: threading.Event | None,
) -> Job:
    """Check what a trace is asked to do, before anything is read.

    Raises:
        BadInputError: a label or a number cannot be used, or the model has no router that can be read.
    """
    labellers = _open_labellers(labels, language or "en", tagger)
    routers = find_routers(lm.model)
    if batch_tokens is None:
        batch_tokens = _BATCH_TOKENS_ON_CPU if lm.device.type == "cpu" else _BATCH_TOKENS_ELSEWHERE
    group([], windowing, batch_tokens)  # refuses a wrong number before anything is read
    watch = Watch(on_progress, cancel or threading.Event())
    return Job(lm, encoder, windowing, tuple(labels), labellers, routers, batch_tokens, shard_rows, surprisal, watch)


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


def _open_labellers(labels: Sequence[str], language: str, tagger: str | None) -> dict[str, Labeller]:
    """Return the labeller of each label, and of `phase`, which every run has.

    Raises:
        BadInputError: if a label is named twice, cannot have that name, or needs what is not installed.
    """
    for place, name in enumerate(labels):
        if check_label_name(name) in labels[:place]:
            raise BadInputError(f"label {name!r}: named twice")
    return {name: open_labeller(name, language=language, tagger=tagger) for name in ("phase", *labels)}


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
