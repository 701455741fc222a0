"""The chance rows of Mixtral's Table 5, and what its figures say against them.

Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088), section 5 and Table 5: percentage of consecutive tokens with
the same first choice, and with a common expert among both choices; random assignment gives 1/8 = 12.5 % and
1 − 6/8 · 5/7 ≈ 46 %.
"""

from __future__ import annotations

import csv

import numpy as np
import pytest
from reference_data import reference

from moe_probe.measures.repetition import load_chance, repetition, uniform_chance

# Typed from the table, percent: first choice in layers 0, 15 and 31, either choice in the same.
TABLE_5 = {
    "ArXiv": (14.0, 27.9, 22.7, 46.5, 62.3, 52.9),
    "DM Mathematics": (14.1, 28.4, 19.7, 44.9, 67.0, 44.5),
    "Github": (14.9, 28.1, 19.7, 49.9, 66.9, 49.2),
}


def test_the_chance_rows_of_table_5():
    first, either = uniform_chance(8, 2)
    assert first == 0.125
    assert either == pytest.approx(1 - 6 / 8 * 5 / 7, abs=1e-12)
    assert round(100 * either) == 46


def test_uniform_routing_measured_gives_the_chance_rows():
    rng = np.random.default_rng(0)
    n = 60_000
    first = rng.integers(0, 8, n)
    experts = np.stack([first, (first + rng.integers(1, 8, n)) % 8], axis=1)
    rows = np.arange(n)
    found = repetition(experts, rows // 1000, rows % 1000, rows % 1000, 8)
    for seen, chance in ((found.first, found.uniform_first), (found.either, found.uniform_either)):
        assert seen.low < chance < seen.high
    # Where the load is even the load-aware chance is the uniform one.
    assert load_chance(experts, 8) == pytest.approx(uniform_chance(8, 2), abs=0.003)


def test_one_row_of_the_table_lies_below_chance():
    first, either = (100 * chance for chance in uniform_chance(8, 2))
    assert all(share > first for row in TABLE_5.values() for share in row[:3])
    below = [(name, row[3 + layer]) for name, row in TABLE_5.items() for layer in range(3) if row[3 + layer] < either]
    assert below == [("DM Mathematics", 44.9), ("DM Mathematics", 44.5)]


def test_the_whole_table_against_chance():
    with reference("mixtral_paper_table5.csv").open() as file:
        rows = {row.pop("dataset"): [float(share) for share in row.values()] for row in csv.DictReader(file)}
    assert len(rows) == 8
    assert {name: tuple(rows[name]) for name in TABLE_5} == TABLE_5
    first, either = (100 * chance for chance in uniform_chance(8, 2))
    assert min(share for row in rows.values() for share in row[:3]) > first
    assert {name for name, row in rows.items() if min(row[3:]) < either} == {"DM Mathematics"}
