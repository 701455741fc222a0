"""Reads Parquet files: a document a row."""

from __future__ import annotations

import io
from collections.abc import Iterator

from moe_probe.corpus.document import Document
from moe_probe.corpus.opening import STANDARD_INPUT, Source, read_blocks
from moe_probe.corpus.rows import COLUMNS, TEXT, document_of_row
from moe_probe.errors import BadInputError

_ROWS_AT_ONCE = 64


def read_parquet(source: Source) -> Iterator[Document]:
    """Yield the document of each row; only the columns that are needed are read, a few rows at a time.

    Raises:
        BadInputError: naming the file, if it is no Parquet file or has no `text` column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    plain = source.path != STANDARD_INPUT and source.path.lower().endswith(source.suffix)
    try:
        with pq.ParquetFile(source.path if plain else io.BytesIO(b"".join(read_blocks(source)))) as file:
            names = file.schema_arrow.names
            if TEXT not in names:
                raise BadInputError(
                    f"{source.shown}: no column {TEXT!r}; the columns are {', '.join(map(repr, names))}"
                )
            wanted = [name for name in COLUMNS if name in names]
            number = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted):
                for index in range(batch.num_rows):
                    number += 1
                    row = {name: _cell(source, number, batch.column(name)[index]) for name in wanted}
                    document = document_of_row(source, number, f"row {number}", row)
                    if document is not None:
                        yield document
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{source.shown}: cannot be read as Parquet ({error})") from error


def _cell(source: Source, number: int, scalar: object) -> object:
    try:
        return scalar.as_py()  # type: ignore[attr-defined]
    except UnicodeDecodeError as error:
        raise BadInputError(f"{source.shown}, row {number}: invalid UTF-8 at byte {error.start} of a cell") from None
