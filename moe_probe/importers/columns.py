"""Makes the routing of a shard from the documents in it, in the types that it has on disk.

Documents lie as their columns do, so that each is put in its place by one copy. It does not know formats, nor how files
are written.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import RoutingError
from moe_probe.importers.kept import Form, Kept
from moe_probe.schema import DROPPED, expert_column, weight_column


class RoutingColumns:
    """The routing of one shard, filled document by document, so that no more than one of them need be in memory.

    It can be cleared and filled again: to touch memory for the first time takes longer than to fill it.
    """

    def __init__(self, form: Form, room: int) -> None:
        """Make room for some rows, of all documents together."""
        self._places, self._bits, self.room = list(form.places), form.bits, room
        n_slots = form.n_slots
        self._experts = _room((len(form.places), n_slots, room), np.dtype(f"uint{form.bits}"))
        self._weights = _room((len(form.places), n_slots if form.weighted else 0, room), np.dtype(np.float16))
        self.clear()

    def clear(self) -> None:
        """Forget all rows; what `to_table` gave before is worth nothing afterwards."""
        self._filled, self._whole = 0, True

    def add(self, kept: Kept) -> None:
        """Put the rows of a document after those of the last.

        Raises:
            RoutingError: if there is an expert that the columns cannot hold.
        """
        none = np.iinfo(self._experts.dtype).max  # no expert: it is what -1 becomes, too
        lowest, highest = (int(find(kept.experts)) if kept.experts.size else DROPPED for find in (np.min, np.max))
        if not DROPPED <= lowest <= highest < none:
            wrong = highest if lowest >= DROPPED else lowest
            raise RoutingError(f"{kept.name}: expert {wrong} in {self._bits} bits; this is a fault, please report it")
        n_layers, n_slots, n_tokens = kept.experts.shape
        chosen = slice(None) if len(self._places) == n_layers else self._places
        rows = slice(self._filled, self._filled + n_tokens)
        self._experts[:, :n_slots, rows] = kept.experts[chosen]
        self._experts[:, n_slots:, rows] = none
        self._whole &= lowest > DROPPED and n_slots == self._experts.shape[1]
        if kept.weights is not None:
            self._weights[:, :n_slots, rows] = kept.weights[chosen]
            self._weights[:, n_slots:, rows] = 0
        self._filled = rows.stop

    def to_table(self) -> pa.Table:
        """Return the columns as `schema.routing_columns` orders them, without copying them."""
        columns: dict[str, pa.Array] = {}
        experts, weights = self._experts[:, :, : self._filled], self._weights[:, :, : self._filled]
        for router, (chosen, heavy) in enumerate(zip(experts, weights, strict=True)):
            columns |= {expert_column(router, slot): _array(column, self._whole) for slot, column in enumerate(chosen)}
            columns |= {weight_column(router, slot): _array(column, True) for slot, column in enumerate(heavy)}
        return pa.table(columns)


def _room(shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return zeros that go back to the system when they are not needed any more: `malloc` would keep some of them."""
    n_bytes = math.prod(shape) * kind.itemsize
    return np.frombuffer(mmap.mmap(-1, n_bytes), kind).reshape(shape) if n_bytes else np.zeros(shape, kind)


def _array(column: npt.NDArray[Any], whole: bool) -> pa.Array:
    """Return a column without copying it, with nulls where experts are not there, unless it is known to be whole."""
    if not whole and int(column.max()) == np.iinfo(column.dtype).max:
        return pa.array(column, mask=column == np.iinfo(column.dtype).max)
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, pa.py_buffer(column)])
