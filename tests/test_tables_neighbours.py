from __future__ import annotations

import itertools

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.measures.repetition import repetition as measure_repetition
from moe_probe.tables.columns import schema_of
from moe_probe.tables.neighbours import REPETITION_COLUMNS, repetition

SETS = np.array(list(itertools.combinations(range(8), 2)))
VALUES = [
    "first_choice", "either", "load_first", "load_either", "document_first", "document_either", "token_first",
    "token_either", "excess_first", "first_ci_low", "either_ci_high", "excess_ci_low",
]  # fmt: skip


def routed(n_documents: int = 24, length: int = 40, seed: int = 0) -> dict:
    """A run's columns: random sets of two of eight, twelve types, documents of three domains."""
    rng = np.random.default_rng(seed)
    n_tokens = n_documents * length
    return {
        "experts": [rng.permuted(SETS[rng.integers(0, 28, n_tokens)], axis=1) for _ in range(2)],
        "n_experts": 8,
        "documents": np.repeat(np.arange(n_documents), length),
        "domains": [("code", "prose", None)[number % 3] for number in range(n_documents)],
        "token_id": rng.integers(0, 12, n_tokens),
        "layers": [3, 7],
    }


def test_rows_over_all_documents_come_first_and_then_each_domain(tmp_path):
    frame = repetition(write_run(tmp_path / "run", **routed()))
    assert frame.columns == list(schema_of(REPETITION_COLUMNS))
    assert frame.select("domain", "layer", "router").rows() == [
        (domain, layer, router) for domain in ("all", "code", "prose") for router, layer in enumerate((3, 7))
    ]
    assert set(frame["tokens"]) == {"all"}
    assert frame["pairs"].to_list() == [24 * 39] * 2 + [8 * 39] * 4
    assert set(frame["cluster_unit"]) == {"document"}


def test_uniform_chance_is_that_of_mixtrals_table_5(tmp_path):
    frame = repetition(write_run(tmp_path / "run", **routed()))
    assert {f"{value:.1%}" for value in frame["uniform_first"]} == {"12.5%"}
    assert {f"{value:.1%}" for value in frame["uniform_either"]} == {"46.4%"}
    found = frame.filter(domain="all")
    assert ((found["either_ci_low"] < 0.464) & (found["either_ci_high"] > 0.465)).all()
    assert found["load_either"].to_list() == pytest.approx([0.464] * 2, abs=0.01)


def test_a_row_is_what_the_measure_says_of_its_rows(tmp_path):
    made = routed()
    frame = repetition(write_run(tmp_path / "run", **made))
    row = frame.row(by_predicate=(pl.col("domain") == "prose") & (pl.col("router") == 1), named=True)
    kept = made["documents"] % 3 == 1
    documents = made["documents"][kept]
    positions = np.tile(np.arange(40), 8)
    found = measure_repetition(made["experts"][1][kept], documents, positions, positions, 8)
    assert row["first_choice"] == found.first.value
    assert row["either"] == found.either.value
    assert (row["load_first"], row["document_either"]) == (found.load_first, found.document_either)
    assert row["n_token_pairs"] == row["pairs"]


def test_the_chance_of_all_documents_is_of_pairs_within_a_domain(tmp_path):
    # Three domains, each with an expert of its own: any two tokens of one domain agree, others never.
    made = routed()
    made["experts"] = [(made["documents"] % 3)[:, None]]
    made["layers"] = None
    row = repetition(write_run(tmp_path / "run", **made)).row(0, named=True)
    assert [row[name] for name in ("first_choice", "load_first", "load_either")] == pytest.approx([1, 1, 1])
    assert row["token_either"] == pytest.approx(row["token_first"], abs=0.01)  # sets of one
    assert row["token_first"] < 0.5  # another document has the word with another expert
    assert row["excess_ci_low"] > 0.5


def test_sinks_make_no_pair(tmp_path):
    made = routed(6, 10)
    made["window_position"] = np.tile(np.arange(10), 6)
    frame = repetition(write_run(tmp_path / "run", **made))
    assert set(frame.filter(domain="all")["pairs"]) == {6 * 5}


def test_with_few_documents_a_draw_is_a_block(tmp_path):
    made = routed(2, 700)
    made["domains"] = None
    frame = repetition(write_run(tmp_path / "run", **made))
    assert frame["domain"].to_list() == ["all", "all"]
    assert set(frame["cluster_unit"]) == {"block"}
    assert frame["first_ci_low"].null_count() == 0
    many = repetition(write_run(tmp_path / "many", **routed(9, 300)))
    assert many.select("domain", "cluster_unit").unique().sort("domain").rows() == [
        ("all", "document"), ("code", "block"), ("prose", "block"),
    ]  # fmt: skip


def test_one_domain_alone_has_no_rows_of_its_own(tmp_path):
    made = routed()
    made["domains"] = ["prose"] * 24
    assert set(repetition(write_run(tmp_path / "run", **made))["domain"]) == {"all"}


def test_the_same_run_gives_the_same_table(tmp_path):
    run = write_run(tmp_path / "run", **routed())
    assert repetition(run).equals(repetition(run))
    assert not repetition(run, seed=1).equals(repetition(run))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("experts", "pairs"),
    [
        (np.zeros((0, 2), int), None),
        (np.array([[1, 0]]), 0),
        (np.full((9, 2), -1), 0),
        (np.zeros((9, 1), int), 8),
        (np.array([[0, 1], [0, -1], [-1, -1], [1, 0], [1, 2]]), 2),
    ],
    ids=["empty", "one token", "all dropped", "one expert", "some dropped"],
)
def test_what_cannot_be_said_is_null(tmp_path, experts, pairs):
    n_experts = 1 if experts.shape[1] == 1 else 4
    frame = repetition(write_run(tmp_path / "run", [experts], n_experts=n_experts))
    assert frame.height == (0 if pairs is None else 1)
    assert not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)
    if pairs == 0:
        assert [frame[name].item() for name in VALUES] == [None] * len(VALUES)
        assert frame["uniform_first"].item() == 1 / n_experts
    if pairs:
        assert frame["pairs"].item() == pairs
        assert frame["first_choice"].item() == 1.0
        assert frame["token_first"].item() is None  # every type occurs once


def test_definitions_say_that_excess_is_no_syntax():
    said = {column.name: column.definition for column in REPETITION_COLUMNS}
    for name in ("token_first", "excess_first"):
        assert "drift of a document" in said[name]
        assert "smoothing of attention" in said[name]
        assert "not syntax" in said[name]
