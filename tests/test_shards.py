"""A shard is the same whoever makes it, in whatever order and process; one writer takes what any engine makes."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import traced_models
from spawning import warm_context
from traced_models import files_of

from moe_probe.corpus import Document
from moe_probe.errors import RoutingError
from moe_probe.models import LanguageModel, load
from moe_probe.recording.routing import Routing
from moe_probe.store import open_run
from moe_probe.tracing import forward, trace
from moe_probe.tracing.batches import Batch
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.pipeline import run_here
from moe_probe.tracing.shard import Recipe, open_shard_tracer
from moe_probe.tracing.work import Work

OPTIONS = {"labels": ("upos", "shape"), "context": 32, "shard_rows": 70, "batch_tokens": 64, "surprisal": True}
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return traced_models.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lm(folder) -> LanguageModel:
    return load(folder, device_map="cpu")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Some lie within a shard, one reaches over several."""
    return [
        Document(f"d{number}", traced_models.text(size, seed=number), language="en")
        for number, size in enumerate((8, 5, 150, 1, 30, 9))
    ]


@pytest.fixture(scope="module")
def undisturbed(lm, documents, tmp_path_factory) -> Path:
    run = trace(lm, documents, tmp_path_factory.mktemp("runs") / "run", **OPTIONS)
    assert len(run.shards) > 4
    return run.path


def backwards(work: Work) -> None:
    """Make the last shard first, each with a recording and labellers of its own."""
    for number in reversed(work.todo):
        with open_shard_tracer(work.lm, work.encoder, work.recipe) as tracer:
            work.commit(tracer.trace(work.text(number)))
        work.watch.step(work.rows_done)


