"""Many tests at once: p-values turned into q-values.

Among 100,000 cells of a router that knows nothing, 5,000 have p < .05. Cells with q < .05 are false in at most 5 % of
cases, over all cells that were tested together. It does not know what was tested.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control


def q_values(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Benjamini-Hochberg q-values over all that were tested (Benjamini and Hochberg 1995, section 3.1).

    Args:
        p: p-values of any shape, 0 to 1; nan where there was no test, which stays nan and counts for nothing.

    Example:
        >>> q_values(np.array([0.01, np.nan, 0.04])).tolist()
        [0.02, nan, 0.04]
    """
    tested = ~np.isnan(p)
    q = np.full(p.shape, np.nan)
    if tested.any():
        q[tested] = false_discovery_control(p[tested], method="bh")
    return q
