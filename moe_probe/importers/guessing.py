"""Guesses how many experts a token has, from the experts alone, where a file does not say.

A token has no expert twice, so that numbers cut into too large groups show some twice.
"""

from __future__ import annotations

import numpy as np

from moe_probe.errors import BadInputError
from moe_probe.importers.trace import Integers

_MOST_SLOTS = 64
_LOOKED_AT = 200_000


def guess_slots(flat: Integers, where: str, multiple: int | None = None) -> int:
    """Return the largest group size in which no group holds a number twice.

    Args:
        flat: (numbers,), the experts of one token after those of another.
        where: what messages say.
        multiple: a number that the size must divide; if None that of `flat`.

    Raises:
        BadInputError: if there is too little to tell.

    Example:
        >>> guess_slots(np.array([3, 1, 1, 0, 2, 3, 0, 1, 1, 2, 3, 1]), "here")
        2
    """
    whole = multiple or len(flat)
    sizes = [size for size in range(min(_MOST_SLOTS, whole), 0, -1) if whole % size == 0]
    for size in sizes:
        rows = flat[: max(1, _LOOKED_AT // size) * size].reshape(-1, size)
        rows = rows[(rows != rows[:, :1]).any(axis=1)] if size > 1 else rows  # zeros or -1 throughout say nothing
        ordered = np.sort(rows, axis=1)
        repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
        if not repeated.any() and len(rows) >= 4:
            return size
    raise BadInputError(f"{where}: there is too little to tell how many experts a token has; say so with n_slots")
