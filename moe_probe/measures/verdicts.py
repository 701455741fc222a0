"""What may be said in words of a number: the thresholds behind every verdict, in one place.

It does not know how the numbers were come by, nor which tables they stand in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.shares import Shares

SPECIALISED = "specialised"
NOT_SHOWN = "not shown"
NOT_ENOUGH = "not enough data"
THIS_TEXT_ONLY = "this text only"
LABEL_VERDICTS = (SPECIALISED, NOT_SHOWN, NOT_ENOUGH, THIS_TEXT_ONLY)

ABOVE = "above"
BELOW = "below"
AT_CHANCE = "at chance"
DEAD = "dead"
UNSEEN = "unseen"
LOAD_VERDICTS = (ABOVE, BELOW, AT_CHANCE, DEAD, UNSEEN, NOT_ENOUGH)

LEVEL = 0.05
MINIMUM_LIFT = 1.2
MINIMUM_EXPECTED = 5.0
MINIMUM_CLUSTERS = 5.0
DEAD_DOCUMENTS = 30
DEAD_DOMAINS = 2
DEAD_SHARE = 0.1
"""An expert without assignments is dead if its share is bounded below so much of the even one."""

_ZERO_BOUND = 3.0  # "rule of three": at 95 %, zero of n bound a share below 3/n (Hanley and Lippman-Hand 1983)


def enough_for_cells(expected: NDArray[np.float64], geff: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which cells have enough data to be tested: five assignments expected, in five effective clusters.

    Args:
        expected: counts under independence; nan where undefined.
        geff: effective clusters, same shape.
    """
    return (expected >= MINIMUM_EXPECTED) & (geff >= MINIMUM_CLUSTERS)


def label_verdicts(
    lift: NDArray[np.float64],
    expected: NDArray[np.float64],
    geff: NDArray[np.float64],
    q_value: NDArray[np.float64],
    type_q_value: NDArray[np.float64],
    type_z: NDArray[np.float64],
    *,
    of_documents: bool | NDArray[np.bool_] = True,
) -> NDArray[np.object_]:
    """Return what may be said of each expert and label.

    `specialised`: the test over documents and that over types are both below .05 after correction for all cells, the
    types lean the same way, and the lift is at least 1.2. `this text only`: the same, but the clusters are pieces of
    too few documents to speak of any other. `not shown`: there were enough data for a test, and one failed. `not enough
    data`: neither.

    Args:
        lift: any shape; the others have it too. nan where undefined.
        expected: counts under independence.
        geff: effective clusters.
        q_value: of the test over documents.
        type_q_value: of the test over types.
        type_z: above 0 where the types of the label go to the expert more than others.
        of_documents: whether clusters are of documents, not of pieces of one.

    Example:
        >>> one = np.ones(1)
        >>> label_verdicts(2 * one, 50 * one, 9 * one, 0.01 * one, 0.01 * one, 4 * one).tolist()
        ['specialised']
    """
    # A comparison with nan is False: what could not be tested neither passes nor fails.
    enough = enough_for_cells(expected, geff)
    passed = (q_value < LEVEL) & (type_q_value < LEVEL) & (type_z > 0) & (lift >= MINIMUM_LIFT)
    tested = ~np.isnan(q_value) & ((q_value >= LEVEL) | (lift < MINIMUM_LIFT))
    failed = tested | (type_q_value >= LEVEL) | (type_z <= 0) | (lift == 0)
    verdicts = np.full(lift.shape, NOT_ENOUGH, dtype=np.object_)
    verdicts[enough & failed] = NOT_SHOWN
    verdicts[enough & passed] = SPECIALISED
    verdicts[enough & passed & ~np.broadcast_to(of_documents, lift.shape)] = THIS_TEXT_ONLY
    return verdicts


def share_verdicts(shares: Shares, *, of_documents: bool) -> NDArray[np.object_]:
    """Return where each expert's share lies against an even one: `above`, `below`, `at chance`, or `not enough data`.

    Args:
        shares: of one router's experts.
        of_documents: whether clusters are of documents, not of pieces of one.
    """
    even = 1 / max(shares.share.size, 1)
    enough = (shares.geff >= MINIMUM_CLUSTERS) & of_documents & ~np.isnan(shares.low)
    verdicts = np.full(shares.share.shape, NOT_ENOUGH, dtype=np.object_)
    verdicts[enough] = AT_CHANCE
    verdicts[enough & (shares.low > even)] = ABOVE
    verdicts[enough & (shares.high < even)] = BELOW
    return verdicts


def load_verdicts(shares: Shares, n: int, *, documents: int, domains: int, of_documents: bool) -> NDArray[np.object_]:
    """Return what may be said of each expert's load over all slots: as `share_verdicts`, or `dead`, or `unseen`.

    `dead`: not one assignment, in at least 30 documents of at least two domains and so many tokens that the share is
    bounded below a tenth of the even one. Other experts without assignments are `unseen`: of 331 experts that samples
    of one domain never used, all were alive in another.

    Args:
        shares: of one router's experts.
        n: assignments of all of them.
        documents: how many documents were counted.
        domains: how many domains they are of.
        of_documents: whether clusters are of documents, not of pieces of one.

    Example:
        >>> from moe_probe.measures.shares import clustered_shares
        >>> counted = np.array([[30, 10, 0], [31, 9, 0]] * 20)
        >>> load_verdicts(clustered_shares(counted), 1600, documents=40, domains=2, of_documents=True).tolist()
        ['above', 'below', 'dead']
    """
    verdicts = share_verdicts(shares, of_documents=of_documents)
    none = (shares.share == 0) | np.isnan(shares.share)
    verdicts[none] = UNSEEN
    if n and of_documents and documents >= DEAD_DOCUMENTS and domains >= DEAD_DOMAINS:
        bound = _ZERO_BOUND * np.maximum(shares.deff, 1.0) / n
        verdicts[none & (bound < DEAD_SHARE / shares.share.size)] = DEAD
    return verdicts
