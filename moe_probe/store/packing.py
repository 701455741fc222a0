"""Packs whole numbers of a few bits each without gaps, as Parquet's RLE / bit-packing hybrid does: lowest bit first.

Eight bytes are shifted together at once, as one number of 64 bits. It does not know files.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

_BLOCK = 1 << 14
_GROUP = 8
"""So many numbers are whole bytes together, whatever their width."""


def pack(values: npt.NDArray[np.unsignedinteger], width: int) -> bytes:
    r"""Return numbers of `width` bits each; the last group of eight is filled with zeros.

    Args:
        values: (numbers,), each below 2 to the power of `width`.
        width: from 1 to 16.

    Example:
        >>> pack(np.arange(8, dtype=np.uint8), 3)
        b'\x88\xc6\xfa'
    """
    lane = 8 if width <= 8 else 16
    padded = np.zeros(-(-len(values) // _GROUP) * _GROUP, f"<u{lane // 8}")
    padded[: len(values)] = values
    if width == lane:
        return padded.tobytes()
    words = padded.view("<u8")
    shifted = np.empty(min(_BLOCK, len(words)), np.uint64)
    for begin in range(0, len(words), _BLOCK):
        _gather(words[begin : begin + _BLOCK], shifted, lane, width)
    unit = math.gcd(width, 8)
    groups = words.view(f"<u{unit}").reshape(-1, lane // unit)
    packed = np.empty((len(groups), width // unit), groups.dtype)
    for place in range(width // unit):  # column by column, which is faster than a few bytes at a time
        packed[:, place] = groups[:, place]
    return packed.tobytes()


def _gather(words: npt.NDArray[np.uint64], spare: npt.NDArray[np.uint64], lane: int, width: int) -> None:
    """Bring the used bits of each group of eight to its lowest bits, in place."""
    size, used = lane, width
    spare = spare[: len(words)]
    while size < 64:  # two neighbours of `size` bits become one of twice as many
        low, high, apart = _masks(size, used)
        np.bitwise_and(words, high, out=spare)
        np.right_shift(spare, apart, out=spare)
        np.bitwise_and(words, low, out=words)
        np.bitwise_or(words, spare, out=words)
        size, used = 2 * size, 2 * used
    if lane == 16:  # a group is two words
        first, second = words[::2], words[1::2]
        first |= second << np.uint64(used)
        second >>= np.uint64(64 - used)


@lru_cache(64)
def _masks(size: int, used: int) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Return the used bits of each first neighbour, those of each second, and by how many bits the seconds move."""
    low = sum((1 << used) - 1 << place for place in range(0, 64, 2 * size))
    return np.uint64(low), np.uint64(low << size), np.uint64(size - used)
