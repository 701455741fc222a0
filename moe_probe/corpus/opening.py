"""Opens input files: gzip and Zstandard undone, lines counted, UTF-8 checked.

It does not know what is in the files.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePath
from weakref import WeakKeyDictionary

import zstandard

from moe_probe.errors import BadInputError

STANDARD_INPUT = "-"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstandard", ".zstd": "zstandard"}

_BLOCK_BYTES = 1 << 20
# Four bytes of Zstandard may stand for 128 KB, and the library decompresses all that it is given at once.
_CAREFUL_BYTES = 256
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

_most_bytes: ContextVar[int | None] = ContextVar("most_bytes", default=None)

# Standard input can be read once only; a corpus is read more than once.
_standard_input: WeakKeyDictionary[object, bytes] = WeakKeyDictionary()


@dataclass(frozen=True)
class Source:
    """One input file and what its place tells about the documents in it.

    `path` is the file, `-` for standard input; `name` what a document of it is called; `domain` and `language` hold
    for documents that do not state their own.
    """

    path: str
    name: str
    domain: str | None = None
    language: str | None = None

    @property
    def shown(self) -> str:
        """The file as messages call it."""
        return "standard input" if self.path == STANDARD_INPUT else self.path

    @property
    def suffix(self) -> str:
        """The suffix in small letters, that of a compression left aside: `.jsonl` for `a.JSONL.gz`."""
        name = PurePath(self.path)
        return PurePath(name.stem if _compression(name) else name).suffix.lower()


@dataclass(frozen=True)
class Line:
    """One line of a file: its number from 1, the place of its first byte, its text with the line ending."""

    number: int
    offset: int
    text: str


@contextmanager
def at_most(n_bytes: int) -> Iterator[None]:
    """Refuse, in this thread and while it lasts, every file that has more bytes than this once it is decompressed.

    A file is refused when so many bytes of it have come, whatever it says of its size: never much more is in memory.

    Example:
        >>> with at_most(10_000_000):
        ...     sum(map(len, read_blocks(Source(__file__, "opening.py")))) > 1_000
        True
    """
    before = _most_bytes.set(n_bytes)
    try:
        yield
    finally:
        _most_bytes.reset(before)


def read_blocks(source: Source) -> Iterator[bytes]:
    """Yield the bytes of a file block by block, decompressed.

    Raises:
        BadInputError: if it cannot be read, its compression is broken or cut short, or `at_most` allows less.
    """
    most = _most_bytes.get()
    seen = 0
    for block in _read_blocks(source, careful=most is not None):
        seen += len(block)
        if most is not None and seen > most:
            after = " when decompressed" if _compression(PurePath(source.path)) else ""
            raise BadInputError(f"{source.shown}: more than {most:,} bytes{after}, which is the most here; divide it")
        yield block


def _read_blocks(source: Source, *, careful: bool) -> Iterator[bytes]:
    if source.path == STANDARD_INPUT:
        yield _read_standard_input()
        return
    try:
        compression = _compression(PurePath(source.path))
        if compression == "zstandard":
            yield from _unpack_zstandard(source, _CAREFUL_BYTES if careful else _BLOCK_BYTES)
            return
        with gzip.open(source.path) if compression else Path(source.path).open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
        raise BadInputError(
            f"{source.shown}: broken {compression} data ({error}); was the file copied whole?"
        ) from error
    except OSError as error:
        raise BadInputError(f"{source.shown}: cannot be read ({error.strerror or error})") from error


def read_text(source: Source) -> str:
    """Return the whole text of a file, exactly, without a byte order mark.

    Raises:
        BadInputError: if it is no UTF-8 text.
    """
    data = b"".join(read_blocks(source))
    mark = len(_BYTE_ORDER_MARK) if data.startswith(_BYTE_ORDER_MARK) else 0
    text = _decode(source, data[mark:], mark)
    if "\0" in text:
        place = data.index(b"\0")
        raise BadInputError(
            f"{source.shown}: byte {place} is NUL, so this is no text; if it is UTF-16, convert it to UTF-8 first"
        )
    return text


def read_lines(source: Source) -> Iterator[Line]:
    """Yield the lines of a file, which end at a line feed and keep it.

    Raises:
        BadInputError: if a line is no UTF-8 text.
    """
    number, offset = 1, 0
    pending: list[bytes] = []
    for block in read_blocks(source):
        *whole, rest = block.split(b"\n")
        for part in whole:
            line = b"".join([*pending, part, b"\n"])
            pending.clear()
            yield _line(source, number, offset, line)
            number, offset = number + 1, offset + len(line)
        if rest:
            pending.append(rest)
    if pending:
        yield _line(source, number, offset, b"".join(pending))


def _line(source: Source, number: int, offset: int, raw: bytes) -> Line:
    mark = len(_BYTE_ORDER_MARK) if number == 1 and raw.startswith(_BYTE_ORDER_MARK) else 0
    return Line(number, offset, _decode(source, raw[mark:], offset + mark))


def _decode(source: Source, raw: bytes, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        place = offset + error.start
        after = " of the decompressed data" if _compression(PurePath(source.path)) else ""
        wide = offset == 0 and raw.startswith(_UTF_16_MARKS)
        hint = "it looks like UTF-16; convert it to UTF-8" if wide else "convert the file to UTF-8, or leave it out"
        raise BadInputError(
            f"{source.shown}: byte {place}{after} is 0x{raw[error.start]:02x}, not UTF-8; {hint}"
        ) from None


def _compression(path: PurePath) -> str | None:
    return COMPRESSIONS.get(path.suffix.lower())


def _unpack_zstandard(source: Source, at_once: int) -> Iterator[bytes]:
    """Decompress frame by frame: the library's stream reader takes a file that was cut short for a whole one."""
    frame = None
    with Path(source.path).open("rb") as file:
        while packed := file.read(at_once):
            while packed:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(packed):
                    yield block
                packed = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("it ends in the middle of a frame")


def _read_standard_input() -> bytes:
    stream = sys.stdin.buffer
    if stream not in _standard_input:
        _standard_input[stream] = stream.read()
    return _standard_input[stream]
