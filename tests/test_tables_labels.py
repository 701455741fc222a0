"""The verdicts, intervals and domains of the label table."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from scipy import stats

from moe_probe.counts import document_clusters
from moe_probe.errors import BadInputError
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.type_test import type_test
from moe_probe.tables.labels import label_table

TAGS = np.array(["ADJ", "NOUN", "VERB", "untagged"])
N_DOCUMENTS = 40
ALL = pl.col("domain") == "all"


class Routed:
    """A run of 12,000 tokens whose first router sends each part of speech its own way, the second each token type."""

    def __init__(self, folder, n_documents=N_DOCUMENTS, seed=0):
        rng = np.random.default_rng(seed)
        n_types, n_tokens = 400, 12_000
        chances = 1 / np.arange(1, n_types + 1)
        self.ids = rng.choice(n_types, n_tokens, p=chances / chances.sum())
        self.tags = rng.choice(4, n_types, p=[0.3, 0.3, 0.3, 0.1])[self.ids]
        by_tag = np.where(rng.random(n_types) < 0.7, self.tags_of(n_types), rng.integers(0, 4, n_types))
        first = [by_tag[self.ids], rng.integers(0, 4, n_types)[self.ids]]
        self.experts = [np.stack([one, (one + 1 + rng.integers(0, 3, n_tokens)) % 4], axis=1) for one in first]
        self.documents = np.arange(n_tokens) * n_documents // n_tokens
        self.domains = [None if number == 1 else "ab"[number % 2] for number in range(n_documents)]
        self.run = write_run(
            folder,
            self.experts,
            labels={
                "upos": TAGS[self.tags],
                "domain": [self.domains[number] or "untagged" for number in self.documents],
            },
            token_id=self.ids,
            documents=self.documents,
            domains=self.domains,
            shard_rows=5000,
        )

    def tags_of(self, n_types):
        tags = np.zeros(n_types, int)
        tags[self.ids] = self.tags
        return tags


@pytest.fixture(scope="module")
def routed(tmp_path_factory):
    return Routed(tmp_path_factory.mktemp("labels") / "run")


@pytest.fixture(scope="module")
def table(routed):
    return label_table(routed.run, "upos")


def test_specialists_are_found_where_they_were_planted_and_nowhere_in_a_hash(table):
    found = table.filter(ALL, verdict="specialised")
    planted = found.filter(router=0, slot="0").sort("expert")
    assert planted.select("expert", "label").rows() == [(0, "ADJ"), (1, "NOUN"), (2, "VERB")]
    assert (planted["ci_low"] > 1.2).all()
    assert found.filter(router=1).is_empty()
    # The test over documents alone is taken in by the hash.
    assert (table.filter(ALL, router=1, slot="0")["q_value"] < 0.05).sum() > 4


def test_the_columns_are_those_of_the_measures_over_the_clusters_of_documents(routed, table):
    clusters = document_clusters(routed.run)[routed.documents]
    tagged = routed.tags < 3
    for slot, slots in (("any", (0, 1)), ("0", (0,))):
        counted = np.zeros((64, 4, 3), np.int64)
        for one in slots:
            np.add.at(counted, (clusters[tagged], routed.experts[1][tagged, one], routed.tags[tagged]), 1)
        wanted = cell_estimates(counted)
        frame = table.filter(ALL, router=1, slot=slot)
        for name, values in {"ci_low": wanted.low, "ci_high": wanted.high, "geff": wanted.geff}.items():
            assert frame[name].to_list() == pytest.approx(values.ravel().tolist())
        assert (frame["n"] == counted.sum()).all()


def test_q_values_are_over_all_tested_cells_of_the_table(routed, table):
    tested = table.filter((pl.col("expected") >= 5) & (pl.col("geff") >= 5) & pl.col("ci_low").is_not_null())
    assert table["q_value"].is_not_null().sum() == len(tested)
    # p from the interval, since the table does not hold it.
    error = (tested["ci_high"].log() - tested["ci_low"].log()) / 2
    freedom = (tested["geff"] - 1).clip(1)
    t = stats.t(freedom.to_numpy())
    p = 2 * t.sf(np.abs(tested["lift"].log().to_numpy()) / error.to_numpy() * t.ppf(0.975))
    assert tested["q_value"].to_list() == pytest.approx(stats.false_discovery_control(p).tolist(), rel=1e-6)


def test_the_type_test_stands_in_the_rows_of_both_slots(routed, table):
    went, had = np.zeros((400, 4), int), np.zeros((400, 3), int)
    tagged = routed.tags < 3
    np.add.at(went, (routed.ids[tagged], routed.experts[0][tagged, 0]), 1)
    np.add.at(had, (routed.ids[tagged], routed.tags[tagged]), 1)
    alone = label_table(routed.run, "upos", within=False)
    other = np.zeros((400, 4), int)
    np.add.at(other, (routed.ids[tagged], routed.experts[1][tagged, 0]), 1)
    p = np.concatenate([type_test(went, had).p.ravel(), type_test(other, had).p.ravel()])
    wanted = stats.false_discovery_control(p).tolist()
    for slot in ("any", "0"):
        assert alone.filter(slot=slot)["type_q_value"].to_list() == pytest.approx(wanted)


def test_every_number_is_also_given_within_each_domain(routed, table):
    assert table["domain"].unique(maintain_order=True).to_list() == ["all", "a", "b"]  # by their tokens
    for domain in ("a", "b"):
        inside = table.filter(domain=domain)
        alone = label_table(routed.run, "upos", domain=domain)
        same = [name for name in table.columns if name not in ("q_value", "type_q_value", "verdict")]
        assert inside.select(same).equals(alone.select(same))
        documents = [number for number, name in enumerate(routed.domains) if name == domain]
        counted = np.isin(routed.documents, documents) & (routed.tags < 3)
        assert set(inside.filter(slot="0")["n"]) == {int(counted.sum())}
    assert label_table(routed.run, "upos", within=False).equals(
        label_table(routed.run, "upos", within=False).filter(ALL)
    )


def test_a_label_of_documents_is_not_divided_by_domain(routed):
    assert set(label_table(routed.run, "domain")["domain"]) == {"all"}
    with pytest.raises(BadInputError, match="domain 'c'"):
        label_table(routed.run, "upos", domain="c")


def test_one_domain_has_no_rows_of_its_own_and_of_many_the_largest_have(tmp_path):
    experts, tags = np.arange(200)[:, None] % 4, ["NOUN", "VERB"] * 100
    one = write_run(tmp_path / "one", [experts], labels={"upos": tags}, domains=["news"])
    assert set(label_table(one, "upos")["domain"]) == {"all"}
    sizes = np.array([2] * 19 + [6] * 20 + [21] + [21])  # 40 domains
    many = write_run(
        tmp_path / "many",
        [experts],
        labels={"upos": tags},
        documents=np.repeat(np.arange(41), sizes),
        domains=[f"d{number:02d}" for number in range(40)] + ["d39"],
    )
    domains = label_table(many, "upos")["domain"].unique(maintain_order=True).to_list()
    assert len(domains) == 1 + 32
    assert domains[:3] == ["all", "d39", "d19"]
    assert "d00" in domains
    assert "d18" not in domains


def test_of_fewer_than_five_documents_it_is_said_of_this_text_only(tmp_path):
    table = label_table(Routed(tmp_path / "run", n_documents=4).run, "upos", within=False)
    assert set(table["verdict"]) == {"this text only", "not shown"}
    only = table.filter(router=0, slot="0", verdict="this text only")
    assert only.select("expert", "label").rows() == [(0, "ADJ"), (1, "NOUN"), (2, "VERB")]


def test_labels_with_few_types_are_never_specialised(tmp_path):
    tags = np.repeat(["NOUN", "VERB"], 500)
    ids = np.concatenate([np.arange(500) % 7, 100 + np.arange(500) % 50])
    order = np.random.default_rng(0).permutation(1000)
    run = write_run(
        tmp_path / "run",
        [(tags == "VERB").astype(int)[order, None] ^ (np.arange(1000)[:, None] % 20 == 0)],
        labels={"upos": tags[order]},
        token_id=ids[order],
        documents=np.arange(1000) // 50,
    )
    table = label_table(run, "upos").filter(slot="0", expert=0)
    assert table.filter(label="NOUN")["type_q_value"].to_list() == [None]
    assert table.filter(label="NOUN").select("verdict", pl.col("lift") > 1.5).row(0) == ("not enough data", True)
    assert table.filter(label="VERB")["verdict"].to_list() == ["not shown"]


def test_cells_with_too_little_expected_are_not_tested_nor_corrected_for(tmp_path):
    rng = np.random.default_rng(0)
    tags = np.array(["INTJ"] * 12 + ["NOUN", "VERB"] * 994)[rng.permutation(2000)]
    documents = np.arange(2000) // 50
    run = write_run(tmp_path / "run", [rng.integers(0, 4, (2000, 1))], labels={"upos": tags}, documents=documents)
    table = label_table(run, "upos")
    rare = table.filter(label="INTJ", slot="0")
    assert (rare["expected"] < 5).all()
    assert rare["ci_low"].null_count() < 4
    assert rare["q_value"].null_count() == 4
    assert set(rare["verdict"]) == {"not enough data"}
    tested = table.filter(pl.col("label") != "INTJ")
    assert tested["q_value"].null_count() == 0
    assert set(tested["verdict"]) <= {"not shown", "not enough data"}


def test_types_are_those_of_their_own_label_where_a_label_never_begins_a_word(tmp_path):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 60, 3000)
    kinds = np.array(["closing", "keyword", "name"])[ids % 3]
    run = write_run(
        tmp_path / "run",
        [(ids % 3)[:, None]],
        labels={"code": kinds},
        word_level=(),
        word_initial=(kinds != "closing").tolist(),
        token_id=ids,
        documents=np.arange(3000) // 75,
    )
    table = label_table(run, "code").filter(slot="0")
    assert set(table["tokens"]) == {"all"}
    assert table.filter(label="closing")["type_q_value"].null_count() == 4
    assert set(table.filter(label="closing", expert=0)["verdict"]) == {"not enough data"}
    found = table.filter(verdict="specialised").select("expert", "label").rows()
    assert found == [(1, "keyword"), (2, "name")]


def test_the_order_of_rows_is_domain_router_slot_expert_label(table):
    domains = ["all", "a", "b"]
    keys = [
        (domains.index(domain), router, slot != "any", expert, label)
        for domain, router, slot, expert, label in table.select("domain", "router", "slot", "expert", "label").rows()
    ]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == 3 * 2 * 2 * 4 * 3
