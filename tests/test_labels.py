"""The taxonomies that need no model: shape, code, and what documents say of themselves; and what labels are called."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pygments.lexers import get_lexer_by_name

from moe_probe.corpus import CODE_LANGUAGES, Document
from moe_probe.errors import BadInputError
from moe_probe.labels import TAXONOMIES, code, open_labeller, shape, stmoe, tagging
from moe_probe.labels.align import Pieces
from moe_probe.labels.plain import is_kind, plain_names
from moe_probe.labels.words import find_words
from moe_probe.schema import LabelSet

FAMILY = "👩‍👩‍👧‍👦"


def _by_character(text: str) -> Pieces:
    places = np.arange(len(text) + 1, dtype=np.int32)
    return Pieces(places[:-1], places[1:], np.zeros(len(text), np.bool_))


def _by_word(text: str) -> tuple[list[str], Pieces]:
    """Cut a text into words and the white space between them."""
    found = find_words(text)
    bounds = np.unique([0, *found.starts.tolist(), *found.ends.tolist(), len(text)]).astype(np.int32)
    pieces = Pieces(bounds[:-1], bounds[1:], np.zeros(len(bounds) - 1, np.bool_))
    return [text[start:end] for start, end in pairwise(bounds)], pieces


def _label(name: str, document: Document, pieces: Pieces) -> list[str]:
    return open_labeller(name)([document], [pieces])[0]


# Shape


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("number", ["7", "3.14", "1,000", "10:30", "15th", "0xFF", "½", "٣", "²"]),
        ("number_word", ["one", "Third", "MILLION", "dozens"]),
        ("all_capitals", ["NASA", "MAX_LEN", "H2O", "ÉTÉ"]),
        ("capitalised", ["London", "I", "McKay", "Émile", "X1", "E\u0301mile"]),
        (
            "word",
            ["cat", "don't", "x1", "iPhone", "_private", "猫", "の", "ラーメン", "नमस्ते", "ﬁne", "one1"],
        ),
        ("operator", ["+", "==", "**", "//", "<", "&&", "|", "^", "~", "\\", "@", "%", "×", "≤", "−", "√"]),
        ("punctuation", [".", "...", "!", "(", "«", "—", "-", "_", "__", "`", "#", "…", "。", "'"]),
        ("symbol", ["🙂", FAMILY, "🇫🇷", "❤️", "$", "€", "©", "☃", "\x00", "\ufffd"]),
    ],
)
def test_a_word_alone_has_this_shape(value: str, words: list[str]) -> None:
    for word in words:
        cut, pieces = _by_word(word)
        assert cut == [word]
        assert shape.label_shape(word, pieces) == [value], word


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("x != y", ["!"]),
        ("a -> b", ["-", ">"]),
        ("i -= 1", ["-", "="]),
        ("if (y := 2)", [":", "="]),
        ("4 - 2", ["-"]),
        ("(-5)", ["-"]),
        ("x = -1", ["=", "-"]),
        ("a well-known 15-year F-16, 2004-2005 - no! so: a", []),
        ("p. 3 -", []),
    ],
)
def test_an_operator_is_told_from_punctuation_by_its_neighbours(text: str, operators: list[str]) -> None:
    cut, pieces = _by_word(text)
    labels = shape.label_shape(text, pieces)
    found = [word for word, label in zip(cut, labels, strict=True) if label == "operator"]
    assert [word for word in found if word != "="] == [word for word in operators if word != "="]


def test_white_space_with_a_line_break_is_a_newline() -> None:
    cut, pieces = _by_word("a \t b\n\n  c\u2028")
    assert cut == ["a", " \t ", "b", "\n\n  ", "c", "\u2028"]
    assert shape.label_shape("a \t b\n\n  c\u2028", pieces) == [
        "word",
        "whitespace",
        "word",
        "newline",
        "word",
        "newline",
    ]


def test_later_pieces_of_a_word_are_continuations_and_special_tokens_special() -> None:
    text = f"NASA's {FAMILY}"
    starts = np.array([0, 0, 1, 4, 6, 7, 7, 8], np.int32)
    ends = np.array([0, 1, 4, 6, 7, 7, 8, len(text)], np.int32)
    pieces = Pieces(starts, ends, np.array([True] + [False] * 7))
    assert shape.label_shape(text, pieces) == [
        "special",
        "all_capitals",
        "continuation",
        "word",
        "whitespace",
        "whitespace",
        "symbol",
        "continuation",
    ]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example("-")
@example("-1")
@example("a-")
def test_every_token_of_any_text_has_exactly_one_shape(text: str) -> None:
    pieces = _by_character(text)
    labels = shape.label_shape(text, pieces)
    assert len(labels) == len(pieces)
    assert set(labels) <= set(shape.VALUES)
    for character, label in zip(text, labels, strict=True):
        assert (label in {"whitespace", "newline"}) == character.isspace()


def test_a_text_without_tokens_and_tokens_without_text_have_shapes() -> None:
    nothing = Pieces(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.bool_))
    assert shape.label_shape("text", nothing) == []
    special = Pieces(np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones(1, np.bool_))
    assert shape.label_shape("", special) == ["special"]


# Code

_PYTHON = """\
@cache
class A:\r
\tdef f(self, x: int):
\t\t'''Say\n\t\twhat.'''
\t\treturn not "é🙂" + 0x1F  # why
"""


def test_python_tokens_have_these_classes() -> None:
    cut, pieces = _by_word(_PYTHON)
    labels = _label("code", Document("a.py", _PYTHON, language="python"), pieces)
    shown = [(word, label) for word, label in zip(cut, labels, strict=True) if not word.isspace()]
    assert shown == [
        ("@", "decorator"),
        ("cache", "decorator"),
        ("class", "keyword"),
        ("A", "type"),
        (":", "punctuation"),
        ("def", "keyword"),
        ("f", "function"),
        ("(", "punctuation"),
        ("self", "builtin"),
        (",", "punctuation"),
        ("x", "name"),
        (":", "punctuation"),
        ("int", "builtin"),
        (")", "punctuation"),
        (":", "punctuation"),
        ("'''", "docstring"),
        ("Say", "docstring"),
        ("what", "docstring"),
        (".", "docstring"),
        ("'''", "docstring"),
        ("return", "keyword"),
        ("not", "keyword"),
        ('"', "string"),
        ("é", "string"),
        ("🙂", "string"),
        ('"', "string"),
        ("+", "operator"),
        ("0x1F", "number"),
        ("#", "comment"),
        ("why", "comment"),
    ]
    assert {label for word, label in zip(cut, labels, strict=True) if word.isspace()} == {"whitespace"}


@pytest.mark.parametrize("language", sorted(CODE_LANGUAGES))
def test_code_in_every_language_is_labelled_to_the_last_character(language: str) -> None:
    assert get_lexer_by_name(language)
    text = "<a b='1'> {x: 1}\r\n# if (y == \"é🙂\") /* no */ -- [z]\n\ttail"
    labels = _label("code", Document("a", text, language=language), _by_character(text))
    assert len(labels) == len(text)
    assert "untagged" not in labels
    assert set(labels) <= set(code.VALUES)


@pytest.mark.parametrize("language", [None, "en", "fr", "pl", "cs", "io", "tcl", "no such language"])
def test_what_is_no_code_is_untagged_even_where_a_lexer_has_that_name(language: str | None) -> None:
    labels = _label("code", Document("a", "do it", language=language), _by_character("do it"))
    assert set(labels) == {"untagged"}


def test_a_lexer_that_loses_its_place_labels_nothing() -> None:
    text = "=# select 1;\n x\n"
    assert [place for place, _, _ in get_lexer_by_name("psql").get_tokens_unprocessed(text)][-1] == 0
    assert set(_label("code", Document("a", text, language="psql"), _by_character(text))) == {"untagged"}


def test_a_language_may_be_any_long_name_that_pygments_knows() -> None:
    assert _label("code", Document("a", "proc", language="Python3"), _by_character("proc")) == ["name"] * 4


# What documents say


def _special_first(text: str) -> Pieces:
    """One special token, then one a character."""
    own = _by_character(text)
    return Pieces(np.append(np.int32(0), own.starts), np.append(np.int32(0), own.ends), np.arange(len(text) + 1) == 0)


def test_domain_language_and_phase_come_from_the_document() -> None:
    document = Document("a", "x y", domain="news", language="en")
    pieces = _special_first("x y")
    assert _label("domain", document, pieces) == ["special", "news", "news", "news"]
    assert _label("language", document, pieces) == ["special", "en", "en", "en"]
    assert _label("phase", document, pieces) == ["special", "prompt", "prompt", "prompt"]
    bare = Document("a", "x y")
    assert _label("domain", bare, pieces) == ["special", "untagged", "untagged", "untagged"]
    assert _label("language", bare, pieces)[1:] == ["untagged"] * 3


def test_labels_of_the_users_own_hold_for_documents_or_for_stretches() -> None:
    labelled = Document("a", "x y z", labels={"mood": [(0, 3, "sad"), (4, 5, "glad")]})
    whole = Document("b", "x y z", labels={"mood": "calm"})
    lacking = Document("c", "x y z", labels={"other": "v"})
    pieces = _by_character("x y z")
    assert open_labeller("mood")([labelled, whole, lacking], [pieces] * 3) == [
        ["sad", "sad", "sad", "untagged", "glad"],
        ["calm"] * 5,
        ["untagged"] * 5,
    ]


def test_what_a_document_brings_along_wins_over_the_taxonomy() -> None:
    document = Document(
        "a",
        "ab c",
        domain="news",
        language="python",
        labels={
            "domain": "law",
            "phase": [(0, 2, "prompt"), (2, 4, "generated")],
            "shape": [(0, 2, "pair")],
            "code": "x",
        },
    )
    pieces = _by_character("ab c")
    assert _label("domain", document, pieces) == ["law"] * 4
    assert _label("phase", document, pieces) == ["prompt", "prompt", "generated", "generated"]
    assert _label("shape", document, pieces) == ["pair", "continuation", "whitespace", "untagged"]
    assert _label("code", document, pieces) == ["x"] * 4


# Plain names


@pytest.mark.parametrize(
    ("label_set", "values"),
    [
        ("shape", [value for value in shape.VALUES if value != "special"]),
        ("code", [value for value in code.VALUES if value not in ("other", "untagged", "special")]),
        ("stmoe", stmoe.KINDS),
        ("upos", re.findall(r"\w+", "ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ SYM VERB X")),
    ],
)
def test_every_value_of_a_taxonomy_has_a_name_of_its_own(label_set: str, values: Sequence[str]) -> None:
    names = plain_names(label_set, values)
    assert list(names) == list(values)
    assert len(set(names.values())) == len(values)
    assert not any("with the" in name or "_" in name for name in names.values())


def test_every_tag_of_the_english_tagger_has_a_name_of_its_own() -> None:
    pipeline = tagging.find_tagger().open(Document("a", "x"), "xpos")
    tags = [tag for tag in pipeline.get_pipe("tagger").labels if tag != tagging.SPACE_TAG]  # type: ignore[attr-defined]
    assert len(tags) > 45
    names = plain_names("xpos", tags)
    assert len(set(names.values())) == len(tags)
    assert not any("with the" in name for name in names.values())
    assert names["VBD"] == "verbs in the past tense"
    assert names["NNS"] == "plural nouns"


def test_tags_that_are_not_penns_are_not_called_as_if_they_were() -> None:
    assert plain_names("xpos", ["NN", "ART", "special"]) == {
        "NN": "words with the xpos NN",
        "ART": "words with the xpos ART",
        "special": "special tokens",
    }
    assert plain_names("xpos", ["NN", "special"])["NN"] == "singular nouns"


def test_names_of_documents_say_that_they_are_of_text() -> None:
    assert plain_names("domain", ["NOUN", "a \n b", "special"]) == {
        "NOUN": "text of the domain NOUN",
        "a \n b": "text of the domain a b",
        "special": "special tokens",
    }
    assert plain_names("language", ["fr", "python"]) == {"fr": "text in the language fr", "python": "code in python"}
    assert plain_names("phase", ["generated"]) == {"generated": "generated text"}
    assert plain_names("upos", ["pair"]) == {"pair": "words with the upos pair"}
    assert plain_names("mood", []) == {}


def test_the_rest_of_a_taxonomy_is_no_kind_and_a_value_of_the_users_own_is_one() -> None:
    assert not any(is_kind(name, "other") for name in ("stmoe", "code"))
    assert not is_kind("upos", "untagged")
    assert all(is_kind(name, "other") for name in ("domain", "mood"))
    assert all(is_kind("stmoe", kind) for kind in stmoe.KINDS)


# Labellers


def test_each_taxonomy_says_what_made_it_and_whether_it_cuts_words() -> None:
    sets = {name: open_labeller(name).label_set for name in (*TAXONOMIES, "mood")}
    assert all(label_set.name == name for name, label_set in sets.items())
    assert {name for name, label_set in sets.items() if label_set.word_level} == {"upos", "xpos", "stmoe", "shape"}
    assert sets["mood"] == LabelSet("mood", "the documents", word_level=False)
    assert sets["code"].source.startswith("Pygments 2")


def test_every_labeller_gives_one_value_a_token_for_any_document() -> None:
    documents = [Document("a", "x y"), Document("b", "\n", language="python"), Document("c", "é", labels={"mood": "m"})]
    pieces = [_special_first(document.text) for document in documents]
    for name in (*TAXONOMIES, "mood"):
        labeller = open_labeller(name)
        labeller.prepare(documents)
        labels = labeller(documents, pieces)
        assert [len(values) for values in labels] == [len(owned) for owned in pieces]
        assert all(value and isinstance(value, str) for values in labels for value in values)
        assert [values[0] for values in labels] == ["special"] * 3


@pytest.mark.parametrize("name", ["Mood", "text", "expert_0_1", ""])
def test_a_name_that_no_label_can_have_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match=f"label '{name}': "):
        open_labeller(name)


def test_documents_and_pieces_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        open_labeller("shape")([Document("a", "x")], [])


def test_corpus_and_labels_load_neither_torch_nor_spacy_nor_a_table_library(tmp_path: Path) -> None:
    program = (
        "import sys; from moe_probe.corpus import Document, read_documents; from moe_probe.labels import open_labeller;"
        "[open_labeller(name) for name in ('upos', 'xpos', 'stmoe', 'shape', 'code', 'domain')];"
        "list(read_documents(Document('a', 'x')));"
        "print({'torch', 'transformers', 'spacy', 'polars', 'pyarrow', 'duckdb'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"
