"""Keeps what was read on disk, until all of it was read and it is known how the run is to be cut.

One record a document: a JSON line, then its arrays as they are. It does not know formats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moe_probe.store.files import writing

Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Kept:
    """The rows of one document that go into the run.

    `experts` is (layers, slots, tokens), `weights` the same shape as float16, or None. `blank` are the places in
    `layers` that hold nothing in this document. `pieces` and `texts` are a string a token, or empty where unknown.
    """

    name: str
    domain: str | None
    layers: tuple[int, ...]
    blank: tuple[int, ...]
    experts: npt.NDArray[np.signedinteger]
    weights: npt.NDArray[np.float16] | None
    positions: npt.NDArray[np.int32]
    places: npt.NDArray[np.int32]
    token_ids: npt.NDArray[np.int32]
    generated: Bools
    special: Bools
    pieces: list[str]
    texts: list[str]

    @property
    def n_tokens(self) -> int:
        """Rows of the document."""
        return len(self.positions)


_ARRAYS = ("experts", "weights", "positions", "places", "token_ids", "generated", "special")


class Spool:
    """A file of documents, written once and read once."""

    def __init__(self, path: Path) -> None:
        """Open a new file."""
        self._path = path
        with writing(path):
            self._file = path.open("w+b")

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, kept: Kept) -> None:
        """Write one document at the end."""
        head: dict[str, Any] = {name: getattr(kept, name) for name in ("name", "domain", "layers", "blank")}
        if any(kept.pieces):
            head |= {"pieces": kept.pieces, "texts": kept.texts}
        arrays = {name: np.ascontiguousarray(array) for name in _ARRAYS if (array := getattr(kept, name)) is not None}
        head["arrays"] = {name: (array.dtype.str, array.shape) for name, array in arrays.items()}
        with writing(self._path):
            self._file.write(json.dumps(head).encode() + b"\n")
            for array in arrays.values():
                self._file.write(array.data)

    def read(self) -> Iterator[Kept]:
        """Yield the documents from the first on."""
        with writing(self._path):
            self._file.seek(0)
        while line := self._file.readline():
            head = json.loads(line)
            arrays: dict[str, Any] = {"weights": None}
            for name, (kind, shape) in head["arrays"].items():
                flat = np.fromfile(self._file, kind, math.prod(shape))
                arrays[name] = flat.reshape(shape)
            yield Kept(
                name=head["name"],
                domain=head["domain"],
                layers=tuple(head["layers"]),
                blank=tuple(head["blank"]),
                pieces=head.get("pieces", []),
                texts=head.get("texts", []),
                **arrays,
            )
