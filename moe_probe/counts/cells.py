"""Count experts by cell: the rows of one shard that have the same label and lie in the same cluster.

Two slots of a router are counted as one code, as long as there are few enough pairs of experts, and are told apart
afterwards: half as many additions. It does not know which rows are asked for, nor what is kept of a count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from moe_probe import schema
from moe_probe.counts.clusters import BLOCK_POSITIONS, Clusters
from moe_probe.counts.experts import SlotExperts
from moe_probe.counts.selection import Selection

if TYPE_CHECKING:
    from moe_probe.store import Shard


@dataclass(frozen=True, eq=False)
class Cells:
    """What is counted in a shard: `n` rows, of these labels, clusters and documents.

    A cell is cluster times labels plus label. `of_rows` (rows,) int32 holds that of each row; rows that are not counted
    get one more than there are. `rows` says which of the shard's rows these are, None: all.
    """

    n: int
    labels: list[str]
    clusters: list[int]
    documents: NDArray[np.int32]
    of_rows: NDArray[np.int32]
    rows: NDArray[np.int64] | None
    _sparse: dict[tuple[int, int], tuple[coo_array, NDArray[np.int32]]] = field(default_factory=dict, repr=False)

    def count(self, n_experts: int, slots: Sequence[SlotExperts]) -> NDArray[np.int32]:
        """Return how many assignments of each expert fell on each cell, (clusters, experts, labels).

        Args:
            n_experts: of the router.
            slots: what each of its slots held, from `iter_experts`, which sees to it that all are below `n_experts`:
                it is not checked again. A dropped one is counted nowhere.
        """
        width = n_experts + any([slot.missing is not None for slot in slots])
        n_cells, n_rows = len(self.clusters) * len(self.labels), len(self.of_rows)
        pairs = width**2 * n_cells <= n_rows
        # Where a table has more places than there are rows, it costs more than they do: all slots then share one.
        at_once = 2 if pairs else len(slots) if width * n_cells > n_rows else 1
        counts = np.zeros((width, n_cells + 1), dtype=np.int32)
        for first in range(0, len(slots), at_once or 1):
            together = slots[first : first + at_once]
            if pairs and len(together) == 2:
                table = self._table(_pair_codes(together[0], together[1], width), width**2, 1)
                of_pairs = table.reshape(width, width, n_cells + 1)
                counts += np.add.reduce(of_pairs, axis=0, dtype=np.int32)
                counts += np.add.reduce(of_pairs, axis=1, dtype=np.int32)
            else:
                codes = [_held(slot, width) for slot in together]
                joined = codes[0] if len(codes) == 1 else np.concatenate(codes)
                counts += self._table(joined, width, len(codes))
        by_expert = counts[:n_experts, :n_cells].reshape(n_experts, len(self.clusters), len(self.labels))
        return by_expert.swapaxes(0, 1)

    def _table(self, codes: NDArray[np.unsignedinteger], n_codes: int, times: int) -> NDArray[np.int32]:
        """Return how often each code, below `n_codes`, and cell came together, (codes, cells and one more).

        A sparse array that is made dense adds up what it holds in one place. Its 32-bit numbers take half the time of
        `np.bincount`, which needs one number of 64 bits for both. Array and table are kept and given other codes, since
        to make them takes nearly as long; what was returned before is then overwritten.

        Args:
            codes: (times x rows,).
            n_codes: how many different codes there may be.
            times: how often all rows come, one after the other.
        """
        if (n_codes, times) not in self._sparse:
            shape = (n_codes, len(self.clusters) * len(self.labels) + 1)
            sparse = coo_array(shape, dtype=np.int32)
            sparse.data = np.ones(len(codes), dtype=np.int32)
            # Given to the array at once, they would be searched for their highest and lowest.
            cells = self.of_rows if times == 1 else np.tile(self.of_rows, times)
            sparse.coords = np.empty(len(codes), dtype=np.int32), cells
            self._sparse[n_codes, times] = sparse, np.empty(shape, dtype=np.int32)
        sparse, table = self._sparse[n_codes, times]
        sparse.coords[0][:] = codes
        sparse.toarray(out=table)
        return table


def find_cells(shard: Shard, rows: Selection, clusters: Clusters) -> Cells:
    """Return the cells of a shard's rows.

    Args:
        shard: where to read.
        rows: which of its rows are counted, and by which label.
        clusters: finds their clusters.

    Raises:
        RunError: a row has no value of the label.
    """
    here = rows.rows(shard, clusters.columns)
    n = int(here.n_counted.sum())
    wanted = np.flatnonzero(here.counted) if n < len(here.kept) // 2 else None
    if wanted is not None:
        here = here.take(wanted)
    labels, place_of_label = here.label_places()
    documents = here.columns["document"]
    positions = here.columns["position"] if "position" in clusters.columns else None
    begins = _stretches(documents, positions)
    cluster = clusters.of(documents[begins], None if positions is None else positions[begins])
    present, place = np.unique(cluster, return_inverse=True)
    # Rows that are not counted come behind the last cell, whatever their cluster.
    n_cells = present.size * len(labels)
    place_of_label[place_of_label == len(labels)] = n_cells
    of_rows = place_of_label.take(here.labels.places)
    of_rows += np.repeat((place * len(labels)).astype(np.int32), np.diff(begins, append=len(documents)))
    np.minimum(of_rows, n_cells, out=of_rows)
    of_rows[np.flatnonzero(~here.kept)] = n_cells
    tagged = of_rows < n_cells
    if schema.UNTAGGED in labels:
        tagged &= ~here.labels.are([schema.UNTAGGED])
    return Cells(
        n=n,
        labels=labels,
        clusters=present.tolist(),
        documents=np.unique(documents[begins[np.logical_or.reduceat(tagged, begins)]]),
        of_rows=of_rows,
        rows=wanted,
    )


def _stretches(documents: NDArray[np.int32], positions: NDArray[np.int32] | None) -> NDArray[np.int64]:
    """Return where rows begin that follow each other in one document and, if there are positions, in one block of it.

    Example:
        >>> _stretches(np.array([4, 4, 5], np.int32), None), _stretches(np.array([4, 4]), np.array([255, 256]))
        (array([0, 2]), array([0, 1]))
    """
    new = np.ones(len(documents), dtype=np.bool_)
    np.not_equal(documents[1:], documents[:-1], out=new[1:])
    if positions is not None:
        blocks = positions // BLOCK_POSITIONS
        new[1:] |= blocks[1:] != blocks[:-1]
    return np.flatnonzero(new)


def _pair_codes(first: SlotExperts, second: SlotExperts, width: int) -> NDArray[np.unsignedinteger]:
    """Return a number below width squared for the two experts of each row.

    Example:
        >>> _pair_codes(SlotExperts(np.array([2, 0], np.uint8), None), SlotExperts(np.array([1, 2], np.uint8), None), 3)
        array([7, 2], dtype=uint8)
    """
    kind = np.min_scalar_type(width**2 - 1)
    codes: NDArray[np.unsignedinteger] = np.multiply(_held(first, width), kind.type(width), dtype=kind)
    codes += _held(second, width).astype(kind, copy=False)
    return codes


def _held(slot: SlotExperts, width: int) -> NDArray[np.unsignedinteger]:
    """Return the slot's experts, the last of the width where it was dropped."""
    if slot.missing is None:
        return slot.experts
    return np.where(slot.missing, width - 1, slot.experts)
