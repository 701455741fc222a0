"""Files of a run: read with clear errors, and written so that no reader ever sees half of one.

A file is written as `*.tmp`, flushed to the disk and renamed. It does not know what is in the files.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import MoeProbeError, RunError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(path: Path, kept: Sequence[int] = ()) -> Iterator[Path]:
    """Yield a temporary path to write to; then flush it to the disk and rename it to `path`.

    Raises:
        MoeProbeError: if it cannot be written, for example because the disk is full. `kept` are the shards that are
            whole and stay.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path, kept):
        try:
            yield temporary
            flush(temporary)
            temporary.rename(path)
            flush(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def flush(path: Path) -> None:
    """Make sure that a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path, kept: Sequence[int] = ()) -> Iterator[None]:
    """Turn the system's errors into one line that says what to do."""
    try:
        yield
    except OSError as error:
        reason = "no space left" if error.errno in _NO_SPACE else str(error.strerror or error)
        advice = "make room or choose another folder, then try again"
        if kept:
            advice = f"whole shards kept: {len(kept)}; make room and go on with --resume"
        raise MoeProbeError(f"{path}: cannot be written ({reason}); {advice}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run.

    Raises:
        RunError: if it is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); is this a run of moe_probe?") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: holds no JSON object; is this a run of moe_probe?")
    return value


def count_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file.

    Raises:
        RunError: if the file is missing or not whole.
    """
    return int(read_footer(path).num_rows)


def read_footer(path: Path) -> pq.FileMetaData:
    """Return the footer of a Parquet file: its row count, schema and metadata.

    Raises:
        RunError: if the file is missing or not whole.
    """
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged or cut short"
        raise RunError(f"{path}: {reason}; delete the shard's files and trace again with --resume") from error
