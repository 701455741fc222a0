"""Fine parts of speech: gold first, the pipeline's own tags where the language is its own, tag sets never mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import spacy

from moe_probe.corpus import Document, read_documents
from moe_probe.errors import BadInputError
from moe_probe.labels import open_labeller, tagging
from moe_probe.labels.align import Pieces, own
from moe_probe.labels.tagged import TaggedLabeller
from moe_probe.labels.xpos import xpos_labeller


@pytest.fixture(scope="module")
def english() -> TaggedLabeller:
    return xpos_labeller()


def _pieces(text: str, *ends: int) -> Pieces:
    """Return tokens that end at these characters, or where each run of white space begins."""
    bounds = ends or (*(place for place in range(1, len(text)) if text[place] == " "), len(text))
    starts, owned_ends = own(text, list(zip((0, *bounds[:-1]), bounds, strict=True)))
    return Pieces(starts, owned_ends, np.zeros(len(bounds), np.bool_))


def _label(labeller: TaggedLabeller, document: Document, pieces: Pieces | None = None) -> list[str]:
    return labeller([document], [pieces or _pieces(document.text)])[0]


def test_tenses_and_numbers_of_english_words_are_told_apart(english: TaggedLabeller) -> None:
    text = "She walked home . They walk dogs . He walks one dog while singing ."
    assert list(zip(text.split(), _label(english, Document("a", text, language="en")), strict=True)) == [
        *(("She", "PRP"), ("walked", "VBD"), ("home", "RB"), (".", ".")),
        *(("They", "PRP"), ("walk", "VBP"), ("dogs", "NNS"), (".", ".")),
        *(("He", "PRP"), ("walks", "VBZ"), ("one", "CD"), ("dog", "NN"), ("while", "IN"), ("singing", "VBG")),
        (".", "."),
    ]


def test_later_pieces_white_space_and_special_tokens_have_their_own_values(english: TaggedLabeller) -> None:
    text = "unhappy dogs  ran"
    starts, ends = own(text, [(0, 0), (0, 2), (2, 7), (7, 12), (12, 13), (13, 17)])
    pieces = Pieces(starts, ends, np.array([True, *[False] * 5]))
    assert _label(english, Document("a", text, language="en"), pieces) == [
        *("special", "JJ", "continuation", "NNS", "whitespace", "VBD"),
    ]


@pytest.mark.parametrize("language", [None, "fr", "python"])
def test_documents_in_another_language_or_none_are_untagged(english: TaggedLabeller, language: str | None) -> None:
    assert _label(english, Document("a", "The cat sees", language=language)) == ["untagged"] * 3


def test_gold_tags_win_where_the_language_is_the_taggers_or_not_said(english: TaggedLabeller) -> None:
    gold = {"xpos": [(0, 3, "X1"), (4, 7, "X2")]}
    for language in ("en", "en-GB", None):
        assert _label(english, Document("a", "The cat sees", None, language, gold)) == ["X1", "X2", "untagged"]


def test_gold_tags_of_another_language_would_mix_tag_sets_and_are_left_out(english: TaggedLabeller) -> None:
    german = Document("a", "Die Katzen", language="de", labels={"xpos": [(0, 3, "ART"), (4, 10, "NN")]})
    assert _label(english, german) == ["untagged"] * 2
    assert _label(xpos_labeller("de"), german) == ["ART", "NN"]


def test_gold_parts_of_speech_of_another_kind_do_not_replace_the_tagger(english: TaggedLabeller) -> None:
    document = Document("a", "The cats", language="en", labels={"upos": [(0, 3, "DET"), (4, 8, "NOUN")]})
    assert _label(english, document) == ["DT", "NNS"]


def test_the_source_names_the_pipeline_as_that_of_upos_does(english: TaggedLabeller) -> None:
    assert english.label_set.name == "xpos"
    assert english.label_set.word_level
    assert english.label_set.source == open_labeller("upos").label_set.source
    assert english.label_set.source.startswith("gold tags, else spaCy 3.")


def test_a_missing_pipeline_is_named_with_this_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "ENGLISH_PIPELINES", ("en_core_web_nowhere",))
    labeller = open_labeller("xpos")
    labeller.prepare([Document("french", "Le", language="fr")])
    with pytest.raises(BadInputError, match=r"to get the label 'xpos', .* or leave 'xpos' out of the labels"):
        labeller.prepare([Document("a", "The", language="en")])


def test_a_pipeline_with_universal_parts_of_speech_only_is_refused(tmp_path: Path) -> None:
    pipeline = spacy.blank("it")
    ruler = pipeline.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": "il"}]], {"POS": "DET"})  # type: ignore[attr-defined]
    pipeline.to_disk(tmp_path / "coarse")
    ruler.add([[{"LOWER": "il"}]], {"TAG": "RD"})  # type: ignore[attr-defined]
    pipeline.to_disk(tmp_path / "fine")
    document = Document("a", "Il gatto", language="it")
    message = r"document 'a' is to get the label 'xpos', but the spaCy pipeline '.*coarse' gives universal parts"
    for ask in ("prepare", "__call__"):
        labeller = open_labeller("xpos", tagger=str(tmp_path / "coarse"))
        with pytest.raises(BadInputError, match=message):
            getattr(labeller, ask)(*([document], [_pieces("Il gatto")])[: 1 if ask == "prepare" else 2])
    open_labeller("upos", tagger=str(tmp_path / "coarse")).prepare([document])
    assert _label(xpos_labeller(tagger=str(tmp_path / "fine")), document) == ["RD", "untagged"]


def test_a_treebank_labels_its_tokens_with_its_own_tags(tmp_path: Path, english: TaggedLabeller) -> None:
    rows = [
        "# text = Can't stop.",
        "1-2\tCan't\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tCa\tcan\tAUX\tMD\t_\t3\taux\t_\t_",
        "2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_",
        "3\tstop\tstop\tVERB\tVB\t_\t0\troot\t_\tSpaceAfter=No",
        "4\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_",
    ]
    (tmp_path / "a.conllu").write_text("\n".join(rows) + "\n\n")
    (document,) = read_documents(tmp_path / "a.conllu")
    assert _label(english, document, _pieces(document.text, 2, 5, 7, 10, 11)) == ["MD", "RB", "VB", "continuation", "."]
