from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.errors import BadInputError
from moe_probe.tables import (
    BALANCE_COLUMNS,
    LABEL_COLUMNS,
    LOAD_COLUMNS,
    SPECIALISATION_COLUMNS,
    balance,
    columns_table,
    label_table,
    load_table,
    schema_of,
    specialisation,
)

EXPERTS = np.array([[0, 1], [1, 2], [3, 0], [0, 2]])
TAGS = ["NOUN", "VERB", "NOUN", "VERB"]


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def test_load_by_hand_for_any_slot_and_each(tmp_path):
    frame = load_table(write_run(tmp_path / "run", [EXPERTS], layers=[3]))
    assert frame.columns == list(schema_of(LOAD_COLUMNS))
    assert frame.filter(slot="any")["assignments"].to_list() == [3, 2, 2, 1]
    assert frame.filter(slot="any")["share"].to_list() == [3 / 8, 1 / 4, 1 / 4, 1 / 8]
    assert frame.filter(slot="0")["share"].to_list() == [1 / 2, 1 / 4, 0, 1 / 4]
    assert frame.filter(slot="1")["assignments"].to_list() == [1, 1, 2, 0]
    assert set(frame["uniform"]) == {0.25}
    assert frame.select("layer", "tokens", "n").unique().sort("n").rows() == [(3, "all", 4), (3, "all", 8)]


def test_shares_sum_to_one_for_every_router_and_slot(tmp_path):
    rng = np.random.default_rng(0)
    experts = [rng.integers(-1, 16, (500, slots)) for slots in (1, 4)]
    frame = load_table(write_run(tmp_path / "run", experts, n_experts=16))
    sums = frame.group_by("router", "slot").agg(pl.col("share").sum(), pl.col("assignments").sum(), pl.col("n").first())
    assert sums.height == 2 + 5
    assert sums["share"].to_list() == pytest.approx([1] * 7)
    assert (sums["assignments"] == sums["n"]).all()


def test_balance_by_hand(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS, np.full((4, 1), 2)], scores={0: ([1, 2, 3, 2], [0.5] * 4)})
    frame = balance(run)
    assert frame.columns == list(schema_of(BALANCE_COLUMNS))
    first, second = frame.to_dicts()
    assert first["max_violation"] == pytest.approx(3 / 2 - 1)
    assert first["load_entropy_bits"] == pytest.approx(-sum(p * math.log2(p) for p in (3 / 8, 1 / 4, 1 / 4, 1 / 8)))
    assert first["effective_experts"] == pytest.approx(2 ** first["load_entropy_bits"])
    assert (first["mean_token_entropy_bits"], first["mean_margin"]) == (2.0, 0.5)
    assert (first["dropped"], first["dead"], first["unseen"], first["n"]) == (0, 0, 0, 4)
    assert (first["slot"], first["tokens"]) == ("any", "all")
    assert (second["unseen"], second["max_violation"], second["mean_token_entropy_bits"]) == (3, 3.0, None)


def test_dropped_slots_are_counted_as_dropped(tmp_path):
    run = write_run(tmp_path / "run", [np.array([[0, -1], [-1, -1], [1, 0]])])
    assert balance(run)["dropped"].item() == 3


def test_a_label_table_by_hand(tmp_path):
    run = write_run(tmp_path / "run", [EXPERTS], labels={"upos": TAGS})
    frame = label_table(run, "upos")
    assert frame.columns == list(schema_of(LABEL_COLUMNS))
    assert frame.height == 2 * 4 * 2
    row = frame.row(
        by_predicate=(pl.col("slot") == "any") & (pl.col("expert") == 0) & (pl.col("label") == "NOUN"), named=True
    )
    assert row["assignments"] == 2
    assert row["p_label_given_expert"] == pytest.approx(2 / 3)
    assert row["p_expert_given_label"] == pytest.approx(2 / 4)
    assert row["expected"] == pytest.approx(3 * 4 / 8)
    assert row["lift"] == pytest.approx((2 / 3) / (4 / 8))
    assert (row["n"], row["tokens"]) == (8, "word_initial")
    unseen = frame.filter((pl.col("slot") == "0") & (pl.col("expert") == 2))
    assert unseen["assignments"].to_list() == [0, 0]
    assert unseen["p_label_given_expert"].to_list() == [None, None]
    assert unseen["lift"].to_list() == [None, None]
    assert unseen["p_expert_given_label"].to_list() == [0.0, 0.0]
    assert has_no_nan(frame)


def test_rows_come_in_a_fixed_order(tmp_path):
    rng = np.random.default_rng(0)
    experts = [rng.integers(0, 4, (60, 2)) for _ in range(2)]
    run = write_run(tmp_path / "run", experts, labels={"domain": rng.choice(["b", "a"], 60)}, word_level=())
    frame = label_table(run, "domain")
    assert set(frame["tokens"]) == {"all"}
    keys = frame.select("router", (pl.col("slot") != "any").alias("later"), "expert", "label").rows()
    assert keys == sorted(keys)


def test_text_that_nobody_tagged_does_not_make_an_expert_shun_nouns(tmp_path):
    # Expert 0 has the English text, expert 1 the untagged; among tagged tokens both are as fond of nouns.
    experts = np.array([[0]] * 20 + [[1]] * 20 + [[1]] * 60)
    tags = ["NOUN", "VERB"] * 20 + ["untagged"] * 60
    frame = label_table(write_run(tmp_path / "run", [experts], labels={"upos": tags}), "upos").filter(slot="any")
    assert set(frame["label"]) == {"NOUN", "VERB"}
    assert set(frame.filter(pl.col("expert") < 2)["lift"]) == {1.0}
    assert set(frame["n"]) == {40}


