"""An uploaded file as documents: its name is only shown, its kind is one of a few, and no file makes more than it may.

The bytes are put into a folder of their own under a name of ours, read there by `moe_probe.corpus`, and deleted.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from moe_probe.corpus import Document, read_documents
from moe_probe.corpus.opening import at_most
from moe_probe.corpus.rows import COLUMNS
from moe_probe.errors import BadInputError

KINDS = ("txt", "md", "jsonl", "ndjson", "csv", "tsv", "conllu", "parquet")
COMPRESSIONS = ("gz", "zst", "zstd")
MOST_BYTES = 50_000_000
"""Of a file once it is decompressed; as many as the text in it may have."""
MOST_DOCUMENTS = 100_000
LONGEST_NAME = 80
_ROWS_AT_ONCE = 65_536


def shown_name(name: str) -> str:
    """Return what to call an uploaded file: no folder, nothing that cannot be printed, not too long.

    Example:
        >>> shown_name("../../etc/passwd.txt"), shown_name(".."), shown_name("a b.md")
        ('passwd.txt', 'upload', 'a b.md')
    """
    last = PurePosixPath(name.replace("\\", "/")).name
    printable = "".join(character for character in last if character.isprintable())
    return printable[-LONGEST_NAME:].strip(". ") or "upload"


def read_texts(text: str, name: str | None, data: bytes, english: bool) -> tuple[str, tuple[Document, ...]]:
    """Return what to call a pasted text or an uploaded file, and its documents; none of an empty text.

    Args:
        text: what was pasted; left aside where there is a file.
        name: the file's, None where there is none.
        data: its bytes.
        english: say so of documents that do not state their own language.

    Raises:
        BadInputError: as `read_upload`.
    """
    language = "en" if english else None
    if name is not None:
        return PurePosixPath(shown_name(name)).stem, tuple(read_upload(name, data, language=language))
    return (text, (Document("pasted text", text, language=language),)) if text.strip() else ("", ())


def read_upload(name: str, data: bytes, *, language: str | None = None) -> list[Document]:
    """Return the documents of an uploaded file; their names begin with the file's.

    Args:
        name: what the reader's machine calls the file.
        data: its bytes.
        language: of documents that do not state their own.

    Raises:
        BadInputError: it is of no kind that is read, cannot be read, holds nothing, or more than it may.
    """
    called = shown_name(name)
    ending = _ending(called)
    with tempfile.TemporaryDirectory(prefix="moe-probe-") as folder:
        path = Path(folder) / f"upload{ending}"
        path.write_bytes(data)
        with _in_words(path, called), at_most(MOST_BYTES):
            if ending == ".parquet":
                _check_parquet(path)
            return [replace(one, name=_renamed(one.name, path.name, called)) for one in _some(path, language)]


def _ending(name: str) -> str:
    """Return the ending by which a file is read, one of few."""
    kinds, packings = "|".join(KINDS), "|".join(COMPRESSIONS)
    found = re.fullmatch(rf".*?(?:\.({kinds}))?(?:\.({packings}))?", name.lower(), re.DOTALL)
    kind, packing = found.groups() if found else (None, None)
    inner = PurePosixPath(name.lower().removesuffix(f".{packing}")).suffix if packing else ""
    if (kind is None and (packing is None or inner)) or (kind == "parquet" and packing):
        raise BadInputError(
            f"{name}: not a kind of file that is read here; give {', '.join(KINDS)}, all but the last also .gz or .zst"
        )
    return f".{kind or 'txt'}" + (f".{packing}" if packing else "")


@contextmanager
def _in_words(path: Path, called: str) -> Iterator[None]:
    """Say the file's own name where messages would name ours; what no parser should raise is said too."""
    try:
        yield
    except BadInputError as error:
        raise BadInputError(str(error).replace(str(path), called)) from error
    except (RecursionError, MemoryError, OverflowError, ValueError) as error:
        raise BadInputError(f"{called}: cannot be read ({type(error).__name__}); is it what its name says?") from error


def _some(path: Path, language: str | None) -> Iterator[Document]:
    characters = 0
    for number, document in enumerate(read_documents([path], language=language), start=1):
        characters += len(document.text)
        if number > MOST_DOCUMENTS or characters > MOST_BYTES:
            raise BadInputError(
                f"{path}: more than {MOST_DOCUMENTS:,} documents or {MOST_BYTES:,} characters; divide it"
            )
        yield document


def _renamed(name: str, ours: str, called: str) -> str:
    return called + name.removeprefix(ours) if name.startswith(ours) else name


def _check_parquet(path: Path) -> None:
    """Refuse a Parquet file whose values take more than they may: a value that is stored once may stand in every row.

    The columns are read without repeating such values, and only counted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            wanted = [name for name in COLUMNS if name in file.schema_arrow.names]
            nested = [name for name in wanted if pa.types.is_nested(file.schema_arrow.field(name).type)]
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            total = sum(
                group.column(one).total_uncompressed_size for group in groups for one in range(group.num_columns)
            )
        if nested:
            raise BadInputError(f"{path}: column {nested[0]!r} is nested; give labels as JSON text")
        with pq.ParquetFile(path, read_dictionary=wanted) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=wanted) if total <= MOST_BYTES else ():
                total += sum(_text_bytes(column) for column in batch.columns)
                if total > MOST_BYTES:
                    break
    except (pa.ArrowException, OSError) as error:
        raise BadInputError(f"{path}: cannot be read as Parquet ({type(error).__name__})") from error
    if total > MOST_BYTES:
        raise BadInputError(
            f"{path}: more than {MOST_BYTES:,} bytes when decompressed, which is the most here; divide it"
        )


def _text_bytes(column: Any) -> int:
    """Return the bytes that a column's values would take one by one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    return int(pc.sum(pc.binary_length(column.dictionary).take(column.indices)).as_py() or 0)
