"""Reads CoNLL-U treebanks: their texts, and their gold parts of speech as the labels `upos` and `xpos`.

Format: https://universaldependencies.org/format.html

A sentence's text is its `# text` comment, or else its forms with the spaces that `SpaceAfter=No` leaves. Sentences are
joined by a space (none after `SpaceAfter=No`), paragraphs (`# newpar`) by an empty line. Empty nodes (`8.1`) have no
place in a text. Where the words of a multi-word token (`1-2`) spell its form, as do + n't, each labels its own part;
where they do not, as de + le for *du*, the first word labels the whole. `xpos`, the treebank's own tags, may be missing
altogether.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from moe_probe.corpus.document import Document, Span
from moe_probe.corpus.opening import Line, Source, read_lines
from moe_probe.errors import BadInputError

_N_COLUMNS = 10
_NONE = "_"
_IDENTIFIER = re.compile(r"(\d+)(?:-(\d+)|\.\d+)?")
_LABELS = ("upos", "xpos")
_Tags: TypeAlias = tuple[str, str]  # in the order of _LABELS
_TaggedSpan: TypeAlias = tuple[int, int, _Tags]
_COMMENT = re.compile(r"#\s*(newdoc|newpar|text)(?:\s+id)?\s*(?:=\s?(.*))?", re.DOTALL)


@dataclass
class _Word:
    """A row: a token of the surface, or, between the bounds of one, a word that it is made of."""

    line: int
    form: str
    tags: _Tags
    space_after: bool
    last_part: int = 0
    parts: list[tuple[str, _Tags]] = field(default_factory=list)


@dataclass
class _Sentence:
    text: str | None = None
    new_document: bool = False
    document_name: str | None = None
    new_paragraph: bool = False
    words: list[_Word] = field(default_factory=list)


def read_conllu(source: Source) -> Iterator[Document]:
    """Yield a document for each `# newdoc`, or a single one where there is none.

    Its name is the identifier of `# newdoc`, if it has one.

    Raises:
        BadInputError: naming file and line, if a row has not ten columns or does not fit its sentence's text.
    """
    parts: list[str] = []
    spans: list[_TaggedSpan] = []
    length, number, name = 0, 0, None
    space_after = True
    for sentence in _read_sentences(source):
        if sentence.new_document:
            if parts:
                yield _document(source, name or f"{source.name}#{max(number, 1)}", parts, spans)
            parts, spans, length, number, name = [], [], 0, number + 1, sentence.document_name
        if parts:
            joint = "\n\n" if sentence.new_paragraph else " " if space_after else ""
            parts.append(joint)
            length += len(joint)
        text, found = _place(source, sentence)
        spans += [(length + start, length + end, tags) for start, end, tags in found]
        parts.append(text)
        length += len(text)
        space_after = sentence.words[-1].space_after
    if parts:
        yield _document(source, name or (f"{source.name}#{number}" if number else source.name), parts, spans)


def _document(source: Source, name: str, parts: list[str], spans: list[_TaggedSpan]) -> Document:
    labels: dict[str, list[Span]] = {"upos": []}
    for start, end, tags in spans:
        for label, tag in zip(_LABELS, tags, strict=True):
            if tag != _NONE:
                labels.setdefault(label, []).append((start, end, tag))
    return Document(name, "".join(parts), source.domain, source.language, labels)


def _read_sentences(source: Source) -> Iterator[_Sentence]:
    sentence = _Sentence()
    for line in read_lines(source):
        content = line.text.rstrip("\r\n")
        if not content.strip():
            if sentence.words:
                yield sentence
                sentence = _Sentence()
        elif content.startswith("#"):
            _read_comment(sentence, content)
        else:
            _read_row(source, sentence, line, content)
    if sentence.words:
        yield sentence


def _read_comment(sentence: _Sentence, content: str) -> None:
    match = _COMMENT.fullmatch(content)
    if match is None:
        return
    key, value = match[1], match[2]
    if key == "newdoc":
        sentence.new_document = True
        sentence.document_name = value.strip() if value else None
    elif key == "newpar":
        sentence.new_paragraph = True
    else:
        sentence.text = value


def _read_row(source: Source, sentence: _Sentence, line: Line, content: str) -> None:
    columns = content.split("\t")
    where = f"{source.shown}, line {line.number}"
    if len(columns) != _N_COLUMNS:
        raise BadInputError(f"{where}: {len(columns)} columns found where CoNLL-U has {_N_COLUMNS}, divided by tabs")
    identifier = _IDENTIFIER.fullmatch(columns[0])
    if identifier is None:
        raise BadInputError(f"{where}: {columns[0]!r} is no word's number such as 3, 3-4 or 3.1")
    if "." in columns[0]:
        return
    form, tags = columns[1], (columns[3], columns[4] or _NONE)
    if not form or not tags[0]:
        raise BadInputError(f"{where}: an empty form or part of speech; CoNLL-U writes _ for none")
    token = sentence.words[-1] if sentence.words else None
    if token and int(identifier[1]) <= token.last_part:
        token.parts.append((form, tags))
        return
    space_after = "SpaceAfter=No" not in columns[9].split("|")
    sentence.words.append(_Word(line.number, form, tags, space_after, int(identifier[2] or 0)))


def _place(source: Source, sentence: _Sentence) -> tuple[str, list[_TaggedSpan]]:
    """Return a sentence's text, and the parts of speech of each of its words at the word's place in it."""
    text = sentence.text or _spelt(sentence.words)
    spans: list[_TaggedSpan] = []
    reached = 0
    for word in sentence.words:
        while reached < len(text) and text[reached].isspace():
            reached += 1
        if not text.startswith(word.form, reached):
            raise BadInputError(
                f"{source.shown}, line {word.line}: the form {word.form!r} is not what '# text' has there, "
                f"{text[reached : reached + len(word.form)]!r}"
            )
        for form, tags in _parts(word):
            spans.append((reached, reached + len(form), tags))
            reached += len(form)
    return text, spans


def _parts(word: _Word) -> list[tuple[str, _Tags]]:
    if not word.parts:
        return [(word.form, word.tags)]
    if "".join(form for form, _ in word.parts) == word.form:
        return word.parts
    return [(word.form, word.parts[0][1])]


def _spelt(words: list[_Word]) -> str:
    pieces = [word.form + (" " if word.space_after else "") for word in words]
    return "".join(pieces)[: -1 if words[-1].space_after else None]
