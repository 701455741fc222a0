"""How often two random tokens share an expert: the chances that neighbours are compared with.

- `random_pair_chance`: two random tokens of one group (a domain, a document).
- `token_chance`: two neighbours, each replaced by another occurrence of the same token.

For sets of experts both take the sets that occurred, never a formula over the load: experts are chosen together. On one
real layer the product of the loads said .71, draws matched to the loads .76, and real sets at random met in .515 of
cases. It does not know what a group is, nor how often neighbours do share an expert (`repetition`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

TYPE_FLOOR = 5
"""A token is replaced by another of its type if the type occurs at least so often."""

_MOST_SETS = 2048
_MOST_WORK = 2e9
_DENSE_CODES = 2**22
_DENSE_SHARE = 32  # a table of more places for each code takes longer than to sort the codes
_SAMPLED_PAIRS = 100_000
_CHUNK_PAIRS = 65_536
_UNSET = -2


def meet(left: NDArray[np.integer], right: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Return whether two tokens share an expert, (tokens,); dropped slots meet nothing.

    Args:
        left: (slots, tokens) experts, -1 dropped. Slots come first: whole rows are compared at once.
        right: (slots, tokens).

    Example:
        >>> meet(np.array([[0, -1], [1, 2]]), np.array([[3, -1], [0, 0]])).tolist()
        [True, False]
    """
    met = np.zeros(left.shape[1], dtype=np.bool_)
    for one in np.where(left < 0, _UNSET, left):
        for other in right:
            met |= one == other
        if met.all():  # as they soon do where slots are many
            break
    return met


