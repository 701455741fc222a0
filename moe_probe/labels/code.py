"""The `code` label: what a token is in a programming language, by Pygments.

Only documents whose `language` is a programming language are labelled; in all others every token is `untagged`. Inside
a comment or a string every token has its value; `word_initial` tells which of them begin a word.

Pygments knows some languages that are no programming languages but records of sessions, such as `psql`, and loses its
place in them. Where the classes do not tile the text exactly, the document is `untagged` too.

It does not know natural languages, and takes no two- or three-letter word for the name of a programming language unless
a file's suffix could have told it: `pl` is Polish, not Perl.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.token import (
    Comment,
    Error,
    Generic,
    Keyword,
    Literal,
    Name,
    Number,
    Operator,
    Punctuation,
    String,
    Text,
    Token,
    Whitespace,
)
from pygments.util import ClassNotFound

from moe_probe.corpus import CODE_LANGUAGES, Document
from moe_probe.labels import words
from moe_probe.labels.align import Pieces, SpanTable, label_from_table
from moe_probe.labels.given import label_uniformly
from moe_probe.schema import SPECIAL, UNTAGGED, WHITESPACE

_VALUE_OF_CLASS = {
    Comment: "comment",
    Error: "other",
    Generic: "other",
    Keyword: "keyword",
    Keyword.Type: "type",
    Literal: "other",
    Name: "name",
    Name.Builtin: "builtin",
    Name.Class: "type",
    Name.Decorator: "decorator",
    Name.Exception: "type",
    Name.Function: "function",
    Name.Tag: "tag",
    Number: "number",
    Operator: "operator",
    Operator.Word: "keyword",
    Punctuation: "punctuation",
    String: "string",
    String.Doc: "docstring",
    Text: "text",
    Token: "other",
    Whitespace: WHITESPACE,
}
VALUES = tuple(sorted({*_VALUE_OF_CLASS.values(), SPECIAL, UNTAGGED}))
"""Every value that the label `code` can have."""


def label_code(document: Document, pieces: Pieces) -> list[str]:
    """Return the class of each token, or `untagged` throughout where the document is no code.

    Example:
        >>> from moe_probe.labels.align import own
        >>> starts, ends = own("return x", [(0, 6), (6, 8)])
        >>> label_code(Document("a.py", "return x", language="python"), Pieces(starts, ends, np.zeros(2, bool)))
        ['keyword', 'name']
    """
    lexer = _find_lexer((document.language or "").lower())
    if lexer is None:
        return label_uniformly(pieces, UNTAGGED)
    table = _lex(lexer, document.text)
    if table is None:
        return label_uniformly(pieces, UNTAGGED)
    return label_from_table(words.code_points(document.text), pieces, table, word_level=False)


def _lex(lexer: Lexer, text: str) -> SpanTable | None:
    """Return the classes of a text, or None if the lexer's places are not those of the text."""
    # Not get_tokens: it rewrites line endings and strips the ends of the text.
    found = lexer.get_tokens_unprocessed(text)
    spans = sorted((start, start + len(value), _place_of(kind)) for start, kind, value in found if value)
    starts, ends, codes = np.array(spans, np.int64).reshape(-1, 3).T
    tiles = np.array_equal(np.append(starts, len(text)), np.append(0, ends))
    return SpanTable(starts, ends, codes, VALUES) if tiles else None


@cache
def _place_of(kind: object) -> int:
    """Return the place in `VALUES` of a Pygments class: that of the nearest class above it which has one."""
    while kind not in _VALUE_OF_CLASS:
        kind = kind.parent  # type: ignore[attr-defined]
    return VALUES.index(_VALUE_OF_CLASS[kind])


@cache
def _find_lexer(language: str) -> Lexer | None:
    """Return the lexer of a programming language, None for a natural one."""
    if language not in CODE_LANGUAGES and len(language) in (0, 2, 3):
        return None
    try:
        return get_lexer_by_name(language)
    except ClassNotFound:
        return None
