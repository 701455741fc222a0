"""Encodes the columns of a routing file as Parquet's column chunks: a few pages each, and a dictionary before them.

pyarrow looks every number up in a hash table to find its place in the dictionary. An expert's number is its place
already: the dictionary is 0, 1, 2 …, and the pages hold the numbers themselves in as few bits as the highest needs.
It does not know what a file is made of beside. (Apache Parquet, parquet.thrift and Encodings.md.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.store.packing import pack
from moe_probe.store.thrift import Value, binary, flag, int8, int32, int64, sequence, struct, varint

_INT32, _FIXED_BYTES = 1, 7
_OPTIONAL = 1
_PLAIN, _RLE, _DICTIONARY = 0, 3, 8
_UNCOMPRESSED, _ZSTD = 0, 6
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_WIDEST = 16
_LEVEL = 1
PAGE_ROWS = 1 << 14
"""A reader of a few rows reads whole pages."""
_TOGETHER_BYTES = 1 << 19
"""Columns that are packed together stay in the processor's cache."""

_INTEGERS = {pa.uint8(): (8, 11), pa.uint16(): (16, 12), pa.uint32(): (32, 13)}
"""Bits, and the number of the older way to say so, of the types that experts have."""
_KINDS = {kind: np.dtype(str(kind)) for kind in _INTEGERS} | {pa.float16(): np.dtype(np.float16)}


class Chunk(NamedTuple):
    """One column of one row group: `pages` in the pieces that follow each other in the file, and what the footer says.

    `dictionary_bytes` is how long the dictionary's page is, 0 where there is none; `n_bytes` how long all pages are,
    heads included.
    """

    pages: Sequence[bytes | memoryview]
    physical: int
    encodings: tuple[int, ...]
    codec: int
    rows: int
    dictionary_bytes: int
    n_bytes: int
    uncompressed_bytes: int

    def metadata(self, name: str, begin: int) -> Value:
        """Return what the footer says of the chunk if it begins at a byte of the file."""
        fields = {
            1: int32(self.physical),
            2: _encodings(self.encodings),
            3: _path(name),
            4: int32(self.codec),
            5: int64(self.rows),
            6: int64(self.uncompressed_bytes),
            7: int64(self.n_bytes),
            9: int64(begin + self.dictionary_bytes),
        }
        if self.dictionary_bytes:
            fields[11] = int64(begin)
        return struct(fields)


@lru_cache(16)
def _encodings(encodings: tuple[int, ...]) -> Value:
    return sequence([int32(encoding) for encoding in encodings])


@lru_cache(4096)
def _path(name: str) -> Value:
    return sequence([binary(name.encode())])


@lru_cache(4096)
def element(name: str, kind: pa.DataType) -> Value:
    """Return what the schema of a file says of a column that may have nulls.

    Raises:
        ValueError: if it is no unsigned integer and no float16, which are all that routing has.
    """
    if kind in _INTEGERS:
        bits, converted = _INTEGERS[kind]
        logical = struct({10: struct({1: int8(bits), 2: flag(False)})})
        return struct(
            {1: int32(_INT32), 3: int32(_OPTIONAL), 4: binary(name.encode()), 6: int32(converted), 10: logical}
        )
    if kind != pa.float16():
        raise ValueError(f"{name}: of type {kind}; experts are uint8, uint16 or uint32, weights and scores float16")
    logical = struct({15: struct({})})
    return struct({1: int32(_FIXED_BYTES), 2: int32(2), 3: int32(_OPTIONAL), 4: binary(name.encode()), 10: logical})


