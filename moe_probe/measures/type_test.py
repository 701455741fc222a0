"""Does an expert's liking for a label hold over *words*, not only over occurrences?

An untrained router is a hash of the token: it sends every `the` to one expert, and counted by occurrences that expert
is fond of determiners. Over many documents it stays fond of them, so that no test over documents finds it out. Here
every token type is one draw: are the types of a label sent to the expert more than other types are? Types are compared
with types of like frequency only, since routing often depends on frequency, and so do parts of speech.

Where the type decides everything, a word seen three times tells as much as one seen a thousand times. Where it decides
little, the shares of rare words are mostly chance, and to count all types alike would waste the evidence of frequent
ones. So each stratum weighs by the inverse of the spread that its shares have between types, as in a meta-analysis with
random effects (DerSimonian and Laird 1986). The weights come from where all types go, whatever their labels, so that it
stays a permutation test. On routers that hash the token they change nothing; where each token prefers its label's
expert by odds of 1.5, among 64 experts, they double what is found.

It does not know what a type or a label is. A permutation test whose moments are known in closed form: Strasser and
Weber (1999), "On the asymptotic theory of permutation statistics", here within strata. Of hundreds of experts each
takes few types, so that the statistic is far from normal in the tails that decide once many tests are corrected for. So
p is that of Pearson's type III curve, which has the third moment too (Mielke and Berry 2007, "Permutation Methods"): on
routers that hash the token among 256 experts, the normal curve called 4 of 2,048 cells of a layer, this one none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammainc, gammaincc, ndtr

TYPE_FLOOR = 3
"""A token type is a draw if it occurs at least so often."""

MINIMUM_TYPES = 8
"""A label is tested if so many types are commonest under it."""

_NO_VARIANCE = 1e-20
_FITTING_STEPS = 20
_NO_SKEWNESS = 1e-5
"""Below this the type III curve and the normal one agree to five digits."""


@dataclass(frozen=True, eq=False)
class TypeTest:
    """How far the types of a label differ from the others in where they go.

    `z` and its two-sided `p` are (experts, labels), nan where untestable; `z` is above 0 where the label's types go to
    the expert more. `p` allows for the skewness of the null and so is not that of a normal `z`. `types` is (labels,):
    how many types are commonest under each label.
    """

    z: NDArray[np.float64]
    p: NDArray[np.float64]
    types: NDArray[np.int64]


def type_test(
    expert_counts: NDArray[np.integer],
    label_counts: NDArray[np.integer],
    *,
    floor: int = TYPE_FLOOR,
    min_types: int = MINIMUM_TYPES,
) -> TypeTest:
    """Test, over token types, whether each expert takes the types of each label more or less than others.

    With s_v(e) = n(v,e)/n(v), centred within strata b = ⌊log2 n(v)⌋ and multiplied by the stratum's weight w_b,

        U_ec = Σ s_v(e) over types whose commonest label is c
        Var_ec = Σ_b m_bc·(n_b - m_bc) / (n_b·(n_b - 1)) · Σ_{v in b} s_v(e)²        z = U / √Var

    where n_b types lie in stratum b, m_bc of them with label c. p is twice the smaller tail of the type III curve of
    that variance and of the third moment Σ_b m(n-m)(n-2m)/(n(n-1)(n-2)) · Σ_{v in b} s_v(e)³. A type's commonest label
    is the lower index in a tie. For the weights see `stratum_weights`.

    Args:
        expert_counts: (types, experts) how often each type went to each expert, first choice.
        label_counts: (types, labels) how often each type had each label.
        floor: types that went to experts less often are left out.
        min_types: labels with fewer types are not tested.

    Example:
        >>> went = np.array([[9, 0], [8, 1]] * 4 + [[0, 9], [1, 8]] * 4)
        >>> had = np.array([[9, 0]] * 8 + [[0, 9]] * 8)
        >>> found = type_test(went, had)
        >>> found.types.tolist(), bool(found.z[0, 0] > 3), bool(found.p[0, 0] < 0.001)
        ([8, 8], True, True)
    """
    n_experts, n_labels = expert_counts.shape[1], label_counts.shape[1]
    occurrences = expert_counts.sum(axis=1, dtype=np.int64)
    kept = (occurrences >= floor) & label_counts.any(axis=1)
    untested = np.full((n_experts, n_labels), np.nan)
    if not kept.any():
        return TypeTest(untested, untested.copy(), np.zeros(n_labels, np.int64))
    labels = label_counts[kept].argmax(axis=1)
    types = np.bincount(labels, minlength=n_labels)
    by_stratum = _stratum_of(occurrences[kept])
    sizes = np.bincount(by_stratum)  # (strata,) n_b
    shares = expert_counts[kept] / occurrences[kept, None]
    shares *= stratum_weights(shares, occurrences[kept], by_stratum)[by_stratum, None]
    shares -= (_sum_rows(shares, by_stratum, sizes.size) / sizes[:, None])[by_stratum]
    members = np.zeros((sizes.size, n_labels))  # m_bc
    np.add.at(members, (by_stratum, labels), 1)
    variance, third = _moments(shares, by_stratum, sizes[:, None].astype(np.float64), members)
    known = (variance > _NO_VARIANCE) & (types >= min_types)
    deviation = np.sqrt(variance, out=np.full(variance.shape, np.nan), where=known)
    z = _sum_rows(shares, labels, n_labels).T / deviation
    return TypeTest(z, _two_sided(z, third / deviation**3), types)


def stratum_weights(
    shares: NDArray[np.float64], occurrences: NDArray[np.int64], strata: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return how much a type of each stratum tells, (strata,): 1 if types decide all, n(v) if they decide nothing.

    Between the types of stratum b the shares of all experts vary by S_b = Σ_e Σ_v (s_v(e) - s̄_b(e))² / (n_b - 1), which
    is r_b·Σ_e s̄_b(e)(1 - s̄_b(e)). With h_b the mean of 1/n(v), r_b is h_b if types decide nothing and 1 if they decide
    all; in between, r_b = h_b + t·(1 - h_b). One t in [0, 1] is fitted to all strata, each weighing by its degrees of
    freedom over r_b², and w_b = 1 / r_b.

    Args:
        shares: (types, experts) the share of each type that went to each expert.
        occurrences: (types,) how often each type occurs.
        strata: (types,) the stratum of each, numbered from 0 without gaps.

    Example:
        >>> went = np.array([[4, 0], [0, 4], [4, 0], [0, 4]])
        >>> stratum_weights(went / 4, went.sum(axis=1), np.zeros(4, np.int64)).tolist()
        [1.0]
    """
    sizes = np.bincount(strata)
    chance = np.bincount(strata, 1 / occurrences) / sizes  # h_b
    means = _sum_rows(shares, strata, sizes.size) / sizes[:, None]
    most = (means * (1 - means)).sum(axis=1)
    freedom = np.where(most > _NO_VARIANCE, sizes - 1.0, 0)
    spread = ((shares - means[strata]) ** 2).sum(axis=1)
    ratio = np.bincount(strata, spread) / np.maximum(freedom * most, _NO_VARIANCE)  # r_b as it is seen
    decided = 0.5
    for _ in range(_FITTING_STEPS):
        expected = chance + decided * (1 - chance)
        slope = freedom * (1 - chance) / expected**2
        if not slope.any():
            break
        decided = float(np.clip((slope * (ratio - chance)).sum() / (slope * (1 - chance)).sum(), 0, 1))
    weights: NDArray[np.float64] = 1 / (chance + decided * (1 - chance))
    return weights


