"""Rates with their Monte-Carlo error, and what they should be: what calibration comes down to.

It does not know what was simulated.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bounds:
    """What a figure should be; without bounds it claims nothing and is there to be compared with."""

    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None and self.high is None:
            return "(for comparison)"
        if self.low is None:
            return f"≤ {_number(self.high)}"
        if self.high is None:
            return f"≥ {_number(self.low)}"
        return f"{_number(self.low)} to {_number(self.high)}"


@dataclass(frozen=True)
class Figure:
    """One rate: `value` with its Monte-Carlo standard `error` over `seeds` draws, and what it should be."""

    name: str
    router: str
    n_experts: int
    n_documents: int
    value: float
    error: float
    should_be: Bounds
    seeds: int

    @property
    def held(self) -> bool:
        """Whether it is where it should be, give or take three standard errors."""
        slack = 3 * self.error
        too_low = self.should_be.low is not None and self.value < self.should_be.low - slack
        return not too_low and (self.should_be.high is None or self.value <= self.should_be.high + slack)

    @property
    def rate(self) -> str:
        """The value with its error, and a mark where it is not where it should be."""
        return f"{_number(self.value)} ± {_number(self.error)}{'' if self.held else ' (!)'}"

    def __str__(self) -> str:
        """One line, for messages."""
        where = f"{self.router}, {self.n_experts} experts, {self.n_documents} documents, {self.seeds} seeds"
        return f"{self.name}: {self.rate}, should be {self.should_be} ({where})"


def pooled(tallies: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return the rate over all draws and its standard error, a draw being one cluster."""
    hits, of = np.array(list(tallies), dtype=np.float64).T
    value = hits.sum() / of.sum()
    residuals = hits - value * of
    return float(value), math.sqrt(of.size / (of.size - 1) * float(np.sum(residuals**2))) / float(of.sum())


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value + 0.0:.3f}".replace("-0.000", "0.000").replace("0.", ".", 1)


def as_table(figures: Iterable[Figure]) -> str:
    """A Markdown table, a row a figure, router and number of experts, and a column a number of documents."""
    rows: dict[tuple[str, str, int], dict[int, Figure]] = defaultdict(dict)
    for figure in figures:
        rows[figure.name, figure.router, figure.n_experts][figure.n_documents] = figure
    names = list(dict.fromkeys(name for name, _, _ in rows))
    documents = sorted({number for row in rows.values() for number in row})
    head = ["figure", "router", "experts", *(f"{number} documents" for number in documents), "should be"]
    lines = [head, ["---"] * len(head)]
    for (name, router, n_experts), row in sorted(rows.items(), key=lambda item: names.index(item[0][0])):
        should_be = ", ".join(dict.fromkeys(str(figure.should_be) for figure in row.values()))
        rates = (row[number].rate if number in row else "" for number in documents)
        lines.append([name, router, str(n_experts), *rates, should_be])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
