"""The intervals and verdicts of the load and balance tables, and what `info` prints of them."""

from __future__ import annotations

import io

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from rich.console import Console

from moe_probe.counts import document_clusters
from moe_probe.errors import BadInputError
from moe_probe.info import describe
from moe_probe.measures.shares import clustered_shares
from moe_probe.tables.imbalance import balance
from moe_probe.tables.load import load_table

N_DOCUMENTS = 40
N_TOKENS = 8000


@pytest.fixture(scope="module")
def experts():
    """Expert 0 has most, 3 is never the first choice, 4 and 5 are chosen by nobody."""
    rng = np.random.default_rng(0)
    first = rng.choice(3, N_TOKENS, p=[0.6, 0.3, 0.1])
    return np.stack([first, np.where(rng.random(N_TOKENS) < 0.4, 3, (first + 1) % 3)], axis=1)


@pytest.fixture(scope="module")
def documents():
    return np.arange(N_TOKENS) * N_DOCUMENTS // N_TOKENS


def written(folder, experts, documents, domains="ab", **more):
    names = [domains[number % len(domains)] for number in range(int(documents.max()) + 1)]
    return write_run(folder, [experts], n_experts=6, documents=documents, domains=names, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory, experts, documents):
    return written(tmp_path_factory.mktemp("load") / "run", experts, documents)


def test_shares_have_the_intervals_of_the_clusters(run, experts, documents):
    frame = load_table(run)
    clusters = document_clusters(run)[documents]
    for slot, slots in (("any", (0, 1)), ("1", (1,))):
        counted = np.zeros((64, 6), np.int64)
        for one in slots:
            np.add.at(counted, (clusters, experts[:, one]), 1)
        wanted = clustered_shares(counted)
        rows = frame.filter(slot=slot)
        assert rows["ci_low"].to_list() == pytest.approx(wanted.low.tolist())
        assert rows["ci_high"].to_list() == pytest.approx(wanted.high.tolist())
    assert ((frame["ci_low"] <= frame["share"]) & (frame["share"] <= frame["ci_high"])).all()


def test_an_expert_is_dead_as_a_whole_and_not_for_being_no_first_choice(run):
    frame = load_table(run)
    assert frame.filter(slot="any")["verdict"].to_list() == ["above", "above", "below", "above", "dead", "dead"]
    assert frame.filter(slot="0")["verdict"].to_list() == ["above", "above", "below", "below", "dead", "dead"]
    assert balance(run).select("dead", "unseen").row(0) == (2, 0)


def test_in_one_domain_or_few_documents_nobody_is_called_dead(tmp_path, experts, documents):
    for name, run in {
        "one domain": written(tmp_path / "a", experts, documents, domains="a"),
        "20 documents": written(tmp_path / "b", experts, documents // 2),
    }.items():
        assert load_table(run).filter(slot="any")["verdict"].to_list()[4:] == ["unseen"] * 2, name
        assert balance(run).select("dead", "unseen").row(0) == (0, 2), name
    few = load_table(written(tmp_path / "c", experts, documents // 10))  # four documents
    assert few.filter(slot="any")["verdict"].to_list() == ["not enough data"] * 4 + ["unseen"] * 2
    assert few["ci_low"].null_count() == 0


def test_the_olmoe_convention_multiplies_by_the_number_of_slots(run):
    mixtral, olmoe = load_table(run), load_table(run, convention="olmoe")
    any_slot = pl.col("slot") == "any"
    for name in ("share", "ci_low", "ci_high", "uniform"):
        assert olmoe.filter(any_slot)[name].to_list() == pytest.approx((mixtral.filter(any_slot)[name] * 2).to_list())
    assert olmoe.filter(any_slot)["share"].sum() == pytest.approx(2)
    assert olmoe.filter(~any_slot).equals(mixtral.filter(~any_slot))
    assert olmoe["verdict"].equals(mixtral["verdict"])
    with pytest.raises(BadInputError, match="convention 'paper': choose one of mixtral, olmoe"):
        load_table(run, convention="paper")


def test_one_document_of_one_window_has_no_interval_but_a_share(tmp_path):
    run = write_run(tmp_path / "run", [np.array([[0, 1], [1, 2], [3, 0]])])
    frame = load_table(run).filter(slot="any")
    assert frame["ci_low"].null_count() == 4
    assert frame["share"].null_count() == 0
    assert set(frame["verdict"]) == {"not enough data"}


def printed(run):
    console = Console(file=io.StringIO(), width=160, highlight=False)
    describe(run, console)
    return console.file.getvalue()


def test_info_names_the_dead_and_counts_the_unseen(run, tmp_path, experts, documents):
    assert "dead  unseen" in printed(run)
    assert printed(run).split()[-5:] == ["2:", "4,", "5", "0", "0"]
    assert printed(written(tmp_path / "one", experts, documents, domains="a")).split()[-3:] == ["0", "2", "0"]


def test_info_names_no_more_than_six_of_the_dead(tmp_path, experts, documents):
    names = ["a", "b"] * (N_DOCUMENTS // 2)
    run = write_run(tmp_path / "run", [experts], n_experts=16, documents=documents, domains=names)
    assert "12: 4, 5, 6, 7, 8, 9 …" in printed(run)


def test_info_of_a_run_without_tokens_says_so(tmp_path):
    assert "no tokens to count" in printed(write_run(tmp_path / "run", [np.zeros((0, 2), int)]))