def _moments(
    shares: NDArray[np.float64], strata: NDArray[np.int64], sizes: NDArray[np.float64], members: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Second and third moments, each (experts, labels), of the sum of `members` shares drawn from each stratum."""
    rest = members * (sizes - members)
    second = rest / np.maximum(sizes * (sizes - 1), 1)
    third = rest * (sizes - 2 * members) / np.maximum(sizes * (sizes - 1) * (sizes - 2), 1)
    squares, cubes = (_sum_rows(shares**power, strata, sizes.size) for power in (2, 3))  # (strata, experts)
    return squares.T @ second, cubes.T @ third


def _two_sided(z: NDArray[np.float64], skewness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Twice the smaller tail of a standardised type III curve; nan stays nan."""
    towards = np.where(skewness < 0, -z, z)  # mirrored, so that the long tail is above
    # The curve begins at -2/skewness, where a null may still lie: there, and without skewness, the normal tail is used.
    skewed = (np.abs(skewness) > _NO_SKEWNESS) & (towards * np.abs(skewness) > -2)
    shape = 4 / skewness[skewed] ** 2
    gamma = shape + towards[skewed] * np.sqrt(shape)
    tail = ndtr(-np.abs(z))
    tail[skewed] = np.minimum(gammainc(shape, gamma), gammaincc(shape, gamma))
    p: NDArray[np.float64] = np.minimum(2 * tail, 1.0)
    return p


def _stratum_of(occurrences: NDArray[np.int64]) -> NDArray[np.int64]:
    """The place of each type's ⌊log2 n⌋ among those that occur."""
    exponents = np.frexp(occurrences.astype(np.float64))[1]
    strata: NDArray[np.int64] = np.unique(exponents, return_inverse=True)[1]
    return strata


def _sum_rows(values: NDArray[np.float64], groups: NDArray[np.int64], n_groups: int) -> NDArray[np.float64]:
    """Sum the rows of each group, (groups, columns)."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((n_groups, values.shape[1]))
    sums[present] = np.add.reduceat(values[order], starts, axis=0)
    return sums
