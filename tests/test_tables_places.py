from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.tables.columns import schema_of
from moe_probe.tables.places import POSITION_COLUMNS, position


def test_positions_counted_by_hand(tmp_path):
    places = np.arange(10)  # the first four are sinks
    experts = np.array([[3, 2]] * 4 + [[0, 1], [0, 1], [1, -1], [1, 0], [2, 0], [-1, -1]])
    frame = position(write_run(tmp_path / "run", [experts], window_position=places, layers=[6]))
    assert frame.columns == list(schema_of(POSITION_COLUMNS))
    told = {
        (row["measure"], row["expert"], row["from_position"]): (row["value"], row["baseline"], row["n"])
        for row in frame.iter_rows(named=True)
    }
    assert told["share", 0, 4] == (3 / 7, 4 / 9, 7)
    assert told["share", 0, 8] == (1 / 2, 4 / 9, 2)
    assert told["share", 3, 4] == (0, 0, 7)
    assert told["dropped", None, 4] == (1 / 8, 3 / 12, 8)
    assert told["dropped", None, 8] == (2 / 4, 3 / 12, 4)
    assert told["first_choice", None, 4] == (2 / 3, 2 / 4, 3)  # 0-0, 0-1, 1-1
    assert told["first_choice", None, 8] == (0, 2 / 4, 1)
    assert told["either", None, 4] == (1.0, 1.0, 3)
    assert frame.select("layer", "tokens", "cluster_unit").unique().rows() == [(6, "all", "block")]
    assert set(frame["to_position"]) == {7, 15}


def test_drops_towards_the_end_of_a_window_are_seen(tmp_path):
    rng = np.random.default_rng(0)
    places = np.tile(np.arange(64), 40)
    experts = rng.integers(0, 4, (places.size, 1))
    experts[(places >= 32) & (rng.random(places.size) < 0.4)] = -1
    run = write_run(tmp_path / "run", [experts], window_position=places, documents=np.arange(places.size) // 64)
    dropped = position(run).filter(measure="dropped")
    assert dropped["from_position"].to_list() == [4, 8, 16, 32]
    assert dropped["value"].to_list()[:3] == [0, 0, 0]
    assert dropped["ci_low"][3] > dropped["baseline"][3] > dropped["ci_high"][2]
    assert set(dropped["cluster_unit"]) == {"document"}


def test_places_are_those_of_the_window_and_not_of_the_document(tmp_path):
    places = np.tile(np.arange(16), 4)
    run = write_run(tmp_path / "run", [np.zeros((64, 1), int)], window_position=places)
    assert set(position(run)["from_position"]) == {4, 8}


def test_the_shares_of_a_bucket_sum_to_one(tmp_path):
    rng = np.random.default_rng(1)
    run = write_run(
        tmp_path / "run", [rng.integers(-1, 4, (500, slots)) for slots in (1, 2)], documents=np.arange(500) // 20
    )
    shares = position(run).filter(measure="share").group_by("router", "from_position").agg(pl.col("value").sum())
    assert shares["value"].to_list() == pytest.approx([1.0] * shares.height)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("experts", "n_experts", "measures"),
    [
        (np.zeros((0, 2), int), 4, set()),
        (np.array([[1, 0]]), 4, {"share", "dropped"}),
        (np.full((9, 2), -1), 4, {"dropped"}),
        (np.zeros((9, 1), int), 1, {"share", "dropped", "first_choice", "either"}),
        (np.array([[0, 1]] * 9), 1025, {"dropped", "first_choice", "either"}),
    ],
    ids=["empty", "one token", "all dropped", "one expert", "very many experts"],
)
def test_runs_with_little_in_them_have_nulls_or_no_rows(tmp_path, experts, n_experts, measures):
    frame = position(write_run(tmp_path / "run", [experts], n_experts=n_experts))
    assert set(frame["measure"]) == measures
    assert not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)
    assert frame["value"].null_count() == 0
    assert frame["ci_low"].null_count() == frame.height  # one block is no interval
