"""Puts the windows of a shard into batches: those of like length together, padded on the right.

Which windows share a batch follows from their lengths alone, so that a resumed run forms the same batches. It does not
know the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError
from moe_probe.store.plan import Window, Windowing

Places = npt.NDArray[np.int64]

_LONG_STRETCH = 128
"""From so many rows on it is faster to copy a stretch of rows by itself than to look each of them up."""


@dataclass(frozen=True)
class PlacedWindow:
    """A window and the first of its rows in the shard."""

    window: Window
    row: int


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows that the model sees in one forward.

    `ids` and `mask` are (windows, longest window): token ids, and 1 where there is one. The recorder leaves padding out
    and gives one row a token, window by window; of those, `kept` are recorded, and go to `rows` of the shard.
    """

    windows: tuple[PlacedWindow, ...]
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    kept: Places
    rows: Places

    @property
    def n_tokens(self) -> int:
        """Tokens in the batch, without padding."""
        return int(self.mask.sum())

    @property
    def is_padded(self) -> bool:
        """Whether some window is shorter than the longest."""
        return bool(self.n_tokens < self.mask.size)

    @property
    def stretches(self) -> list[tuple[slice | Places, slice | Places]]:
        """Return which of the recorder's rows go to which of the shard's: slices where stretches are long."""
        breaks = np.flatnonzero((np.diff(self.kept) != 1) | (np.diff(self.rows) != 1)) + 1
        if len(self.kept) < _LONG_STRETCH * (len(breaks) + 1):
            return [(self.kept, self.rows)]
        bounds = itertools.pairwise([0, *breaks.tolist(), len(self.kept)])
        firsts = ((int(self.kept[begin]), int(self.rows[begin]), end - begin) for begin, end in bounds)
        return [(slice(kept, kept + size), slice(row, row + size)) for kept, row, size in firsts]


def place(windows: Sequence[Window], windowing: Windowing) -> list[PlacedWindow]:
    """Return the windows of a shard with the rows that they start at."""
    row = 0
    placed = []
    for window in windows:
        placed.append(PlacedWindow(window, row))
        row += window.rows(windowing)
    return placed


def group(windows: Sequence[PlacedWindow], windowing: Windowing, batch_tokens: int) -> list[tuple[PlacedWindow, ...]]:
    """Return the windows in groups of at most `batch_tokens` tokens, padding included; one window at least.

    The longest come first, so that a batch too large for the memory shows at once.

    Raises:
        BadInputError: if `batch_tokens` is below 1.
    """
    if batch_tokens < 1:
        raise BadInputError(f"batch_tokens {batch_tokens}: a batch needs at least 1 token")
    groups: list[list[PlacedWindow]] = []
    longest = 0
    for placed in sorted(windows, key=lambda placed: -placed.window.fed(windowing)):
        if not groups or longest * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
            longest = placed.window.fed(windowing)
        groups[-1].append(placed)
    return [tuple(group) for group in groups]


def halve(windows: Sequence[PlacedWindow]) -> tuple[tuple[PlacedWindow, ...], tuple[PlacedWindow, ...]]:
    """Return the two halves of a group of two windows or more."""
    middle = (len(windows) + 1) // 2
    return tuple(windows[:middle]), tuple(windows[middle:])


def assemble(
    windows: Sequence[PlacedWindow],
    windowing: Windowing,
    prefix: Sequence[int],
    ids_of: Mapping[int, npt.NDArray[np.int32]],
) -> Batch:
    """Return a batch of windows.

    Args:
        windows: those of one group.
        windowing: how the corpus was cut.
        prefix: the special tokens at the start of each window.
        ids_of: the token ids of each document by its number.
    """
    lengths = [placed.window.fed(windowing) for placed in windows]
    ids = np.zeros((len(windows), max(lengths)), np.int64)
    mask = np.zeros_like(ids)
    kept: list[Places] = []
    rows: list[Places] = []
    begin = 0
    for line, (placed, length) in enumerate(zip(windows, lengths, strict=True)):
        window = placed.window
        ids[line, : len(prefix)] = prefix
        ids[line, len(prefix) : length] = ids_of[window.document][window.start : window.end]
        mask[line, :length] = 1
        specials = range(len(prefix)) if windowing.special else range(0)
        first = len(prefix) + window.first - window.start
        kept.append(begin + np.array([*specials, *range(first, length)], np.int64))
        rows.append(np.arange(placed.row, placed.row + len(kept[-1])))
        begin += length
    return Batch(tuple(windows), ids, mask, np.concatenate(kept), np.concatenate(rows))
