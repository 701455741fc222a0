"""ST-MoE's seven kinds of token: by part of speech, shape and word lists, in English text only."""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.corpus import Document
from moe_probe.labels import open_labeller
from moe_probe.labels.align import Pieces, own
from moe_probe.labels.stmoe import KINDS, kind_of, stmoe_labeller
from moe_probe.labels.tagged import TaggedLabeller


@pytest.fixture(scope="module")
def english() -> TaggedLabeller:
    return stmoe_labeller()


def _by_space(text: str) -> Pieces:
    bounds = (*(place for place in range(1, len(text)) if text[place] == " "), len(text))
    starts, ends = own(text, list(zip((0, *bounds[:-1]), bounds, strict=True)))
    return Pieces(starts, ends, np.zeros(len(bounds), np.bool_))


def _label(labeller: TaggedLabeller, document: Document, pieces: Pieces | None = None) -> list[str]:
    return labeller([document], [pieces or _by_space(document.text)])[0]


def test_the_kinds_are_the_seven_rows_of_the_papers_table() -> None:
    assert KINDS == (
        "sentinel_tokens",
        "punctuation",
        "conjunctions_and_articles",
        "verbs",
        "visual_descriptions",
        "proper_names",
        "counting_and_numbers",
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sentinel_tokens", ["<extra_id_0>/X", "<extra_id_27>/SYM", "<mask>/X", "[MASK]/NOUN", "<fim_middle>/X"]),
        ("punctuation", [",/PUNCT", ")/PUNCT", "-/PUNCT", "2/PUNCT"]),
        ("conjunctions_and_articles", ["The/DET", "a/DET", "an/DET", "and/CCONJ", "&/CCONJ", "if/SCONJ"]),
        ("verbs", ["died/VERB", "falling/VERB", "light/VERB", "left/VERB"]),
        ("visual_descriptions", ["dark/ADJ", "Upper/ADJ", "blue/NOUN", "circles/NOUN", "outer/ADJ", "grey/ADJ"]),
        ("proper_names", ["Kent/PROPN", "Green/PROPN", "2Pac/PROPN"]),
        ("counting_and_numbers", ["37/NUM", "Seven/NUM", "15th/NOUN", "½/X", "third/ADJ", "Twelfth/ADJ", "dozen/NOUN"]),
        ("other", ["is/AUX", "this/DET", "one/PRON", "house/NOUN", "she/PRON", "of/ADP", "$/SYM", "blue/ADV"]),
    ],
)
def test_a_word_is_of_this_kind(kind: str, words: list[str]) -> None:
    for word, part in (one.rsplit("/", 1) for one in words):
        assert kind_of(word, part) == kind, word


def test_an_english_sentence_gets_its_kinds_from_the_tagger(english: TaggedLabeller) -> None:
    text = "The dark sea and seven boats of Captain Brown were sinking slowly ."
    assert list(zip(text.split(), _label(english, Document("a", text, language="en")), strict=True)) == [
        ("The", "conjunctions_and_articles"),
        ("dark", "visual_descriptions"),
        ("sea", "other"),
        ("and", "conjunctions_and_articles"),
        ("seven", "counting_and_numbers"),
        ("boats", "other"),
        ("of", "other"),
        ("Captain", "proper_names"),
        ("Brown", "proper_names"),
        ("were", "other"),
        ("sinking", "verbs"),
        ("slowly", "other"),
        (".", "punctuation"),
    ]


def test_gold_parts_of_speech_are_used_where_the_document_is_english(english: TaggedLabeller) -> None:
    gold = {"upos": [(0, 4, "NOUN"), (5, 8, "VERB")]}
    assert _label(english, Document("a", "blue cat sees", None, "en", gold)) == [
        *("visual_descriptions", "verbs", "untagged"),
    ]
    # The word lists are English: of other languages nothing is said, gold or not.
    for language in ("de", "python", None):
        assert _label(english, Document("a", "blue cat sees", None, language, gold)) == ["untagged"] * 3


@pytest.mark.parametrize("language", [None, "fr", "python"])
def test_documents_that_are_not_english_are_untagged(english: TaggedLabeller, language: str | None) -> None:
    assert _label(english, Document("a", "The cat sees", language=language)) == ["untagged"] * 3


def test_a_tagger_of_another_language_tags_nothing_but_english_gold_still_counts() -> None:
    german = stmoe_labeller("de")
    documents = [
        Document("a", "Die Katze", language="de"),
        Document("b", "The cat", language="en"),
        Document("c", "The cat", language="en", labels={"upos": [(0, 3, "DET"), (4, 7, "NOUN")]}),
    ]
    german.prepare(documents)
    assert german(documents, [_by_space(document.text) for document in documents]) == [
        ["untagged"] * 2,
        ["untagged"] * 2,
        ["conjunctions_and_articles", "other"],
    ]


def test_labels_that_a_document_brings_win(english: TaggedLabeller) -> None:
    document = Document("a", "The cat", language="en", labels={"stmoe": [(0, 3, "verbs")]})
    assert _label(english, document) == ["verbs", "untagged"]


def test_one_part_of_speech_for_a_whole_document_is_no_gold_for_its_words(english: TaggedLabeller) -> None:
    document = Document("a", "The cat died", language="en", labels={"upos": "NOUN"})
    assert _label(english, document) == ["conjunctions_and_articles", "other", "verbs"]


def test_a_sentinel_is_one_whether_the_tokenizer_knows_it_or_cuts_it_up(english: TaggedLabeller) -> None:
    text = "I saw <extra_id_7> and<extra_id_8>"
    known = [(0, 1), (1, 5), (5, 18), (18, 22), (22, 34)]
    cut_up = [(0, 1), (1, 5), (5, 7), (7, 17), (17, 18), (18, 22), (22, 23), (23, 34)]
    for offsets, special, expected in (
        (known, (2, 4), ["other", "verbs", "sentinel_tokens", "conjunctions_and_articles", "sentinel_tokens"]),
        (
            cut_up,
            (),
            [
                *("other", "verbs", "sentinel_tokens", "continuation", "continuation"),
                *("conjunctions_and_articles", "sentinel_tokens", "continuation"),
            ],
        ),
    ):
        starts, ends = own(text, offsets)
        pieces = Pieces(starts, ends, np.isin(np.arange(len(offsets)), special))
        assert _label(english, Document("a", text, language="en"), pieces) == expected


def test_other_special_tokens_stay_special(english: TaggedLabeller) -> None:
    starts, ends = own("<s> Cats", [(0, 0), (0, 3), (3, 8)])
    pieces = Pieces(starts, ends, np.array([True, True, False]))
    assert _label(english, Document("a", "<s> Cats", language="en"), pieces) == ["special", "special", "other"]


def test_later_pieces_and_white_space_have_their_own_values(english: TaggedLabeller) -> None:
    starts, ends = own("walking  home", [(0, 4), (4, 7), (7, 8), (8, 13)])
    pieces = Pieces(starts, ends, np.zeros(4, np.bool_))
    assert _label(english, Document("a", "walking  home", language="en"), pieces) == [
        *("verbs", "continuation", "whitespace", "other"),
    ]


def test_the_source_names_the_pipeline_and_the_lists(english: TaggedLabeller) -> None:
    assert english.label_set.name == "stmoe"
    assert english.label_set.word_level
    assert english.label_set.source == f"{open_labeller('upos').label_set.source}; word lists"