def _make_elsewhere(folder: Path, recipe: bytes, texts: list[bytes], answers: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    lm = load(folder, device_map="cpu")
    made: Recipe = pickle.loads(recipe)
    encoder = Encoder(lm.tokenizer, lm.name, 512, prefix=made.prefix)
    with open_shard_tracer(lm, encoder, made) as tracer:
        answers.put([pickle.dumps(tracer.trace(pickle.loads(text))) for text in texts])


def test_an_engine_that_goes_backwards_with_fresh_recordings_leaves_the_same_bytes(
    lm, documents, undisturbed, tmp_path
):
    steps = []
    options = OPTIONS | {"engine": backwards, "on_progress": steps.append}
    run = trace(lm, documents, tmp_path / "run", **options)
    assert run.complete
    assert files_of(run.path) == files_of(undisturbed)
    tracing = [step.tokens_done for step in steps if step.phase == "tracing"]
    assert tracing == sorted(tracing)
    assert tracing[-1] == run.n_tokens


def test_another_process_makes_the_same_shards(lm, folder, documents, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def elsewhere(work: Work) -> None:
        context = warm_context(monkeypatch)
        answers = context.Queue()
        texts = [pickle.dumps(work.text(number)) for number in reversed(work.todo)]
        child = context.Process(target=_make_elsewhere, args=(folder, pickle.dumps(work.recipe), texts, answers))
        child.start()
        for shard in answers.get(timeout=PATIENCE_SECONDS):
            work.commit(pickle.loads(shard))
        child.join()

    options = OPTIONS | {"labels": ("shape",)}  # without a tagger, which takes long to load
    here = trace(lm, documents, tmp_path / "here", **options)
    run = trace(lm, documents, tmp_path / "run", engine=elsewhere, **options)
    assert files_of(run.path) == files_of(here.path)


def test_what_a_lost_engine_committed_stays_though_it_left_gaps(lm, documents, undisturbed, tmp_path):
    class Lost(Exception):
        pass

    def lost(work: Work) -> None:
        with open_shard_tracer(work.lm, work.encoder, work.recipe) as tracer:
            for number in work.todo[1:3]:
                work.commit(tracer.trace(work.text(number)))
        raise Lost

    with pytest.raises(Lost):
        trace(lm, documents, tmp_path / "run", engine=lost, **OPTIONS)
    partial, whole = open_run(tmp_path / "run"), open_run(undisturbed)
    assert (partial.complete, partial.shards) == (False, [1, 2])
    rows = [(shard.number, shard.rows) for shard in whole.iter_shards()]
    first = rows[0][1]
    there = slice(first, first + rows[1][1] + rows[2][1])
    assert partial.tokens().equals(whole.tokens()[there])
    np.testing.assert_array_equal(partial.experts(layer=1), whole.experts(layer=1)[there])
    for number in partial.documents()["document"]:
        of_part, of_whole = (run.document_tokens(number)["text"].to_list() for run in (partial, whole))
        assert "".join(of_part) in "".join(of_whole)
    seen = []

    def goes_on(work: Work) -> None:
        seen.extend(work.todo)
        run_here(work)

    trace(lm, documents, tmp_path / "run", resume=True, engine=goes_on, **OPTIONS)
    assert seen == [number for number, _ in rows if number not in (1, 2)]
    assert files_of(tmp_path / "run") == files_of(undisturbed)


def test_shards_that_disagree_on_what_is_known_are_refused(lm, documents, tmp_path):
    def forgetful(work: Work) -> None:
        with open_shard_tracer(work.lm, work.encoder, work.recipe) as tracer:
            for number in work.todo:
                shard = tracer.trace(work.text(number))
                scores = (True, number < 2, True)
                work.commit(replace(shard, facts=replace(shard.facts, scores=scores)))

    with pytest.raises(RoutingError, match=r"layers\.1\.mlp: its entropy and margin were known in the shards before"):
        trace(lm, documents, tmp_path / "run", engine=forgetful, **OPTIONS)
    assert open_run(tmp_path / "run").shards == [0, 1]


def test_a_document_that_reaches_over_shards_is_labelled_by_itself(lm, documents, tmp_path, monkeypatch):
    """What a tagger says may depend on the texts that it gets together."""
    together: list[list[str]] = []
    open_labellers = Recipe.open_labellers

    class Watched:
        def __init__(self, inner) -> None:
            self.inner, self.label_set, self.prepare = inner, inner.label_set, inner.prepare

        def __call__(self, documents, pieces):
            together.append([document.name for document in documents])
            return self.inner(documents, pieces)

    def watched(recipe: Recipe):
        found = open_labellers(recipe)
        return found | {"shape": Watched(found["shape"])}

    monkeypatch.setattr(Recipe, "open_labellers", watched)
    for engine in (backwards, run_here):
        together.clear()
        trace(lm, documents, tmp_path / engine.__name__, engine=engine, **OPTIONS | {"labels": ("shape",)})
        assert ["d2"] in together
        assert all(names == ["d2"] for names in together if "d2" in names)
        assert any(len(names) > 1 for names in together)
    assert together.count(["d2"]) == 1  # here it is remembered from shard to shard


@pytest.mark.parametrize("held_bytes", [0, 2_500, 10**9])
def test_taking_less_often_changes_nothing(lm, documents, undisturbed, tmp_path, held_bytes):
    takes = []

    def engine(work: Work) -> None:
        with open_shard_tracer(work.lm, work.encoder, work.recipe) as tracer:
            take = tracer.forward.recording.take
            tracer.forward.recording.take = lambda: takes.append(1) or take()
            tracer.forward.held_bytes = held_bytes
            for number in work.todo:
                work.commit(tracer.trace(work.text(number)))

    run = trace(lm, documents, tmp_path / "run", engine=engine, **OPTIONS)
    assert files_of(run.path) == files_of(undisturbed)
    assert (len(takes) == len(run.shards)) == (held_bytes == 10**9)


def held(work: Work, take: Callable[[Callable[[], Routing]], Routing]) -> None:
    """Make all shards with batches that wait; `take` stands before the recorder's own."""
    with open_shard_tracer(work.lm, work.encoder, work.recipe) as tracer:
        original = tracer.forward.recording.take
        tracer.forward.recording.take = lambda: take(original)
        tracer.forward.held_bytes = 10**9
        for number in work.todo:
            work.commit(tracer.trace(work.text(number)))


def test_memory_that_runs_out_while_batches_wait_loses_none_of_them(lm, documents, tmp_path, monkeypatch):
    """The failed forward leaves rows too, which must not be taken for those of a batch that waits."""
    options = OPTIONS | {"labels": (), "shard_rows": 1_000}
    whole = trace(lm, documents, tmp_path / "whole", **options)
    decode, batches = forward.decode, []

    def fails_once(lm: LanguageModel, batch: Batch) -> torch.Tensor:
        batches.append(batch)
        hidden = decode(lm, batch)
        if len(batches) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return hidden

    monkeypatch.setattr(forward, "decode", fails_once)
    run = trace(lm, documents, tmp_path / "run", engine=lambda work: held(work, lambda take: take()), **options)
    assert [batch.ids.tolist() for batch in batches[4:8]] == [batch.ids.tolist() for batch in batches[:4]]  # again
    assert files_of(run.path) == files_of(whole.path)


def test_a_batch_that_got_lost_while_it_waited_is_an_error(lm, documents, tmp_path):
    def lose_one(take: Callable[[], Routing]) -> Routing:
        return replace(take(), sequences=np.zeros(3, np.int32))

    with pytest.raises(RoutingError, match=r"3 tokens were recorded of \d+ batches of \d+"):
        trace(lm, documents, tmp_path / "run", engine=lambda work: held(work, lose_one), **OPTIONS)
