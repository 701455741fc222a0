"""Keeps what was read on disk, until all of it was read and it is known how the run is to be cut.

One record a document: a JSON line, then its arrays as they are, each from a byte on that is a multiple of eight within
the record. It does not know formats.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

    def without_routing(self) -> Kept:
        """Return the document without its experts and weights, which are most of it."""
        return replace(self, experts=np.zeros((0, 0, 0), np.int8), weights=None)


_ARRAYS = ("experts", "weights", "positions", "places", "token_ids", "generated", "special")
_LARGE = ("experts", "weights")
_ALIGNED = 8


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
                self._file.write(bytes(-array.nbytes % _ALIGNED))

    def read(self) -> Iterator[Kept]:
        """Yield the documents from the first on."""
        with writing(self._path):
            self._file.seek(0)
        while line := self._file.readline():
            head = json.loads(line)
            arrays: dict[str, Any] = {"weights": None}
            for large in (True, False):  # apart, so that what is small does not hold on to what is large
                kinds = {name: kind for name, kind in head["arrays"].items() if (name in _LARGE) == large}
                arrays |= self._read_arrays(kinds)
            yield Kept(
                name=head["name"],
                domain=head["domain"],
                layers=tuple(head["layers"]),
                blank=tuple(head["blank"]),
                pieces=head.get("pieces", []),
                texts=head.get("texts", []),
                **arrays,
            )

    def _read_arrays(self, kinds: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays that stand next in the file, given the type and shape of each."""
        sizes = {name: math.prod(shape) * np.dtype(kind).itemsize for name, (kind, shape) in kinds.items()}
        data = self._file.read(sum(size + -size % _ALIGNED for size in sizes.values()))
        found: dict[str, npt.NDArray[Any]] = {}
        begin = 0
        for name, (kind, shape) in kinds.items():
            found[name] = np.frombuffer(data, kind, math.prod(shape), begin).reshape(shape)
            begin += sizes[name] + -sizes[name] % _ALIGNED
        return found
