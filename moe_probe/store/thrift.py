"""Thrift's compact protocol, as much of it as the headers and the footer of a Parquet file need.

A value is a pair: the number of its type, and its bytes. It does not know what the fields mean. (Apache Thrift,
thrift-compact-protocol.md.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

Value: TypeAlias = tuple[int, bytes]

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _LIST, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 9, 12

_BYTES = [bytes([number]) for number in range(256)]


@lru_cache(1024)
def varint(number: int) -> bytes:
    r"""Return a number from 0 on in groups of seven bits, the lowest first.

    Example:
        >>> varint(300)
        b'\xac\x02'
    """
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _zigzag(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


def flag(value: bool) -> Value:
    """Return a truth value."""
    return (_TRUE if value else _FALSE), b""


def int8(number: int) -> Value:
    """Return a number of one byte."""
    return _BYTE, bytes([number])


def int16(number: int) -> Value:
    """Return a number of two bytes."""
    return _I16, _zigzag(number)


@lru_cache(1024)
def int32(number: int) -> Value:
    """Return a number of four bytes, as enumerations are too."""
    return _I32, _zigzag(number)


@lru_cache(1024)
def int64(number: int) -> Value:
    """Return a number of eight bytes."""
    return _I64, _zigzag(number)


def binary(data: bytes) -> Value:
    """Return bytes, as strings are too."""
    return _BINARY, varint(len(data)) + data


def sequence(values: Sequence[Value]) -> Value:
    """Return a list of values of one type; one of none is taken to be of structures."""
    kind, size = (values[0][0] if values else _STRUCT), len(values)
    head = bytes([size << 4 | kind]) if size < 15 else bytes([15 << 4 | kind]) + varint(size)
    return _LIST, head + b"".join([data for _, data in values])


def struct(fields: Mapping[int, Value]) -> Value:
    r"""Return a structure: its fields by their numbers, which ascend by 15 at most.

    Example:
        >>> struct({1: int32(-1), 3: binary(b"ab")})
        (12, b'\x15\x01(\x02ab\x00')
    """
    parts: list[bytes] = []
    before = 0
    for number, (kind, data) in fields.items():
        parts += (_BYTES[number - before << 4 | kind], data)
        before = number
    return _STRUCT, b"".join([*parts, b"\0"])
