"""Makes arrays of JSON's lists of numbers without an object a number, where the lists are regular.

Regular means: lists of numbers, or lists of regular lists that are all of one shape. What is not so plain (ragged
lists, nulls, a broken line) is left to a slower reader, which knows what to say of it: None, or a plain list, is
returned. It does not know formats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import simdjson

from moe_probe.importers.packed import unpack

NUMBERS = b"0123456789+-.eE \t\r"
"""The bytes that a number, or the space around it, is made of."""


class RegularReader:
    """Reads one JSON text after the other.

    Example:
        >>> RegularReader().read(b'{"a": [[1, 2], [3, 4]], "b": [[1], []], "c": "x"}')
        {'a': array([[1, 2],
               [3, 4]]), 'b': [[1], []], 'c': 'x'}
    """

    def __init__(self) -> None:
        """Make room for the parser."""
        self._parser = simdjson.Parser()

    def read(self, line: bytes, packed: str | None = None) -> dict[str, Any] | None:
        """Return an object as `json.loads` does, with int64 or float64 arrays for regular lists of numbers.

        Long strings under the key `packed`, if they are base64, are bytes: what they stand for.

        Returns None where the line is no JSON object, or one that `json` reads otherwise.
        """
        line, unpacked = (line, {}) if packed is None else unpack(line, packed)
        try:
            parsed: Any = self._parser.parse(line)
            whole = _Line(line, unpacked)
            found: dict[str, Any] | None = _object(parsed, whole) if isinstance(parsed, simdjson.Object) else None
            found = None if whole.unpacked else found  # in a list of other things, where nobody looks for it
        except (ValueError, RuntimeError, LookupError):
            found = None
            self._parser = simdjson.Parser()  # the old one may go on only when nothing of its last text is held
        return found

    def flat(self, text: bytes) -> npt.NDArray[np.float64] | None:
        """Return all numbers of nested lists in their order, or None where there is anything else in them."""
        try:
            parsed: Any = self._parser.parse(text)
            numbers = np.frombuffer(parsed.as_buffer(of_type="d"), np.float64)
        except (ValueError, RuntimeError, TypeError):
            numbers = None
            self._parser = simdjson.Parser()
        return numbers


def is_whole(value: object, dimensions: int) -> bool:
    """Say whether a value is an array of so many dimensions of whole numbers that 32 bits hold."""
    return (
        isinstance(value, np.ndarray)
        and value.ndim == dimensions
        and value.dtype.kind == "i"
        and bool(value.min() >= -(2**31) and value.max() < 2**31)
    )


class _Line:
    """A line, what is kept apart from it, and where the quotes in it stand, which are looked for when wanted."""

    def __init__(self, text: bytes, unpacked: dict[str, bytes]) -> None:
        self.text = text
        self.unpacked = unpacked

    @cached_property
    def quotes(self) -> list[int]:
        found: list[int] = []
        place = self.text.find(b'"')
        while place >= 0:
            found.append(place)
            place = self.text.find(b'"', place + 1)
        return found


def _object(value: Any, line: _Line) -> dict[str, Any]:
    keys = list(value.keys())
    if len(set(keys)) < len(keys) or any("\0" in key for key in keys):
        raise ValueError("a key is there twice, of which `json` takes the last, or is one that the parser cannot find")
    return {key: _plain(value[key], line, key) for key in keys}


def _plain(value: Any, line: _Line, key: str) -> Any:
    if isinstance(value, simdjson.Object):
        return _object(value, line)
    if not isinstance(value, simdjson.Array):
        return line.unpacked.pop(value, value) if isinstance(value, str) else value
    first: Any = value[0] if len(value) else None
    if isinstance(first, simdjson.Object):
        return [_plain(value[place], line, key) for place in range(len(value))]
    array = _regular(value, line, key)
    return value.as_list() if array is None else array


def _regular(value: Any, line: _Line, key: str) -> npt.NDArray[Any] | None:
    """Return a list of numbers as an array, or None; its brackets and commas are compared with those of its shape."""
    shape: list[int] = []
    first: Any = value
    while isinstance(first, simdjson.Array):
        shape.append(len(first))
        if not shape[-1]:
            return None
        first = first[0]
    if isinstance(first, bool) or not isinstance(first, int | float):
        return None
    text = _text_of(line, key)
    if text is None or not text.translate(None, NUMBERS).startswith(_brackets(shape)):
        return None
    for kind, dtype in (("i", np.int64), ("d", np.float64)):
        try:
            return np.frombuffer(value.as_buffer(of_type=kind), dtype).reshape(shape)
        except (ValueError, TypeError):
            continue
    return None


def _text_of(line: _Line, key: str) -> bytes | None:
    """Return what follows a key up to the next string, or None where the key stands in the line more than once."""
    name = json.dumps(key).encode()
    found = [place for place, quote in enumerate(line.quotes) if line.text.startswith(name, quote)]
    if len(found) != 1:
        return None
    _, end, following = [*line.quotes[found[0] : found[0] + 3], len(line.text), len(line.text)][:3]
    return line.text[line.text.find(b"[", end) : following]


def _brackets(shape: Sequence[int]) -> bytes:
    """Return the brackets and commas of a list of that shape.

    Example:
        >>> _brackets([2, 3])
        b'[[,,],[,,]]'
    """
    *outer, innermost = shape
    text = b"[" + b"," * (innermost - 1) + b"]"
    for size in reversed(outer):
        text = b"[" + b",".join([text] * size) + b"]"
    return text
