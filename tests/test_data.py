"""The bundled model, the sample corpus and the runs of earlier checkpoints are what their cards say."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

import moe_probe as mp
from moe_probe_data import CHECKPOINT_RUNS, MODEL, SAMPLE
from moe_probe_data.corpora import Text
from moe_probe_data.mathematics import mathematics_document
from moe_probe_data.train_tiny_mixtral import Recipe, balance_losses, batch_at, publish, train

ROOT = Path(__file__).parent.parent
UPOS = set("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X".split())  # noqa: SIM905
DOMAINS = {"english", "french", "german", "mathematics", "python", "science", "technical"}
UNSEEN_SCRIPTS = SAMPLE / "english" / "messages_from_the_trip.txt"  # no corpus held emoji, Japanese or Chinese
HARD_TEXT = "Café, cafe\u0301: 漢字かな, 한글 🎉👩‍🔬!\n\tx = 12345 \u00a0— naïve\r\n  שלום"
TOY = Recipe(
    steps=4,
    hidden=64,
    layers=2,
    intermediate=64,
    heads=2,
    experts=4,
    vocabulary=300,
    context=64,
    window=16,
    batch=4,
    long_windows_from=0.5,
    warmup_steps=2,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _sample_files() -> list[Path]:
    return sorted(path for path in SAMPLE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _toy_corpora() -> dict[str, list[Text]]:
    return {
        domain: [Text(domain, f"{domain}/{i}", f"{domain}/{i}", mathematics_document(i, seed)) for i in range(6)]
        for seed, domain in enumerate(("mathematics", "english"))
    }


def test_the_model_is_a_mixtral_of_eight_experts_two_a_token_in_less_than_ten_megabytes() -> None:
    assert (MODEL / "model.safetensors").stat().st_size <= 10_000_000
    config = AutoConfig.from_pretrained(MODEL)
    assert config.model_type == "mixtral"
    assert (config.num_local_experts, config.num_experts_per_tok) == (8, 2)
    assert 4 <= config.num_hidden_layers <= 6
    assert config.hidden_size % 64 == 0
    assert config.intermediate_size % 64 == 0


def test_the_weights_are_float16_and_finite() -> None:
    stored = AutoModelForCausalLM.from_pretrained(MODEL)
    assert stored.dtype == torch.float16
    assert all(parameter.isfinite().all() for parameter in stored.parameters())


@pytest.mark.parametrize(
    "text", [HARD_TEXT, "", " two  spaces ", "\n\n\n"], ids=["many scripts", "empty", "spaces", "newlines"]
)
def test_the_tokenizer_gives_any_text_back_exactly(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_bos_is_put_first_only_where_special_tokens_are_asked_for(tokenizer: PreTrainedTokenizerFast) -> None:
    with_special = tokenizer("A tree", add_special_tokens=True)["input_ids"]
    without = tokenizer("A tree", add_special_tokens=False)["input_ids"]
    assert with_special == [tokenizer.bos_token_id, *without]
    assert tokenizer.bos_token == "<s>"
    assert tokenizer.eos_token == "</s>"
    assert tokenizer.pad_token_id not in with_special


def test_offsets_touch_every_character_in_order_and_bytes_of_one_character_share_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = tokenizer(HARD_TEXT, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    assert offsets == sorted(offsets)
    assert {i for start, end in offsets for i in range(start, end)} == set(range(len(HARD_TEXT)))
    party = HARD_TEXT.index("🎉")
    assert sum(start <= party < end for start, end in offsets) > 1


def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("12345") == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("domain", sorted(DOMAINS))
def test_the_model_predicts_the_sample_far_better_than_an_untrained_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, domain: str
) -> None:
    losses = []
    for path in _sample_files():
        if path.parent.name != domain or path.suffix == ".conllu" or path == UNSEEN_SCRIPTS:
            continue
        ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt", truncation=True)["input_ids"]
        with torch.inference_mode():
            losses.append(model(ids, labels=ids).loss.item())
    untrained = math.log(model.config.vocab_size)
    assert sum(losses) / len(losses) < 0.65 * untrained


def test_every_layer_uses_all_of_its_experts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with mp.record(model) as recording, torch.inference_mode():
        for path in _sample_files():
            ids = tokenizer(path.read_text(encoding="utf-8"), return_tensors="pt", truncation=True)["input_ids"]
            model.model(ids)
    routing = recording.routing()
    layers = range(model.config.num_hidden_layers)
    load = torch.stack([torch.bincount(torch.as_tensor(routing.experts(i)).flatten(), minlength=8) for i in layers])
    assert (load / load.sum(1, keepdim=True)).min() > 0.02


def test_the_sample_lies_in_folders_named_after_its_domains() -> None:
    assert {path.relative_to(SAMPLE).parts[0] for path in _sample_files()} == DOMAINS
    assert all(len(path.relative_to(SAMPLE).parts) == 2 for path in _sample_files())


def test_the_sample_is_some_thousands_of_tokens_of_clean_text(tokenizer: PreTrainedTokenizerFast) -> None:
    n_tokens = 0
    for path in _sample_files():
        text = path.read_bytes().decode("utf-8")
        assert text.endswith("\n"), path
        assert "\r" not in text, path
        if path.suffix != ".conllu":
            n_tokens += len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert 4000 <= n_tokens <= 8000


def test_the_sample_shows_emoji_combining_marks_and_cjk() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in _sample_files())
    assert any(unicodedata.combining(character) for character in text)
    assert any(unicodedata.category(character) == "So" for character in text)
    assert any("\u4e00" <= character <= "\u9fff" for character in text)


def test_the_tagged_sample_is_consistent_conllu() -> None:
    sentences = (SAMPLE / "english" / "the_lighthouse.conllu").read_text(encoding="utf-8").strip().split("\n\n")
    assert 8 <= len(sentences) <= 15
    assert sentences[0].startswith("# newdoc id = ")
    for number, sentence in enumerate(sentences, start=1):
        rows = [line.split("\t") for line in sentence.splitlines() if not line.startswith("#")]
        assert all(len(row) == 10 for row in rows)
        words = [row for row in rows if "-" not in row[0]]
        assert [int(row[0]) for row in words] == list(range(1, len(words) + 1))
        assert {row[3] for row in words} <= UPOS
        assert f"# sent_id = the_lighthouse-{number:02d}" in sentence
        inside = {n for row in rows if "-" in row[0] for n in range(*map(int, row[0].split("-")))}
        inside |= {int(row[0].split("-")[1]) for row in rows if "-" in row[0]}
        surface = [row for row in rows if "-" in row[0] or int(row[0]) not in inside]
        text = "".join(row[1] + ("" if row[9] == "SpaceAfter=No" else " ") for row in surface).rstrip()
        assert f"# text = {text}" in sentence.splitlines()


def test_all_files_of_the_repository_together_stay_under_twenty_megabytes() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert len(paths) > 20
    assert sum(path.stat().st_size for path in paths if path.is_file()) < 20_000_000


def test_the_generated_mathematics_is_right() -> None:
    text = "\n".join(mathematics_document(index) for index in range(100))
    asked = re.findall(r"Question: \D*?(-?\d+) ([-+*]) (-?\d+)\D*\nAnswer: (-?\d+)", text)
    said = re.findall(r"^(-?\d+) ([-+*/]) (-?\d+) = (-?\d+)$", text, re.MULTILINE)
    assert min(len(asked), len(said)) > 100
    for left, sign, right, value in [*asked, *said]:
        a, b = int(left), int(right)
        assert int(value) == {"+": a + b, "-": a - b, "*": a * b, "/": a // max(b, 1)}[sign]


def test_five_to_ten_per_cent_of_the_documents_are_held_out_and_translations_stay_together() -> None:
    held_out = [Text("d", f"name {i}", f"name {i}", "").held_out for i in range(5000)]
    assert 0.05 < sum(held_out) / len(held_out) < 0.10
    same_page = [Text(domain, f"{domain}/page", "handbook/page", "").held_out for domain in ("french", "german")]
    assert same_page[0] == same_page[1]


def test_a_uniform_load_has_a_balance_loss_of_one_and_each_layer_is_judged_by_itself() -> None:
    uniform = torch.eye(4) * 2 + torch.eye(4).roll(1, 1) * 2
    assert balance_losses((uniform,))[0].item() == pytest.approx(1.0)
    low = torch.tensor([[20.0, 20.0, 0.0, 0.0]] * 4)
    high = low.flip(1)  # pooled with `low`, the load would be uniform
    assert balance_losses((low, high))[0].item() == pytest.approx(2.0, abs=1e-3)


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    streams = {"english": torch.arange(3, 400), "python": torch.arange(400, 900)}
    first = batch_at(1, streams, TOY)
    assert first.shape == (4, 17)
    assert (first[:, 0] == 1).all()
    assert batch_at(1, streams, TOY).equal(first)
    assert not batch_at(0, streams, TOY).equal(first)
    assert not batch_at(1, streams, dataclasses.replace(TOY, seed=1)).equal(first)
    assert batch_at(3, streams, TOY).shape == (1, 65)


def test_training_is_deterministic_and_a_resumed_run_equals_an_undisturbed_one(tmp_path: Path) -> None:
    whole = train(_toy_corpora(), TOY, tmp_path / "whole")
    again = train(_toy_corpora(), TOY, tmp_path / "again")
    train(_toy_corpora(), TOY, tmp_path / "broken", stop_at=2)
    resumed = train(_toy_corpora(), TOY, tmp_path / "broken", resume=True)
    weights = (whole / "model.safetensors").read_bytes()
    assert (again / "model.safetensors").read_bytes() == weights
    assert (resumed / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "whole" / "untrained" / "model.safetensors").read_bytes() != weights
    for other in (again, resumed):
        assert (other / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        train(_toy_corpora(), TOY, tmp_path / "broken")
    with pytest.raises(ValueError, match="another recipe"):
        train(_toy_corpora(), dataclasses.replace(TOY, seed=1), tmp_path / "broken", resume=True)


def test_publishing_replaces_a_model_and_leaves_nothing_else(tmp_path: Path) -> None:
    for name, content in (("new", "2"), ("old", "1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    (tmp_path / "old" / "README.md").write_text("card")
    publish(tmp_path / "new", tmp_path / "old")
    assert {path.name: path.read_text() for path in (tmp_path / "old").iterdir()} == {
        "config.json": "2",
        "README.md": "card",
    }


def test_the_card_names_the_corpora_and_their_licences() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for said in ("janeaustenr", "debian-handbook", "standard library", "PSF", "CC BY-SA", "untrained", "95 %"):
        assert said in card


def test_four_runs_of_earlier_checkpoints_open_and_are_small() -> None:
    folders = sorted(CHECKPOINT_RUNS.glob("step-*"))
    assert len(folders) == 4
    kept = [path for path in CHECKPOINT_RUNS.rglob("*") if path.is_file() and "counts" not in path.parts]
    assert sum(path.stat().st_size for path in kept) < 1_500_000
    final = AutoConfig.from_pretrained(MODEL)
    n_tokens = set()
    for folder in folders:
        run = mp.open_run(folder)
        assert len(run.routers) == final.num_hidden_layers
        assert {router.n_experts for router in run.routers} == {final.num_local_experts}
        assert {"upos", "shape", "domain"} <= set(run.tokens().columns)
        n_tokens.add(run.n_tokens)
    assert len(n_tokens) == 1
