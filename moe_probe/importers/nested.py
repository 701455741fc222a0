"""Turns nested lists, as JSON and Arrow hold them, into arrays; what is missing in a ragged list becomes `ABSENT`.

It does not know what the numbers mean.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import BadInputError
from moe_probe.importers.trace import ABSENT, Integers


def from_arrow(
    values: pa.Array | npt.NDArray[Any], depth: int, where: str, missing: float = ABSENT
) -> npt.NDArray[Any]:
    """Return nested lists of `depth` levels, the outermost stripped off already, as an array of `depth` dimensions.

    Args:
        values: the elements of the outermost list; an array of `depth` dimensions is returned as it is.
        depth: how many dimensions there are, that of `values` included.
        where: what messages say.
        missing: what stands where a list is shorter than the longest of its level.

    Raises:
        BadInputError: if there is a null.

    Example:
        >>> from_arrow(pa.array([[1, 2], [3]]), 2, "here").tolist()
        [[1, 2], [3, -1]]
    """
    if isinstance(values, np.ndarray):
        return values
    lengths: list[npt.NDArray[np.int64]] = []
    outermost = len(values)
    for _ in range(depth - 1):
        if values.null_count:
            raise BadInputError(f"{where}: a null stands where a list of numbers is needed")
        lengths.append(values.value_lengths().to_numpy().astype(np.int64))
        values = values.flatten()
    if values.null_count:
        raise BadInputError(f"{where}: a null stands where a number is needed")
    flat: npt.NDArray[Any] = values.to_numpy()
    shape = [outermost, *(int(each.max(initial=0)) for each in lengths)]
    if all((each == each.max(initial=0)).all() for each in lengths):
        return flat.reshape(shape)
    full = np.full(shape, missing, flat.dtype)
    full[_there(lengths, shape)] = flat
    return full


def _there(lengths: list[npt.NDArray[np.int64]], shape: list[int]) -> npt.NDArray[np.bool_]:
    """Return which places of the full array the file has, in the order in which it has them."""
    there: npt.NDArray[np.bool_] = np.ones(shape[0], np.bool_)
    for each, width in zip(lengths, shape[1:], strict=True):
        inner = np.zeros((*there.shape, width), np.bool_)
        inner[there] = np.arange(width) < each[:, None]
        there = inner
    return there


def from_lists(lists: object, depth: int, where: str) -> Integers:
    """Return nested lists of whole numbers as an array of `depth` dimensions.

    Raises:
        BadInputError: if they are not of that depth, or hold anything but whole numbers.

    Example:
        >>> from_lists([[1, 2], [3]], 2, "here").tolist()
        [[1, 2], [3, -1]]
    """
    try:
        array = np.array(lists)
    except ValueError:  # ragged
        kind: pa.DataType = pa.int64()
        for _ in range(depth - 1):
            kind = pa.list_(kind)
        try:
            array = from_arrow(pa.array(lists, kind), depth, where)
        except (pa.ArrowException, TypeError) as error:
            raise BadInputError(f"{where}: no lists of whole numbers in {depth} levels") from error
    if array.size == 0 and array.ndim < depth:
        return np.zeros((0,) * depth, np.int64)
    if array.ndim != depth or array.dtype.kind not in "iu":
        raise BadInputError(
            f"{where}: {array.ndim} levels of {array.dtype} where {depth} levels of whole numbers are needed"
        )
    return array
