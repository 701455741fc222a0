"""Makes the routing of a shard from the documents in it, in the types that it has on disk.

Documents lie as their columns do, so that each is put in its place by one copy. It does not know formats, nor how files
are written.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import RoutingError
from moe_probe.importers.spool import Kept
from moe_probe.schema import DROPPED, Router, expert_bits, expert_column, weight_column


class RoutingColumns:
    """The routing of one shard, filled document by document, so that no more than one of them need be in memory.

    It can be cleared and filled again: to touch memory for the first time takes longer than to fill it.
    """

    def __init__(self, routers: Sequence[Router], places: Sequence[int], rows: int, *, weights: bool) -> None:
        """Make room for some rows.

        Args:
            routers: those of the run, all with as many experts and slots.
            places: the place of each router among the layers of a document.
            rows: of all documents together, at most.
            weights: whether there are any.
        """
        self._routers, self._places = list(routers), list(places)
        n_slots, kind = routers[0].n_slots, np.dtype(f"uint{expert_bits(routers[0].n_experts)}")
        self._experts = _room((len(routers), n_slots, rows), kind)
        self._weights = _room((len(routers), n_slots if weights else 0, rows), np.dtype(np.float16))
        self.clear()

    def clear(self) -> None:
        """Forget all rows; what `to_table` gave before is worth nothing afterwards."""
        self._filled, self._whole = 0, True

    def add(self, kept: Kept) -> None:
        """Put the rows of a document after those of the last.

        Raises:
            RoutingError: if there is an expert that the routers do not have.
        """
        known = self._routers[0].n_experts
        lowest, highest = (int(find(kept.experts)) if kept.experts.size else DROPPED for find in (np.min, np.max))
        if not DROPPED <= lowest <= highest < known:
            wrong = highest if lowest >= DROPPED else lowest
            raise RoutingError(f"{kept.name}: expert {wrong} was read of {known}; this is a fault, please report it")
        n_layers, n_slots, n_tokens = kept.experts.shape
        chosen = slice(None) if len(self._places) == n_layers else self._places
        rows = slice(self._filled, self._filled + n_tokens)
        self._experts[:, :n_slots, rows] = kept.experts[chosen]
        self._experts[:, n_slots:, rows] = np.iinfo(self._experts.dtype).max  # no expert: it is what -1 becomes, too
        self._whole &= lowest > DROPPED and n_slots == self._experts.shape[1]
        if kept.weights is not None:
            self._weights[:, :n_slots, rows] = kept.weights[chosen]
            self._weights[:, n_slots:, rows] = 0
        self._filled = rows.stop

    def to_table(self) -> pa.Table:
        """Return the columns as `schema.routing_columns` orders them, without copying them."""
        columns: dict[str, pa.Array] = {}
        experts, weights = self._experts[:, :, : self._filled], self._weights[:, :, : self._filled]
        for router, chosen, heavy in zip(self._routers, experts, weights, strict=True):
            slots = enumerate(chosen)
            columns |= {expert_column(router.index, slot): _array(column, self._whole) for slot, column in slots}
            columns |= {weight_column(router.index, slot): _array(column, True) for slot, column in enumerate(heavy)}
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
