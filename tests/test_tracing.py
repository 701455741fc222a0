"""Traces: documents and a model become a run."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import traced_models
from traced_models import files_of

import moe_probe as mp
from moe_probe.corpus import Document
from moe_probe.errors import BadInputError, MoeProbeError, RoutingError, RunError
from moe_probe.models import LanguageModel
from moe_probe.store import open_run
from moe_probe.tracing import Progress, forward, trace
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import is_out_of_memory


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    sizes = (40, 3, 90, 1, 25, 60)
    return [
        Document(f"d{n}", traced_models.text(size, seed=n), domain="even" if n % 2 == 0 else None)
        for n, size in enumerate(sizes)
    ]


def alone(lm: LanguageModel, ids: list[int]) -> mp.Routing:
    """Return the routing of one window that the model sees by itself."""
    with mp.record(lm.model) as recording, torch.inference_mode():
        lm.model(torch.tensor([ids]))
    return recording.routing()


def test_rows_are_the_tokens_of_the_documents_in_order(lm, documents, tmp_path):
    run = trace(lm, documents, tmp_path / "run", labels=("shape", "domain"), context=32, shard_rows=50, batch_tokens=64)
    assert run.complete
    assert len(run.shards) > 3
    assert run.documents()["name"].to_list() == [document.name for document in documents]
    for number, document in enumerate(documents):
        tokens = run.document(number).tokens
        ids = lm.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        assert tokens["token_id"].to_list() == ids
        assert tokens["token"].to_list() == lm.tokenizer.convert_ids_to_tokens(ids)
        assert "".join(tokens["text"]) == document.text
        assert tokens["position"].to_list() == list(range(len(ids)))
        assert tokens["window_position"].to_list() == [1 + place % 31 for place in range(len(ids))]  # after <s>
        assert [document.text[a:b] for a, b in tokens.select("char_start", "char_end").iter_rows()] == tokens[
            "text"
        ].to_list()
        assert set(tokens["domain"]) == {document.domain or "untagged"}
        assert set(tokens["phase"]) == {"prompt"}
        assert tokens["word_initial"].sum() > 0
    assert run.documents()["characters"].to_list() == [len(document.text) for document in documents]


@pytest.mark.parametrize(("stride", "special"), [(0, False), (9, False), (9, True)])
@pytest.mark.parametrize("batch_tokens", [1, 128])
def test_every_window_is_routed_as_if_it_were_alone(lm, documents, tmp_path, stride, special, batch_tokens):
    run = trace(
        lm,
        documents,
        tmp_path / "run",
        labels=(),
        context=32,
        stride=stride,
        special=special,
        batch_tokens=batch_tokens,
        shard_rows=70,
    )
    rows = []  # (position, window_position, token id, window, place in the window), by hand
    windows = []
    for document in documents:
        ids = lm.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        start, recorded = 0, 0
        while recorded < len(ids):
            end = min(start + 31, len(ids))
            windows.append(alone(lm, [1, *ids[start:end]]))
            if special:
                rows.append((-1, 0, 1, windows[-1], 0))
            for position in range(recorded, end):
                place = 1 + position - start
                rows.append((position, place, ids[position], windows[-1], place))
            recorded, start = end, end - stride
    tokens = run.tokens()
    assert list(tokens.select("position", "window_position", "token_id").iter_rows()) == [row[:3] for row in rows]
    for router in range(len(run.routers)):
        np.testing.assert_array_equal(run.experts(router=router), [w.experts(router)[place] for *_, w, place in rows])
        expected = np.array([w.weights(router)[place] for *_, w, place in rows])
        np.testing.assert_allclose(run.weights(router=router), expected, rtol=2**-10)
        for found, of in ((run.entropy(router=router), "entropy"), (run.margin(router=router), "margin")):
            expected = np.array([getattr(w, of)(router)[place] for *_, w, place in rows])
            np.testing.assert_allclose(found, expected, rtol=2**-10, atol=1e-4)


def test_special_tokens_are_rows_of_their_own_with_their_own_labels(lm, tmp_path):
    documents = [Document("a", "Anna wrote: the sea", labels={"mood": "calm"}), Document("b", "a token")]
    run = trace(lm, documents, tmp_path / "run", labels=("shape", "mood"), special=True, surprisal=True)
    first = run.tokens().row(0, named=True)
    assert (first["token"], first["text"], first["position"], first["window_position"]) == ("<s>", "", -1, 0)
    assert (first["phase"], first["shape"], first["mood"], first["word_initial"]) == ("special",) * 3 + (False,)
    assert (first["char_start"], first["char_end"], first["surprisal"]) == (0, 0, None)
    assert [set(run.document(n).tokens["mood"]) - {"special"} for n in (0, 1)] == [{"calm"}, {"untagged"}]
    assert run.documents()["tokens"].sum() == run.n_tokens == run.manifest["corpus"]["tokens"] + 2


def test_labels_of_a_long_document_do_not_depend_on_windows_or_shards(lm, tmp_path):
    document = Document("long", traced_models.text(200, seed=3), language="en")
    cut = trace(lm, [document], tmp_path / "cut", labels=("upos", "shape"), context=8, shard_rows=10)
    whole = trace(lm, [document], tmp_path / "whole", labels=("upos", "shape"))
    assert len(cut.shards) > 20
    for column in ("upos", "shape", "word_initial", "text"):
        assert cut.tokens([column]).equals(whole.tokens([column]))
    assert "NOUN" in cut.label_values("upos")


def test_surprisal_is_that_of_the_whole_model_within_a_window(lm, tmp_path):
    document = Document("a", traced_models.text(60, seed=5))
    run = trace(lm, [document], tmp_path / "run", labels=(), surprisal=True, context=24)
    ids = lm.tokenizer(document.text, add_special_tokens=False)["input_ids"]
    expected = []
    for start in range(0, len(ids), 23):
        window = torch.tensor([[1, *ids[start : start + 23]]])
        with torch.inference_mode():
            probabilities = lm.model(window).logits[0].double().softmax(-1)
        expected += [-float(probabilities[place - 1, window[0, place]].log2()) for place in range(1, window.shape[1])]
    np.testing.assert_allclose(run.tokens(["surprisal"])["surprisal"], expected, rtol=1e-4)


def test_surprisal_is_scaled_as_the_model_scales_its_logits(tmp_path):
    granite = traced_models.language_model(tmp_path / "model", "granitemoe")
    granite.model.config.logits_scaling = 4.0
    run = trace(granite, [Document("a", "the sea")], tmp_path / "run", labels=(), surprisal=True)
    ids = torch.tensor([[1, *granite.tokenizer("the sea", add_special_tokens=False)["input_ids"]]])
    with torch.inference_mode():
        nats = torch.nn.functional.cross_entropy(granite.model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    np.testing.assert_allclose(run.tokens()["surprisal"], nats / np.log(2), rtol=1e-5)


def test_a_model_whose_logits_are_not_its_heads_is_refused_for_surprisal(lm, tmp_path, monkeypatch):
    forward = lm.model.forward

    def capped(*arguments, **options):
        output = forward(*arguments, **options)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    monkeypatch.setattr(lm.model, "forward", capped)
    with pytest.raises(BadInputError, match=r"not those of its head alone.*trace without --surprisal"):
        trace(lm, [Document("a", "the sea")], tmp_path / "run", labels=(), surprisal=True)


def test_max_tokens_cuts_the_corpus_and_not_the_labels(lm, documents, tmp_path):
    run = trace(lm, documents, tmp_path / "run", labels=("shape",), max_tokens=60)
    whole = trace(lm, documents, tmp_path / "whole", labels=("shape",))
    assert run.n_tokens == 60
    for column in ("text", "shape", "position", "document"):
        assert run.tokens([column]).equals(whole.tokens([column]).head(60))
    assert run.documents()["characters"][-1] == run.tokens(["char_end"])["char_end"][-1]


def test_a_document_without_tokens_is_a_document(lm, tmp_path):
    run = trace(lm, [Document("a", "the sea"), Document("b", "salt")], tmp_path / "run", labels=())
    assert run.n_documents == 2
    empty = Encoder(lm.tokenizer, lm.name, 512)
    encoded = next(iter(empty.encode([Document("c", "x")])))[0].cut(0)
    assert encoded.n_tokens == 0
    from moe_probe.tracing import tracer

    class Mute(Encoder):
        def _encode(self, number, documents):
            return [one.cut(0 if one.document.name == "b" else 99) for one in super()._encode(number, documents)]

    original, tracer.Encoder = tracer.Encoder, Mute
    try:
        documents = [Document("a", "the sea"), Document("b", "salt"), Document("c", "a model")]
        run = trace(lm, documents, tmp_path / "mute", labels=("shape",))
        nothing = trace(lm, [Document("b", "salt")], tmp_path / "nothing", labels=("shape",))
    finally:
        tracer.Encoder = original
    assert run.documents()["tokens"].to_list()[1] == 0
    assert run.document("b").tokens.height == 0
    assert "".join(run.document("c").tokens["text"]) == "a model"
    assert (nothing.complete, nothing.n_tokens, nothing.n_documents) == (True, 0, 1)


def test_the_same_trace_gives_the_same_bytes(lm, documents, tmp_path):
    for name in ("a", "b"):
        trace(lm, documents, tmp_path / name, labels=("shape",), context=32, shard_rows=60, batch_tokens=100)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "documents.parquet",
        "plan.json",
        "routing",
        "run.json",
        "tokens",
    ]


def test_an_iterator_of_documents_is_read_once_and_gives_the_same_run(lm, documents, tmp_path):
    trace(lm, documents, tmp_path / "list", labels=())
    trace(lm, (document for document in documents), tmp_path / "iterator", labels=())
    assert files_of(tmp_path / "list") == files_of(tmp_path / "iterator")
    with pytest.raises(BadInputError, match="two documents are called 'a'"):
        trace(lm, iter([Document("a", "x"), Document("a", "y")]), tmp_path / "twice", labels=())
    with pytest.raises(BadInputError, match="no input: the iterator gave no document"):
        trace(lm, iter([]), tmp_path / "none", labels=())
    assert not (tmp_path / "twice").exists()


def test_a_cancelled_trace_keeps_what_is_whole_and_goes_on_to_the_same_bytes(lm, documents, tmp_path):
    options = {"labels": ("shape",), "context": 32, "shard_rows": 60, "batch_tokens": 40}
    trace(lm, documents, tmp_path / "undisturbed", **options)
    cancel = threading.Event()

    def stop_at(done: int):
        return lambda progress: cancel.set() if progress.tokens_done >= done and progress.phase == "tracing" else None

    partial = trace(lm, documents, tmp_path / "run", on_progress=stop_at(150), cancel=cancel, **options)
    assert not partial.complete
    assert 60 <= partial.n_tokens < 200
    assert "".join(partial.document(0).tokens["text"]) == documents[0].text
    with pytest.raises(RunError, match="a run is there already; use --resume to go on"):
        trace(lm, documents, tmp_path / "run", **options)
    with pytest.raises(RunError, match=r"something else \(context was 32 and is 16; shard_rows was 60 and is 50\)"):
        trace(lm, documents, tmp_path / "run", resume=True, **options | {"context": 16, "shard_rows": 50})
    with pytest.raises(RunError, match=r"something else \(inputs was "):
        trace(lm, documents[:-1], tmp_path / "run", resume=True, **options)
    assert trace(lm, documents, tmp_path / "run", resume=True, **options).complete
    assert files_of(tmp_path / "run") == files_of(tmp_path / "undisturbed")
    before = (tmp_path / "run" / "run.json").stat().st_mtime_ns
    assert trace(lm, documents, tmp_path / "run", resume=True, **options).complete  # nothing is left to do
    assert (tmp_path / "run" / "run.json").stat().st_mtime_ns == before


def test_ctrl_c_keeps_what_is_whole(lm, documents, tmp_path):
    options = {"labels": (), "context": 32, "shard_rows": 60, "batch_tokens": 40}

    def interrupt(progress: Progress) -> None:
        if progress.phase == "tracing" and progress.tokens_done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(lm, documents, tmp_path / "run", on_progress=interrupt, **options)
    run = open_run(tmp_path / "run")
    assert (run.complete, run.n_tokens >= 60) == (False, True)
    trace(lm, documents, tmp_path / "run", resume=True, **options)
    trace(lm, documents, tmp_path / "undisturbed", **options)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "undisturbed")


def test_a_trace_cancelled_at_once_leaves_an_empty_run_that_can_be_resumed(lm, tmp_path):
    cancel = threading.Event()
    seen = []

    def watch(progress: Progress) -> None:
        seen.append(progress.phase)
        if progress.phase == "tracing":
            cancel.set()

    run = trace(lm, [Document("a", "the sea " * 50)], tmp_path / "run", labels=(), on_progress=watch, cancel=cancel)
    assert (run.complete, run.n_tokens) == (False, 0)
    assert trace(lm, [Document("a", "the sea " * 50)], tmp_path / "run", labels=(), resume=True).complete
    with pytest.raises(MoeProbeError, match="cancelled while the inputs were being read; nothing was traced"):
        trace(lm, [Document("a", "x")], tmp_path / "other", labels=(), cancel=cancel)
    assert not (tmp_path / "other").exists()


def test_a_resumed_run_whose_scores_are_no_longer_known_is_refused(lm, documents, tmp_path, monkeypatch):
    options = {"labels": (), "context": 32, "shard_rows": 60}
    cancel = threading.Event()

    def watch(progress: Progress) -> None:
        if progress.tokens_done > 200 and progress.phase == "tracing":
            cancel.set()

    assert trace(lm, documents, tmp_path / "run", on_progress=watch, cancel=cancel, **options).shards
    monkeypatch.setattr("moe_probe.tracing.forward.record", lambda model, **_: mp.record(model, entropy=False))
    with pytest.raises(RoutingError, match=r"its entropy and margin were known in the shards before and are not now"):
        trace(lm, documents, tmp_path / "run", resume=True, **options)


def test_progress_counts_tokens_and_tells_how_long_it_will_take(lm, documents, tmp_path):
    seen: list[Progress] = []
    run = trace(lm, documents, tmp_path / "run", labels=(), batch_tokens=64, on_progress=seen.append)
    reading, tracing = ([step for step in seen if step.phase == phase] for phase in ("reading", "tracing"))
    assert reading[-1].tokens_done == tracing[-1].tokens_done == tracing[-1].tokens_total == run.n_tokens
    assert [step.tokens_done for step in tracing] == sorted({step.tokens_done for step in tracing})
    assert len(tracing) > 3
    assert tracing[0].tokens_per_second > 0
    assert tracing[0].seconds_left > 0
    assert tracing[-1].seconds_left == 0
    assert reading[0].seconds_left is None


class Small:
    """A model whose memory ends at so many tokens in a batch."""

    def __init__(self, monkeypatch, limit: int, error: Exception) -> None:
        decode = forward.decode

        def guarded(lm: LanguageModel, batch):
            if batch.ids.size > limit:
                self.failures += 1
                decode(lm, batch)  # what was recorded before memory ran out must not count
                raise error
            return decode(lm, batch)

        self.failures = 0
        monkeypatch.setattr(forward, "decode", guarded)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to …"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_goes_on(lm, documents, tmp_path, monkeypatch, error):
    whole = trace(lm, documents, tmp_path / "whole", labels=(), context=16, batch_tokens=160)
    small = Small(monkeypatch, 50, error)
    run = trace(lm, documents, tmp_path / "run", labels=(), context=16, batch_tokens=160)
    assert run.complete
    for router in range(len(run.routers)):
        np.testing.assert_array_equal(run.experts(router=router), whole.experts(router=router))
        np.testing.assert_allclose(run.weights(router=router), whole.weights(router=router), rtol=2**-9)
    assert whole.warnings == []
    assert len(run.warnings) == 1
    assert run.warnings[0].startswith("memory was too small for a batch, which was halved")
    assert small.failures <= 3  # learned from the first: later batches do not fail first


def test_a_window_that_does_not_fit_says_what_to_do(lm, documents, tmp_path, monkeypatch):
    Small(monkeypatch, 10, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(MoeProbeError, match=r"out of memory on cpu in a window of 32 tokens; use a shorter --context"):
        trace(lm, documents, tmp_path / "run", labels=(), context=32)
    assert not (tmp_path / "run").exists()  # so that the next attempt need not be the same


def test_other_errors_of_the_model_are_not_taken_for_memory(lm, documents, tmp_path, monkeypatch):
    Small(monkeypatch, 10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        trace(lm, documents, tmp_path / "run", labels=())
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_recorder_that_misses_tokens_is_an_error(lm, documents, tmp_path, monkeypatch):
    decode = forward.decode

    def twice(lm, batch):
        decode(lm, batch)
        return decode(lm, batch)

    monkeypatch.setattr(forward, "decode", twice)
    with pytest.raises(RoutingError, match=r"\d+ tokens were recorded of a batch of \d+"):
        trace(lm, documents, tmp_path / "run", labels=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 257}, "context 257: .* was made for 256 tokens at once; use at most 256"),
        ({"context": 1}, "context 1: the special tokens at a window's start take 1, which leaves no room for text"),
        ({"context": 8, "stride": 7}, "stride 7: windows hold 7 tokens of text and must overlap by fewer"),
        ({"batch_tokens": 0}, "batch_tokens 0: a batch needs at least 1 token"),
        ({"max_tokens": 0}, "max_tokens 0: take at least 1 token"),
        ({"shard_rows": 0}, "shard_rows 0: use 1 to 1000000"),
        ({"labels": ("shape", "shape")}, "label 'shape': named twice"),
        ({"labels": ("Token Id",)}, "label 'Token Id': a label's name is a lower-case word"),
        ({"labels": ("position",)}, "label 'position': every run has a column of that name already"),
        ({"labels": ("upos",), "tagger": "no_such_tagger"}, "tagger 'no_such_tagger'"),
        ({"labels": ("upos",), "language": "eo"}, "document 'a' is in 'eo' .* no spaCy pipeline for it is installed"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_written(lm, tmp_path, options, message):
    with pytest.raises(BadInputError, match=message):
        trace(lm, [Document("a", "the sea")], tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_usable_tokenizer_is_refused(lm, tmp_path):
    class Slow(type(lm.tokenizer)):
        is_fast = False

    slow = object.__new__(Slow)
    for tokenizer, n_embeddings, message in (
        (None, 512, "m: the model came without a tokenizer, and a trace starts from text"),
        (slow, 512, "m: its tokenizer Slow is a slow one, which does not say which characters a token covers"),
        (lm.tokenizer, 100, r"m: its tokenizer gives the id \d+ where the model knows 100 ids"),
    ):
        with pytest.raises(BadInputError, match=message):
            next(Encoder(tokenizer, "m", n_embeddings).encode([Document("a", "wrote: the sea")]))


def test_special_tokens_that_a_text_spells_out_are_special(lm, tmp_path):
    run = trace(lm, [Document("a", "the</s>sea")], tmp_path / "run", labels=("shape",))
    row = run.tokens().filter(token="</s>").row(0, named=True)
    assert (row["text"], row["shape"], row["phase"]) == ("</s>", "special", "special")


def test_the_manifest_tells_how_the_run_was_made(lm, documents, tmp_path):
    manifest = trace(lm, documents, tmp_path / "run", labels=("shape",), language="en").manifest
    assert manifest["self_check"] == "passed"
    assert manifest["model"]["class"] == "MixtralForCausalLM"
    assert manifest["model"]["fingerprint"] == lm.fingerprint()
    assert manifest["precision"] == lm.precision_rows()
    assert manifest["tokenizer"]["prefix"] == ["<s>"]
    assert manifest["corpus"]["documents"] == 6
    assert set(manifest["corpus"]["tokens_by_domain"]) == {"", "even"}
    assert set(manifest["corpus"]["tokens_by_language"]) == {"en"}
    assert manifest["settings"]["context"] == 256
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["labels"] == [{"name": "shape", "source": "rules", "word_level": True}]
    assert [router["scores"] for router in manifest["routers"]] == [True] * 3
