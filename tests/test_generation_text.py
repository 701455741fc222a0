"""Which characters a written token owns, and what a chat template makes of a text."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import traced_models
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError
from moe_probe.labels.align import own
from moe_probe.models import LanguageModel
from moe_probe.tracing import generate_and_trace
from moe_probe.tracing.spelling import spell

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def owned(text: str, spans: list[tuple[int, int]]) -> list[str]:
    starts, ends = own(text, spans)
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def by_bytes(pieces: list[bytes]) -> list[str]:
    """Return what each piece owns, by the bytes: a character belongs to the piece with its first byte."""
    whole = b"".join(pieces)
    found = [""] * len(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    place = 0
    for character in whole.decode():
        found[int(np.searchsorted(ends, place, side="right"))] += character
        place += len(character.encode())
    return found


@st.composite
def pieces_of_a_text(draw) -> list[bytes]:
    content = draw(st.text(alphabet="aé猫🙂 \n�", min_size=1, max_size=12)).encode()
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(content) - 1)), max_size=len(content))))
    return [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True) if a < b]


@given(pieces=pieces_of_a_text(), context=st.lists(st.sampled_from([b"x", b" ", "é".encode()]), max_size=3))
@example(pieces=[b" \xf0", b"\x9f", b"\x99\x82 a"], context=[])
@settings(max_examples=200, deadline=None)
def test_a_character_belongs_to_the_token_with_its_first_byte(pieces, context):
    vocabulary = [*context, *pieces]

    def decode(ids: list[int]) -> str:
        return b"".join(vocabulary[token] for token in ids).decode(errors="replace")

    ids = list(range(len(context), len(vocabulary)))
    text, spans = spell(decode, range(len(context)), ids)
    assert text == b"".join(pieces).decode()
    assert owned(text, spans) == by_bytes(pieces)


@given(st.lists(st.binary(max_size=4), min_size=1, max_size=12))
@settings(max_examples=200, deadline=None)
def test_bytes_that_are_no_text_are_spelled_as_the_tokenizer_decodes_them(pieces):
    text, spans = spell(
        lambda ids: b"".join(pieces[token] for token in ids).decode(errors="replace"), [], range(len(pieces))
    )
    assert text == b"".join(pieces).decode(errors="replace")
    assert "".join(owned(text, spans)) == text
    assert len(spans) == len(pieces)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of Llama's kind: ▁ for a space, <0x..> for bytes, no space before the first word."""
    words = ["<unk>", "<s>", "</s>", "▁the", "▁sea", "s", "▁"] + [f"<0x{byte:02X}>" for byte in range(256)]
    inner = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, [], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def test_the_first_written_word_keeps_its_space_and_byte_tokens_share_a_character():
    tokenizer = metaspace_tokenizer()
    word = {piece: n for piece, n in tokenizer.get_vocab().items()}

    def decode(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    emoji = [word[f"<0x{byte:02X}>"] for byte in "é🙂".encode()]
    ids = [word["▁sea"], word["s"], *emoji, word["▁the"]]
    text, spans = spell(decode, [word["▁the"]], ids)
    assert text == " seasé🙂 the"
    assert owned(text, spans) == [" sea", "s", "é", "", "🙂", "", "", "", " the"]
    unknown = len(word)  # a model may know more ids than its tokenizer
    assert owned(*spell(decode, [word["▁the"]], [word["▁sea"], unknown, word["▁the"]])) == [" sea", "", " the"]
    text, spans = spell(decode, [word["▁the"], *emoji[:2]], [emoji[2], word["s"], emoji[0]])  # no characters at all
    assert "".join(owned(text, spans)) == text == "�s�"
    assert owned(text, spans) == ["�", "s", "�"]


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


def with_template(lm: LanguageModel, template: str) -> LanguageModel:
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.chat_template = template
    return replace(lm, tokenizer=tokenizer)


def test_a_chat_is_the_template_around_the_text_and_what_the_model_answers(lm, tmp_path):
    chat = with_template(lm, TEMPLATE)
    document = Document("a", "the sea", labels={"mood": [(4, 7, "calm")]})
    run = generate_and_trace(chat, [document], tmp_path / "run", max_new_tokens=5, chat=True, labels=("mood",))
    tokens = run.tokens()
    prompt = "<|user|>the sea<|assistant|>"  # without <s>, which begins every window
    assert "".join(tokens["text"]).startswith(prompt)
    assert "".join(tokens.filter(phase="prompt")["text"]) == prompt
    assert tokens["window_position"][0] == 1
    given = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokens["token_id"].to_list()[: len(given)] == given
    assert "sea" in "".join(tokens.filter(mood="calm")["text"])
    assert "the" not in "".join(tokens.filter(mood="calm")["text"])
    assert run.manifest["generation"]["chat"] is True
    assert run.manifest["tokenizer"]["prefix"] == ["<s>"]


def test_a_template_without_a_beginning_of_sequence_is_fed_without_one(lm, tmp_path):
    chat = with_template(lm, TEMPLATE.removeprefix("{{ bos_token }}"))
    document = Document("a", "the sea", labels={"mood": [(4, 7, "calm")]})
    run = generate_and_trace(chat, [document], tmp_path / "run", max_new_tokens=5, chat=True, labels=("mood",))
    assert run.tokens()["window_position"].to_list() == list(range(run.n_tokens))
    assert run.manifest["tokenizer"]["prefix"] == []
    assert "".join(run.tokens()["text"]).startswith("<|user|>the sea<|assistant|>")
    assert "sea" in "".join(run.tokens().filter(mood="calm")["text"])


def test_a_template_that_cannot_be_used_is_refused(lm, tmp_path):
    spans = Document("a", "the sea", labels={"mood": [(4, 7, "calm")]})
    changing = TEMPLATE.replace("message['content']", "message['content'] | upper")
    fickle = "{% if messages[0]['content'] | length > 8 %}" + "{{ bos_token }}{% endif %}" + TEMPLATE[15:]
    for template, document, message in (
        (changing, spans, "document 'a': the chat template of .* changes its text, so that labels of stretches"),
        ("{{ raise_exception('no users here') }}", spans, r"its chat template fails \(no users here\); leave chat out"),
        (
            fickle,
            Document("a", "the"),
            "document 'a': the chat template of .* does not begin it with the special tokens",
        ),
    ):
        with pytest.raises(BadInputError, match=message):
            generate_and_trace(with_template(lm, template), [document], tmp_path / "run", chat=True, labels=())
        assert not (tmp_path / "run").exists()
    upper = generate_and_trace(
        with_template(lm, changing),
        [Document("a", "the sea", labels={"mood": "calm"})],
        tmp_path / "upper",
        max_new_tokens=2,
        chat=True,
        labels=("mood",),
    )
    assert "THE SEA" in "".join(upper.tokens()["text"])
    assert set(upper.tokens()["mood"]) - {"special"} == {"calm"}
