"""What a model writes is traced as if the whole text had been given to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_models
import torch
import traced_models
from traced_models import files_of

import moe_probe as mp
from moe_probe.corpus import Document
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.models import LanguageModel
from moe_probe.relabelling import relabel
from moe_probe.tracing import generate_and_trace, trace
from moe_probe.tracing.generator import Generator, open_generator

PROMPTS = (9, 1, 4, 14, 2)  # words; so a batch is padded by different widths
METHODS = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.9, "seed": 3},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "looked up in the prompt": {"prompt_lookup_num_tokens": 3},
    "static cache": {"cache_implementation": "static"},
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def bundled() -> LanguageModel:
    return mp.load("tiny-mixtral", device_map="cpu")


@pytest.fixture(scope="module")
def prompts() -> list[Document]:
    return [Document(f"d{n}", traced_models.text(size, seed=n), domain="made up") for n, size in enumerate(PROMPTS)]


def alone(lm: LanguageModel, ids: list[int]) -> mp.Routing:
    """Return the routing of one sequence that the model sees by itself, given at once."""
    with mp.record(lm.model) as recording, torch.inference_mode():
        lm.model(torch.tensor([ids]))
    return recording.routing()


def check_teacher_forcing(lm: LanguageModel, run: mp.Run) -> None:
    """Hold every row of a run against the routing of its document's ids, given at once and without padding."""
    for number in range(run.n_documents):
        document = run.document(number)
        expected = alone(lm, [1, *document.tokens["token_id"]])
        for router in range(len(run.routers)):
            np.testing.assert_array_equal(document.experts(router=router), expected.experts(router)[1:])
            np.testing.assert_allclose(document.weights(router=router), expected.weights(router)[1:], rtol=2**-10)


def written(run: mp.Run, number: int) -> list[int]:
    """Return the ids that the model wrote in a document, by its phases; special tokens are after the prompt."""
    tokens = run.document(number).tokens
    n_prompt = tokens["phase"].to_list().count("prompt")
    return tokens["token_id"].to_list()[n_prompt:]


@pytest.mark.parametrize("method", METHODS)
def test_every_row_is_that_of_teacher_forcing_however_the_text_was_written(lm, prompts, tmp_path, method):
    run = generate_and_trace(
        lm, prompts, tmp_path / "run", max_new_tokens=12, batch_size=3, labels=(), generation=METHODS[method]
    )
    assert run.complete
    check_teacher_forcing(lm, run)
    for number, prompt in enumerate(prompts):
        given = lm.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        tokens = run.document(number).tokens
        assert tokens["token_id"].to_list()[: len(given)] == given
        assert set(tokens["phase"][: len(given)]) == {"prompt"}
        assert set(tokens["phase"][len(given) :]) <= {"generated", "special"}
        assert 1 <= tokens.height - len(given) <= 12
        assert tokens["window_position"].to_list() == list(range(1, tokens.height + 1))


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_left_padded_batches_write_and_record_what_each_prompt_alone_does(prompts, tmp_path, architecture):
    lm = traced_models.language_model(tmp_path / "model", architecture)
    run = generate_and_trace(lm, prompts, tmp_path / "run", max_new_tokens=8, labels=())
    check_teacher_forcing(lm, run)
    for number, prompt in enumerate(prompts):
        ids = lm.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            expected = lm.model.generate(torch.tensor([[1, *ids]]), do_sample=False, max_new_tokens=8)
        assert written(run, number) == expected[0, 1 + len(ids) :].tolist()


def test_what_is_recorded_is_what_was_decided_while_the_text_was_written(lm, prompts, tmp_path):
    run = generate_and_trace(lm, prompts, tmp_path / "run", max_new_tokens=10, labels=())
    generator = open_generator(lm, max_new_tokens=10, batch_size=8, generation=None)
    fed = [[1, *lm.tokenizer(prompt.text, add_special_tokens=False)["input_ids"]] for prompt in prompts]
    with mp.record(lm.model) as recording:
        ids = generator.write(0, fed)
    seen = recording.routing()
    for number in range(len(prompts)):
        assert written(run, number) == ids[number]
        document = run.document(number)
        rows = np.flatnonzero(seen.sequence(0) == number)
        rows = rows[np.argsort(seen.position(0)[rows], kind="stable")][
            1 : document.tokens.height
        ]  # the last is not fed
        for router in range(len(run.routers)):
            np.testing.assert_array_equal(seen.experts(router)[rows], document.experts(router=router)[:-1])


