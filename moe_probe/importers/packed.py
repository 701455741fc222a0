"""Takes long strings of base64 out of a line of JSON before it is parsed: decoding them alone takes less time.

It does not know what is in them.
"""

from __future__ import annotations

import binascii
import json
import secrets

import pybase64

_LONG = 1 << 12
_SPACE = b" \t\r"
_MARK = secrets.token_hex(16)
"""What no line can hold by chance."""


def unpack(line: bytes, key: str) -> tuple[bytes, dict[str, bytes]]:
    r"""Return a line in which short marks stand for the long strings of base64 under a key, and what each stands for.

    A line that is no JSON is none afterwards. A string that is no base64 stays.

    Args:
        line: an object of JSON.
        key: of the strings.

    Example:
        >>> line, unpacked = unpack(b'{"a": "' + b"AAEC" * 2000 + b'", "b": "AAEC"}', "a")
        >>> len(line) < 100, [data[:3] for data in unpacked.values()]
        (True, [b'\x00\x01\x02'])
    """
    name = json.dumps(key).encode()
    parts: list[bytes] = []
    unpacked: dict[str, bytes] = {}
    done = 0
    place = line.find(name)
    while place >= 0:
        begin = _string(line, place + len(name)) if line[place - 1 : place] != b"\\" else None
        end = -1 if begin is None else line.find(b'"', begin)
        if begin is not None and end - begin >= _LONG and (data := _decoded(memoryview(line)[begin:end])) is not None:
            mark = f"{_MARK} {len(unpacked)}"
            unpacked[mark] = data
            parts += [line[done:begin], mark.encode()]
            done = end
        place = line.find(name, max(end, place + len(name)))
    return b"".join([*parts, line[done:]]), unpacked


def _string(line: bytes, place: int) -> int | None:
    """Return where the string begins that is the value of a key, given where the key ends; None if it is no string."""
    for sign in (b":", b'"'):
        while line[place : place + 1] and line[place : place + 1] in _SPACE:
            place += 1
        if line[place : place + 1] != sign:
            return None
        place += 1
    return place


def _decoded(text: memoryview) -> bytes | None:
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error:
        return None
