"""The rows of one document that go into the run, once they were checked.

It does not know formats, nor how a run is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class Form:
    """What the columns of all shards of a run have in common.

    Attributes:
        places: which layers of a document hold experts in some document.
        n_slots: experts of a token.
        bits: of the numbers of experts: 8, 16 or 32.
        weighted: whether there are weights.
    """

    places: tuple[int, ...]
    n_slots: int
    bits: int
    weighted: bool

    @property
    def row_bytes(self) -> int:
        """Bytes of the experts and weights of a token."""
        return len(self.places) * self.n_slots * (self.bits // 8 + 2 * self.weighted)

    def holds(self, other: Form) -> bool:
        """Say whether documents of another form can be put into columns of this one.

        Example:
            >>> Form((0, 2), 2, 8, True).holds(Form((2,), 1, 8, True))
            True
        """
        return (
            set(other.places) <= set(self.places)
            and other.n_slots <= self.n_slots
            and other.bits <= self.bits
            and other.weighted == self.weighted
        )
