from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.errors import BadInputError
from moe_probe.store import Run
from moe_probe.tables.columns import schema_of
from moe_probe.tables.domains import MOST_DOMAINS, find_domains
from moe_probe.tables.information import SPECIALISATION_COLUMNS, specialisation

TAGS = np.array(["NOUN", "VERB", "ADJ", "PUNCT"])


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def planted_run(folder: Path, *, n_documents: int = 40, domains: bool = True) -> Run:
    """300 types with a tag each. Router 0 is a hash, 1 follows the tags of four in five, 2 the sense of words.

    Types from 280 on have two tags: the second on every other occurrence, and router 2 sends those elsewhere.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 300, 9000)
    own = rng.integers(0, 4, 300)
    tag = np.where((ids >= 280) & (rng.random(9000) < 0.5), (own[ids] + 1) % 4, own[ids])
    hashed = rng.integers(0, 4, 300)
    planted = np.where(rng.random(300) < 0.8, own, rng.integers(0, 4, 300))
    documents = np.arange(9000) * n_documents // 9000
    return write_run(
        folder,
        [hashed[ids, None], planted[ids, None], np.where(tag == own[ids], hashed[ids], 3 - hashed[ids])[:, None]],
        labels={"upos": TAGS[tag], "domain": np.array(["prose", "code"])[documents % 2]},
        token_id=ids,
        token=[f"w{number}" for number in ids],
        documents=documents,
        domains=[["prose", "code"][number % 2] for number in range(n_documents)] if domains else None,
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return specialisation(planted_run(tmp_path_factory.mktemp("planted") / "run"))


def test_rows_are_a_router_and_domain_those_over_all_documents_first(table):
    assert table.columns == list(schema_of(SPECIALISATION_COLUMNS))
    assert table.select("domain", "router").rows() == [
        (domain, router) for domain in ("all", "code", "prose") for router in range(3)
    ]
    assert set(table["label_set"]) == {"upos"}
    assert set(table["slot"] + table["tokens"]) == {"0word_initial"}
    assert set(table["cluster_unit"]) == {"document"}


def test_a_hash_is_told_from_a_planted_router_in_every_column(table):
    by_hash, by_plan, _ = table.filter(domain="all").to_dicts()
    assert by_hash["type_ci_low"] < 0 < by_hash["type_ci_high"]
    assert by_hash["held_out_ci_low"] < 0
    assert by_hash["above_null_bits"] > 0.005  # by occurrence a hash seems to know something
    assert by_plan["type_ci_low"] > 0.5
    assert by_plan["held_out_ci_low"] > 0.5
    assert by_plan["type_p"] == pytest.approx(1 / 1001)
    assert by_plan["cramers_v"] > 0.6 > 0.2 > by_hash["cramers_v"]
    assert 0.3 < by_plan["normalised"] < 1
    assert by_plan["above_null_ci_low"] < by_plan["above_null_bits"] < by_plan["above_null_ci_high"]
    assert by_plan["above_null_bits"] == pytest.approx(by_plan["mutual_information_bits"] - by_plan["null_mean_bits"])
    assert by_plan["without_punct_bits"] < by_plan["type_level_bits"]
    assert by_plan["without_punct_ci_low"] > 0.3
    assert (by_plan["types"], by_plan["n"], by_plan["given_token_n"]) == (300, 9000, 9000)


def test_only_the_router_that_follows_the_sense_of_a_word_knows_more_than_words(table):
    by_hash, by_plan, by_sense = table.filter(domain="all").to_dicts()
    for of_the_token in (by_hash, by_plan):
        assert (of_the_token["given_token_bits"], of_the_token["given_token_p"]) == (0.0, 1.0)
        assert of_the_token["given_token_ci_low"] is None
    assert by_sense["given_token_ci_low"] > 0.02
    assert by_sense["given_token_p"] < 0.001


def test_within_a_domain_every_number_is_that_of_its_documents_alone(table, tmp_path):
    run = planted_run(tmp_path / "run")
    tokens = run.tokens()
    prose = np.flatnonzero(tokens["domain"].cast(pl.String).to_numpy() == "prose")
    alone = write_run(
        tmp_path / "alone",
        [run.experts(router=router)[prose] for router in range(3)],
        labels={"upos": tokens["upos"].cast(pl.String).to_numpy()[prose]},
        token_id=tokens["token_id"].to_numpy()[prose],
        token=tokens["token"].to_numpy()[prose],
        documents=tokens["document"].to_numpy()[prose] // 2,
        names=[f"document {number}" for number in range(0, 40, 2)],  # by which clusters are told
    )
    found = table.filter(domain="prose").drop("domain")
    assert found.equals(specialisation(alone).drop("domain"))
    assert not found.equals(table.filter(domain="code").drop("domain"))


def test_the_first_tokens_of_a_window_are_left_out_everywhere(tmp_path):
    rng = np.random.default_rng(0)
    ids, tags = rng.integers(0, 5, 400), TAGS[rng.integers(0, 3, 400)]
    where = np.arange(400) % 10
    run = write_run(
        tmp_path / "run",
        [rng.integers(0, 4, (400, 1))],
        labels={"upos": tags},
        token_id=ids,
        documents=np.arange(400) // 50,
        window_position=where,
    )
    row = specialisation(run).to_dicts()[0]
    assert (row["n"], row["given_token_n"], row["types"]) == (240, 240, 5)


def test_a_label_of_documents_is_told_over_all_of_them_only_and_knows_no_punctuation(tmp_path):
    frame = specialisation(planted_run(tmp_path / "run"), "domain")
    assert frame["domain"].to_list() == ["all"] * 3
    assert frame["without_punct_bits"].null_count() == 3
    assert frame["given_token_bits"].null_count() == 3  # no token could be of another domain of its document


def test_domains_can_be_left_out_and_one_domain_has_no_rows_of_its_own(tmp_path):
    assert specialisation(planted_run(tmp_path / "run"), within=False)["domain"].unique().to_list() == ["all"]
    run = planted_run(tmp_path / "none", domains=False)
    assert specialisation(run)["domain"].unique().to_list() == ["all"]


def test_the_largest_domains_come_first_and_many_are_cut_off(tmp_path):
    sizes = np.arange(40) % 7 + 1
    run = write_run(
        tmp_path / "run",
        [np.zeros((sizes.sum(), 1), int)],
        documents=np.repeat(np.arange(40), sizes),
        domains=[f"d{number:02}" for number in range(40)],
    )
    found = find_domains(run)
    assert len(found) == MOST_DOMAINS
    assert found == [f"d{number:02}" for number in sorted(range(40), key=lambda number: (-sizes[number], number))][:32]
    assert find_domains(run, "language") == []


def test_a_domain_without_a_tagged_word_has_no_row(tmp_path):
    run = write_run(
        tmp_path / "run",
        [np.arange(80)[:, None] % 4],
        labels={"upos": ["NOUN", "VERB"] * 20 + ["untagged"] * 40},
        token_id=np.arange(80) % 8,
        documents=np.arange(80) // 8,
        domains=["english"] * 5 + ["french"] * 5,
    )
    frame = specialisation(run)
    assert frame["domain"].to_list() == ["all", "english"]
    assert frame["n"].to_list() == [40, 40]


def test_of_fewer_than_five_documents_clusters_are_blocks(tmp_path):
    run = planted_run(tmp_path / "run", n_documents=2)
    frame = specialisation(run)
    assert set(frame["cluster_unit"]) == {"block"}
    assert frame.filter(router=1)["above_null_ci_low"].null_count() == 0


def test_the_same_seed_gives_the_same_table_and_another_moves_the_null(tmp_path):
    run = planted_run(tmp_path / "run")
    first = specialisation(run, seed=3)
    assert first.equals(specialisation(run, seed=3))
    other = specialisation(run, seed=4)
    assert not first["type_level_bits"].equals(other["type_level_bits"])
    assert first["held_out_bits"].equals(other["held_out_bits"])


@pytest.mark.parametrize(
    ("experts", "tags"),
    [
        (np.zeros((0, 2), int), []),
        (np.array([[1, 0]]), ["NOUN"]),
        (np.full((30, 2), -1), ["NOUN", "VERB"] * 15),
        (np.zeros((30, 1), int), ["NOUN", "VERB"] * 15),
        (np.arange(30)[:, None] % 4, ["NOUN"] * 30),
        (np.arange(30)[:, None] % 4, ["untagged"] * 30),
    ],
    ids=["empty run", "one token", "all dropped", "one expert used", "one label", "nothing tagged"],
)
@pytest.mark.parametrize("n_experts", [1, 4])
def test_where_there_is_nothing_to_measure_there_are_nulls_and_no_warning(tmp_path, experts, tags, n_experts):
    if n_experts == 1:
        experts = np.minimum(experts, 0)[:, :1]
    run = write_run(tmp_path / "run", [experts], labels={"upos": tags}, n_experts=n_experts, token_id=[0] * len(tags))
    frame = specialisation(run)
    assert has_no_nan(frame)
    assert frame.height == (1 if len(tags) else 0)
    for column in ("type_level_bits", "held_out_bits", "without_punct_bits", "normalised", "given_token_ci_low"):
        assert frame[column].null_count() == frame.height


def test_a_label_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="label 'upos': the run has no such label"):
        specialisation(write_run(tmp_path / "run", [np.zeros((3, 1), int)]))
