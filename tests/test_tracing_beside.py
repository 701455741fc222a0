"""What is done beside the model while a trace runs: nothing of a run depends on it, and no fault gets lost."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import traced_models
from hypothesis import given
from hypothesis import strategies as st
from traced_models import files_of

from moe_probe.corpus import Document
from moe_probe.errors import RoutingError
from moe_probe.models import LanguageModel, load
from moe_probe.recording import Recording, capture
from moe_probe.recording.routing import Routing
from moe_probe.schema import tokens_file
from moe_probe.store import RunWriter, open_run
from moe_probe.store.plan import Window, Windowing
from moe_probe.tracing import forward, pipeline, shard, trace
from moe_probe.tracing.batches import PlacedWindow, assemble
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.profile import Stopwatch
from moe_probe.tracing.rows import _owned

PATIENCE_SECONDS = 60
OPTIONS = {"labels": ("shape",), "context": 32, "shard_rows": 100, "batch_tokens": 64}


@pytest.fixture(autouse=True)
def _a_processor_is_left(monkeypatch) -> None:
    monkeypatch.setattr(forward, "leaves_processor", lambda: True)


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return load(traced_models.save(tmp_path_factory.mktemp("model")), device_map="cpu")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(f"d{number}", traced_models.text(60, seed=number)) for number in range(4)]


@pytest.fixture(scope="module")
def undisturbed(lm, documents, tmp_path_factory) -> Path:
    run = trace(lm, documents, tmp_path_factory.mktemp("runs") / "run", **OPTIONS)
    assert len(run.shards) > 2
    return run.path


@pytest.mark.parametrize("rows_at_once", [1, 50])
def test_in_how_many_steps_a_shard_is_put_together_changes_nothing(
    lm, documents, undisturbed, tmp_path, monkeypatch, rows_at_once
):
    monkeypatch.setattr(shard, "_ROWS_AT_ONCE", rows_at_once)
    assert files_of(trace(lm, documents, tmp_path / "run", **OPTIONS).path) == files_of(undisturbed)


def test_without_a_thread_that_sorts_the_bytes_are_the_same(lm, documents, undisturbed, tmp_path, monkeypatch):
    sorters = []

    def alone(*arguments, threaded: bool):
        assert threaded
        return open_tracer(*arguments, threaded=False)

    open_tracer = pipeline.open_shard_tracer
    monkeypatch.setattr(pipeline, "open_shard_tracer", alone)
    monkeypatch.setattr(forward.ForwardPass, "_finish_sorting", lambda *_: sorters.append(1) or iter(()))
    assert files_of(trace(lm, documents, tmp_path / "run", **OPTIONS).path) == files_of(undisturbed)
    assert len(sorters) == len(open_run(undisturbed).shards)  # at the end of each, and of no batch


def test_a_batch_is_sorted_while_the_model_sees_the_next_one(lm, documents, tmp_path, monkeypatch):
    changed, n_seen, n_sorted, beside = threading.Condition(), [], [], []
    decode, opening = forward.decode, Recording._open

    def model(*arguments):
        with changed:
            n_seen.append(1)
            changed.notify_all()
        return decode(*arguments)

    def late(recording: Recording, sent) -> Routing:
        n_sorted.append(1)
        if len(n_sorted) == 2:  # the first ends before anyone said that another thread takes it
            with changed:
                beside.append(changed.wait_for(lambda: len(n_seen) >= 3, PATIENCE_SECONDS))
        return opening(recording, sent)

    monkeypatch.setattr(forward, "decode", model)
    monkeypatch.setattr(Recording, "_open", late)
    trace(lm, documents, tmp_path / "run", **OPTIONS | {"shard_rows": 1_000})
    assert beside == [True]
    assert len(n_sorted) == len(n_seen) > 3


def test_a_fault_that_the_sorting_thread_finds_stops_the_trace_and_costs_its_shard_only(
    lm, documents, tmp_path, monkeypatch
):
    calls = []

    def check(*arguments) -> None:
        calls.append(1)
        if len(calls) == 6:
            raise RoutingError("layers.0.mlp: 3 of 9 tokens hold the same expert twice")

    monkeypatch.setattr(capture, "check_decisions", check)
    with pytest.raises(RoutingError, match=r"layers\.0\.mlp: 3 of 9 tokens"):
        trace(lm, documents, tmp_path / "run", **OPTIONS)
    left = open_run(tmp_path / "run")
    assert not left.complete
    assert not list(left.path.rglob("*.tmp"))
    monkeypatch.undo()
    run = trace(lm, documents, tmp_path / "run", resume=True, **OPTIONS)
    assert files_of(run.path) == files_of(trace(lm, documents, tmp_path / "other", **OPTIONS).path)


def test_weights_beyond_float16_are_refused_though_others_are_narrowed_before(lm, documents, tmp_path, monkeypatch):
    """70,000 is a number in the recorder's float32, and none on disk."""
    pack = capture.pack

    def heavy(ids: torch.Tensor, weights: torch.Tensor, **options):
        packed = pack(ids, weights, **options)
        packed.weights[0, 0, -1] = 70_000
        return packed

    monkeypatch.setattr(capture, "pack", heavy)
    with pytest.raises(RoutingError, match=r"a weight of 70000\.0 cannot be stored in float16"):
        trace(lm, documents, tmp_path / "run", **OPTIONS)


