"""Turns a row of a table, whatever file it came from, into a document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from moe_probe.corpus.document import Document, Span
from moe_probe.corpus.opening import Source
from moe_probe.errors import BadInputError

TEXT = "text"
COLUMNS = (TEXT, "name", "id", "domain", "language", "labels")
"""The columns that are read; others are left alone."""


def document_of_row(source: Source, number: int, place: str, row: Mapping[str, object]) -> Document | None:
    """Return the document in a row, or None if its text is empty.

    Args:
        source: the file.
        number: what to add to the file's name where the row has none.
        place: how to call the row in messages, such as `line 3`.
        row: the columns by name; None stands for an empty cell.

    Raises:
        BadInputError: naming file and row, if there is no text or a column cannot be used.
    """
    where = f"{source.shown}, {place}"
    text = row.get(TEXT)
    if text is None:
        raise BadInputError(f"{where}: no {TEXT!r} in it ({_listed(row)}); each row needs one")
    if not isinstance(text, str):
        raise BadInputError(f"{where}: {TEXT!r} is of type {type(text).__name__}, not a string")
    if not text:
        return None
    name = _word(where, "name", row.get("name")) or _word(where, "id", row.get("id")) or f"{source.name}#{number}"
    try:
        return Document(
            name,
            text,
            domain=_word(where, "domain", row.get("domain")) or source.domain,
            language=_word(where, "language", row.get("language")) or source.language,
            labels=_labels(row.get("labels")),
        )
    except BadInputError as error:
        raise BadInputError(f"{where}: {error}") from None


def _word(where: str, column: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str | int) and not isinstance(value, bool):
        return str(value)
    raise BadInputError(f"{where}: {column!r} is {value!r}; give a string")


def _labels(value: object) -> Mapping[str, str | Sequence[Span]] | None:
    """Return the labels of a cell: an object, or the text of one in JSON."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadInputError(f"its labels are no JSON object ({error})") from None
    if not isinstance(value, Mapping):
        raise BadInputError("its labels are no JSON object")
    # A table with a column of structures fills what a row lacks with null.
    return cast("Mapping[str, str | Sequence[Span]]", {key: label for key, label in value.items() if label is not None})


def _listed(row: Mapping[str, object]) -> str:
    return "it has " + ", ".join(map(repr, row)) if row else "it is empty"
