"""Reads files of one JSON object a line in chunks, as bytes, as objects or as Arrow tables.

It does not know what is in the objects.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.json as pj

from moe_probe.corpus.opening import Source, read_blocks
from moe_probe.errors import BadInputError
from moe_probe.importers.ahead import ahead
from moe_probe.importers.regular import RegularReader

Known: TypeAlias = Callable[[dict[str, Any]], bool]

_CHUNK_BYTES = 4 << 20
_COUNTED_BYTES = 1 << 16
_BLOCKS_AHEAD = 4


@dataclass(frozen=True)
class Chunk:
    """Some whole lines of a file, and the number of the first, from 1."""

    path: Path
    first: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that hold anything, and their numbers."""
        return _lines([self.data], self.first)


class JsonLines:
    """A file of JSON objects: one a line; or one alone, or a list of them, over any number of lines.

    The second kind is held in memory as a whole. Reading adds to `digest`.
    """

    def __init__(self, path: Path) -> None:
        """Take a file; nothing is read yet."""
        self.path = path
        self.digest = hashlib.sha256()
        self.reader = RegularReader()

    def first(self) -> dict[str, Any]:
        """Return the first object.

        Raises:
            BadInputError: if there is none.
        """
        for number, line in JsonLines(self.path).lines():
            found = self.reader.read(line)
            return _object(self.path, number, line) if found is None else found
        raise BadInputError(f"{self.path}: holds no line; nothing can be imported from it")

    def objects(self, packed: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the objects and the numbers of their lines; regular lists of numbers are arrays.

        Args:
            packed: a key; long strings of base64 under it are bytes.

        Raises:
            BadInputError: if a line is no JSON object.
        """
        for number, line in self.lines():
            found = self.reader.read(line, packed)
            yield number, _object(self.path, number, line) if found is None else found

    def plain_objects(self, schema: pa.Schema, known: Known) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the fields of a schema of each object, and the number of its line; None where a field is lacking.

        Lists of numbers are arrays where they are regular, else Arrow's lists of the type that the schema has.

        Args:
            schema: the fields.
            known: says of an object's fields whether they are all of the types that are wanted.

        Raises:
            BadInputError: naming the line that is no JSON object or has a field of another type.
        """
        for number, line in self.lines():
            found = self.reader.read(line)
            fields = {} if found is None else {name: found.get(name) for name in schema.names}
            if found is None or not known(fields):
                table = _parse(Chunk(self.path, number, line), schema)
                fields = {name: _cell(table.column(name)[0]) for name in schema.names}
            yield number, fields

    def table(self, chunk: Chunk, schema: pa.Schema) -> pa.Table:
        """Return the fields of a schema, a row an object of a chunk; a field that an object lacks is null.

        Raises:
            BadInputError: naming the line that is no JSON object or has a field of another type.
        """
        return _parse(chunk, schema)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the file in pieces of whole lines."""
        with ahead(_whole_lines(self.path, self._objects(self._hashed())), 1) as chunks:
            yield from chunks

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines that hold anything, and their numbers."""
        with ahead(self._objects(self._hashed()), _BLOCKS_AHEAD) as blocks:
            yield from _lines(blocks, 1)

    def _objects(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the blocks of the file as objects a line, which it may not have been."""
        start: list[bytes] = []
        for block in blocks:
            start.append(block)
            if b"\n" in block.lstrip():
                break
        head = b"".join(start)
        if _is_an_object(head):
            yield head
            yield from blocks
        elif head.strip():
            yield _relined(self.path, head + b"".join(blocks))

    def _hashed(self) -> Iterator[bytes]:
        for block in read_blocks(Source(str(self.path), self.path.name)):
            self.digest.update(block)
            yield block


def _is_an_object(head: bytes) -> bool:
    """Say whether the first line is an object by itself, or at least cannot be the start of a longer value."""
    line = head.lstrip().split(b"\n", 1)[0]
    if RegularReader().read(line) is not None:
        return True
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return line.rstrip() not in (b"{", b"[") and not line.startswith(b"[")


def _lines(blocks: Iterable[bytes], number: int) -> Iterator[tuple[int, bytes]]:
    rest: list[bytes] = []
    for block in blocks:
        begin = 0
        while (end := block.find(b"\n", begin)) >= 0:
            line = b"".join([*rest, block[begin:end]])
            if line[:1] == b"{" or line.strip():
                yield number, line
            rest, number, begin = [], number + 1, end + 1
        rest.append(block[begin:])
    if (line := b"".join(rest)).strip():
        yield number, line


def _whole_lines(path: Path, blocks: Iterator[bytes]) -> Iterator[Chunk]:
    number = 1
    parts: list[bytes] = []
    held = 0
    for block in blocks:
        parts.append(block)
        held += len(block)
        if held < _CHUNK_BYTES or b"\n" not in block:
            continue
        data = b"".join(parts)
        end = data.rindex(b"\n") + 1
        whole, rest = data[:end], data[end:]
        yield Chunk(path, number, whole)
        number += count_lines(whole)
        parts, held = [rest], len(rest)
    if data := b"".join(parts):
        yield Chunk(path, number, data)


def count_lines(data: bytes) -> int:
    r"""Return the number of line feeds, at thirty times the speed of `bytes.count`.

    Example:
        >>> count_lines(b"a\n\nb")
        2
    """
    found = np.frombuffer(data, np.uint8)
    blocks = range(0, len(found), _COUNTED_BYTES)  # what is compared stays in the processor's cache
    return sum(int(np.count_nonzero(found[begin : begin + _COUNTED_BYTES] == 10)) for begin in blocks)


def _relined(path: Path, data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise BadInputError(f"{path}: neither a JSON object a line nor JSON as a whole ({error})") from error
    return b"\n".join(json.dumps(each).encode() for each in (value if isinstance(value, list) else [value]))


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BadInputError(f"{path}, line {number}: no JSON ({error}); was the file cut short?") from error
    if not isinstance(value, dict):
        raise BadInputError(f"{path}, line {number}: no JSON object but {type(value).__name__}")
    return value


def _parse(chunk: Chunk, schema: pa.Schema) -> pa.Table:
    try:
        table = _arrow(chunk.data, schema)
    except pa.ArrowException:
        table = None
    # Two objects on one line are two rows to Arrow, and no JSON line at all.
    ends = count_lines(chunk.data) + (not chunk.data.endswith(b"\n"))
    if table is not None and (table.num_rows == ends or table.num_rows == sum(1 for _ in chunk.lines())):
        return table.combine_chunks()
    for number, line in chunk.lines():
        _object(chunk.path, number, line)
        try:
            _arrow(line, schema)
        except pa.ArrowException as error:
            reason = " ".join(str(error).split())[:200].removesuffix(" in row 0")
            raise BadInputError(f"{chunk.path}, line {number}: a field has the wrong type ({reason})") from error
    raise BadInputError(f"{chunk.path}, line {chunk.first} and those after it: not a JSON object a line")


def _cell(cell: pa.Scalar) -> Any:
    """Return the elements of a list, or a string; None for null."""
    return (cell.values if isinstance(cell, pa.ListScalar) else cell.as_py()) if cell.is_valid else None


def _arrow(data: bytes, schema: pa.Schema) -> pa.Table:
    return pj.read_json(
        io.BytesIO(data),
        read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
