"""Keep what was counted on disk, beside the identity of the files that it was counted from.

A kept count is used only where every file still has the size and time it had, so a stale one never is; any of them may
be deleted at any time. It does not know what is counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_VERSION = 1


@dataclass(frozen=True)
class Counted:
    """Numbers of one or more shards, end to end in `numbers`.

    `n` is how many token rows they are of, `labels` names their label axis and `clusters` their cluster axis; both
    are empty where there is none.
    """

    n: int
    labels: tuple[str, ...]
    clusters: tuple[int, ...]
    numbers: NDArray[np.number]


def remembered(path: Path, files: Sequence[Path], count: Callable[[], Counted]) -> Counted:
    """Return what `path` keeps if it was counted from these very files, else count and keep it there.

    Args:
        path: where the numbers are kept.
        files: everything on disk that they depend on.
        count: counts them.
    """
    identity = _identity(files)
    kept = _read(path, identity)
    if kept is not None:
        return kept
    counted = count()
    # A run on a read-only or a full disk can be counted all the same; it is only not remembered.
    with contextlib.suppress(OSError):
        _write(path, identity, counted)
    return counted


def _identity(files: Sequence[Path]) -> list[object]:
    identity: list[object] = [_VERSION]
    for file in files:
        status = file.stat()
        identity.append([file.name, status.st_size, status.st_mtime_ns])
    return identity


def _read(path: Path, identity: list[object]) -> Counted | None:
    """Return a kept count, or None where there is none, or it was made of other files or is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            if header["identity"] != identity:
                return None
            return Counted(header["n"], tuple(header["labels"]), tuple(header["clusters"]), file["numbers"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, identity: list[object], counted: Counted) -> None:
    header = {
        "identity": identity,
        "n": counted.n,
        "labels": counted.labels,
        "clusters": counted.clusters,
    }
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
            np.savez(file, header=text, numbers=counted.numbers)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
