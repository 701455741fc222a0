"""Routing: which experts every recorded token was sent to, as arrays in memory.

A value: it does not know models, hooks or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError
from moe_probe.schema import Router, entropy_column, expert_column, margin_column, weight_column
from moe_probe.showing import as_html

if TYPE_CHECKING:
    import polars as pl

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Decisions:
    """What one router decided for the recorded tokens, a row a slot so that a slot is contiguous in memory."""

    experts: npt.NDArray[np.signedinteger]  # (slots, tokens)
    weights: Floats  # (slots, tokens)
    entropy: Floats | None  # (tokens,)
    margin: Floats | None  # (tokens,)
    probabilities: Floats | None = None  # (tokens, experts)


@dataclass(frozen=True, eq=False)
class Routing:
    """The executed experts of all routers over the same tokens.

    Rows are in the order forward by forward, batch row by batch row, position by position; padding is left out. Slots
    are sorted by weight, the heaviest first, before any rounding, equal weights by expert.

    Example:
        >>> router = Router(0, "layers.0.mlp", 0, 8, 2, "softmax top-k")
        >>> row = Decisions(np.array([[5], [2]]), np.array([[0.75], [0.25]], np.float32), None, None)
        >>> routing = Routing([router], [row], np.array([0], np.int32), np.array([0], np.int32))
        >>> routing.experts(0), routing.weights(0)
        (array([[5, 2]], dtype=int32), array([[0.75, 0.25]], dtype=float32))
    """

    routers: list[Router]
    decisions: list[Decisions]
    sequences: Ints  # (tokens,)
    positions: Ints  # (tokens,)

    @property
    def n_tokens(self) -> int:
        """The number of recorded tokens."""
        return len(self.sequences)

    def experts(self, router: int) -> Ints:
        """Return the executed experts of a router, (tokens, slots) int32; `schema.DROPPED` where a slot held none."""
        return self._of(router).experts.T.astype(np.int32)

    def weights(self, router: int) -> Floats:
        """Return the raw factors that the experts' outputs were multiplied by, (tokens, slots) float32."""
        return self._of(router).weights.T

    def sequence(self, router: int) -> Ints:
        """Return each token's sequence, (tokens,) int32, numbered from 0 over the whole recording."""
        self._of(router)
        return self.sequences

    def position(self, router: int) -> Ints:
        """Return each token's position in its sequence, (tokens,) int32.

        The model's position ids where they were given, else a count of the sequence's own tokens: padding has no
        position, and a cache continues its sequences' positions.
        """
        self._of(router)
        return self.positions

    def entropy(self, router: int) -> Floats | None:
        """Return the entropy of the router's distribution over experts in bits, (tokens,), or None if not known."""
        return self._of(router).entropy

    def margin(self, router: int) -> Floats | None:
        """Return the lowest chosen minus the highest other selection score, (tokens,), or None if not known.

        Infinite where no expert that could be selected was left out.
        """
        return self._of(router).margin

    def probabilities(self, router: int) -> Floats | None:
        """Return a router's distribution over its experts, (tokens, experts) float32, or None if not known.

        It is the one whose entropy is recorded: before a correction bias, groups or top-k, so that a chosen expert may
        have less than one that was passed over. A row adds up to 1, less what goes to a skip of all experts. A row of
        NaN is a token whose logits were no numbers. Needs `record(model, probabilities=True)`.
        """
        return self._of(router).probabilities

    def to_polars(self) -> pl.DataFrame:
        """Return a row a token: sequence, position, and the columns of a run's routing for every router."""
        import polars as pl

        columns: dict[str, npt.NDArray[np.generic]] = {"sequence": self.sequences, "position": self.positions}
        for router, decided in zip(self.routers, self.decisions, strict=True):
            for slot in range(router.n_slots):
                columns[expert_column(router.index, slot)] = decided.experts[slot].astype(np.int32)
            for slot in range(router.n_slots):
                columns[weight_column(router.index, slot)] = decided.weights[slot]
            if decided.entropy is not None and decided.margin is not None:
                columns[entropy_column(router.index)] = decided.entropy
                columns[margin_column(router.index)] = decided.margin
        return pl.DataFrame(columns)

    def _repr_html_(self) -> str:
        """Show which experts every token was sent to in a notebook."""
        return as_html(self)

    def _of(self, router: int) -> Decisions:
        if not 0 <= router < len(self.routers):
            raise BadInputError(f"router {router}: the model has {len(self.routers)}, 0 to {len(self.routers) - 1}")
        return self.decisions[router]


def join(parts: Sequence[Routing]) -> Routing:
    """Return several recordings of the same routers one after the other; scores where all have them."""
    if len(parts) == 1:
        return parts[0]
    decisions = []
    for each in zip(*(part.decisions for part in parts), strict=True):
        entropies = [one.entropy for one in each if one.entropy is not None]
        margins = [one.margin for one in each if one.margin is not None]
        shares = [one.probabilities for one in each if one.probabilities is not None]
        decisions.append(
            Decisions(
                np.concatenate([one.experts for one in each], axis=1),
                np.concatenate([one.weights for one in each], axis=1),
                np.concatenate(entropies) if len(entropies) == len(each) else None,
                np.concatenate(margins) if len(margins) == len(each) else None,
                np.concatenate(shares) if len(shares) == len(each) else None,
            )
        )
    return Routing(
        parts[0].routers,
        decisions,
        np.concatenate([part.sequences for part in parts]),
        np.concatenate([part.positions for part in parts]),
    )
