from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.tables.columns import schema_of
from moe_probe.tables.words import VOCABULARY_COLUMNS, VOCABULARY_SUMMARY_COLUMNS, vocabulary, vocabulary_summary


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def zipf_run(folder, *, n_types: int = 900, n_tokens: int = 12_000):
    """Router 0 draws from a load, router 1 is a hash of the token."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(3, n_types + 3)
    ids = rng.choice(n_types, n_tokens, p=weights / weights.sum())
    random = rng.choice(8, n_tokens, p=np.arange(1, 9) / 36)
    hashed = rng.integers(0, 8, n_types)[ids]
    return write_run(
        folder,
        [random[:, None], hashed[:, None]],
        n_experts=8,
        token_id=ids,
        token=[f"w{number}" for number in ids],
    )


def test_shares_by_hand_with_the_commonest_token_first(tmp_path):
    ids = [7] * 4 + [2] * 6 + [5] * 4 + [1]
    experts = [0, 0, 0, 1, 2, 2, 2, 3, 3, 3, 1, 1, 1, 1, 0]
    run = write_run(tmp_path / "run", [np.array(experts)[:, None]], token_id=ids, token=[f"w{one}" for one in ids])
    frame = vocabulary(run, floor=4)
    assert frame.columns == list(schema_of(VOCABULARY_COLUMNS))
    shown = frame.select("token_id", "token", "occurrences", "top_expert", "share").rows()
    assert shown == [(2, "w2", 6, 2, 0.5), (5, "w5", 4, 1, 1.0), (7, "w7", 4, 0, 0.75)]
    assert set(frame["n"]) == {15}
    assert (frame["null_share"].to_numpy()[1:] > frame["null_share"][0]).all()
    assert set(frame["slot"] + frame["tokens"]) == {"0all"}


def test_sinks_and_dropped_tokens_do_not_occur(tmp_path):
    experts = np.array([0, 0, 1, -1, 1, 1])[:, None]
    run = write_run(tmp_path / "run", [experts], token_id=[3] * 6, window_position=[0, 3, 4, 5, 6, 7])
    assert vocabulary(run, floor=1).select("occurrences", "top_expert", "share").rows() == [(3, 1, 1.0)]


def test_pieces_inside_words_count_like_any_token(tmp_path):
    experts = np.array([0, 1, 1])[:, None]
    run = write_run(tmp_path / "run", [experts], token_id=[3, 4, 4], word_initial=[True, False, False])
    assert vocabulary(run, floor=1).select("token_id", "occurrences").rows() == [(4, 2), (3, 1)]


def test_a_random_router_is_at_its_chance_and_a_hash_far_above(tmp_path):
    frame = vocabulary_summary(zipf_run(tmp_path / "run"))
    assert frame.columns == list(schema_of(VOCABULARY_SUMMARY_COLUMNS))
    random, hashed = frame.filter(pl.col("expert").is_null()).to_dicts()
    assert random["excess_ci_low"] < 0 < random["excess_ci_high"]
    assert random["mean_share"] == pytest.approx(random["null_mean_share"], abs=0.01)
    assert random["context_independence_ci_low"] < 0 < random["context_independence_ci_high"]
    assert random["uncorrected_independence"] == pytest.approx(random["shuffled_independence"], abs=0.01)
    assert random["published_share"] == pytest.approx(random["published_null_share"], abs=0.01)
    assert random["published_share"] > random["mean_share"] + 0.05
    assert (hashed["mean_share"], hashed["context_independence"]) == (1.0, pytest.approx(1.0))
    assert hashed["excess_ci_low"] > 0.5


def test_the_rows_of_experts_share_out_the_types_of_their_router(tmp_path):
    run = zipf_run(tmp_path / "run")
    frame = vocabulary_summary(run)
    tokens = vocabulary(run)
    for router in range(2):
        whole, *experts = frame.filter(router=router).to_dicts()
        assert [row["expert"] for row in experts] == list(range(8))
        assert sum(row["types"] for row in experts) == whole["types"] == tokens.filter(router=router).height
        assert sum(row["n"] for row in experts) == whole["n"]
        of_third = tokens.filter(router=router, top_expert=3)
        assert experts[3]["mean_share"] == pytest.approx(of_third["share"].mean())
        assert experts[3]["null_mean_share"] == pytest.approx(of_third["null_share"].mean())
        assert experts[3]["published_share"] is None


def test_the_floor_cuts_what_is_measured_by_type_and_not_context_independence(tmp_path):
    run = zipf_run(tmp_path / "run")
    low, high = (vocabulary_summary(run, floor=floor).filter(pl.col("expert").is_null()) for floor in (3, 30))
    assert (low["types"] > high["types"]).all()
    for column in ("context_independence", "published_share"):
        assert low[column].equals(high[column])
    assert vocabulary(run, floor=30)["occurrences"].to_numpy().min() >= 30


def test_the_same_seed_gives_the_same_tables(tmp_path):
    run = zipf_run(tmp_path / "run", n_tokens=2000)
    assert vocabulary(run, seed=1).equals(vocabulary(run, seed=1))
    assert not vocabulary(run, seed=1)["null_share"].equals(vocabulary(run, seed=2)["null_share"])
    assert vocabulary_summary(run).equals(vocabulary_summary(run))


@pytest.mark.parametrize(
    "experts",
    [np.zeros((0, 1), int), np.array([[0]]), np.full((20, 2), -1), np.zeros((20, 1), int)],
    ids=["empty run", "one token", "all dropped", "one expert used"],
)
@pytest.mark.parametrize("n_experts", [1, 300])
def test_where_there_is_nothing_to_measure_there_are_nulls_and_no_warning(tmp_path, experts, n_experts):
    run = write_run(tmp_path / "run", [experts], token_id=[5] * len(experts), n_experts=n_experts)
    words, sums = vocabulary(run), vocabulary_summary(run)
    assert has_no_nan(words)
    assert has_no_nan(sums)
    assert sums.height == (1 + n_experts if len(experts) else 0)
    assert sums["context_independence"].null_count() == sums.height
    if len(experts) == 20 and experts.max() == 0:
        assert words.select("share", "null_share").rows() == [(1.0, 1.0)]
        assert sums["excess_ci_low"].null_count() == sums.height  # one type is one fold
    else:
        assert words.height == 0
        assert sums["mean_share"].null_count() == sums.height
