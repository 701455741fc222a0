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
    """The routing of one shard, filled document by document, so that no more than one of them need be in memory."""

    def __init__(self, routers: Sequence[Router], places: Sequence[int], rows: int, *, weights: bool) -> None:
        """Make room for some rows.

        Args:
            routers: those of the run, all with as many experts and slots.
            places: the place of each router among the layers of a document.
            rows: of all documents together.
            weights: whether there are any.
        """
        self._routers, self._places, self._filled = list(routers), list(places), 0
        n_slots, kind = routers[0].n_slots, np.dtype(f"uint{expert_bits(routers[0].n_experts)}")
        self._experts = _room((len(routers), n_slots, rows), kind)
        self._weights = _room((len(routers), n_slots if weights else 0, rows), np.dtype(np.float16))

    def add(self, kept: Kept) -> None:
        """Put the rows of a document after those of the last.

        Raises:
            RoutingError: if there is an expert that the routers do not have.
        """
        known = self._routers[0].n_experts
        lowest, highest = int(kept.experts.min(initial=DROPPED)), int(kept.experts.max(initial=DROPPED))
        if not DROPPED <= lowest <= highest < known:
            wrong = highest if lowest >= DROPPED else lowest
            raise RoutingError(f"{kept.name}: expert {wrong} was read of {known}; this is a fault, please report it")
        n_layers, n_slots, n_tokens = kept.experts.shape
        chosen = slice(None) if len(self._places) == n_layers else self._places
        rows = slice(self._filled, self._filled + n_tokens)
        self._experts[:, :n_slots, rows] = kept.experts[chosen]
        self._experts[:, n_slots:, rows] = np.iinfo(self._experts.dtype).max  # no expert: it is what -1 becomes, too
        if kept.weights is not None:
            self._weights[:, :n_slots, rows] = kept.weights[chosen]
        self._filled = rows.stop

    def to_table(self) -> pa.Table:
        """Return the columns as `schema.routing_columns` orders them, without copying them."""
        columns: dict[str, pa.Array] = {}
        for router, experts, weights in zip(self._routers, self._experts, self._weights, strict=True):
            columns |= {expert_column(router.index, slot): _array(column) for slot, column in enumerate(experts)}
            columns |= {weight_column(router.index, slot): _array(column) for slot, column in enumerate(weights)}
        return pa.table(columns)


def _room(shape: tuple[int, ...], kind: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return zeros that go back to the system when they are not needed any more: `malloc` would keep some of them."""
    n_bytes = math.prod(shape) * kind.itemsize
    return np.frombuffer(mmap.mmap(-1, n_bytes), kind).reshape(shape) if n_bytes else np.zeros(shape, kind)


def _array(column: npt.NDArray[Any]) -> pa.Array:
    """Return a column without copying it, with nulls where experts are not there."""
    if column.dtype.kind == "u" and int(column.max()) == np.iinfo(column.dtype).max:
        return pa.array(column, mask=column == np.iinfo(column.dtype).max)
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, pa.py_buffer(column)])
