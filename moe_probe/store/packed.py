"""Finds columns of experts whose pages are as `chunks` writes them, and unpacks them with nothing in between.

A reader of any Parquet file looks every number up in a dictionary. Here the dictionary is 0, 1, 2 …, and what is packed
are the experts themselves. A column is taken so only if it has no nulls, at most 256 experts, and not one byte around
its numbers that is not as `chunks` would write it; all others are left to Polars. pyarrow reads the footer. It does not
know which columns there are. (Apache Parquet, parquet.thrift and Encodings.md.)
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from moe_probe.errors import RunError
from moe_probe.store.chunks import PAGE_ROWS
from moe_probe.store.thrift import flag, int32, struct, varint

_PLAIN, _RLE, _DICTIONARY = 0, 3, 8
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2
_GROUP = 8
"""So many numbers are whole bytes together, whatever their width."""
_HIGHEST = 255
_LONGEST_DICTIONARY = 2048


class PackedColumn(NamedTuple):
    """One column of a file, in parts, one a row group."""

    chunks: list[_Chunk]

    @property
    def highest(self) -> int:
        """The highest expert of its dictionaries."""
        return max([chunk.highest for chunk in self.chunks])

    def unpack(self) -> npt.NDArray[np.uint8]:
        """Return the experts, (rows,).

        Raises:
            RunError: one is none of the dictionary's: the file is damaged.
        """
        parts = [chunk.unpack() for chunk in self.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Pages(NamedTuple):
    """So many pages of equal size, each a head and `groups` times eight numbers."""

    number: int
    head: bytes
    groups: int
    n_bytes: int


class _Chunk(NamedTuple):
    """`rows` numbers up to the highest, in pages that begin at a byte of the file.

    It is read, not mapped: a file that is cut short meanwhile is then an error, and not the end of the process.
    """

    path: Path
    begin: int
    rows: int
    highest: int

    @property
    def width(self) -> int:
        """Of how many bits each number is."""
        return max(1, self.highest.bit_length())

    def is_ours(self, file: int) -> bool:
        """Whether every page begins as it would if `chunks` wrote it."""
        place = self.begin
        for number, head, _, n_bytes in _pages(self.rows, self.width):
            for _ in range(number):
                if os.pread(file, len(head), place) != head:
                    return False
                place += n_bytes
        return True

    def unpack(self) -> npt.NDArray[np.uint8]:
        """Return the numbers, (rows,), or raise `RunError`."""
        width = self.width
        pages = _pages(self.rows, width)
        size = sum([page.number * page.n_bytes for page in pages]) + _GROUP
        with self.path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, self.begin)
        if len(data) < size:
            raise RunError(f"the file ends {size - len(data)} bytes too early; the run is damaged, trace it again")
        words = np.empty(-(-self.rows // _GROUP), "<u8")
        # A group is read as one number: the bits of the next one that come with it are cut off again. A file does not
        # end before those that come with the last, for the footer follows.
        kind = f"<u{1 << (width - 1).bit_length()}"
        first = place = 0
        for number, head, groups, n_bytes in pages:
            shape = number, groups
            packed: npt.NDArray[Any] = np.ndarray(shape, kind, data, place + len(head), (n_bytes, width))
            words[first : first + number * groups].reshape(shape)[:] = packed
            first, place = first + number * groups, place + number * n_bytes
        _spread(words, width)
        numbers = words.view(np.uint8)[: self.rows]
        if self.highest + 1 < 1 << width and (found := int(numbers.max())) > self.highest:
            raise RunError(
                f"expert {found} where the dictionary ends at {self.highest}; the run is damaged, trace it again"
            )
        return numbers


def find_packed(path: Path, columns: Collection[str]) -> dict[str, PackedColumn]:
    """Return those of some columns of a Parquet file that can be unpacked so.

    Args:
        path: of the file.
        columns: their names; one that the file lacks is left out.

    Raises:
        OSError: if the file cannot be read.
        pyarrow.ArrowException: if it is no Parquet file.
    """
    found: dict[str, PackedColumn] = {}
    with path.open("rb") as file:
        footer = pq.ParquetFile(file).metadata
        places = {name: place for place, name in enumerate(footer.schema.names)}
        groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
        for name in columns:
            place = places.get(name)
            of_groups = [] if place is None else [(group.column(place), group.num_rows) for group in groups]
            chunks = [_find_chunk(path, file.fileno(), about, rows) for about, rows in of_groups]
            whole = [chunk for chunk in chunks if chunk is not None]
            if whole and len(whole) == len(chunks):
                found[name] = PackedColumn(whole)
    return found


def _find_chunk(path: Path, file: int, about: pq.ColumnChunkMetaData, rows: int) -> _Chunk | None:
    first, begin = about.dictionary_page_offset, about.data_page_offset
    if first is None or about.num_values != rows or rows < 0:
        return None
    # Were the pages compressed, or of numbers of another size, none of them would look as they do here.
    if not 0 <= first < begin <= first + _LONGEST_DICTIONARY:
        return None
    dictionary = os.pread(file, begin - first, first)
    highest = int.from_bytes(dictionary[-4:], "little")
    if highest > _HIGHEST or dictionary != _dictionary(highest):
        return None
    chunk = _Chunk(path, begin, rows, highest)
    return chunk if chunk.is_ours(file) else None


@lru_cache(64)
def _pages(rows: int, width: int) -> tuple[_Pages, ...]:
    """Return the pages of a chunk: whole ones, and a shorter one behind them."""
    whole, rest = divmod(rows, PAGE_ROWS)
    found = []
    for number, of_page in ((whole, PAGE_ROWS), (min(rest, 1), rest)):
        if number:
            head, groups = _head(of_page, width), -(-of_page // _GROUP)
            found.append(_Pages(number, head, groups, len(head) + groups * width))
    return tuple(found)


def _head(rows: int, width: int) -> bytes:
    """Return what stands before the numbers of a page: its header, that no row is null, the width, and how many."""
    levels = varint(rows << 1) + b"\1"
    groups = -(-rows // _GROUP)
    body = len(levels).to_bytes(4, "little") + levels + bytes([width]) + varint(groups << 1 | 1)
    size = len(body) + groups * width
    said = struct({1: int32(rows), 2: int32(_DICTIONARY), 3: int32(_RLE), 4: int32(_RLE)})
    return struct({1: int32(_DATA_PAGE), 2: int32(size), 3: int32(size), 5: said})[1] + body


@lru_cache(_HIGHEST + 1)
def _dictionary(highest: int) -> bytes:
    """Return the page of a dictionary of 0, 1, 2 … up to the highest."""
    body = np.arange(highest + 1, dtype="<u4").tobytes()
    said = struct({1: int32(highest + 1), 2: int32(_PLAIN), 3: flag(True)})
    return struct({1: int32(_DICTIONARY_PAGE), 2: int32(len(body)), 3: int32(len(body)), 7: said})[1] + body


def _spread(words: npt.NDArray[np.uint64], width: int) -> None:
    """Give each of the eight numbers of `width` bits that a word begins with a byte of its own, in place."""
    spare = np.empty_like(words)
    for shift, kept, moved, both in _steps(width):
        np.left_shift(words, shift, out=spare)
        if width > 4:  # what moves would meet what stays
            np.bitwise_and(spare, moved, out=spare)
            np.bitwise_and(words, kept, out=words)
            np.bitwise_or(words, spare, out=words)
        else:
            np.bitwise_or(words, spare, out=words)
            np.bitwise_and(words, both, out=words)


@lru_cache(8)
def _steps(width: int) -> list[list[npt.NDArray[np.uint64]]]:
    """Return how the upper half of what is used moves to the upper half of its place, in ever smaller places.

    Each step is a shift, the bits that stay, those that have moved, and both.
    """
    steps = []
    size, used = 64, _GROUP * width
    while size > 8:
        size, used = size // 2, used // 2
        kept = sum((1 << used) - 1 << place for place in range(0, 64, 2 * size))
        # Arrays, not numbers, from which NumPy would make arrays each time.
        steps.append([np.array(bits, np.uint64) for bits in (size - used, kept, kept << size, kept | kept << size)])
    return steps
