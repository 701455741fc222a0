"""Keep what was counted on disk, beside the identity of the files that it was counted from.

A kept count is used only where every file still has the size and time it had, and where the same was asked for, so a
stale one never is; any of them may be deleted at any time. It does not know what is counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

_VERSION = 3
_HEADER = "header.json"
_DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)

Part = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Source:
    """What a count depends on: files in a folder, and `what` was asked for, as values that JSON can hold."""

    folder: Path
    files: tuple[str, ...]
    what: tuple[object, ...]

    def identity(self) -> str:
        """Return a text that is another one as soon as any of it changed."""
        # Large runs have many files: plain strings, for paths cost more than the look at the disk.
        folder = str(self.folder)
        stats = [(file, os.stat(f"{folder}/{file}")) for file in self.files]
        return json.dumps([_VERSION, self.what, [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]])


@dataclass(frozen=True, eq=False)
class Kept:
    """What one file keeps: `facts` that JSON can hold, and arrays by name."""

    facts: Mapping[str, Any]
    arrays: Part


def narrow(numbers: NDArray[np.integer]) -> NDArray[np.unsignedinteger]:
    """Return counts in the smallest unsigned integers that hold them.

    Example:
        >>> narrow(np.array([3, 255])).dtype, narrow(np.array([3, 256])).dtype
        (dtype('uint8'), dtype('uint16'))
    """
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def remembered(path: Path, source: Source, count: Callable[[], Kept]) -> Kept:
    """Return what `path` keeps if it was counted from this very source, else count and keep it there.

    Args:
        path: where the numbers are kept.
        source: everything that they depend on.
        count: counts them.
    """
    identity = source.identity()
    kept = _read(path, identity)
    if kept is not None:
        return kept
    counted = count()
    with _Writer(path) as writer:
        for name, array in counted.arrays.items():
            writer.add(name, array)
        writer.publish(identity, counted.facts)
    return counted


def remembered_parts(
    path: Path, source: Source, n_parts: int, count: Callable[[], Iterator[Part]]
) -> Iterator[tuple[int, Part]]:
    """Yield numbered parts one at a time, from `path` or counted anew; no more than one is held.

    They are kept as soon as all were asked for.

    Args:
        path: where the parts are kept.
        source: everything that they depend on.
        n_parts: how many parts there are.
        count: yields all of them, in order; the arrays of each have the same names.
    """
    identity = source.identity()
    known = 0
    for part in _read_parts(path, identity, n_parts):
        yield known, part
        known += 1
    if known == n_parts:
        return
    with _Writer(path) as writer:
        for number, part in enumerate(count()):
            for name, array in part.items():
                writer.add(f"{name}_{number}", array)
            # Parts before a damaged one were yielded already.
            if number >= known:
                yield number, part
        writer.publish(identity, {})


def _read(path: Path, identity: str) -> Kept | None:
    """Return a kept count, or None where there is none, or it was made of other files or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            facts = _facts(file, identity)
            if facts is None:
                return None
            return Kept(facts, {name: file[name] for name in file.files if name != _HEADER})
    except _DAMAGE:
        return None


def _read_parts(path: Path, identity: str, n_parts: int) -> Iterator[Part]:
    """Yield kept parts until one is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if _facts(file, identity) is None:
                return
            names: dict[int, list[str]] = {number: [] for number in range(n_parts)}
            for stored in file.files:
                if stored != _HEADER:
                    names[int(stored.rpartition("_")[2])].append(stored)
            for stored_names in names.values():
                part = {stored.rpartition("_")[0]: file[stored] for stored in stored_names}
                yield part
    except _DAMAGE:
        return


def _facts(file: Any, identity: str) -> dict[str, Any] | None:
    header = json.loads(file[_HEADER])
    if header["identity"] != identity:
        return None
    facts: dict[str, Any] = header["facts"]
    return facts


class _Writer:
    """Writes arrays one by one to a scratch file, and puts it in its place at the end.

    A run on a read-only or a full disk can be counted all the same; it is only not remembered: an error of the disk
    ends the writing, not the counting.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._scratch = path.with_suffix(f".{uuid4().hex}.tmp")
        self._file: zipfile.ZipFile | None = None

    def __enter__(self) -> _Writer:
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            self._file = zipfile.ZipFile(self._scratch, "x", zipfile.ZIP_STORED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give_up()

    def add(self, name: str, array: NDArray[Any]) -> None:
        """Write one array."""
        if self._file is None:
            return
        try:
            with self._file.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.save(member, array, allow_pickle=False)
        except OSError:
            self._give_up()

    def publish(self, identity: str, facts: Mapping[str, Any]) -> None:
        """Write the header and give the file its name."""
        if self._file is None:
            return
        try:
            self._file.writestr(_HEADER, json.dumps({"identity": identity, "facts": dict(facts)}))
            self._file.close()
            self._scratch.replace(self._path)
        except OSError:
            self._give_up()
        self._file = None

    def _give_up(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            self._scratch.unlink(missing_ok=True)
