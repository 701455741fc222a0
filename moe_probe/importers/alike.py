"""Reads lines of JSON that are alike but for their numbers: `{"layer": 0, "experts": [3, 1]}`, a million times.

What is left of such lines without their keys is one regular list, which one call turns into an array. A line that is
not like the first sends the caller back to a slower reader. It does not know what the numbers mean.
"""

from __future__ import annotations

import json
import string
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_probe.importers.regular import RegularReader

_MOST = 2.0**53
_EXPONENT = b"\x01"
_PLAIN = b"0123456789+-. \t\r" + _EXPONENT
_LETTERS = (string.ascii_letters + "_").encode()
_TO_LISTS = bytes.maketrans(b'{}\n:"' + _LETTERS + _EXPONENT, b"[],  " + b" " * len(_LETTERS) + b"e")
_KEY, _NUMBER, _COLON = 1, 2, 3
_CLASSES = bytes(
    _KEY if byte in _LETTERS + b'"{' else _NUMBER if byte in _PLAIN else _COLON if byte == ord(":") else 0
    for byte in range(256)
)

Columns = dict[str, npt.NDArray[np.float64]]


def read_alike(data: bytes, reader: RegularReader) -> Columns | None:
    r"""Return the fields of lines, (lines,) where a field is a number, (lines, numbers) where it is a list.

    Returns None where the lines differ in more than numbers, or hold anything but numbers and lists of them.

    Example:
        >>> found = read_alike(b'{"a": 1, "b": [2, 0.5]}\n{"a": 3, "b": [4, 1e-3]}\n', RegularReader())
        >>> found["a"].tolist(), found["b"].tolist()
        ([1.0, 3.0], [[2.0, 0.5], [4.0, 0.001]])
    """
    data = data if data.endswith(b"\n") else data + b"\n"
    sizes = _sizes(data[: data.index(b"\n")])
    if not sizes or _EXPONENT in data:
        return None
    n_lines = int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))
    data = data.replace(b"e-", _EXPONENT + b"-")  # no letter that a key may have
    if not _is_alike(data, n_lines) or not _in_places(data):
        return None
    numbers = reader.flat(b"[" + data.translate(_TO_LISTS)[:-1] + b"]")
    if numbers is None or len(numbers) != n_lines * sum(size or 1 for size in sizes.values()):
        return None
    table = numbers.reshape(n_lines, -1)
    found: Columns = {}
    begin = 0
    for key, size in sizes.items():
        found[key] = table[:, begin] if size is None else table[:, begin : begin + size]
        begin += size or 1
    return found


def _is_alike(data: bytes, n_lines: int) -> bool:
    """Say whether all lines are the first one, but for numbers and the space around them."""
    line = data[: data.index(b"\n") + 1]
    return data.translate(None, _PLAIN) == line.translate(None, _PLAIN) * n_lines


def _in_places(data: bytes) -> bool:
    """Say whether each number stands where JSON has a value: not in or beside a key, nor before a colon."""
    classes = np.frombuffer(data.translate(_CLASSES, b" \t\r"), np.uint8)
    before, after = classes[:-1], classes[1:]
    wrong = (before == _KEY) & (after == _NUMBER)
    wrong |= (before == _NUMBER) & ((after == _KEY) | (after == _COLON))
    return not wrong.any()


def whole_numbers(column: npt.NDArray[np.float64], below: float = _MOST) -> npt.NDArray[np.int64] | None:
    """Return numbers as whole ones, or None where one is not, or is not below a bound on both sides of 0."""
    if not (np.abs(column) < below).all():
        return None
    found = column.astype(np.int64)
    return found if np.array_equal(found, column) else None


def _sizes(line: bytes) -> dict[str, int | None] | None:
    """Return how many numbers each field of a line is a list of, None where it is a number; None if else."""
    try:
        first: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(first, dict) or any(key.encode().translate(None, _LETTERS) for key in first):
        return None
    sizes: dict[str, int | None] = {}
    for key, value in first.items():
        flat = value if isinstance(value, list) else [value]
        if not flat or any(isinstance(each, bool) or not isinstance(each, int | float) for each in flat):
            return None
        sizes[key] = len(flat) if isinstance(value, list) else None
    return sizes
