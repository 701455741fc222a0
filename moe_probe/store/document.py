"""One document of a run in memory: its tokens and what every router did with them.

It does not know files.
"""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from moe_probe.errors import RunError
from moe_probe.schema import Router, entropy_column, margin_column
from moe_probe.showing import as_html
from moe_probe.store.columns import Floats, Ints, experts_of, find_router, weight_columns, weights_of

NO_WEIGHTS = "has no weights, for the run was imported from a trace without them; only experts are known"
"""What is said of a router whose weights are asked for and were never recorded."""


@dataclass(frozen=True)
class DocumentRouting:
    """One document of a run: `tokens` and `routing` have a row a token; experts and weights by layer or router."""

    number: int
    name: str
    routers: tuple[Router, ...]
    tokens: pl.DataFrame
    routing: pl.DataFrame

    def experts(self, layer: int | None = None, *, router: int | None = None) -> Ints:
        """Return the experts of a router, (tokens, slots): slot 0 is the first choice; -1 where a slot held none."""
        return experts_of(self.routing, self.routers[find_router(self.routers, layer, router)])

    def weights(self, layer: int | None = None, *, router: int | None = None) -> Floats:
        """Return the factors that the experts' outputs were multiplied by, (tokens, slots).

        Raises:
            RunError: if the run was imported from a trace without weights.
        """
        chosen = self.routers[find_router(self.routers, layer, router)]
        if not set(weight_columns(chosen)) <= set(self.routing.columns):
            raise RunError(f"document {self.name!r}: router {chosen.index} {NO_WEIGHTS}")
        return weights_of(self.routing, chosen)

    def entropy(self, layer: int | None = None, *, router: int | None = None) -> Floats | None:
        """Return the entropy of a router's scores in bits, (tokens,), or None where they are not known."""
        return self._score(entropy_column(find_router(self.routers, layer, router)))

    def margin(self, layer: int | None = None, *, router: int | None = None) -> Floats | None:
        """Return how far the last chosen selection score was above the first unchosen one, (tokens,), or None."""
        return self._score(margin_column(find_router(self.routers, layer, router)))

    def _repr_html_(self) -> str:
        """Show the text, each token in the colour of its expert, in a notebook."""
        return as_html(self)

    def _score(self, column: str) -> Floats | None:
        return self.routing[column].to_numpy() if column in self.routing.columns else None