def encode(columns: Sequence[pa.Array]) -> Iterator[Chunk]:
    """Yield columns as they are on disk.

    Experts have a dictionary, or are plain where that is no longer; float16 is plain and compressed by zstd.

    Args:
        columns: of the types that `element` takes, all with as many rows.
    """
    for packing, some in groupby(map(_read, columns), lambda column: column.packing):
        if packing is None:
            yield from map(_encode_alone, some)
            continue
        alike = list(some)
        most = max(1, _TOGETHER_BYTES // max(1, alike[0].values.nbytes))
        for begin in range(0, len(alike), most):
            yield from _whole_experts(alike[begin : begin + most], packing[1])


class _Column(NamedTuple):
    """Its values and where there are any; and of what type and how many bits its numbers are, if all can be packed."""

    values: npt.NDArray[Any]
    there: npt.NDArray[np.bool_] | None
    highest: int
    packing: tuple[np.dtype[Any], int] | None


def _read(column: pa.Array) -> _Column:
    kind, rows = _KINDS[column.type], len(column)
    values = np.frombuffer(column.buffers()[1], kind, rows, column.offset * kind.itemsize)
    if column.null_count or kind == np.float16:
        there = column.is_valid().to_numpy(zero_copy_only=False) if column.null_count else None
        return _Column(values, there, 0, None)
    highest = int(values.max()) if rows else 0
    width, short = _width(highest, rows)
    return _Column(values, None, highest, (kind, width) if short else None)


def _encode_alone(column: _Column) -> Chunk:
    if column.values.dtype == np.float16:
        return _halves(column.values, column.there)
    return _plain_experts(column.values) if column.there is None else _some_experts(column.values, column.there)


def _levels(there: npt.NDArray[np.bool_] | None, rows: int) -> bytes:
    """Return which rows of a page hold a value, as Parquet says it."""
    levels = varint(rows << 1) + b"\1"
    if there is not None:
        levels = _run(rows) + np.packbits(there, bitorder="little").tobytes()
    return len(levels).to_bytes(4, "little") + levels


def _pages(values: npt.NDArray[Any], there: npt.NDArray[np.bool_] | None) -> Iterator[tuple[bytes, npt.NDArray[Any]]]:
    """Yield the levels and the values of each page."""
    for begin in range(0, len(values), PAGE_ROWS):
        page = values[begin : begin + PAGE_ROWS]
        held = None if there is None else there[begin : begin + PAGE_ROWS]
        yield _levels(held, len(page)), page if held is None else page[held]


def _halves(values: npt.NDArray[Any], there: npt.NDArray[np.bool_] | None) -> Chunk:
    codec = pa.Codec("zstd", compression_level=_LEVEL)
    pages: list[bytes] = []
    compressed = uncompressed = 0
    for place, (levels, held) in enumerate(_pages(values, there)):
        rows = min(PAGE_ROWS, len(values) - place * PAGE_ROWS)
        data = b"".join([levels, held.data])
        body = codec.compress(data, asbytes=True)
        head = _data_page(_PLAIN, rows, len(data), len(body))
        pages += [head, body]
        compressed += len(head) + len(body)
        uncompressed += len(head) + len(data)
    return Chunk(pages, _FIXED_BYTES, (_RLE, _PLAIN), _ZSTD, len(values), 0, compressed, uncompressed)


def _some_experts(values: npt.NDArray[Any], there: npt.NDArray[np.bool_]) -> Chunk:
    """Return a column of experts with gaps."""
    held = values[there]
    highest = int(held.max(initial=0))
    width, short = _width(highest, len(held))
    pages = [*_dictionary(highest)] if short else []
    before = sum(map(len, pages))
    for place, (levels, of_page) in enumerate(_pages(values, there)):
        rows = min(PAGE_ROWS, len(values) - place * PAGE_ROWS)
        data = (
            [bytes([width]), _run(len(of_page)), pack([of_page], width)] if short else [of_page.astype("<u4").tobytes()]
        )
        body = b"".join([levels, *data])
        pages += [_data_page(_DICTIONARY if short else _PLAIN, rows, len(body), len(body)), body]
    return _chunk(pages, short, len(values), before, sum(map(len, pages)) - before)


def _whole_experts(columns: Sequence[_Column], width: int) -> Iterator[Chunk]:
    """Yield columns of experts without a gap: all their pages are packed at once, for a page is whole groups of eight.

    What stands before the numbers of a page is the same for all columns of as many rows and as high a highest expert.
    """
    rows = len(columns[0].values)
    heads, sizes, total = _heads(rows, width)
    for column, packed in zip(columns, pack([column.values for column in columns], width), strict=True):
        dictionary = _dictionary(column.highest)
        yield _chunk([*dictionary, *_between(heads, sizes, packed.data)], True, rows, sum(map(len, dictionary)), total)


def _plain_experts(values: npt.NDArray[Any]) -> Chunk:
    """Return a column of experts without a gap that a dictionary does not make shorter."""
    heads, sizes, total = _heads(len(values), None)
    return _chunk(_between(heads, sizes, memoryview(values.astype("<u4").tobytes())), False, len(values), 0, total)


def _between(heads: Sequence[bytes], sizes: Sequence[int], data: memoryview) -> list[bytes | memoryview]:
    """Return the parts of some data, each with what stands before it."""
    ends = accumulate(sizes)
    return [part for head, size, end in zip(heads, sizes, ends, strict=True) for part in (head, data[end - size : end])]


def _chunk(pages: Sequence[bytes | memoryview], short: bool, rows: int, before: int, after: int) -> Chunk:
    """Return a column of experts, given how many bytes its dictionary and the pages after that take."""
    encodings = (_PLAIN, _RLE, _DICTIONARY) if short else (_RLE, _PLAIN)
    return Chunk(pages, _INT32, encodings, _UNCOMPRESSED, rows, before, before + after, before + after)


def _width(highest: int, count: int) -> tuple[int, bool]:
    """Return of how many bits numbers are, and whether they and a dictionary are shorter than the numbers plain."""
    width = max(1, highest.bit_length())
    return width, width <= _WIDEST and 4 * (highest + 1) + width * count // 8 < 4 * count


@lru_cache(256)
def _heads(rows: int, width: int | None) -> tuple[list[bytes], list[int], int]:
    """Return what stands before the numbers of each page, how long these are, and the length of it all.

    Args:
        rows: of all pages, none of them without a number.
        width: of a number in bits; None where it is plain.
    """
    heads, sizes = [], []
    for begin in range(0, rows, PAGE_ROWS):
        count = min(PAGE_ROWS, rows - begin)
        levels = _levels(None, count)
        lead = levels if width is None else levels + bytes([width]) + _run(count)
        size = 4 * count if width is None else -(-count // 8) * width
        length = len(lead) + size
        heads.append(_data_page(_PLAIN if width is None else _DICTIONARY, count, length, length) + lead)
        sizes.append(size)
    return heads, sizes, sum(map(len, heads)) + sum(sizes)


@lru_cache(16)
def _run(size: int) -> bytes:
    """Return what stands before so many bit-packed numbers."""
    return varint(-(-size // 8) << 1 | 1)


@lru_cache(16)
def _dictionary(highest: int) -> tuple[bytes, bytes]:
    body = np.arange(highest + 1, dtype="<u4").tobytes()
    said = struct({1: int32(highest + 1), 2: int32(_PLAIN), 3: flag(True)})
    return struct({1: int32(_DICTIONARY_PAGE), 2: int32(len(body)), 3: int32(len(body)), 7: said})[1], body


@lru_cache(16)
def _data_page(encoding: int, rows: int, uncompressed: int, compressed: int) -> bytes:
    said = struct({1: int32(rows), 2: int32(encoding), 3: int32(_RLE), 4: int32(_RLE)})
    return struct({1: int32(_DATA_PAGE), 2: int32(uncompressed), 3: int32(compressed), 5: said})[1]