def test_specialisation_of_a_hash_and_of_a_planted_router(tmp_path):
    rng = np.random.default_rng(0)
    type_tag = rng.integers(0, 4, 400)
    ids = rng.integers(0, 400, 8000)
    hashed, planted = rng.integers(0, 4, 400), np.where(rng.random(400) < 0.8, type_tag, rng.integers(0, 4, 400))
    run = write_run(
        tmp_path / "run",
        [hashed[ids, None], planted[ids, None]],
        labels={"upos": np.array(["NOUN", "VERB", "ADJ", "DET"])[type_tag[ids]]},
        token_id=ids,
        token=[f"w{number}" for number in ids],
        documents=np.arange(8000) // 100,
        shard_rows=3000,
    )
    frame = specialisation(run, "upos")
    assert frame.columns == list(schema_of(SPECIALISATION_COLUMNS))
    by_hash, by_plan = frame.to_dicts()
    assert by_hash["type_ci_low"] < 0 < by_hash["type_ci_high"]
    assert by_hash["held_out_ci_low"] < 0
    assert by_plan["type_ci_low"] > 0.5
    assert by_plan["held_out_ci_low"] > 0.5
    assert by_plan["type_p"] < 0.01
    assert by_plan["mutual_information_bits"] > by_plan["null_mean_bits"]
    assert (by_plan["types"], by_plan["n"], by_plan["tokens"], by_plan["slot"]) == (400, 8000, "word_initial", "0")


def test_only_whole_tagged_words_away_from_sinks_count_as_types(tmp_path):
    ids = np.repeat(np.arange(8), 4)
    tags = np.repeat(["NOUN", "VERB", "continuation", "untagged"], 8)
    run = write_run(
        tmp_path / "run", [ids[:, None] % 2], labels={"upos": tags}, token_id=ids, token=[f"w{i}" for i in ids]
    )
    row = specialisation(run, "upos").to_dicts()[0]
    assert (row["types"], row["n"]) == (4, 16)
    sunk = write_run(
        tmp_path / "sunk", [ids[:, None] % 2], labels={"upos": tags}, token_id=ids, window_position=[0] * 8 + [9] * 24
    )
    assert specialisation(sunk, "upos").to_dicts()[0]["type_level_bits"] is None


DEGENERATE = {
    "empty run": (np.zeros((0, 2), int), []),
    "one token": (np.array([[1, 0]]), ["NOUN"]),
    "all dropped": (np.full((3, 2), -1), ["NOUN", "VERB", "NOUN"]),
    "a label of one value": (EXPERTS, ["NOUN"] * 4),
    "nothing tagged": (EXPERTS, ["untagged"] * 4),
    "no whole word": (EXPERTS, ["continuation"] * 4),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("n_experts", [4, 300])
def test_degenerate_runs_give_null_or_no_rows(tmp_path, case, n_experts):
    experts, tags = DEGENERATE[case]
    run = write_run(tmp_path / "run", [experts], labels={"upos": tags}, n_experts=n_experts)
    frames = [load_table(run), balance(run), label_table(run, "upos"), specialisation(run, "upos")]
    assert all(has_no_nan(frame) for frame in frames)
    load, even, syntax, bits = frames
    if case == "empty run":
        assert [frame.height for frame in frames] == [0, 0, 0, 0]
        assert [frame.columns for frame in frames] == [
            list(schema_of(columns))
            for columns in (LOAD_COLUMNS, BALANCE_COLUMNS, LABEL_COLUMNS, SPECIALISATION_COLUMNS)
        ]
    elif case == "all dropped":
        assert load["share"].null_count() == load.height
        assert even["gini"].item() is None
        assert (even["dropped"].item(), even["dead"].item(), even["unseen"].item()) == (6, 0, n_experts)
        assert set(load["verdict"]) == {"unseen"}
        assert syntax["lift"].null_count() == syntax.height
        assert set(syntax["verdict"]) == {"not enough data"}
    elif case in ("nothing tagged", "no whole word"):
        assert syntax.height == 0
        assert load["share"].null_count() == 0
    else:
        assert load.filter(slot="any")["share"].sum() == pytest.approx(1)
        assert set(syntax["lift"].drop_nulls()) <= {1.0}
        assert set(syntax["verdict"]) == {"not enough data"}
        assert set(load["verdict"]) == {"unseen", "not enough data"} or n_experts == 4
    assert all(value is None for value in bits["type_level_bits"])


@pytest.mark.filterwarnings("error")
def test_one_expert_has_every_token_and_no_normalised_entropy(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((4, 1), int)], labels={"upos": TAGS}, n_experts=1)
    assert set(load_table(run)["share"]) == {1.0}
    assert balance(run)["normalised_load_entropy"].item() is None
    assert set(label_table(run, "upos")["lift"]) == {1.0}
    assert specialisation(run, "upos")["mutual_information_bits"].item() is None


def test_a_label_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="label 'upos': the run has no such label"):
        label_table(write_run(tmp_path / "run", [EXPERTS]), "upos")


def test_every_column_has_a_unit_and_a_meaning():
    tables = {
        "load": LOAD_COLUMNS,
        "balance": BALANCE_COLUMNS,
        "syntax": LABEL_COLUMNS,
        "specialisation": SPECIALISATION_COLUMNS,
    }
    frame = columns_table(tables)
    assert frame.columns == ["name", "table", "unit", "definition", "source"]
    for name, columns in tables.items():
        assert frame.filter(table=name)["name"].to_list() == list(schema_of(columns))
    assert (frame["definition"].str.len_chars() > 10).all()
    assert (frame["unit"].str.len_chars() > 2).all()
    sourced = frame.filter(pl.col("source") != "")
    assert {"share", "uniform", "max_violation", "gini", "lift", "load_entropy_bits"} <= set(sourced["name"])
