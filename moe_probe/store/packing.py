"""Packs whole numbers of a few bits each without gaps, as Parquet's RLE / bit-packing hybrid does: lowest bit first.

Neighbours are brought together within wider and wider numbers, up to 64 bits, many at once. It does not know files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 16
_GROUP = 8
"""So many numbers are whole bytes together, whatever their width."""


def pack(rows: Sequence[npt.NDArray[np.unsignedinteger]], width: int) -> npt.NDArray[np.uint8]:
    r"""Return rows of numbers, `width` bits each, (rows, bytes); the last group of eight of each is filled with zeros.

    Args:
        rows: as many numbers each, below 2 to the power of `width`; together they take less time than one by one.
        width: from 1 to 16.

    Example:
        >>> pack([np.arange(8, dtype=np.uint8)], 3).tobytes()
        b'\x88\xc6\xfa'
    """
    lane = 8 if width <= 8 else 16
    size = len(rows[0])
    padded = np.empty((len(rows), -(-size // _GROUP) * _GROUP), f"<u{lane // 8}")
    padded[:, size:] = 0
    for place, row in enumerate(rows):
        padded[place, :size] = row
    if width == lane:
        return padded.view(np.uint8)
    words = padded.view("<u8").ravel()
    for begin in range(0, len(words), _BLOCK):
        _gather(words[begin : begin + _BLOCK], lane, width)
    unit = math.gcd(width, 8)
    groups = words.view(f"<u{unit}").reshape(-1, lane // unit)
    packed = np.empty((len(groups), width // unit), groups.dtype)
    for place in range(width // unit):  # column by column, which is faster than a few bytes at a time
        packed[:, place] = groups[:, place]
    return packed.view(np.uint8).reshape(len(rows), -1)


def _gather(words: npt.NDArray[np.uint64], lane: int, width: int) -> None:
    """Bring the used bits of each group of eight to its lowest bits, in place."""
    size, used = lane, width
    spare = np.empty_like(words)
    while size < 64:  # two neighbours of `size` bits become one of twice as many: the second moves down to the first
        pairs, second = (each.view(f"<u{size // 4}") for each in (words, spare))
        np.right_shift(pairs, pairs.dtype.type(size), out=second)
        np.multiply(second, pairs.dtype.type((1 << size) - (1 << used)), out=second)
        np.subtract(pairs, second, out=pairs)
        size, used = 2 * size, 2 * used
    if lane == 16:  # a group is two words
        first, last = words[::2], words[1::2]
        first |= last << np.uint64(used)
        last >>= np.uint64(64 - used)
