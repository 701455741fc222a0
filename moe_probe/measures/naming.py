"""What an expert is best named after: the label that it tells most about, and the token types that it is given.

It does not know tables, nor how a name reads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PULL = 5.0
FLOOR = 10
_DIGITS = 9
_SAME = 10.0**-_DIGITS  # what is equal but for rounding is equal on every machine


@dataclass(frozen=True, eq=False)
class TopTypes:
    """The token types of each expert, (experts, k), as rows of the counts they came from; -1 where there are no more.

    `by_count` has the commonest first; `by_lift` those whose lift, pulled towards 1, is highest and above 1.
    """

    by_count: NDArray[np.int64]
    by_lift: NDArray[np.int64]


def telling_bits(share: NDArray[np.float64], low: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many bits an expert tells about its tokens by one label, at the least.

    The divergence of an expert's labels from all labels is the sum over labels of share x log2(lift) (Cover & Thomas
    2006, Elements of Information Theory, 2.3). This is one label's part of it, with the lower end of lift's interval
    for lift: a label counts that is both common among the expert's tokens and surely more so than elsewhere.

    Args:
        share: of the label among the expert's tokens, any shape.
        low: the lower end of the interval of lift, same shape; nan where unknown.

    Returns:
        Bits, same shape; nan where lift's lower end is unknown or 0.

    Example:
        >>> telling_bits(np.array([0.5, 0.5]), np.array([4.0, np.nan])).tolist()
        [1.0, nan]
    """
    bits: NDArray[np.float64] = share * np.log2(low, out=np.full(low.shape, np.nan), where=low > 0)
    return bits


def pulled_lift(given: NDArray[np.int64], occurrences: NDArray[np.int64], *, pull: float = PULL) -> NDArray[np.float64]:
    """Return one expert's lift for each type, pulled towards 1 as by some more occurrences at chance.

    Without it the highest lifts are those of types that came once or twice.

    Args:
        given: (types,) how often each type was given to the expert.
        occurrences: (types,) how often it was given to any.
        pull: so many occurrences more are expected and seen.

    Example:
        >>> pulled_lift(np.array([1, 100]), np.array([1, 109])).round(2).tolist()  # plain: 1.09 and 1.0
        [1.01, 1.0]
    """
    total = occurrences.sum()
    expected = occurrences * (given.sum() / total) if total else np.zeros(len(given))
    lift: NDArray[np.float64] = (given + pull) / (expected + pull)
    return lift


def top_types(counts: NDArray[np.int64], k: int, *, floor: int = FLOOR, pull: float = PULL) -> TopTypes:
    """Return the types that each expert is given most often, and out of proportion.

    Args:
        counts: (types, experts) how often each type was given to each expert.
        k: how many of each.
        floor: types that occur less often have no lift to speak of.
        pull: see `pulled_lift`.

    Returns:
        Rows of `counts`; ties go to the earlier row.

    Example:
        >>> found = top_types(np.array([[90, 60], [30, 0], [1, 0]]), k=2)
        >>> found.by_count.tolist(), found.by_lift.tolist()
        ([[0, 1], [0, -1]], [[1, -1], [0, -1]])
    """
    occurrences = counts.sum(axis=1)
    enough = occurrences >= floor
    by_count = np.full((counts.shape[1], k), -1, np.int64)
    by_lift = by_count.copy()
    for expert, given in enumerate(counts.T):
        _fill(by_count[expert], given.astype(np.float64), given > 0)
        lift = pulled_lift(given, occurrences, pull=pull)
        _fill(by_lift[expert], lift, enough & (given > 0) & (lift > 1 + _SAME))
    return TopTypes(by_count, by_lift)


def _fill(row: NDArray[np.int64], values: NDArray[np.float64], kept: NDArray[np.bool_]) -> None:
    """Put the places of the highest kept values into a row, the first of equals first."""
    places = np.flatnonzero(kept)
    best = places[np.argsort(-values[places].round(_DIGITS), kind="stable")[: len(row)]]
    row[: len(best)] = best
