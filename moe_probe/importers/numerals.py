"""Finds the numbers in a text of JSON and reads them, all at once: no call and no object a number.

A number of up to eight digits, or of one digit, a point and up to eight more, is made of its digits two by two; every
other one is left to simdjson, which also says whether it is a number of JSON at all. A whole number below 2^53 divided
by a power of ten that float64 holds is rounded once, so that a fraction is the very number that `float` makes of it
(W. D. Clinger, How to read floating point numbers accurately, PLDI 1990). It does not know what stands between numbers.
"""

from __future__ import annotations

from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from moe_probe.importers.regular import RegularReader

Bools: TypeAlias = npt.NDArray[np.bool_]
Places: TypeAlias = npt.NDArray[np.int64]
Numbers: TypeAlias = npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.float64]
"""Whole numbers, if all were written so and are exact, else float64."""

_MOST_DIGITS = 8
_LEAD = 8
"""So many zeros stand before the pairs of digits, for a number may stand at the very beginning."""

_POWERS = 10.0 ** np.arange(_MOST_DIGITS + 1)
_EXACT = 2.0**53
_COMMA, _MINUS, _POINT, _ZERO, _E = b",-.0e"


class Numerals:
    """The numbers of a text.

    `last` is the place of the last byte of each, in the order of the text; `n_bytes` how many bytes they have together.
    What is found may be no number of JSON (`1.2.3`, `-`); `read` says so.

    Example:
        >>> text = b'{"a": [12, 0.5], "b": 3e-1}'
        >>> Numerals(text).last.tolist()
        [8, 13, 25]
    """

    def __init__(self, text: bytes) -> None:
        """Find the numbers of a text."""
        self.text = text
        self._bytes = np.frombuffer(text, np.uint8)
        digits = self._bytes - np.uint8(_ZERO)
        self._is_digit = digits < 10
        self._part = (self._bytes - np.uint8(_MINUS)) < 13  # - . / and the digits: a slash is no number to simdjson
        exponent = self._is_digit[:-1] & (self._bytes[1:] == _E)
        if exponent.any():
            self._part[1:] |= exponent
        self.last: Places = np.flatnonzero(self._part[:-1] > self._part[1:])
        self.n_bytes = int(np.count_nonzero(self._part))
        self._ones = np.multiply(digits, self._is_digit, out=digits)
        self._pairs = np.empty(_LEAD + len(text), np.uint8)
        self._pairs[: _LEAD + 1] = 0
        np.multiply(self._ones[:-1], np.uint8(10), out=self._pairs[_LEAD + 1 :])
        self._pairs[_LEAD:] += self._ones

    @cached_property
    def first(self) -> Places:
        """The place of the first byte of each number."""
        return np.flatnonzero(self._part[1:] > self._part[:-1]) + 1

    def read(self, first: Places, last: Places, columns: list[slice], reader: RegularReader) -> list[Numbers] | None:
        """Return the values of all numbers, or None where one is no number of JSON.

        Args:
            first: (lines, numbers), the place of the first byte of each.
            last: (lines, numbers), the place of the last byte of each.
            columns: for each array that is returned, which numbers of a line it holds.
            reader: reads what is long, negative or has an exponent.
        """
        values: list[Numbers] = []
        hard = np.empty(last.shape, np.bool_)  # what is left to the reader
        odd = np.zeros(last.shape[1], np.int64)  # how many bytes of a number are no digits, if it is not hard
        for some in columns:
            begins, ends = np.ascontiguousarray(first[:, some]), np.ascontiguousarray(last[:, some])
            if self.text[begins[0, 0] + 1] == _POINT:
                odd[some] = 1
                fractions, hard[:, some] = self._fractions(begins, ends)
                values.append(fractions)
            else:
                whole, hard[:, some] = self._whole(begins, ends)
                values.append(whole)
        plain = len(hard) * int(odd.sum()) if not hard.any() else -1
        if self.n_bytes - np.count_nonzero(self._is_digit) == plain:
            return values
        found, broken = self._odd(last)
        hard |= found != odd
        given = self._given(first[hard], last[hard], reader)
        return None if given is None else _with(values, hard, given, broken & hard, columns)

    def _whole(self, first: Places, last: Places) -> tuple[npt.NDArray[np.int32], Bools]:
        """Return numbers as if they were whole, and which have too many digits or a zero before them."""
        count = last - first + 1
        return self._short(last, count), (count > _MOST_DIGITS) | ((self._bytes.take(first) == _ZERO) & (count > 1))

    def _fractions(self, first: Places, last: Places) -> tuple[npt.NDArray[np.float64], Bools]:
        """Return numbers as if they were a digit, a point and some digits, and which are not, or have too many."""
        count = last - first - 1
        scale = _POWERS.take(count, mode="clip")
        values = (self._ones.take(first) * scale + self._short(last, count)) / scale
        return values, (self._bytes[1:].take(first) != _POINT) | (count < 1) | (count > _MOST_DIGITS)

    def _short(self, last: Places, count: Places) -> npt.NDArray[np.int32]:
        """Return whole numbers of at most eight digits."""
        values = self._pairs[_LEAD:].take(last).astype(np.int32)
        for begin in range(2, min(int(count.max()), _MOST_DIGITS), 2):
            pairs = self._pairs[_LEAD - begin :].take(last)
            values += np.multiply(pairs, np.int32(10**begin)) * (count > begin)
        return values

    def _odd(self, last: Places) -> tuple[npt.NDArray[np.int64], Bools]:
        """Return how many bytes of each number are no digits, and whether one of them is more than a minus."""
        places = np.flatnonzero(self._part & ~self._is_digit)
        of_number = np.searchsorted(last.ravel(), places)
        count = np.bincount(of_number, minlength=last.size)
        broken = np.zeros(last.size, np.bool_)
        broken[of_number[self._bytes[places] != _MINUS]] = True
        return count.reshape(last.shape), broken.reshape(last.shape)

    def _given(self, first: Places, last: Places, reader: RegularReader) -> npt.NDArray[np.float64] | None:
        """Return some numbers as simdjson reads them: what follows each becomes a comma, and they are one list."""
        wanted = np.zeros(len(self.text) + 1, np.int8)
        wanted[first] = 1
        wanted[last + 2] -= 1
        text = self._bytes.copy()
        text[last + 1] = _COMMA
        chosen = text[np.cumsum(wanted[:-1], dtype=np.int8).view(np.bool_)]
        found = reader.flat(b"[" + chosen[:-1].tobytes() + b"]")
        return found if found is not None and len(found) == len(first) else None


def _with(
    values: list[Numbers], hard: Bools, given: npt.NDArray[np.float64], broken: Bools, columns: list[slice]
) -> list[Numbers]:
    """Put the numbers that were given, line by line, in the place of what stands there."""
    order = np.zeros(hard.shape, np.int64)
    order[hard] = np.arange(len(given))
    found: list[Numbers] = []
    for column, some in zip(values, columns, strict=True):
        there = hard[:, some]
        if not there.any():
            found.append(column)
            continue
        with_given = column.astype(np.float64)
        with_given[there] = given[order[:, some][there]]
        whole = column.dtype.kind == "i" and not broken[:, some].any() and (np.abs(with_given) < _EXACT).all()
        found.append(with_given.astype(np.int64) if whole else with_given)
    return found
