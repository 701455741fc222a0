"""Keeps the encoded corpus on disk while it is traced, so that inputs are read and tokenised once.

A pipe or a generator can be read once only, and a file might change between two readings. The spool lies in the run's
folder as a temporary file, is read from any document on, and goes when the trace ends. It does not know what documents
are for.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa

from moe_probe.corpus import Document
from moe_probe.store.files import writing
from moe_probe.tracing.encoding import EncodedDocument

_TEXTS = ("name", "text", "domain", "language", "labels")
_ARRAYS = ("ids", "starts", "ends")
_SCHEMA = pa.schema(
    [(name, pa.large_string()) for name in _TEXTS]
    + [(name, pa.large_list(pa.int32())) for name in _ARRAYS]
    + [("n_prompt", pa.int64())]
)


class Spool:
    """Encoded documents on disk: first added, then, after `finish`, read.

    Example:
        >>> import tempfile
        >>> ids = np.array([5], np.int32)
        >>> with Spool(Path(tempfile.mkdtemp()) / "spool") as spool:
        ...     spool.add([EncodedDocument(0, Document("a", "Hi"), ids, ids * 0, ids * 0 + 2)])
        ...     spool.finish()
        ...     [encoded.document.text for encoded in spool.read(0, 1)]
        ['Hi']
    """

    def __init__(self, path: Path) -> None:
        """Open a new spool at `path`."""
        self.path = path
        self._starts = [0]  # the document that each record batch starts with, and one past the last
        self._reader: pa.ipc.RecordBatchFileReader | None = None
        with writing(path):
            self._file = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._file, _SCHEMA, options=pa.ipc.IpcWriteOptions(compression="lz4"))

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader = None
        self._file.close()
        self.path.unlink(missing_ok=True)

    def add(self, encoded: Sequence[EncodedDocument]) -> None:
        """Append documents, which later are read together.

        Raises:
            MoeProbeError: if the disk is full.
        """
        texts = [
            [one.document.name for one in encoded],
            [one.document.text for one in encoded],
            [one.document.domain for one in encoded],
            [one.document.language for one in encoded],
            [None if one.document.labels is None else json.dumps(one.document.labels) for one in encoded],
        ]
        arrays = [
            _lists([one.ids for one in encoded]),
            _lists([one.starts for one in encoded]),
            _lists([one.ends for one in encoded]),
        ]
        prompts = pa.array([one.n_prompt for one in encoded], pa.int64())
        columns = [*(pa.array(values, pa.large_string()) for values in texts), *arrays, prompts]
        with writing(self.path):
            self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        self._starts.append(self._starts[-1] + len(encoded))

    def finish(self) -> None:
        """Close the spool for writing and open it for reading."""
        with writing(self.path):
            self._writer.close()
            self._file.close()
            self._file = pa.memory_map(str(self.path))
            self._reader = pa.ipc.open_file(self._file)

    def read(self, first: int, stop: int) -> Iterator[EncodedDocument]:
        """Yield documents `first` to `stop` (not included)."""
        for table, start in self._tables(first, stop):
            arrays = [table.column(name) for name in _ARRAYS]
            for row in range(max(first - start, 0), min(stop - start, table.num_rows)):
                name, text, domain, language, labels = (table.column(column)[row].as_py() for column in _TEXTS)
                document = Document(name, text, domain, language, None if labels is None else _spans(labels))
                # A copy, for the table goes with its batch.
                ids, starts, ends = (array[row].values.to_numpy(zero_copy_only=False).copy() for array in arrays)
                n_prompt = table.column("n_prompt")[row].as_py()
                yield EncodedDocument(start + row, document, ids, starts, ends, n_prompt)

    def read_names(self) -> Iterator[tuple[pa.RecordBatch, int]]:
        """Yield name, domain and language of all documents, some at once, with the number of the first of them."""
        for table, start in self._tables(0, self._starts[-1]):
            yield table.select(["name", "domain", "language"]), start

    def _tables(self, first: int, stop: int) -> Iterator[tuple[pa.RecordBatch, int]]:
        if self._reader is None:
            raise ValueError("the spool is still being written: finish() it first")
        batch = bisect_right(self._starts, first) - 1
        while batch < len(self._starts) - 1 and self._starts[batch] < stop:
            yield self._reader.get_batch(batch), self._starts[batch]
            batch += 1


def _lists(arrays: Sequence[np.ndarray]) -> pa.LargeListArray:
    offsets = np.cumsum([0, *(len(array) for array in arrays)])
    values = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, pa.int32()))


def _spans(labels: str) -> dict[str, str | list[tuple[int, int, str]]]:
    return {
        name: value if isinstance(value, str) else [(start, end, word) for start, end, word in value]
        for name, value in json.loads(labels).items()
    }
