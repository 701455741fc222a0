"""How often consecutive tokens go to the same expert, and how often chance alone would do it.

Mixtral's Table 5 compares with experts drawn uniformly, 1/8. Four chances are given here, each knowing more than the
one before: uniform; *load*, two random tokens of one domain; *document*, two random tokens of one document; *token*,
each token routed as another occurrence of its type. An untrained model repeats more than a trained one: what exceeds
even the token's chance still holds the drift of a document and the smoothing of attention. It is no syntax.

It does not know layers nor what domains and types are: call it for each router. Jiang et al. (2024), "Mixtral of
Experts", section 5 and Table 5, for the measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.intervals import Estimate, clustered_ratio
from moe_probe.measures.random_pairs import meet, number_values, random_pair_chance, take_tokens, token_chance
from moe_probe.measures.shares import clustered_shares


@dataclass(frozen=True)
class Repetition:
    """Shares of consecutive pairs that repeat an expert, beside chance.

    `first`: both tokens have the same first choice. `either`: their sets of experts meet. `uniform_*` is the chance
    of experts drawn uniformly, `load_*` of two random tokens among those measured, of one domain where domains are
    given, `document_*` of two random tokens of one document. Intervals take a cluster (by default a document) as one
    draw. `pairs` is how many pairs were seen.

    `token_*` is the chance if each token were routed as another occurrence of its type, over the `token_pairs` pairs
    whose types both occur 5 times or more; `excess_first` is by how much these same pairs exceed it. They are None
    where types are not given or no pair is left.
    """

    pairs: int
    first: Estimate
    either: Estimate
    uniform_first: float
    uniform_either: float
    load_first: float
    load_either: float
    document_first: float
    document_either: float
    token_first: float | None
    token_either: float | None
    excess_first: Estimate | None
    token_pairs: int


def uniform_chance(n_experts: int, n_slots: int) -> tuple[float, float]:
    """Return the chance that two tokens share their first choice, and that their sets meet, under uniform routing.

    Example:
        >>> first, either = uniform_chance(8, 2)
        >>> round(first, 4), round(either, 4)
        (0.125, 0.4643)
    """
    disjoint = math.comb(n_experts - n_slots, n_slots) / math.comb(n_experts, n_slots)
    return 1 / n_experts, 1 - disjoint


def load_chance(experts: NDArray[np.integer], n_experts: int, *, seed: int = 0) -> tuple[float, float]:
    """Return the chance that two different random tokens share their first choice, and that their sets meet.

    Args:
        experts: (tokens, slots) at least two tokens; -1 dropped, but no first choice.
        n_experts: of the router.
        seed: of the random pairs for the second, used where more than 2,048 different sets occur.

    Example:
        >>> load_chance(np.array([[0, 1], [0, 1], [2, 3]]), 4)
        (0.3333333333333333, 0.3333333333333333)
    """
    one_group = np.zeros(experts.shape[0], dtype=np.int64)
    return random_pair_chance(np.ascontiguousarray(experts.T), one_group, np.ones(1, np.int64), n_experts, seed=seed)


def consecutive(
    documents: NDArray[np.integer], positions: NDArray[np.integer], window_positions: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Return which rows are followed by the next token of the same window, (tokens - 1,).

    Leaving rows out (sinks, for example) leaves out pairs and invents none.

    Args:
        documents: (tokens,) in the order of the run.
        positions: (tokens,) within the document.
        window_positions: (tokens,) within the window.

    Example:
        >>> consecutive(np.array([0, 0, 0, 1]), np.array([0, 1, 2, 3]), np.array([0, 1, 0, 1])).tolist()
        [True, False, False]
    """
    follows: NDArray[np.bool_] = (
        (np.diff(documents) == 0) & (np.diff(positions) == 1) & (np.diff(window_positions) == 1)
    )
    return follows


