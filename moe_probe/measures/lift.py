"""How an expert's share of a label differs from everyone's: tables of counts turned into proportions and lift.

It does not know what the labels are, nor whether a lift is above chance. Lift: Brin et al. (1997), "Dynamic itemset
counting and implication rules", section 4, where it is called interest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Lift:
    """Proportions of one table, each (experts, labels), nan where nothing was counted to take a share of.

    `expected` is the count that independence of expert and label would give; `lift` is the count over it.
    """

    p_label_given_expert: NDArray[np.float64]
    p_expert_given_label: NDArray[np.float64]
    lift: NDArray[np.float64]
    expected: NDArray[np.float64]


def label_lift(counts: NDArray[np.integer]) -> Lift:
    """Return proportions, expected counts and lift of a table of assignments.

    Args:
        counts: (experts, labels).

    Example:
        >>> label_lift(np.array([[6, 2], [2, 6]])).lift.tolist()
        [[1.5, 0.5], [0.5, 1.5]]
    """
    table = np.asarray(counts, dtype=np.float64)
    experts = table.sum(axis=1, keepdims=True)
    labels = table.sum(axis=0, keepdims=True)
    expected = _share(experts * labels, table.sum())
    return Lift(_share(table, experts), _share(table, labels), _share(table, expected), expected)


def _share(part: NDArray[np.float64], whole: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    whole = np.broadcast_to(whole, part.shape)
    share: NDArray[np.float64] = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share
