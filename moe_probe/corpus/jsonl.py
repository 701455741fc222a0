"""Reads JSON Lines: an object a line, a document an object."""

from __future__ import annotations

import json
from collections.abc import Iterator

from moe_probe.corpus.document import Document
from moe_probe.corpus.opening import Source, read_lines
from moe_probe.corpus.rows import document_of_row
from moe_probe.errors import BadInputError


def read_jsonl(source: Source) -> Iterator[Document]:
    """Yield the document of each line; blank lines are passed over.

    Raises:
        BadInputError: naming file and line, if a line is no JSON object or has no text.
    """
    for line in read_lines(source):
        if not line.text.strip():
            continue
        try:
            row = json.loads(line.text)
        except ValueError as error:
            raise BadInputError(f"{source.shown}, line {line.number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise BadInputError(
                f"{source.shown}, line {line.number}: a {type(row).__name__}, not a JSON object with a 'text' in it"
            )
        document = document_of_row(source, line.number, f"line {line.number}", row)
        if document is not None:
            yield document
