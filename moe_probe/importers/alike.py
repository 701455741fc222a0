"""Reads lines of JSON that are alike but for their numbers: `{"layer": 0, "experts": [3, 1]}`, a million times.

What stands between the numbers must be the same in all lines, byte by byte; then only the numbers are left to read. A
line that is not like the first sends the caller back to a slower reader. It does not know what the numbers mean.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from moe_probe.importers.numerals import Numbers, Numerals, Places
from moe_probe.importers.regular import RegularReader

_LETTERS = (string.ascii_letters + "_").encode()
_BLOCK_BYTES = 1 << 20
_SHORT = 4

Columns = dict[str, Numbers]


@dataclass(frozen=True)
class _Form:
    """What lines have in common: how many numbers each field is a list of, None where it is a number; and all else.

    `head` stands before the first number of a line, `between` after each number but the last, `tail` after that.
    """

    sizes: dict[str, int | None]
    head: bytes
    between: tuple[bytes, ...]
    tail: bytes

    @cached_property
    def n_bytes(self) -> int:
        """How many bytes of a line are no numbers."""
        return len(self.head) + len(self.tail) + sum(map(len, self.between))

    @cached_property
    def columns(self) -> list[slice]:
        """Which numbers of a line belong to each field."""
        ends = np.cumsum([size or 1 for size in self.sizes.values()]).tolist()
        return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]

    def steps(self, n_lines: int) -> Places:
        """Return how far it is from the last byte of each number of some lines, but the last, to the next number."""
        some = [1 + len(said) for said in (*self.between, self.tail + self.head)]
        return np.tile(np.array(some, np.int64), n_lines)[:-1]

    @cached_property
    def after(self) -> dict[bytes, list[int]]:
        """After which numbers of a line each of `between` stands."""
        return {said: [place for place, each in enumerate(self.between) if each == said] for said in self.between}


def read_alike(data: bytes, reader: RegularReader) -> Columns | None:
    r"""Return the fields of lines, (lines,) where a field is a number, (lines, numbers) where it is a list.

    A field is of whole numbers where all of it is written so, else float64. Returns None where the lines differ in more
    than numbers, or hold anything but numbers and lists of them.

    Example:
        >>> found = read_alike(b'{"a": 1, "b": [2, 0.5]}\n{"a": 3, "b": [4, 1e-3]}\n', RegularReader())
        >>> found["a"].tolist(), found["b"].tolist()
        ([1, 3], [[2.0, 0.5], [4.0, 0.001]])
    """
    data = data if data.endswith(b"\n") else data + b"\n"
    form = _form(data[: data.index(b"\n") + 1])
    if form is None:
        return None
    parts: list[list[Numbers]] = []
    for block in _blocks(data):
        part = _read(block, form, reader)
        if part is None:
            return None
        parts.append(part)
    found: Columns = {}
    for (key, size), *arrays in zip(form.sizes.items(), *parts, strict=True):
        joined = np.concatenate(arrays)
        found[key] = joined[:, 0] if size is None else joined
    return found


def _blocks(data: bytes) -> Iterator[bytes]:
    """Yield whole lines, so many that what is made of them stays in the processor's cache."""
    begin = 0
    while begin < len(data):
        end = data.rfind(b"\n", begin, begin + _BLOCK_BYTES) + 1 or data.index(b"\n", begin) + 1
        yield data[begin:end]
        begin = end


def _read(block: bytes, form: _Form, reader: RegularReader) -> list[Numbers] | None:
    """Return the numbers of some lines, an array (lines, numbers) a field, or None where a line is of another form."""
    numerals = Numerals(block)
    n_numbers = len(form.between) + 1
    if not len(numerals.last) or len(numerals.last) % n_numbers:
        return None
    last = numerals.last.reshape(-1, n_numbers)
    if numerals.n_bytes != len(block) - len(last) * form.n_bytes or not _is_alike(block, form, last):
        return None
    first = np.empty_like(last)
    first[0, 0] = len(form.head)
    np.add(numerals.last[:-1], form.steps(len(last)), out=first.ravel()[1:])
    return numerals.read(first, last, form.columns, reader)


def _is_alike(block: bytes, form: _Form, last: Places) -> bool:
    """Say whether what stands between the numbers is that of the form, given the last byte of each number."""
    return (
        block.startswith(form.head)
        and block.endswith(form.tail)
        and all(_stands(block, said, last[:, places]) for said, places in form.after.items())
        and _stands(block, form.tail + form.head, last[:-1, -1])
    )


def _stands(block: bytes, said: bytes, last: Places) -> bool:
    """Say whether some bytes stand after each of some places."""
    if not last.size:
        return True
    if last.max() + len(said) >= len(block):
        return False
    if len(said) <= _SHORT:
        text = np.frombuffer(block, np.uint8)
        return all(bool((text[place:].take(last) == byte).all()) for place, byte in enumerate(said, 1))
    # An element of this view begins at every byte, so that one is copied a place, however long it is.
    windows: Any = np.ndarray((len(block) - len(said) + 1,), f"V{len(said)}", block, strides=(1,))
    found: bytes = windows[last.ravel() + 1].tobytes()
    return found == said * last.size


def _form(line: bytes) -> _Form | None:
    """Return the form of a line, or None where it holds anything but numbers and lists of numbers."""
    sizes = _sizes(line)
    if not sizes:
        return None
    numerals = Numerals(line)
    if len(numerals.last) != sum(size or 1 for size in sizes.values()):  # there is also `true` or `NaN`
        return None
    edges = [0, *np.stack([numerals.first, numerals.last + 1], axis=1).ravel().tolist(), len(line)]
    head, *between, tail = (line[begin:end] for begin, end in zip(edges[::2], edges[1::2], strict=True))
    return _Form(sizes, head, tuple(between), tail)


def _sizes(line: bytes) -> dict[str, int | None] | None:
    """Return how many numbers each field of a line is a list of, None where it is a number; None if else."""
    try:
        first: Any = json.loads(line, object_pairs_hook=_unique)
    except ValueError:
        return None
    if not isinstance(first, dict) or any(key.encode().translate(None, _LETTERS) for key in first):
        return None
    sizes: dict[str, int | None] = {}
    for key, value in first.items():
        flat = value if isinstance(value, list) else [value]
        if not flat or any(not isinstance(each, int | float) for each in flat):
            return None
        sizes[key] = len(flat) if isinstance(value, list) else None
    return sizes


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice, of which only the last counts")
    return found
