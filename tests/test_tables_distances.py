from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from scipy.spatial.distance import jensenshannon
from statsmodels.stats.multitest import fdrcorrection

from moe_probe.errors import BadInputError
from moe_probe.tables.columns import schema_of
from moe_probe.tables.distances import DIVERGENCE_COLUMNS, MOST_VALUES, divergence


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def domain_run(folder, loads, *, n_documents: int = 12, per_document: int = 60, n_routers: int = 1):
    """Documents of domains a, b, … by turns; each domain has a load of its own."""
    rng = np.random.default_rng(0)
    n_tokens = n_documents * per_document
    documents = np.arange(n_tokens) // per_document
    domain = documents % len(loads)
    experts = [np.array([[rng.choice(4, p=loads[one])] for one in domain]) for _ in range(n_routers)]
    names = np.array([chr(ord("a") + number) for number in range(len(loads))])
    return write_run(folder, experts, labels={"domain": names[domain]}, word_level=(), documents=documents)


def test_a_row_is_a_router_and_pair_with_scipys_divergence(tmp_path):
    run = domain_run(
        tmp_path / "run",
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]],
        n_documents=36,
        n_routers=2,
    )
    frame = divergence(run)
    assert frame.columns == list(schema_of(DIVERGENCE_COLUMNS))
    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    assert frame.select("router", "value", "other_value").rows() == [
        (router, *pair) for router in (0, 1) for pair in pairs
    ]
    experts, labels = run.experts(router=1)[:, 0], run.tokens()["domain"].cast(pl.String).to_numpy()
    loads = {name: np.bincount(experts[labels == name], minlength=4) for name in "abc"}
    for row in frame.filter(router=1).to_dicts():
        one, other = loads[row["value"]], loads[row["other_value"]]
        assert row["js_distance"] == pytest.approx(jensenshannon(one, other, base=2), abs=1e-9)
        assert row["js_bits"] == pytest.approx(row["js_distance"] ** 2)
        assert (row["value_n"], row["other_n"], row["n"]) == (one.sum(), other.sum(), one.sum() + other.sum())
        assert row["clusters"] > 5
    assert set(frame["slot"] + frame["tokens"] + frame["label_set"]) == {"anyalldomain"}


def test_all_slots_count(tmp_path):
    experts = np.array([[0, 1], [0, 2], [1, 0], [3, -1]])
    run = write_run(tmp_path / "run", [experts], labels={"domain": ["a", "a", "b", "b"]}, word_level=())
    row = divergence(run).to_dicts()[0]
    assert (row["value_n"], row["other_n"]) == (4, 3)
    assert row["js_distance"] == pytest.approx(jensenshannon([2, 1, 1, 0], [1, 1, 0, 1], base=2))


def test_domains_that_differ_are_told_apart_and_those_that_do_not_are_not(tmp_path):
    run = domain_run(
        tmp_path / "run", [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]], n_documents=45
    )
    differ, alike, also_differ = divergence(run).to_dicts()
    for row in (differ, also_differ):
        assert row["q_value"] < 0.01
        assert 0 < row["excess_ci_low"] < row["excess_bits"] < row["excess_ci_high"]
    assert alike["q_value"] > 0.05
    assert alike["excess_ci_low"] < 0 < alike["excess_ci_high"]
    assert alike["excess_bits"] == pytest.approx(alike["js_bits"] - alike["null_mean_bits"])


def test_q_values_are_statsmodels_over_all_pairs_and_routers(tmp_path):
    run = domain_run(tmp_path / "run", [[0.3, 0.3, 0.2, 0.2], [0.25] * 4, [0.2, 0.2, 0.3, 0.3]], n_routers=3)
    frame = divergence(run)
    assert frame["q_value"].to_list() == pytest.approx(fdrcorrection(frame["p"].to_numpy())[1].tolist())


def test_two_documents_of_two_domains_leave_nothing_to_exchange_but_blocks(tmp_path):
    run = domain_run(tmp_path / "run", [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]], n_documents=2, per_document=400)
    row = divergence(run).to_dicts()[0]
    assert row["cluster_unit"] == "block"
    assert row["p"] > 0.1
    assert row["excess_ci_low"] is None


def test_any_label_can_be_compared_and_untagged_tokens_are_no_value(tmp_path):
    tags = ["NOUN", "VERB", "untagged", "continuation"] * 30
    experts = np.tile([0, 1, 2, 3], 30)[:, None]
    run = write_run(tmp_path / "run", [experts], labels={"upos": tags}, documents=np.arange(120) // 10)
    frame = divergence(run, "upos")
    assert frame.select("value", "other_value", "js_bits", "n", "tokens").rows() == [
        ("NOUN", "VERB", 1.0, 60, "word_initial")
    ]


def test_of_many_values_those_with_the_most_assignments_are_compared(tmp_path):
    sizes = np.full(40, 12)
    sizes[::5] = 3  # eight rare values
    labels = np.repeat([f"v{number:02}" for number in range(40)], sizes)
    experts = (np.arange(labels.size) % 4)[:, None]
    frame = divergence(write_run(tmp_path / "run", [experts], labels={"kind": labels}, word_level=()), "kind")
    assert frame.height == math.comb(MOST_VALUES, 2)
    assert not {f"v{number:02}" for number in range(0, 40, 5)} & {*frame["value"], *frame["other_value"]}


def test_the_same_seed_gives_the_same_table(tmp_path):
    run = domain_run(tmp_path / "run", [[0.4, 0.3, 0.2, 0.1], [0.25] * 4])
    assert divergence(run, seed=2).equals(divergence(run, seed=2))
    assert not divergence(run, seed=2)["null_mean_bits"].equals(divergence(run, seed=3)["null_mean_bits"])


@pytest.mark.parametrize(
    ("experts", "labels", "n_rows"),
    [
        (np.zeros((0, 2), int), [], 0),
        (np.array([[1, 0]]), ["a"], 0),
        (np.full((8, 2), -1), ["a", "b"] * 4, 1),
        (np.zeros((8, 1), int), ["a", "b"] * 4, 1),
        (np.arange(8)[:, None] % 4, ["a"] * 8, 0),
        (np.array([[0], [1], [-1], [-1]]), ["a", "a", "b", "b"], 1),
    ],
    ids=["empty run", "one token", "all dropped", "one expert used", "one value", "one value dropped"],
)
def test_where_there_is_nothing_to_measure_there_are_nulls_and_no_warning(tmp_path, experts, labels, n_rows):
    frame = divergence(write_run(tmp_path / "run", [experts], labels={"domain": labels}, word_level=()))
    assert has_no_nan(frame)
    assert frame.height == n_rows
    if n_rows and experts.max() == 0:
        assert frame.select("js_bits", "null_mean_bits", "p").rows() == [(0.0, 0.0, 1.0)]
    elif n_rows:
        assert frame["js_bits"].to_list() == frame["p"].to_list() == frame["q_value"].to_list() == [None]


def test_a_label_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="label 'domain': the run has no such label"):
        divergence(write_run(tmp_path / "run", [np.zeros((3, 1), int)]))