def repetition(
    experts: NDArray[np.integer],
    documents: NDArray[np.integer],
    positions: NDArray[np.integer],
    window_positions: NDArray[np.integer],
    n_experts: int,
    *,
    token_ids: NDArray[np.integer] | None = None,
    domains: NDArray[np.integer] | None = None,
    clusters: NDArray[np.integer] | None = None,
    seed: int = 0,
) -> Repetition | None:
    """Measure how often a token goes where the token before it in the same window went.

    Args:
        experts: (tokens, slots) the experts of one router, slot 0 heaviest, -1 dropped. Rows in the order of the run.
            A token whose slot 0 is dropped makes no pair.
        documents: (tokens,) which document each token is of.
        positions: (tokens,) within the document.
        window_positions: (tokens,) within the window; see `consecutive`.
        n_experts: of the router.
        token_ids: (tokens,) the type of each token, for the chances that know it.
        domains: (tokens,) numbers of domains; random pairs are then of one domain.
        clusters: (tokens,) what is one draw for the intervals; by default the document.
        seed: of random pairs, where more than 2,048 different sets occur, and of the replacements for `token_either`.

    Returns:
        None where there is no consecutive pair.

    Example:
        >>> rows = np.arange(6)
        >>> same = repetition(np.array([[0, 1]] * 6), rows * 0, rows, rows, 8)
        >>> same.first.value, same.either.value, same.pairs
        (1.0, 1.0, 5)
    """
    held = experts[:, 0] >= 0
    rows = np.flatnonzero(consecutive(documents, positions, window_positions) & held[:-1] & held[1:])
    if rows.size == 0:
        return None
    # From here on only tokens of pairs count, so that what is observed and what chance gives are of the same tokens.
    in_pairs = np.zeros(held.size, dtype=np.bool_)
    in_pairs[rows] = True
    in_pairs[rows + 1] = True
    before = (np.cumsum(in_pairs) - 1)[rows]
    # (slots, tokens), in as few bytes as hold them: most of the time goes into moving and comparing them
    columns = np.ascontiguousarray(experts[in_pairs].T, np.min_scalar_type(-n_experts))
    same = columns[0, before] == columns[0, before + 1]
    met = meet(take_tokens(columns, before), take_tokens(columns, before + 1))
    cluster = number_values(documents if clusters is None else clusters)[rows]
    uniform = uniform_chance(n_experts, experts.shape[1])
    groups = (np.zeros(held.size, dtype=np.int64) if domains is None else domains, documents)
    by_load, by_document = (_group_chance(columns, group[in_pairs], before, n_experts, seed) for group in groups)
    token_first, token_either, excess, token_pairs = None, None, None, 0
    if token_ids is not None:
        by_token = token_chance(columns, token_ids[in_pairs], before, n_experts, seed=seed)
        token_pairs, token_either = by_token.first.size, by_token.either
        token_first = float(by_token.first.mean()) if token_pairs else None
        of_pair = cluster[by_token.eligible]
        excess = clustered_ratio(
            np.bincount(of_pair, weights=same[by_token.eligible] - by_token.first), np.bincount(of_pair)
        )
    return Repetition(
        pairs=int(rows.size),
        first=_share(same, cluster),
        either=_share(met, cluster),
        uniform_first=uniform[0],
        uniform_either=uniform[1],
        load_first=by_load[0],
        load_either=by_load[1],
        document_first=by_document[0],
        document_either=by_document[1],
        token_first=token_first,
        token_either=token_either,
        excess_first=excess,
        token_pairs=token_pairs,
    )


def _group_chance(
    columns: NDArray[np.integer], groups: NDArray[np.integer], before: NDArray[np.int64], n_experts: int, seed: int
) -> tuple[float, float]:
    numbers = number_values(groups)
    return random_pair_chance(columns, numbers, np.bincount(numbers[before]), n_experts, seed=seed)


def _share(hits: NDArray[np.bool_], clusters: NDArray[np.int64]) -> Estimate:
    """Return the share of pairs that hit, with Wilson's interval: it stays within 0 and 1, also near them."""
    counted = np.stack([np.bincount(clusters, weights=kind) for kind in (hits, ~hits)], axis=1)
    found = clustered_shares(counted.astype(np.int64))
    low, high = (None if np.isnan(ends[0]) else float(ends[0]) for ends in (found.low, found.high))
    return Estimate(float(found.share[0]), low, high)
