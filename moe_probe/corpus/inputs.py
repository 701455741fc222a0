"""Turns what the user names into documents: finds the files, chooses their format, keeps names apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from moe_probe.corpus.conllu import read_conllu
from moe_probe.corpus.delimited import read_delimited
from moe_probe.corpus.document import Document
from moe_probe.corpus.jsonl import read_jsonl
from moe_probe.corpus.languages import language_of_folder, language_of_suffix
from moe_probe.corpus.opening import STANDARD_INPUT, Source, read_text
from moe_probe.corpus.parquet import read_parquet
from moe_probe.errors import BadInputError

Input: TypeAlias = str | Path | Document
"""A path of a file or folder, `-` for standard input, or a document itself. A string is always a path."""

_FORMATS: dict[str, Callable[[Source], Iterator[Document]]] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": lambda source: read_delimited(source, ","),
    ".tsv": lambda source: read_delimited(source, "\t"),
    ".parquet": read_parquet,
    ".conllu": read_conllu,
}
_BINARY = """
    .7z .a .apk .arrow .avi .avif .bin .bmp .bz2 .class .db .deb .dll .doc .docx .duckdb .dylib .eot .epub .exe .feather
    .flac .gguf .gif .h5 .heic .ico .jar .jpeg .jpg .mat .mkv .mov .mp3 .mp4 .npy .npz .o .odp .ods .odt .ogg .onnx .orc
    .otf .pdf .pickle .pkl .png .ppt .pptx .pt .pth .pyc .pyd .rar .rpm .safetensors .so .sqlite .sqlite3 .tar .tgz .tif
    .tiff .ttf .wasm .wav .webm .webp .whl .woff .woff2 .xls .xlsx .xz .zip
"""
_BINARY_SUFFIXES = frozenset(_BINARY.split())
_LEFT_OUT_FOLDERS = frozenset({"__pycache__"})


def read_documents(inputs: Input | Iterable[Input], *, language: str | None = None) -> Iterator[Document]:
    """Return an iterator over the documents of all inputs, in their order.

    Paths are looked up, folders listed and suffixes checked at once; texts are read only when their turn comes. Reading
    again gives the same documents, standard input included.

    Args:
        inputs: paths of files or folders, `-`, documents; or a single one of them.
        language: the language of documents that do not state their own and are not code by their file's suffix.

    Raises:
        BadInputError: if an input is missing, empty, of a binary kind or not UTF-8, or if two documents share a name.

    Example:
        >>> [document.language for document in read_documents(Document("a", "Hello"), language="en")]
        ['en']
    """
    if isinstance(inputs, str | os.PathLike | Document):
        inputs = [inputs]
    found: list[Source | Document] = []
    for item in inputs:
        found += [item] if isinstance(item, Document) else _find_sources(item, language)
    if not found:
        raise BadInputError("no input: name at least one file, folder or '-'")
    return _read_all(found, language)


def _read_all(found: list[Source | Document], language: str | None) -> Iterator[Document]:
    homes: dict[str, str] = {}
    for item in found:
        if isinstance(item, Document):
            documents = iter([item if item.language else replace(item, language=language)])
            home = "a document given as such"
        else:
            documents, home = _read_source(item), item.shown
        for document in documents:
            if document.name in homes:
                raise BadInputError(
                    f"two documents are called {document.name!r}, the first from {homes[document.name]}, the second "
                    f"from {home}; give the folder that holds both, or rename one"
                )
            homes[document.name] = home
            yield document


def _read_source(source: Source) -> Iterator[Document]:
    read = _FORMATS.get(source.suffix, _read_plain)
    empty = True
    for document in read(source):
        empty = False
        yield document
    if empty:
        raise BadInputError(f"{source.shown}: it holds no text; leave it out")


def _read_plain(source: Source) -> Iterator[Document]:
    text = read_text(source)
    if text:
        yield Document(source.name, text, source.domain, source.language)


def _find_sources(item: str | Path, language: str | None) -> list[Source]:
    if not isinstance(item, str | os.PathLike):
        raise BadInputError(f"input {item!r} is of type {type(item).__name__}; give a path, '-', or a Document")
    if item == STANDARD_INPUT:
        return [Source(STANDARD_INPUT, "stdin", language=language)]
    path = Path(item)
    if path.is_dir():
        return _find_in_folder(path, language)
    if not path.exists():
        raise BadInputError(f"{path}: no such file or folder")
    if not path.is_file():
        raise BadInputError(f"{path}: neither a file nor a folder; to read from a pipe, give '-'")
    return [_source(path, path.name, None, language)]


def _find_in_folder(folder: Path, language: str | None) -> list[Source]:
    sources = []
    for path in _walk(folder, set()):
        parts = path.relative_to(folder).parts
        if path.stat().st_size:
            sources.append(_source(path, "/".join(parts), parts[0] if len(parts) > 1 else None, language))
    if not sources:
        raise BadInputError(f"{folder}: no file with text in this folder (hidden and empty files do not count)")
    return sources


def _walk(folder: Path, above: set[Path]) -> Iterator[Path]:
    """Yield the files below a folder, in the order of their names, passing over links back to a folder above."""
    real = folder.resolve()
    if real in above:
        return
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            if path.name not in _LEFT_OUT_FOLDERS:
                yield from _walk(path, above | {real})
        elif path.is_file():
            yield path
        else:
            raise BadInputError(f"{path}: a broken link, or neither a file nor a folder; remove it")


def _source(path: Path, name: str, domain: str | None, language: str | None) -> Source:
    source = Source(str(path), name, domain)
    if source.suffix in _BINARY_SUFFIXES:
        raise BadInputError(
            f"{path}: {source.suffix} files hold no plain text; leave it out (read are text, {', '.join(_FORMATS)}, "
            "and .gz or .zst of any)"
        )
    of_folder = language_of_folder(domain) if domain is not None else None
    return replace(source, language=language_of_suffix(source.suffix) or of_folder or language)