def take_tokens(experts: NDArray[np.integer], places: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the experts of some tokens, (slots, tokens), each slot's in one piece.

    `experts[:, places]` has the same values in another order of memory, in which `meet` is ten times slower.

    Args:
        experts: (slots, all tokens).
        places: (tokens,).

    Example:
        >>> take_tokens(np.array([[7, 8, 9], [1, 2, 3]]), np.array([2, 0])).tolist()
        [[9, 7], [3, 1]]
    """
    return np.take(experts, places, axis=1)


def random_pair_chance(
    experts: NDArray[np.integer], groups: NDArray[np.int64], pairs: NDArray[np.int64], n_experts: int, *, seed: int = 0
) -> tuple[float, float]:
    """Return the chance that two different tokens of one group share their first choice, and that their sets meet.

    The first is exact: ΣN_e(N_e - 1) / (N(N - 1)) in each group, and the mean over groups, weighted by `pairs`. The
    second is exact for up to 2,048 different sets, unless groups are very many; else from 100,000 random pairs.

    Args:
        experts: (slots, tokens), -1 dropped, no first choice dropped.
        groups: (tokens,) the group of each token; those with a pair have two tokens or more.
        pairs: (groups,) how many pairs of neighbours each has.
        n_experts: of the router.
        seed: of the random pairs.
    """
    sizes = np.bincount(groups, minlength=pairs.size).astype(np.float64)
    weights = np.divide(pairs / pairs.sum(), sizes * (sizes - 1), out=np.zeros(sizes.size), where=pairs > 0)
    cells, place = _distinct(groups * n_experts + experts[0], pairs.size * n_experts)
    counts = np.bincount(place, minlength=cells.size).astype(np.float64)
    first = float(weights @ np.bincount(cells // n_experts, counts * (counts - 1), minlength=pairs.size))
    either = _exact_meetings(experts, groups, weights, n_experts)
    if either is None:
        either = _sampled_meetings(experts, groups, pairs, seed)
    return first, either


@dataclass(frozen=True, eq=False)
class TokenChance:
    """The chance of neighbours if each token were another occurrence of its type.

    `eligible` (pairs,) says which pairs have two types that occur often enough, `first` (eligible pairs,) is the exact
    chance of the same first choice, `either` the mean chance that sets meet, None where no pair is eligible.
    """

    eligible: NDArray[np.bool_]
    first: NDArray[np.float64]
    either: float | None


def token_chance(
    experts: NDArray[np.integer],
    types: NDArray[np.integer],
    before: NDArray[np.int64],
    n_experts: int,
    *,
    floor: int = TYPE_FLOOR,
    seed: int = 0,
) -> TokenChance:
    """Return how often neighbours would share an expert if each were routed as another token of its type.

    A token is never its own replacement. Where both are of one type, two different occurrences take their place, and
    neither is one of the two: swapped, they would only repeat what was observed.

    Args:
        experts: (slots, tokens), -1 dropped, no first choice dropped.
        types: (tokens,) the token's id.
        before: (pairs,) the first token of each pair; the token after it is the second.
        n_experts: of the router.
        floor: types that occur less often are not replaced; at least 5.
        seed: of the replacements that `either` draws; `first` needs none.

    Raises:
        ValueError: a floor below 5, under which there may be no two others of one type.
    """
    if floor < TYPE_FLOOR:
        raise ValueError(f"floor {floor}: a type must occur {TYPE_FLOOR} times or more for two others to be left")
    type_of = number_values(types)
    occurrences = np.bincount(type_of)
    often = occurrences[type_of] >= floor
    eligible = often[before] & often[before + 1]
    kept = before[eligible]
    if kept.size == 0:
        return TokenChance(eligible, np.zeros(0), None)
    first = _replaced_first(experts[0], type_of, occurrences, kept, n_experts)
    return TokenChance(eligible, first, _replaced_sets(experts, type_of, occurrences, kept, seed))


def number_values(values: NDArray[np.integer]) -> NDArray[np.int64]:
    """Number what is different, from 0 on, in the order of the values: (tokens,).

    Example:
        >>> number_values(np.array([7, 300, 7, 20])).tolist()
        [0, 2, 0, 1]
    """
    if values.size and values.min() >= 0:
        return _distinct(values.astype(np.int64), int(values.max()) + 1)[1]
    numbers: NDArray[np.int64] = np.unique(values, return_inverse=True)[1].astype(np.int64)
    return numbers


def _distinct(codes: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different codes, sorted, and the place of each code among them; all are below `size`."""
    if size > min(_DENSE_CODES, _DENSE_SHARE * codes.size):
        values, place = np.unique(codes, return_inverse=True)
        return values, place
    seen = np.zeros(size, dtype=np.bool_)
    seen[codes] = True
    values = np.flatnonzero(seen)
    places = np.zeros(size, dtype=np.int64)
    places[values] = np.arange(values.size)
    return values, places[codes]


def _set_numbers(experts: NDArray[np.integer], n_experts: int) -> tuple[NDArray[np.int64], int] | None:
    """Number the sets of tokens, in whatever order: (tokens,), and how many different ones there are.

    None where there are more than are looked at one by one.
    """
    numbers = np.zeros(experts.shape[1], dtype=np.int64)
    n_sets = 1
    for slot in np.sort(experts, axis=0):
        values, numbers = _distinct(numbers * (n_experts + 1) + slot + 1, n_sets * (n_experts + 1))
        n_sets = max(values.size, 1)
        if n_sets > _MOST_SETS:  # another slot parts sets, and joins none
            return None
    return numbers, n_sets


def _exact_meetings(
    experts: NDArray[np.integer], groups: NDArray[np.int64], weights: NDArray[np.float64], n_experts: int
) -> float | None:
    """Count, over all pairs of tokens of a group, how many sets meet; None where there are too many sets."""
    # A look at the first tokens saves sorting millions of them where there are too many sets anyway.
    if _set_numbers(experts[:, : 16 * _MOST_SETS], n_experts) is None:
        return None
    numbered = _set_numbers(experts, n_experts)
    if numbered is None or float(weights.size) * numbered[1] ** 2 > _MOST_WORK:
        return None
    numbers, n_sets = numbered
    counts = np.bincount(groups * n_sets + numbers, minlength=weights.size * n_sets).astype(np.float64)
    counts = counts.reshape(weights.size, n_sets)
    _, examples = np.unique(numbers, return_index=True)
    sets = experts[:, examples]  # (slots, sets)
    slots, places = np.nonzero(sets >= 0)
    holds = sparse.csr_array((np.ones(slots.size), (places, sets[slots, places])), shape=(n_sets, n_experts))
    meets = (holds @ holds.T).toarray() > 0
    itself = counts @ np.diagonal(meets)
    together = np.sum((counts @ meets.astype(np.float64)) * counts, axis=1)
    return float(weights @ (together - itself))


def _sampled_meetings(
    experts: NDArray[np.integer], groups: NDArray[np.int64], pairs: NDArray[np.int64], seed: int
) -> float:
    rng = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups, minlength=pairs.size)
    starts = np.cumsum(sizes) - sizes
    drawn = np.searchsorted(np.cumsum(pairs), rng.integers(0, pairs.sum(), _SAMPLED_PAIRS), side="right")
    one = _below(sizes[drawn], rng)
    other = (one + 1 + _below(sizes[drawn] - 1, rng)) % sizes[drawn]  # never the same token
    left, right = order[starts[drawn] + one], order[starts[drawn] + other]
    return float(meet(take_tokens(experts, left), take_tokens(experts, right)).mean())


