from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from statsmodels.stats.multitest import multipletests

from moe_probe.counts import iter_coactivation_counts
from moe_probe.measures.coactivation import coactivation as measure_coactivation
from moe_probe.measures.coactivation import expected_pairs
from moe_probe.tables.columns import schema_of
from moe_probe.tables.pairs import COACTIVATION_COLUMNS, coactivation

SETS = np.array(list(itertools.combinations(range(8), 2)))


def even_run(folder, **more):
    rng = np.random.default_rng(0)
    experts = [rng.permuted(SETS[rng.integers(0, 28, 6000)], axis=1) for _ in range(2)]
    return write_run(folder, experts, n_experts=8, documents=np.arange(6000) // 60, **more)


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def test_pairs_counted_by_hand(tmp_path):
    experts = np.array([[0, 1], [1, 0], [2, 0], [3, -1], [1, 2]])
    frame = coactivation(write_run(tmp_path / "run", [experts], layers=[5]))
    assert frame.columns == list(schema_of(COACTIVATION_COLUMNS))
    assert frame.select("expert_a", "expert_b").rows() == list(itertools.combinations(range(4), 2))
    assert frame["together"].to_list() == [2, 1, 0, 1, 0, 0]
    assert frame["p_b_given_a"].to_list() == [2 / 3, 1 / 3, 0, 1 / 3, 0, 0]
    assert frame["p_a_given_b"].to_list() == [2 / 3, 1 / 2, 0, 1 / 2, 0, 0]
    expected = expected_pairs([3, 3, 2, 1], [0, 1, 4])
    assert frame["expected"].to_list() == pytest.approx(expected[np.triu_indices(4, 1)].tolist())
    assert frame["expected"].sum() == pytest.approx(4)
    assert frame["lift"].to_list() == pytest.approx((frame["together"] / frame["expected"]).to_list())
    assert frame.select("layer", "router", "tokens", "pairs", "cluster_unit", "n").unique().rows() == [
        (5, 0, "all", "all", "block", 4)
    ]
    assert has_no_nan(frame)


def test_under_even_routing_lift_is_one_and_nothing_is_found(tmp_path):
    frame = coactivation(even_run(tmp_path / "run"))
    assert frame.height == 2 * 28
    for _, rows in frame.group_by("router"):
        assert rows["lift"].mean() == pytest.approx(1, abs=0.01)
    assert (frame["q_value"] > 0.05).all()
    assert ((frame["ci_low"] < 1) & (frame["ci_high"] > 1)).mean() > 0.85
    assert set(frame["cluster_unit"]) == {"document"}


def test_q_values_are_over_the_whole_file(tmp_path):
    run = even_run(tmp_path / "run")
    upper = np.triu_indices(8, 1)
    p = np.concatenate(
        [
            measure_coactivation(counts.together, counts.loads, counts.sizes).p[upper]
            for _, counts in iter_coactivation_counts(run)
        ]
    )
    assert coactivation(run)["q_value"].to_list() == pytest.approx(multipletests(p, method="fdr_bh")[1].tolist())


def test_pairs_that_are_kept_together_are_found(tmp_path):
    rng = np.random.default_rng(1)
    experts = SETS[rng.integers(0, 28, 4000)]
    experts[rng.random(4000) < 0.2] = [4, 6]
    frame = coactivation(write_run(tmp_path / "run", [experts], n_experts=8, documents=np.arange(4000) // 50))
    best = frame.sort("ci_low", descending=True).row(0, named=True)
    assert (best["expert_a"], best["expert_b"]) == (4, 6)
    assert best["ci_low"] > 1.8
    assert best["q_value"] < 1e-9
    # What 4 and 6 have of each other, they do not have of the rest.
    rest = frame.filter(pl.col("expert_a").is_in([4, 6]) != pl.col("expert_b").is_in([4, 6]))
    assert rest.height == 12
    assert (rest["ci_high"] < 1).all()


def test_adjacent_ranks_alone_can_be_counted(tmp_path):
    rng = np.random.default_rng(2)
    experts = np.argsort(rng.random((3000, 8)), axis=1)[:, :4]
    run = write_run(tmp_path / "run", [experts], n_experts=8, documents=np.arange(3000) // 50)
    all_pairs, adjacent = coactivation(run), coactivation(run, adjacent=True)
    assert set(adjacent["pairs"]) == {"adjacent"}
    assert (all_pairs["together"].sum(), adjacent["together"].sum()) == (3000 * 6, 3000 * 3)
    assert adjacent["expected"].to_list() == pytest.approx((all_pairs["expected"] / 2).to_list())
    assert adjacent["lift"].mean() == pytest.approx(1, abs=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("experts", "n_experts", "height"),
    [
        (np.zeros((0, 2), int), 4, 0),
        (np.array([[1, 0]]), 4, 6),
        (np.full((9, 2), -1), 4, 0),
        (np.zeros((9, 1), int), 1, 0),
        (np.array([[0], [1], [2]]), 4, 0),
        (np.array([[0, 1]] * 9), 2, 1),
        (np.array([[0, 1]] * 9), 1100, 0),
    ],
    ids=["empty", "one token", "all dropped", "one expert", "one slot", "always both", "too many experts"],
)
def test_runs_with_little_in_them_have_nulls_or_no_rows(tmp_path, experts, n_experts, height):
    run = write_run(tmp_path / "run", [experts], n_experts=n_experts)
    frame = coactivation(run)
    assert frame.height == height
    assert frame.columns == list(schema_of(COACTIVATION_COLUMNS))
    assert has_no_nan(frame)
    assert frame["q_value"].null_count() == height
    assert coactivation(run, adjacent=True).height == height
    if height == 6:
        assert frame["lift"].to_list() == [1.0, None, None, None, None, None]
