"""Reads CSV and TSV files with a header line: a document a row."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator

from moe_probe.corpus.document import Document
from moe_probe.corpus.opening import Source, read_lines
from moe_probe.corpus.rows import TEXT, document_of_row
from moe_probe.errors import BadInputError


def read_delimited(source: Source, delimiter: str) -> Iterator[Document]:
    """Yield the document of each row; line breaks in quoted cells are kept exactly.

    Raises:
        BadInputError: naming file and line, if there is no `text` column or a row does not fit the header.
    """
    # The library refuses cells of more than 128 KB unless told otherwise, and can be told only for the whole process.
    csv.field_size_limit(max(csv.field_size_limit(), sys.maxsize >> 32))
    reader = csv.reader((line.text for line in read_lines(source)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if TEXT not in header:
            raise BadInputError(f"{source.shown}: no column {TEXT!r}; the columns are {', '.join(map(repr, header))}")
        number = 0
        for cells in reader:
            if not cells:
                continue
            number += 1
            if len(cells) != len(header):
                raise BadInputError(
                    f"{source.shown}, line {reader.line_num}: {len(cells)} cells under {len(header)} columns"
                )
            document = document_of_row(source, number, f"line {reader.line_num}", dict(zip(header, cells, strict=True)))
            if document is not None:
                yield document
    except csv.Error as error:
        raise BadInputError(f"{source.shown}, line {reader.line_num}: malformed ({error})") from None
