"""The statistical procedures once more, a cell at a time, with loops and no cleverness: what the fast ones must equal.

Written from the formulas in docs/measures.md without a look at `moe_probe.measures`, slow, and for tests alone.
"""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
from scipy import optimize, stats


def cell(clustered: np.ndarray, expert: int, label: int) -> dict[str, float]:
    """Lift of one cell of (clusters, experts, labels), with interval, p, expected count and effective clusters."""
    clusters = [table for table in clustered if table.sum() > 0]
    whole = sum(clusters)
    n_ec, n_e, n_c, n = whole[expert, label], whole[expert].sum(), whole[:, label].sum(), whole.sum()
    variance = e_squares = c_squares = 0.0
    for table in clusters:
        g_e, g_c = table[expert].sum(), table[:, label].sum()
        variance += (table[expert, label] / n_ec + table.sum() / n - g_e / n_e - g_c / n_c) ** 2
        e_squares += float(g_e) ** 2
        c_squares += float(g_c) ** 2
    variance *= len(clusters) / (len(clusters) - 1)
    geff = min(float(n_e) ** 2 / e_squares, float(n_c) ** 2 / c_squares)
    freedom = max(geff - 1, 1)
    log_lift = math.log(n_ec * n / (n_e * n_c))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return {
        "lift": math.exp(log_lift),
        "low": math.exp(log_lift - half),
        "high": math.exp(log_lift + half),
        "p": 2 * stats.t.sf(abs(log_lift) / math.sqrt(variance), freedom),
        "expected": n_e * n_c / n,
        "geff": geff,
    }


def type_z(expert_counts: np.ndarray, label_counts: np.ndarray, expert: int, label: int, floor: int = 3) -> float:
    """How far types of a label lean to an expert, against types of like frequency: U / √Var."""
    weights = octave_weights(expert_counts, floor)
    strata: dict[int, list[tuple[float, bool]]] = defaultdict(list)
    for went, had in zip(expert_counts, label_counts, strict=True):
        if went.sum() >= floor:
            octave = math.floor(math.log2(went.sum()))
            strata[octave].append((weights[octave] * went[expert] / went.sum(), had.argmax() == label))
    excess = variance = 0.0
    for types in strata.values():
        n, m = len(types), sum(has for _, has in types)
        mean = sum(share for share, _ in types) / n
        excess += sum(share - mean for share, has in types if has)
        if n > 1:
            variance += m * (n - m) / (n * (n - 1)) * sum((share - mean) ** 2 for share, _ in types)
    return excess / math.sqrt(variance)


def octave_weights(expert_counts: np.ndarray, floor: int = 3) -> dict[int, float]:
    """The weight of an octave: one over h + t(1 - h), where t solves Σ f (1-h)(r - h - t(1-h)) / (h + t(1-h))² = 0."""
    strata: dict[int, list[np.ndarray]] = defaultdict(list)
    for went in expert_counts:
        if went.sum() >= floor:
            strata[math.floor(math.log2(went.sum()))].append(went)
    facts = {}
    for octave, types in strata.items():
        shares = [went / went.sum() for went in types]
        mean = sum(shares) / len(shares)
        spread = sum(float(((share - mean) ** 2).sum()) for share in shares)
        most = float((mean * (1 - mean)).sum())
        free = len(types) - 1 if most > 0 else 0
        chance = sum(1 / went.sum() for went in types) / len(types)
        facts[octave] = (chance, spread / (free * most) if free else 0.0, free)

    def leaning(t: float) -> float:
        return sum(f * (1 - h) * (r - h - t * (1 - h)) / (h + t * (1 - h)) ** 2 for h, r, f in facts.values())

    # Where the equation has no root in [0, 1], the nearer end of it.
    if leaning(0.0) <= 0:
        t = 0.0
    else:
        t = 1.0 if leaning(1.0) >= 0 else float(optimize.brentq(leaning, 0.0, 1.0, xtol=1e-14))
    return {octave: 1 / (h + t * (1 - h)) for octave, (h, _, _) in facts.items()}


def share(clustered: np.ndarray, expert: int) -> dict[str, float]:
    """One expert's share of (clusters, experts), with Wilson's interval for as many draws as clusters are worth."""
    clusters = [loads for loads in clustered if loads.sum() > 0]
    total = sum(loads.sum() for loads in clusters)
    held = sum(loads[expert] for loads in clusters)
    p = held / total
    between = sum(((loads[expert] - p * loads.sum()) / total) ** 2 for loads in clusters)
    deff = between * len(clusters) / (len(clusters) - 1) / (p * (1 - p) / total)
    geff = held**2 / sum(float(loads[expert]) ** 2 for loads in clusters)
    geff = min(geff, total**2 / sum(float(loads.sum()) ** 2 for loads in clusters))
    t, n = stats.t.ppf(0.975, max(geff - 1, 1)), total / deff
    # The ends of Wilson's interval are the roots of (p - x)² = t²·x·(1 - x)/n.
    roots = np.roots([1 + t**2 / n, -(2 * p + t**2 / n), p**2])
    return {"share": p, "low": float(roots.min()), "high": float(roots.max()), "deff": deff, "geff": geff}


def benjamini_hochberg(p: list[float]) -> list[float]:
    """q-values by definition: the least level at which each is rejected."""
    return [min(min(len(p) * bound / sum(one <= bound for one in p) for bound in p if bound >= own), 1.0) for own in p]


def permuted_share(
    expert_counts: np.ndarray, label_counts: np.ndarray, expert: int, label: int, *, n_permutations: int, seed: int
) -> float:
    """Two-sided p of the type test by really exchanging labels among types of like frequency."""
    rng = np.random.default_rng(seed)
    kept = expert_counts.sum(axis=1) >= 3
    occurrences = expert_counts[kept].sum(axis=1)
    shares = expert_counts[kept, expert] / occurrences
    has = label_counts[kept].argmax(axis=1) == label
    octaves = np.floor(np.log2(occurrences))
    weights = octave_weights(expert_counts)
    shares = shares * [weights[int(octave)] for octave in octaves]
    sums = np.zeros(n_permutations)
    for octave in np.unique(octaves):
        inside = np.flatnonzero(octaves == octave)
        for draw in range(n_permutations):
            sums[draw] += shares[rng.permutation(inside)][has[inside]].sum()
    seen = shares[has].sum()
    return min(1.0, 2 * min((sums >= seen - 1e-12).mean(), (sums <= seen + 1e-12).mean()))
