"""How evenly a router's load lies on its experts.

Load entropy is that of the *load*, over all tokens; a router's entropy for one token is another thing (2.98 against
1.60 bits were seen on one layer) and is no business of this file.

It does not know which tokens or slots were counted. MaxVio: Wang et al. (2024), "Auxiliary-Loss-Free Load Balancing".
Gini: Gini (1912), as half the relative mean difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Balance:
    """One router's imbalance.

    `max_violation` is the heaviest load over the mean, less 1; 0 is even. `coefficient_of_variation` is the loads'
    standard deviation over their mean; 0 is even. `gini` is 0 where loads are even and (E-1)/E where one expert has
    all. `load_entropy_bits` is log2 E where even and 0 where one expert has all; `normalised_load_entropy` is its
    share of log2 E, None for one expert. `effective_experts` is 2 to the load entropy: so many evenly loaded experts
    would have it. `unseen` counts experts without an assignment.
    """

    max_violation: float
    coefficient_of_variation: float
    gini: float
    load_entropy_bits: float
    normalised_load_entropy: float | None
    effective_experts: float
    unseen: int


def load_balance(loads: NDArray[np.integer]) -> Balance | None:
    """Return the imbalance of one router.

    Args:
        loads: (experts,) assignments of each expert, those without any included.

    Returns:
        None where there is no assignment at all.

    Example:
        >>> even = load_balance(np.array([5, 5, 5, 5]))
        >>> even.max_violation, even.gini, even.load_entropy_bits, even.effective_experts
        (0.0, 0.0, 2.0, 4.0)
    """
    total = float(loads.sum())
    if total == 0:
        return None
    n_experts = loads.size
    shares = loads / total
    # Sorted, the sum of all absolute differences needs no table of pairs: each share is exceeded by those after it.
    ranked = np.sort(shares)
    gini = float(np.sum((2 * np.arange(1, n_experts + 1) - n_experts - 1) * ranked)) / n_experts
    held = shares[shares > 0]
    entropy = float(np.abs(np.sum(held * np.log2(held))))  # abs: -0.0 is no entropy
    return Balance(
        max_violation=float(shares.max()) * n_experts - 1,
        coefficient_of_variation=float(shares.std()) * n_experts,
        gini=max(gini, 0.0),
        load_entropy_bits=entropy,
        normalised_load_entropy=entropy / float(np.log2(n_experts)) if n_experts > 1 else None,
        effective_experts=2.0**entropy,
        unseen=int(np.count_nonzero(loads == 0)),
    )