def test_a_text_ends_with_its_end_of_sequence_and_others_go_on(lm, prompts, tmp_path):
    whole = generate_and_trace(lm, prompts, tmp_path / "whole", max_new_tokens=10, labels=())
    end = written(whole, 2)[3]
    run = generate_and_trace(
        lm, prompts, tmp_path / "run", max_new_tokens=10, labels=(), generation={"eos_token_id": [end, 2]}
    )
    lengths = []
    for number in range(len(prompts)):
        full = written(whole, number)
        expected = full[: full.index(end) + 1] if end in full else full
        assert written(run, number) == expected
        lengths.append(len(expected))
    assert min(lengths) < max(lengths) == 10
    check_teacher_forcing(lm, run)


def test_an_end_of_sequence_that_was_written_is_a_special_token_with_its_own_text(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(Generator, "write", lambda generator, number, prompts: [[300, 2]])
    run = generate_and_trace(lm, [Document("a", "the sea")], tmp_path / "run", max_new_tokens=4, labels=("shape",))
    last = run.tokens().row(-1, named=True)
    assert (last["token"], last["text"], last["phase"], last["shape"]) == ("</s>", "</s>", "special", "special")


def test_texts_that_end_at_a_string_are_written_one_by_one_and_hold_no_padding(bundled, tmp_path):
    prompts = [Document("a", "The old man went to the"), Document("b", "12 + 7 =")]
    options = {"max_new_tokens": 24, "labels": ()}
    whole = generate_and_trace(bundled, prompts, tmp_path / "whole", **options)
    run = generate_and_trace(bundled, prompts, tmp_path / "run", generation={"stop_strings": [".\n"]}, **options)
    assert run.manifest["generation"]["batch_size"] == 1
    assert written(run, 0) == written(whole, 0)  # it has no such string
    full, cut = written(whole, 1), written(run, 1)
    assert 0 < len(cut) < len(full)
    assert cut == full[: len(cut)]
    assert ".\n" in "".join(run.document(1).tokens["text"])


def test_an_assistant_changes_nothing_that_is_written_greedily(bundled, tmp_path):
    prompts = [Document("a", "The old man went to the"), Document("b", "def add(a, b):\n    return")]
    assistant = mp.load("tiny-mixtral", dtype="bfloat16", device_map="cpu")
    greedy = generate_and_trace(bundled, prompts, tmp_path / "greedy", max_new_tokens=16, labels=())
    run = generate_and_trace(
        bundled, prompts, tmp_path / "run", max_new_tokens=16, labels=(), generation={"assistant_model": assistant}
    )
    assert run.tokens(["token_id", "text", "phase"]).equals(greedy.tokens(["token_id", "text", "phase"]))
    check_teacher_forcing(bundled, run)
    assert run.manifest["generation"]["method"] == "assisted generation"
    assert run.manifest["generation"]["arguments"] == {"assistant_model": "tiny-mixtral, bfloat16"}


def test_the_text_is_the_prompt_and_what_was_written_as_decoded_in_pieces(bundled, tmp_path):
    prompts = [Document("a", "The café 🙂 was", language="en"), Document("b", "for n in", domain="code")]
    run = generate_and_trace(
        bundled, prompts, tmp_path / "run", max_new_tokens=40, generation={"do_sample": True, "temperature": 1.5}
    )
    for number, prompt in enumerate(prompts):
        tokens = run.document(number).tokens
        text = "".join(tokens["text"])
        assert text == bundled.tokenizer.decode(tokens["token_id"].to_list(), clean_up_tokenization_spaces=False)
        assert text.startswith(prompt.text)
        assert len(text) == run.documents()["characters"][number]
        assert [text[a:b] for a, b in tokens.select("char_start", "char_end").iter_rows()] == tokens["text"].to_list()
        given = sum(phase == "prompt" for phase in tokens["phase"])
        assert "".join(tokens["text"][:given]) == prompt.text
        assert tokens["word_initial"][given:].sum() > 3
    assert set(run.document(0).tokens["domain"]) == {"untagged"}
    assert set(run.document(1).tokens["domain"]) - {"special"} == {"code"}
    assert set(run.document(0).tokens["upos"][given:]) - {"whitespace", "continuation", "special", "untagged"}


def test_labels_are_those_that_the_whole_text_gets_when_it_is_labelled_again(bundled, tmp_path):
    prompts = [Document("a", "The old man went", language="en"), Document("b", "12 + 7 =")]
    run = generate_and_trace(bundled, prompts, tmp_path / "run", max_new_tokens=16, labels=("shape", "upos"))
    columns = ["shape", "upos", "text", "phase", "word_initial"]
    before = run.tokens(columns)
    assert relabel(tmp_path / "run", ["shape", "upos"]).tokens(columns).equals(before)
    texts = ["".join(run.document(number).tokens["text"]) for number in range(2)]
    retraced = [Document(f"t{n}", text, language=("en", None)[n]) for n, text in enumerate(texts)]
    again = trace(bundled, retraced, tmp_path / "again", labels=("shape",))
    assert again.tokens(["text"]).equals(run.tokens(["text"]))  # so tidy a text is cut as it was written
    assert again.tokens(["shape"]).equals(run.tokens(["shape"]))


def test_ids_that_the_tokenizer_does_not_know_are_rows_without_a_piece(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(Generator, "write", lambda generator, number, prompts: [[511, 300, 510]])
    run = generate_and_trace(lm, [Document("a", "the sea")], tmp_path / "run", max_new_tokens=4, labels=("shape",))
    rows = run.tokens().tail(3)
    assert rows["token_id"].to_list() == [511, 300, 510]
    assert rows["token"].to_list()[::2] == ["", ""]
    assert rows["text"].to_list()[::2] == ["", ""]
    assert rows["phase"].to_list() == ["generated"] * 3
    assert "".join(run.tokens()["text"]).startswith("the sea")
    check_teacher_forcing(lm, run)


def test_labels_for_stretches_of_a_prompt_hold_there_and_nowhere_else(lm, tmp_path):
    document = Document("a", "the sea of salt", labels={"mood": [(4, 7, "calm")], "kind": "story"})
    run = generate_and_trace(lm, [document], tmp_path / "run", max_new_tokens=6, labels=("mood", "kind"))
    tokens = run.tokens().filter(phase="prompt")
    assert "".join(tokens.filter(mood="calm")["text"]).strip() == "sea"
    assert set(run.tokens().filter(phase="generated")["mood"]) == {"untagged"}
    assert set(run.tokens()["kind"]) - {"special"} == {"story"}


def test_special_tokens_and_surprisal_are_recorded_as_in_a_trace(bundled, tmp_path):
    run = generate_and_trace(
        bundled,
        [Document("a", "The old man")],
        tmp_path / "run",
        max_new_tokens=6,
        labels=(),
        special=True,
        surprisal=True,
    )
    tokens = run.tokens()
    assert tokens.row(0, named=True)["token"] == "<s>"
    assert tokens["phase"][0] == "special"
    with torch.inference_mode():
        logits = bundled.model(torch.tensor([tokens["token_id"].to_list()])).logits[0].double()
    nats = torch.nn.functional.cross_entropy(
        logits[:-1], torch.tensor(tokens["token_id"][1:].to_list()), reduction="none"
    )
    np.testing.assert_allclose(tokens["surprisal"][1:], nats / np.log(2), rtol=1e-4)
    # Written greedily, each token was the most probable one.
    assert logits[-7:-1].argmax(-1).tolist() == tokens["token_id"][-6:].to_list()


def test_a_seed_decides_what_is_drawn_and_nothing_else_does(lm, prompts, tmp_path):
    options = {"max_new_tokens": 8, "labels": (), "batch_size": 2}

    def sampled(name: str, seed: int) -> mp.Run:
        return generate_and_trace(lm, prompts, tmp_path / name, generation={"do_sample": True, "seed": seed}, **options)

    torch.manual_seed(5)
    untouched = torch.rand(1)
    torch.manual_seed(5)
    first = sampled("first", 1)
    assert torch.equal(torch.rand(1), untouched)
    sampled("again", 1)
    other = sampled("other", 2)
    assert files_of(tmp_path / "first") == files_of(tmp_path / "again")
    assert first.tokens()["token_id"].to_list() != other.tokens()["token_id"].to_list()
    assert (first.manifest["seed"], other.manifest["seed"]) == (1, 2)
    twice = [Document(name, "the sea") for name in "ab"]  # in two batches, which draw differently
    run = generate_and_trace(
        lm, twice, tmp_path / "twice", generation={"do_sample": True}, **options | {"batch_size": 1}
    )
    assert written(run, 0) != written(run, 1)


def test_the_model_s_own_generation_config_does_not_make_it_sample_unasked(lm, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(lm.model.generation_config, "do_sample", True)
    monkeypatch.setattr(lm.model.generation_config, "temperature", 2.0)
    monkeypatch.setattr(lm.model.generation_config, "num_return_sequences", 1)
    run = generate_and_trace(lm, prompts[:1], tmp_path / "run", max_new_tokens=4, labels=())
    assert run.manifest["generation"]["method"] == "greedy search"
    sampled = generate_and_trace(
        lm, prompts[:1], tmp_path / "sampled", max_new_tokens=4, labels=(), generation={"do_sample": True}
    )
    assert sampled.manifest["generation"]["generation_config"]["temperature"] == 2.0


def test_the_manifest_tells_how_the_text_was_written(lm, prompts, tmp_path):
    run = generate_and_trace(
        lm, prompts, tmp_path / "run", max_new_tokens=4, labels=(), batch_size=2, generation={"num_beams": 2, "seed": 7}
    )
    about = run.manifest["generation"]
    assert (about["method"], about["max_new_tokens"], about["chat"]) == ("beam search", 4, False)
    assert (about["seed"], about["batch_size"], about["generation_config"]["num_beams"]) == (7, 2, 2)
    assert about["prompt_tokens"] + about["generated_tokens"] == run.n_tokens
    phases = run.tokens()["phase"].to_list()
    assert about["prompt_tokens"] == phases.count("prompt")
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["made_from"]["generation"] == about
    assert "generation" not in trace(lm, prompts, tmp_path / "plain", labels=()).manifest


def test_memory_that_is_too_small_halves_a_batch_and_a_single_prompt_says_what_to_do(
    lm, prompts, tmp_path, monkeypatch
):
    generate, sizes = lm.model.generate, []
    whole = generate_and_trace(lm, prompts, tmp_path / "whole", max_new_tokens=5, labels=())

    def small(limit: int):
        def guarded(input_ids, **options):
            sizes.append(len(input_ids))
            if len(input_ids) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return generate(input_ids=input_ids, **options)

        return guarded

    monkeypatch.setattr(lm.model, "generate", small(2))
    run = generate_and_trace(lm, prompts, tmp_path / "run", max_new_tokens=5, labels=())
    assert sizes == [5, 3, 2, 1, 2]
    assert run.tokens()["token_id"].equals(whole.tokens()["token_id"])
    monkeypatch.setattr(lm.model, "generate", small(0))
    with pytest.raises(
        MoeProbeError, match=r"out of memory on cpu while writing after a prompt of \d+ tokens; ask for"
    ):
        generate_and_trace(lm, prompts, tmp_path / "none", max_new_tokens=5, labels=())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens 0: use at least 1"),
        ({"batch_size": 0}, "batch_size 0: use at least 1"),
        (
            {"max_new_tokens": 254},
            r"document 'a': 3 tokens and 254 more are too many for a context of 256; .* 253 tokens",
        ),
        ({"context": 3, "max_new_tokens": 1}, "document 'a': 3 tokens and 1 more .*; shorten it, or ask for a longer"),
        ({"context": 257}, "context 257: .* was made for 256 tokens at once"),
        ({"labels": ("mood",)}, "label 'mood': no document brings it along"),
        ({"generation": {"max_length": 9}}, "generation: max_length cannot be given: it counts the prompt too"),
        (
            {"generation": {"num_return_sequences": 2}},
            "num_return_sequences cannot be given: each document is continued",
        ),
        ({"generation": {"input_ids": 2}}, "generation: input_ids cannot be given: it is made from the inputs"),
        ({"generation": {"seed": -1}}, "generation: seed -1: use a whole number from 0 on"),
        ({"generation": {"temperatur": 1.0}}, r"it cannot write so: .*'temperatur'"),
        ({"generation": {"do_sample": True, "temperature": -1.0}}, "it cannot write so: .*temperature"),
        ({"chat": True}, "its tokenizer has no chat template, .* leave chat out"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_before_anything_is_written(lm, tmp_path, options, message):
    with pytest.raises(BadInputError, match=message):
        generate_and_trace(lm, [Document("a", "the sea")], tmp_path / "run", **{"labels": ()} | options)
    assert not (tmp_path / "run").exists()
