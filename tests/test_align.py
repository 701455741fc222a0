"""Alignment is exact, whatever the text and whatever the tokenizer did to it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import mistral_common
import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

import moe_probe_data
from moe_probe.errors import BadInputError
from moe_probe.labels.align import Pieces, label_from_spans, own, word_initial
from moe_probe.labels.words import find_words

Cut = Callable[[str], Pieces]

FAMILY = "👩‍👩‍👧‍👦"
_ALPHABETS = (
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(
        [*"aB1 \n\t.-'_", "e\u0301", FAMILY, "🇫🇷", "👍🏽", "中", "の", "ラ", "ส", "ि", "\r\n", " ", "\u200d", "\ufeff"]
    ),
)
TEXTS = st.lists(st.one_of(*_ALPHABETS), max_size=30).map("".join)


def _mixtral_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return Mixtral's own tokenizer, which the package mistral-common ships."""
    shutil.copy(Path(mistral_common.__file__).parent / "data/tokenizer.model.v1", folder / "tokenizer.model")
    tokenizer: PreTrainedTokenizerBase = LlamaTokenizer.from_pretrained(folder)
    return tokenizer


def _bundled_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the byte-level tokenizer of the bundled model."""
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(moe_probe_data.MODEL)
    return tokenizer


@pytest.fixture(scope="module", params=[_mixtral_tokenizer, _bundled_tokenizer], ids=["mixtral", "bundled"])
def cut(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cut:
    tokenizer = request.param(tmp_path_factory.mktemp("tokenizer"))

    def cut_text(text: str) -> Pieces:
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
        starts, ends = own(text, encoded["offset_mapping"])
        return Pieces(starts, ends, np.array(encoded["special_tokens_mask"], np.bool_))

    return cut_text


def _pieces(text: str, offsets: list[tuple[int, int]]) -> Pieces:
    starts, ends = own(text, offsets)
    return Pieces(starts, ends, np.array([end == 0 for _, end in offsets], np.bool_))


def _owned(text: str, offsets: list[tuple[int, int]]) -> list[str]:
    pieces = _pieces(text, offsets)
    return [text[start:end] for start, end in zip(pieces.starts, pieces.ends, strict=True)]


# What a token owns


@pytest.mark.parametrize(
    ("text", "offsets", "owned"),
    [
        ("a b", [(0, 1), (1, 3)], ["a", " b"]),
        ("é🙂x", [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2), (2, 3)], ["é", "", "🙂", "", "", "x"]),
        ("ab", [(0, 0), (0, 1), (0, 0), (1, 2), (0, 0)], ["", "a", "", "b", ""]),
        ("a  b\n", [(0, 1), (3, 4)], ["a", "  b\n"]),  # spaces and a line end that a tokenizer trimmed
        (" a", [(0, 0), (1, 2), (0, 0)], ["", " a", ""]),
        ("ab", [(0, 1), (0, 2), (1, 2)], ["a", "b", ""]),  # pieces that share a character
        ("ab", [(0, 1), (1, 9)], ["a", "b"]),  # beyond the text
        ("  ", [(0, 0), (0, 0)], ["", "  "]),  # nothing reaches it: the last token
        ("", [(0, 0)], [""]),
        ("ab", [], []),
    ],
)
def test_each_character_belongs_to_the_first_token_that_reaches_it(
    text: str, offsets: list[tuple[int, int]], owned: list[str]
) -> None:
    assert _owned(text, offsets) == owned


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(max_size=12),
    offsets=st.lists(st.tuples(st.integers(-3, 15), st.integers(-3, 15)), min_size=1, max_size=12),
)
def test_owned_ranges_are_the_text_even_for_offsets_that_make_no_sense(
    text: str, offsets: list[tuple[int, int]]
) -> None:
    assert "".join(_owned(text, offsets)) == text


@st.composite
def _texts_and_offsets(draw: st.DrawFn) -> tuple[str, list[tuple[int, int]]]:
    """Draw a text and spans in its order that may overlap, share characters, be empty, and leave gaps."""
    text = draw(st.text("ab ", min_size=1, max_size=10))
    starts = sorted(draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=8)))
    lengths = draw(st.lists(st.integers(0, 3), min_size=len(starts), max_size=len(starts)))
    ends = np.maximum.accumulate(np.minimum(np.add(starts, lengths), len(text))).tolist()
    return text, list(zip(starts, ends, strict=True))


@settings(max_examples=300, deadline=None)
@given(_texts_and_offsets())
def test_ownership_follows_the_rules_character_by_character(drawn: tuple[str, list[tuple[int, int]]]) -> None:
    text, offsets = drawn
    pieces = _pieces(text, offsets)
    touching = [[t for t, (start, end) in enumerate(offsets) if start <= place < end] for place in range(len(text))]
    owners = [tokens[0] if tokens else None for tokens in touching]
    for place in range(len(text)):
        if owners[place] is None:
            after = [owner for owner in owners[place:] if owner is not None and touching[place] == []]
            before = [owner for owner in owners[:place] if owner is not None]
            expected: int | None = after[0] if after else before[-1] if before else len(offsets) - 1
        else:
            expected = owners[place]
        assert pieces.starts[expected] <= place < pieces.ends[expected]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example("")
@example(f" {FAMILY}\n\n中文 e\u0301\ufeff <s>x</s>\x00 ﬁ ½\u0085")
def test_with_real_tokenizers_owned_ranges_are_the_text_and_every_token_has_one_label(cut: Cut, text: str) -> None:
    pieces = cut(text)
    owned = [text[start:end] for start, end in zip(pieces.starts, pieces.ends, strict=True)]
    assert "".join(owned) == (text if len(pieces) else "")
    for word_level in (True, False):
        labels = label_from_spans(text, pieces, [(0, len(text), "all")] if text else [], word_level=word_level)
        assert len(labels) == len(pieces)
        assert set(labels) <= {"all", "special", "whitespace", "continuation", "untagged"}


def test_pieces_need_one_of_each_for_every_token() -> None:
    with pytest.raises(BadInputError, match="pieces with 2 starts, 1 ends and 2 flags: each token needs one of each"):
        Pieces(np.zeros(2, np.int32), np.zeros(1, np.int32), np.zeros(2, np.bool_))


# Words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The cat's 15-year-old.", ["The", "cat", "'s", "15", "-", "year", "-", "old", "."]),
        (
            "don't they'd've 'tis 'a' rock'n'roll",
            ["don't", "they", "'d", "'ve", "'", "tis", "'", "a", "'", "rock'n'roll"],
        ),
        ("l'homme, qu’il aujourd'hui dell'arte", ["l'", "homme", ",", "qu’", "il", "aujourd'hui", "dell'", "arte"]),
        ("3.14 1,000,000 10:30 3/4 1..2 5.", ["3.14", "1,000,000", "10:30", "3", "/", "4", "1", "..", "2", "5", "."]),
        ("x=foo_bar(y)==!=", ["x", "=", "foo_bar", "(", "y", ")", "==", "!", "="]),
        ("wait... no!!?", ["wait", "...", "no", "!!", "?"]),
        (f"e\u0301te\u0301 {FAMILY}x🇫🇷 👍🏽 ❤️", ["e\u0301te\u0301", FAMILY, "x", "🇫🇷", "👍🏽", "❤️"]),
        ("東京のラーメン한국말", ["東", "京", "の", "ラーメン한국말"]),
        ("ดี नमस्ते", ["ดี", "नमस्ते"]),
        ("\ufeffx \u0301y a\u200bb", ["\ufeffx", "\u0301y", "a\u200bb"]),
        (" \n\u3000\t", []),
        ("", []),
    ],
)
def test_a_text_is_cut_into_these_words(text: str, words: list[str]) -> None:
    found = find_words(text)
    assert [text[start:end] for start, end in zip(found.starts, found.ends, strict=True)] == words


_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Thai}]"
_MARKS = r"[\p{M}\p{Cf}\U0001F3FB-\U0001F3FF]*"
_EMOJI = r"[\p{So}--[\U0001F1E6-\U0001F1FF]]"
_REFERENCE = regex.compile(
    rf"""
    {_UNSPACED}{_MARKS}
    | (?:[[\p{{L}}\p{{N}}_]--{_UNSPACED}]{_MARKS})+
    | (?:[\U0001F1E6-\U0001F1FF]{_MARKS})+
    | (?<same>\p{{P}}){_MARKS}(?:(?P=same){_MARKS})*
    | {_EMOJI}{_MARKS}(?:(?<=\u200d){_EMOJI}{_MARKS})*
    """,
    regex.VERBOSE | regex.VERSION1,
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*"aZ7 \n_-.(", "é", "e\u0301", "中", "の", "ラ", "ส", "👩", "🇫", "\u200d"]), max_size=15)
)
def test_words_are_those_of_an_independent_expression(characters: list[str]) -> None:
    # A joiner after white space, a point between digits and equal emoji side by side have hand-made answers above.
    text = regex.sub(r"(?<=^|\s)\u200d+|(?<=\d)\.(?=\d)|(👩)(?=👩)", "", "".join(characters))
    text = regex.sub(r"(?<=^|\s)\u200d+", "", text)
    found = find_words(text)
    assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == [
        match.span() for match in _REFERENCE.finditer(text)
    ]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example(f"Don't! {FAMILY} 中文 <s>x</s>")
def test_each_word_has_exactly_one_token_that_begins_it(cut: Cut, text: str) -> None:
    pieces = cut(text)
    initial = word_initial(text, pieces)
    owners = [
        [token for token in range(len(pieces)) if pieces.starts[token] <= start < pieces.ends[token]]
        for start in find_words(text).starts.tolist()
    ]
    assert all(len(tokens) == 1 for tokens in owners)
    beginning = {token for tokens in owners for token in tokens if not pieces.special[token]}
    assert set(np.flatnonzero(initial).tolist()) == beginning


def test_a_token_that_holds_several_words_begins_a_word_once() -> None:
    text = "f():\n x"
    pieces = _pieces(text, [(0, 1), (1, 4), (4, 5), (5, 7)])
    assert word_initial(text, pieces).tolist() == [True, True, False, True]


def test_pieces_of_one_window_are_labelled_by_their_place_in_the_document() -> None:
    text = "one two three four"
    window = Pieces(np.array([4, 6, 8], np.int32), np.array([6, 8, 13], np.int32), np.zeros(3, np.bool_))
    assert word_initial(text, window).tolist() == [True, False, True]
    spans = [(0, 3, "A"), (4, 7, "B"), (8, 13, "C"), (14, 18, "D")]
    assert label_from_spans(text, window, spans, word_level=True) == ["B", "continuation", "C"]


def test_special_tokens_begin_no_word_even_where_they_stand_in_the_text() -> None:
    starts, ends = own("<s>a", [(0, 3), (3, 4)])
    pieces = Pieces(starts, ends, np.array([True, False]))
    assert word_initial("<s>a", pieces).tolist() == [False, True]
    assert label_from_spans("<s>a", pieces, [(0, 4, "X")], word_level=False) == ["special", "X"]


def test_a_word_between_two_tokens_of_a_window_with_a_hole_makes_neither_word_initial() -> None:
    pieces = Pieces(np.array([1, 7], np.int32), np.array([3, 8], np.int32), np.zeros(2, np.bool_))
    assert word_initial("abc d ef", pieces).tolist() == [False, False]


# Labels from spans


def test_a_token_takes_the_word_at_its_first_visible_character() -> None:
    text = "Well, unhappily\n gone.x"
    offsets = [(0, 0), (0, 4), (4, 5), (5, 8), (8, 15), (15, 16), (16, 22), (22, 23)]
    spans = [(0, 4, "INTJ"), (4, 5, "PUNCT"), (6, 15, "ADV"), (17, 21, "VERB"), (21, 22, "PUNCT")]
    pieces = _pieces(text, offsets)
    assert label_from_spans(text, pieces, spans, word_level=True) == [
        "special",
        "INTJ",
        "PUNCT",
        "ADV",
        "continuation",
        "whitespace",
        "VERB",
        "untagged",
    ]
    assert label_from_spans(text, pieces, spans, word_level=False)[4] == "ADV"
    assert label_from_spans(text, pieces, [(0, 23, "X")], word_level=False, whitespace=False)[5] == "X"


def test_byte_pieces_of_an_emoji_are_one_word_with_continuations() -> None:
    text = "a 🙂"
    pieces = _pieces(text, [(0, 1), (1, 2), (2, 3), (2, 3), (2, 3)])
    labels = label_from_spans(text, pieces, [(0, 1, "X"), (2, 3, "SYM")], word_level=True)
    assert labels == ["X", "whitespace", "SYM", "continuation", "continuation"]
    labels = label_from_spans(text, pieces, [(0, 1, "X"), (2, 3, "SYM")], word_level=False)
    assert labels == ["X", "whitespace", "SYM", "SYM", "SYM"]


def test_a_span_that_begins_with_a_space_begins_at_its_first_visible_character() -> None:
    pieces = _pieces("a b", [(0, 1), (1, 2), (2, 3)])
    assert label_from_spans("a b", pieces, [(1, 3, "X")], word_level=True) == ["untagged", "whitespace", "X"]


@settings(max_examples=150, deadline=None)
@given(text=TEXTS, data=st.data())
def test_labels_from_spans_are_those_of_a_search_span_by_span(cut: Cut, text: str, data: st.DataObject) -> None:
    pieces = cut(text)
    bounds = sorted(set(data.draw(st.lists(st.integers(0, len(text)), max_size=8))))
    spans = [(a, b, f"v{a}") for a, b in pairwise(bounds)][:: data.draw(st.integers(1, 2))]
    labels = label_from_spans(text, pieces, spans, word_level=True)
    for start, end, special, label in zip(pieces.starts, pieces.ends, pieces.special, labels, strict=True):
        visible = [place for place in range(start, end) if not text[place].isspace()]
        if special:
            assert label == "special"
        elif visible:
            holding = [span for span in spans if span[0] <= visible[0] < span[1]]
            if not holding:
                assert label == "untagged"
            elif any(not character.isspace() for character in text[holding[0][0] : visible[0]]):
                assert label == "continuation"
            else:
                assert label == holding[0][2]
        elif end > start:
            assert label == "whitespace"
        else:
            assert label in {"whitespace", "continuation", "untagged"}
