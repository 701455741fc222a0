"""Turns the columns of a routing file into arrays, one column a slot into one array a router.

It does not know files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from moe_probe.errors import BadInputError, RunError
from moe_probe.schema import DROPPED, Router, expert_column, weight_column

Ints: TypeAlias = npt.NDArray[np.int32]
Floats: TypeAlias = npt.NDArray[np.float32]


def expert_columns(router: Router) -> list[str]:
    """Return the columns of the experts of a router, slot 0 first."""
    return [expert_column(router.index, slot) for slot in range(router.n_slots)]


def weight_columns(router: Router) -> list[str]:
    """Return the columns of the weights of a router, slot 0 first."""
    return [weight_column(router.index, slot) for slot in range(router.n_slots)]


def experts_of(routing: pl.DataFrame, router: Router) -> Ints:
    """Return the experts of a router, (tokens, slots); -1 where a slot held none."""
    experts = np.empty((routing.height, router.n_slots), np.int32)
    for slot, column in enumerate(expert_columns(router)):
        experts[:, slot] = routing[column].cast(pl.Int32).fill_null(DROPPED).to_numpy()
    return experts


def weights_of(routing: pl.DataFrame, router: Router) -> Floats:
    """Return the weights of a router, (tokens, slots)."""
    weights = np.empty((routing.height, router.n_slots), np.float32)
    for slot, column in enumerate(weight_columns(router)):
        weights[:, slot] = routing[column].cast(pl.Float32).to_numpy()
    return weights


def probabilities_of(column: pa.ChunkedArray, router: Router) -> Floats:
    """Return a router's probabilities from lists of float16, (tokens, experts); NaN where there is no list.

    Raises:
        RunError: if a list is not as long as the router has experts.
    """
    lists = column.combine_chunks()
    there = lists.is_valid().to_numpy(zero_copy_only=False)
    values = np.asarray(lists.flatten()).astype(np.float32)  # null lists hold none
    if lists.null_count < len(lists) and values.size != int(there.sum()) * router.n_experts:
        raise RunError(
            f"router {router.index}: its probabilities are {values.size} numbers for {int(there.sum())} tokens and"
            f" {router.n_experts} experts; trace anew, into another folder"
        )
    shares = np.full((len(lists), router.n_experts), np.nan, np.float32)
    shares[there] = values.reshape(-1, router.n_experts)
    return shares


def find_router(routers: Sequence[Router], layer: int | None = None, router: int | None = None) -> int:
    """Return the index of the router that is meant by a layer or by an index.

    Raises:
        BadInputError: if there is none, if `layer` means two, or if not exactly one of both is given.
    """
    if (layer is None) == (router is None):
        raise BadInputError("give layer= or router=, one of them")
    if router is not None:
        if not 0 <= router < len(routers):
            raise BadInputError(f"router {router}: the run has routers 0 to {len(routers) - 1}")
        return router
    found = [one.index for one in routers if one.layer == layer]
    if len(found) > 1:
        raise BadInputError(f"layer {layer}: it has routers {', '.join(map(str, found))}; give router= instead")
    if not found:
        layers = sorted({one.layer for one in routers})
        raise BadInputError(f"layer {layer}: the run has routers in layers {', '.join(map(str, layers))}")
    return found[0]