def _below(bounds: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw a whole number from 0 on below each bound; six times faster than `integers` with as many bounds."""
    return (rng.random(bounds.size) * bounds).astype(np.int64)


def _replaced_first(
    first: NDArray[np.integer],
    type_of: NDArray[np.int64],
    occurrences: NDArray[np.int64],
    before: NDArray[np.int64],
    n_experts: int,
) -> NDArray[np.float64]:
    """The exact chance of each pair, (pairs,): counts of the two types multiplied, the pair itself taken out."""
    cells, place = _distinct(type_of * n_experts + first, occurrences.size * n_experts)
    counts = np.bincount(place).astype(np.float64)  # each cell is a type and an expert
    bounds = np.searchsorted(cells, np.arange(occurrences.size + 1) * n_experts)
    of_type = sparse.csr_array((counts, cells % n_experts, bounds), shape=(occurrences.size, n_experts))

    def count_of(kind: NDArray[np.int64], expert: NDArray[np.integer]) -> NDArray[np.float64]:
        wanted = kind * n_experts + expert
        if occurrences.size * n_experts <= _DENSE_CODES:
            of_cell = np.zeros(occurrences.size * n_experts)
            of_cell[cells] = counts
            return of_cell[wanted]
        found = np.minimum(np.searchsorted(cells, wanted), cells.size - 1)
        return np.where(cells[found] == wanted, counts[found], 0.0)

    left, right = type_of[before], type_of[before + 1]
    chosen, next_chosen = first[before], first[before + 1]
    same = (chosen == next_chosen).astype(np.float64)
    crossed, which = np.unique(left * occurrences.size + right, return_inverse=True)
    product = np.concatenate(
        [
            (of_type[chunk // occurrences.size] * of_type[chunk % occurrences.size]).sum(axis=1)
            for chunk in np.split(crossed, range(_CHUNK_PAIRS, crossed.size, _CHUNK_PAIRS))
        ]
    )[which]
    n_left, n_right = occurrences[left].astype(np.float64), occurrences[right].astype(np.float64)
    by_neighbour = count_of(right, chosen) + count_of(left, next_chosen)
    of_two_types = (product - by_neighbour + same) / ((n_left - 1) * (n_right - 1))
    others = n_left - 2
    of_one_type = (product - 2 * by_neighbour + 2 + 2 * same - others) / (others * (others - 1))
    return np.where(left == right, of_one_type, of_two_types)


def _replaced_sets(
    experts: NDArray[np.integer],
    type_of: NDArray[np.int64],
    occurrences: NDArray[np.int64],
    before: NDArray[np.int64],
    seed: int,
) -> float:
    """The mean chance that sets meet, from replacements drawn for every pair, equally many for each."""
    rng = np.random.default_rng(seed)
    order = np.argsort(type_of, kind="stable")
    starts = np.cumsum(occurrences) - occurrences
    rank = np.empty(type_of.size, dtype=np.int64)
    rank[order] = np.arange(type_of.size) - np.repeat(starts, occurrences)
    drawn = np.tile(before, -(-_SAMPLED_PAIRS // before.size))
    left, right = type_of[drawn], type_of[drawn + 1]
    twins = left == right
    own, next_own = rank[drawn], rank[drawn + 1]
    one = _below(occurrences[left] - 1 - twins, rng)
    other = _below(occurrences[right] - 1 - 2 * twins, rng)
    other += twins & (other >= one)  # of one type: two different ones
    one += one >= own
    one += twins & (one >= next_own)  # ranks follow the run, so that the second of a pair is past the first
    other += twins & (other >= own)
    other += other >= next_own
    lefts, rights = (order[starts[side] + rank_in] for side, rank_in in ((left, one), (right, other)))
    return float(meet(take_tokens(experts, lefts), take_tokens(experts, rights)).mean())
