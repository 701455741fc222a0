"""Which sequence and which position a row of a hand-written router is, from the shapes of its calls.

A model of someone's own may hold its tokens any way: batch first, time first, flat, step by step. What can be told from
the shapes is told; where they allow two readings the caller has to say which (`RouterSite.rows`). It does not know what
was chosen, nor hooks.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moe_probe.errors import BadInputError, RoutingError

_TOKENS = ("input_ids", "inputs_embeds")
_ADVICE = "say how they run with RouterSite(..., rows=)"


class Called(NamedTuple):
    """What a model was called with, as far as it tells rows apart."""

    sizes: tuple[int, int] | None  # the first two dimensions of its tokens
    mask: torch.Tensor | None  # (batch, sequence), in memory


class Arrangement(NamedTuple):
    """The rows of a router's calls in one forward, in the order of their sequences."""

    batch: int
    length: int
    order: npt.NDArray[np.int64]  # (rows,) their places in the calls one after the other


def read_call(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Called:
    """Read what a model is called with.

    Its tokens are `input_ids` or `inputs_embeds`, else the first tensor that can hold a batch of sequences: of whole
    numbers with two dimensions or more, or floating with three or more.

    Raises:
        RoutingError: if it goes on with a cache, or its mask does not tell padding from tokens.
    """
    try:
        given = dict(inspect.signature(type(model).forward).bind_partial(model, *args, **kwargs).arguments)
    except TypeError:  # the call itself will say what is wrong with it
        given = dict(kwargs)
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        raise RoutingError(
            f"{type(model).__name__}: attention_mask is no tensor of shape (batch, sequence), so that padding cannot "
            "be told from tokens; pass the tokenizer's"
        )
    for name in ("cache", "past_key_values"):
        held = getattr(given.get(name), "get_seq_length", lambda: 0)()
        if int(held):
            raise RoutingError(
                f"{type(model).__name__}: called with {int(held)} positions in {name}; hand-written routers are "
                "recorded over whole sequences: generate first, then record one forward over the result"
            )
    tensors = [one for name in _TOKENS if (one := given.get(name)) is not None]
    tensors = tensors or [one for value in given.values() for one in _flattened(value) if _holds_sequences(one)]
    sizes = (int(tensors[0].shape[0]), int(tensors[0].shape[1])) if tensors and tensors[0].dim() > 1 else None
    return Called(sizes, None if mask is None else mask.detach().to("cpu", copy=True) != 0)


def _flattened(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        yield from value
    elif isinstance(value, Mapping):
        yield from value.values()
    else:
        yield value


def _holds_sequences(value: Any) -> bool:
    if not isinstance(value, torch.Tensor) or value.dtype == torch.bool:
        return False
    return value.dim() >= (3 if value.is_floating_point() else 2)


def may_be_time_first(model: nn.Module) -> bool:
    """Say whether a part of the model may hold time before batch, as recurrent layers do unless told not to."""
    return any(
        isinstance(module, nn.RNNCellBase) or getattr(module, "batch_first", None) is False
        for module in model.modules()
    )


def arrange(
    calls: Sequence[tuple[int, ...]], rows: str | None, called: Called, *, time_first: bool, where: str
) -> Arrangement:
    """Return which sequence and position each row of a router is.

    Args:
        calls: the leading dimensions of each call in a forward, in order.
        rows: what the site says of them, None where it says nothing.
        called: what the model was called with.
        time_first: whether a part of the model holds time before batch, so that two dimensions may be either.
        where: the router as messages name it.

    Raises:
        BadInputError: if the shapes allow several readings, or none.
    """
    flat = len(calls[0]) == 1
    if any(len(one) != len(calls[0]) for one in calls):
        raise BadInputError(f"{where}: called with rows {_shapes(calls)} in one forward; {_ADVICE}")
    reading = rows or _guessed(calls, called, time_first, where)
    grids = []
    start = 0
    for leading in calls:
        numbers = np.arange(start, start + int(np.prod(leading)))
        start += numbers.size
        grids.append(_grid(numbers, leading, reading, called, where, alone=len(calls) == 1))
    if len({len(grid) for grid in grids}) > 1:
        raise BadInputError(
            f"{where}: its calls in one forward, {_shapes(calls)}, are not of as many sequences; {_ADVICE}"
        )
    grid = np.concatenate(grids, axis=1)  # (batch, sequence)
    if rows is None and called.sizes is not None and grid.shape not in _shapes_meant(called.sizes, flat, len(calls)):
        raise BadInputError(
            f"{where}: {grid.size} rows, {_shapes(calls)}, in a forward of {called.sizes[0]} × {called.sizes[1]} "
            f"tokens; does it leave tokens out, or run twice? Where they are rows of something else, {_ADVICE}"
        )
    return Arrangement(grid.shape[0], grid.shape[1], grid.ravel())


def _guessed(calls: Sequence[tuple[int, ...]], called: Called, time_first: bool, where: str) -> str:
    """Return the only reading that shapes allow."""
    leading, sizes = calls[0], called.sizes
    if len(leading) == 2 or (len(leading) == 1 and len(calls) == 1 and sizes is not None):
        two = leading if len(leading) == 2 else sizes or (1, 1)
        if time_first and two != (1, 1):
            raise BadInputError(
                f"{where}: its rows may run batch × sequence or sequence × batch, since a part of the model is "
                "recurrent or has batch_first=False; say RouterSite(..., rows='batch sequence') or 'sequence batch'"
            )
        return "batch sequence"
    if len(leading) == 1 and len(calls) == 1:
        return "sequence"
    if len(leading) == 1 and sizes is not None and {*sizes} == {leading[0], len(calls)}:
        return "batch"
    raise BadInputError(
        f"{where}: called {len(calls)} times in one forward with rows {_shapes(calls)}, which may be steps of every "
        f"sequence, parts of one or something else; {_ADVICE}"
    )


def _grid(
    numbers: npt.NDArray[np.int64],
    leading: tuple[int, ...],
    reading: str,
    called: Called,
    where: str,
    *,
    alone: bool,
) -> npt.NDArray[np.int64]:
    """Return the rows of one call as (batch, sequence)."""
    if reading == "sequence":
        return numbers.reshape(1, -1)
    if reading == "batch":
        if len(leading) != 1:
            raise BadInputError(f"{where}: rows {leading} in a call; rows='batch' means a single dimension")
        return numbers.reshape(-1, 1)
    shape = leading
    if len(leading) == 1:
        if not alone or called.sizes is None or numbers.size != called.sizes[0] * called.sizes[1]:
            meant = "unknown" if called.sizes is None else f"{called.sizes[0]} × {called.sizes[1]}"
            raise BadInputError(
                f"{where}: rows {leading} in a call, which cannot be cut into {reading!r}: the model's tokens are "
                f"{meant}; let read return (batch, sequence, slots), or say rows='batch' or 'sequence'"
            )
        shape = called.sizes
    if len(shape) != 2:
        raise BadInputError(
            f"{where}: rows {shape} in a call are neither (batch, sequence) nor flat; let read return such, or say "
            "rows='sequence' where they are one sequence"
        )
    grid = numbers.reshape(shape)
    return grid.T if reading == "sequence batch" else grid


def _shapes_meant(sizes: tuple[int, int], flat: bool, n_calls: int) -> list[tuple[int, ...]]:
    """Return the shapes (batch, sequence) that rows may have beside tokens of these sizes."""
    # Steps may come from tokens that are held time first.
    return [sizes, sizes[::-1]] if flat and n_calls > 1 else [sizes]


def _shapes(calls: Sequence[tuple[int, ...]]) -> str:
    shown = " + ".join("×".join(map(str, one)) for one in calls[:3])
    return shown if len(calls) <= 3 else f"{shown} + … ({len(calls)} calls)"
