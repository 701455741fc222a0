"""The taxonomies: what kind of token is each token of a document.

| name | what it says | made by |
|---|---|---|
| `upos` | universal part of speech | gold tags of a treebank, else a spaCy pipeline |
| `xpos` | part of speech in the language's own tags, such as Penn's | gold tags, else the same pipeline |
| `stmoe` | the seven kinds of token that ST-MoE names, in English | parts of speech, shapes, two word lists |
| `shape` | punctuation, number, capitalised … | rules, no dependency |
| `code` | keyword, name, string, comment … | Pygments |
| `domain`, `language`, `phase` | of the document | the document |
| any other | a label of the user's own | the document's `labels` |

Where a document brings spans or a value for one of these names along, in its `labels`, they win.

A labeller takes documents and what their tokens own, and returns exactly one value a token. Opening one is cheap: what
it needs is loaded when the first document needs it. `upos`, `xpos` and `stmoe` tag a document once between them.

This half of the library does not know models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Protocol

from moe_probe.corpus import Document
from moe_probe.labels.align import Pieces
from moe_probe.labels.code import label_code
from moe_probe.labels.given import PROMPT, label_as_given, label_uniformly
from moe_probe.labels.shape import label_shape
from moe_probe.labels.stmoe import STMOE, stmoe_labeller
from moe_probe.labels.upos import UPOS, upos_labeller
from moe_probe.labels.xpos import XPOS, xpos_labeller
from moe_probe.schema import UNTAGGED, LabelSet, check_label_name

TAXONOMIES = ("upos", "shape", "xpos", "stmoe", "code", "domain", "language", "phase")
"""The labels that need nothing from the user."""


class Labeller(Protocol):
    """Labels the tokens of documents with one taxonomy."""

    @property
    def label_set(self) -> LabelSet:
        """Its name, what makes its labels, and whether it cuts words itself."""
        ...

    def prepare(self, documents: Sequence[Document]) -> None:
        """Check that these documents can be labelled, before time is spent on anything else.

        Raises:
            BadInputError: if something that they need is not installed.
        """
        ...

    def __call__(self, documents: Sequence[Document], pieces: Sequence[Pieces]) -> list[list[str]]:
        """Return for each document one value a token."""
        ...


@dataclass(frozen=True)
class _OneByOne:
    """A labeller that looks at each document by itself."""

    label_set: LabelSet
    label: Callable[[Document, Pieces], list[str]]

    def prepare(self, documents: Sequence[Document]) -> None:
        pass

    def __call__(self, documents: Sequence[Document], pieces: Sequence[Pieces]) -> list[list[str]]:
        return [self._label(document, owned) for document, owned in zip(documents, pieces, strict=True)]

    def _label(self, document: Document, pieces: Pieces) -> list[str]:
        if document.labels and self.label_set.name in document.labels:
            return label_as_given(document, pieces, self.label_set.name, word_level=self.label_set.word_level)
        return self.label(document, pieces)


def open_labeller(name: str, *, language: str = "en", tagger: str | None = None) -> Labeller:
    """Return the labeller of a taxonomy, or of a label of the user's own.

    Args:
        name: one of `TAXONOMIES`, or the name of a label that the documents bring along.
        language: the language whose tagger `upos`, `xpos` and `stmoe` use: only documents in it are tagged.
        tagger: the spaCy pipeline to use instead of the default one, by name or path; it decides the language.

    Raises:
        BadInputError: if no label can have that name, or the named tagger is not installed.

    Example:
        >>> import numpy as np
        >>> labeller = open_labeller("domain")
        >>> labeller([Document("a", "Hi", domain="chat")], [Pieces(np.array([0]), np.array([2]), np.zeros(1, bool))])
        [['chat']]
    """
    check_label_name(name)
    if name in _WITH_TAGGER:
        return _WITH_TAGGER[name](language, tagger)
    if name == "shape":
        return _OneByOne(LabelSet(name, "rules", word_level=True), _label_shape)
    if name == "code":
        return _OneByOne(LabelSet(name, f"Pygments {version('pygments')}", word_level=False), label_code)
    return _OneByOne(LabelSet(name, "the documents", word_level=False), _OF_DOCUMENT.get(name, _label_untagged))


def _label_shape(document: Document, pieces: Pieces) -> list[str]:
    return label_shape(document.text, pieces)


def _label_domain(document: Document, pieces: Pieces) -> list[str]:
    return label_uniformly(pieces, document.domain)


def _label_language(document: Document, pieces: Pieces) -> list[str]:
    return label_uniformly(pieces, document.language)


def _label_phase(document: Document, pieces: Pieces) -> list[str]:
    return label_uniformly(pieces, PROMPT)


def _label_untagged(document: Document, pieces: Pieces) -> list[str]:
    return label_uniformly(pieces, UNTAGGED)


_OF_DOCUMENT = {"domain": _label_domain, "language": _label_language, "phase": _label_phase}
_WITH_TAGGER = {UPOS: upos_labeller, XPOS: xpos_labeller, STMOE: stmoe_labeller}