def test_tokens_are_staged_as_a_temporary_file_until_their_shard_is_there(
    lm, documents, undisturbed, tmp_path, monkeypatch
):
    seen: list[tuple[bool, bool]] = []
    stage = RunWriter.stage_tokens

    def watched(writer: RunWriter, number: int, tokens) -> None:
        stage(writer, number, tokens)
        path = writer.path / tokens_file(number)
        seen.append((path.with_name(path.name + ".tmp").exists(), path.exists()))

    monkeypatch.setattr(RunWriter, "stage_tokens", watched)
    run = trace(lm, documents, tmp_path / "run", **OPTIONS)
    assert seen == [(True, False)] * len(run.shards)
    assert files_of(run.path) == files_of(undisturbed)
    trace(lm, documents, tmp_path / "other", surprisal=True, **OPTIONS)
    assert len(seen) == len(run.shards)  # of these the model has something to say


def test_pieces_are_those_of_the_tokenizer_each_asked_for_alone(lm):
    encoder = Encoder(lm.tokenizer, lm.name, 10_000)
    ids = [5, 3, 9_999, 5, 0]
    expected = [lm.tokenizer.convert_ids_to_tokens(token) if token < len(lm.tokenizer) else "" for token in ids]
    assert expected[2] == ""
    assert encoder.find_pieces(ids) == encoder.find_pieces(ids) == expected


@pytest.mark.parametrize(("n_processors", "threaded"), [(1, False), (3, False), (4, True), (None, False)])
def test_nothing_is_sorted_beside_a_model_that_leaves_no_processor(lm, monkeypatch, n_processors, threaded):
    monkeypatch.undo()
    monkeypatch.setattr("os.cpu_count", lambda: n_processors)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    options = {"surprisal": False, "stopwatch": Stopwatch(), "threaded": True}
    with forward.open_forward(lm, Windowing(32), (), **options) as opened:
        assert (opened.sorter is not None) == threaded


def test_special_tokens_that_a_text_spells_out_are_told_from_words(lm):
    encoder = Encoder(lm.tokenizer, lm.name, 512)
    special = lm.tokenizer.all_special_tokens
    ((encoded,),) = encoder.encode([Document("a", f"the {' '.join(special)} sea")])
    flags = encoder.pieces(encoded).special
    assert encoded.ids[flags].tolist() == lm.tokenizer.convert_tokens_to_ids(special)
    assert 0 < flags.sum() < len(flags)


def test_a_character_has_as_many_bytes_as_utf_8_gives_it():
    text = "a\x7f\x80\u07ff\u0800\uffff\U00010000"
    places = np.arange(len(text), dtype=np.int32)
    assert _owned(text, places, places + 1)[1].tolist() == [1, 1, 2, 2, 3, 3, 4]


@given(st.text(max_size=40), st.data())
def test_the_bytes_of_tokens_are_those_of_their_characters(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=8)))
    starts, ends = (np.array(one, np.int32) for one in (cuts[:-1], cuts[1:]))
    encoded, sizes = _owned(text, starts, ends)
    bounds = np.cumsum([0, *sizes.tolist()])
    found = [encoded[begin:end].decode() for begin, end in itertools.pairwise(bounds)]
    assert found == [text[start:end] for start, end in zip(starts, ends, strict=True)]
    assert bounds[-1] == len(encoded)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.integers(0, 2), st.booleans())
def test_stretches_are_the_same_rows_as_one_by_one(sizes: list[int], stride: int, special: bool) -> None:
    windowing = Windowing(400, stride, 1, special)
    row, placed = 0, []
    for number, size in enumerate(sizes):
        window = Window(number, 0, min(stride, size - 1), size)
        placed.insert(0, PlacedWindow(window, row))  # not in the order of their rows
        row += window.rows(windowing)
    ids = {number: np.zeros(size, np.int32) for number, size in enumerate(sizes)}
    batch = assemble(placed, windowing, [7], ids)
    recorded = np.arange(batch.n_tokens)
    whole, by_stretch = np.full(row, -1), np.full(row, -1)
    whole[batch.rows] = recorded[batch.kept]
    for kept, rows in batch.stretches:
        by_stretch[rows] = recorded[kept]
    np.testing.assert_array_equal(by_stretch, whole)
    assert (by_stretch >= 0).all()
