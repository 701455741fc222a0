"""How the documents of a trace are cut into shards while it is not known yet how many there will be.

A document is a window of the run, so that every shard ends with one. It does not know what is in them.
"""

from __future__ import annotations

from array import array

import numpy as np

from moe_probe.importers.kept import Form
from moe_probe.store.plan import MAX_SHARD_ROWS, Layout, ShardStart, Windowing

_SHARD_ROWS = 65_536
_SHARD_BYTES = 128 * 2**20
_LARGEST_SHARE = 16


def shard_rows(n_rows: int, row_bytes: int) -> int:
    """Return how many rows the next shard should have after so many rows.

    A large trace has few files: from a million rows on, a shard has a sixteenth of what came before it. Wide rows make
    shards shorter, for one is held in memory.

    Args:
        n_rows: in the shards before.
        row_bytes: bytes of the experts and weights of a row.

    Example:
        >>> shard_rows(0, 128), shard_rows(9_000_000, 128), shard_rows(0, 10_000)
        (65536, 562500, 13421)
    """
    wanted = max(_SHARD_ROWS, n_rows // _LARGEST_SHARE)
    return max(1, min(MAX_SHARD_ROWS, wanted, _SHARD_BYTES // max(1, row_bytes)))


class Cutting:
    """Puts one document after the other into shards, by its number of rows."""

    def __init__(self, form: Form) -> None:
        """Begin without a document; all are of the form."""
        self.form = form
        self._shards: list[ShardStart] = []
        self._before = 0  # rows of the shards before the last
        self._rows, self._first_shard, self._first_row = array("q"), array("q"), array("q")
        self.room = 0

    def add(self, rows: int) -> bool:
        """Put the next document in its place, and say whether a shard begins with it; one without rows is in none.

        Afterwards `room` is how many rows its shard has at most: more than usual where the document alone has.
        """
        last = self._shards[-1].rows if self._shards else 0
        begins = rows > 0 and (not self._shards or last + rows > self.room)
        if begins:
            self._before += last
            last = 0
            self.room = max(rows, shard_rows(self._before, self.form.row_bytes))
            self._shards.append(ShardStart(len(self._shards), len(self._rows), 0, 0))
        self._rows.append(rows)
        self._first_shard.append(len(self._shards) - 1 if rows else 0)
        self._first_row.append(last if rows else 0)
        if rows:
            begun = self._shards[-1]
            self._shards[-1] = ShardStart(begun.number, begun.document, 0, last + rows)
        return begins

    def layout(self) -> Layout:
        """Return the shards of all documents until now."""
        rows, first_shard, first_row = (
            np.array(values, np.int64) for values in (self._rows, self._first_shard, self._first_row)
        )
        windowing = Windowing(int(rows.max(initial=1)))
        return Layout(windowing, tuple(self._shards), rows, rows, first_shard, first_row)
