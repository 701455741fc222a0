"""Loads of routers with very many experts are those of the counts that others have, as far as they are told."""

from __future__ import annotations

from functools import partial

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from polars.testing import assert_frame_equal
from random_runs import is_counted, random_run, rows_of

from moe_probe.counts import iter_expert_loads, load_counts, wide
from moe_probe.errors import BadInputError
from moe_probe.tables import affinity, balance, coactivation, label_table, load_table, vocabulary
from moe_probe.tables.registry import tables_of


@pytest.fixture
def run(tmp_path):
    """Routers of 4, 1 and 9 experts, many slots dropped."""
    return random_run(tmp_path / "run", 3)


def _make_wide(monkeypatch, most_told: int = 1024) -> None:
    monkeypatch.setattr(wide, "MOST_EXPERTS", 3)
    monkeypatch.setattr(wide, "MOST_TOLD", most_told)


def test_loads_equal_a_loop_over_rows(run, monkeypatch):
    _make_wide(monkeypatch, 2)
    rows = [row for row in rows_of(run) if is_counted(row, None, "all")]
    for loads in iter_expert_loads(run):
        router = loads.router
        held = np.zeros((router.n_slots, router.n_experts), int)
        for row in rows:
            for slot, expert in enumerate(row["experts"][router.index]):
                if expert >= 0:
                    held[slot, expert] += 1
        load = held.sum(axis=0)
        assert loads.load.tolist() == load.tolist()
        most = sorted(sorted(range(router.n_experts), key=lambda expert: (-load[expert], expert))[:2])
        assert loads.told.tolist() == most
        by_slot = loads.clustered.sum(axis=1)
        assert by_slot[:, :-1].tolist() == held[:, most].tolist()
        assert by_slot.sum(axis=1).tolist() == held.sum(axis=1).tolist()
        assert loads.n == len(rows)
        assert loads.documents == len({row["document"] for row in rows})
        assert loads.domains == len({row["domain"] for row in rows} - {None})


def test_verdicts_are_against_an_even_share_of_all_experts_there_are(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    experts = rng.choice(5, 8000, p=[0.6, 0.29, 0.07, 0.03, 0.01])[:, None]
    documents = np.arange(8000) // 200
    run = write_run(tmp_path / "run", [experts], n_experts=40, documents=documents)
    wanted = load_table(run).filter(pl.col("assignments") > 0)
    assert wanted.filter(slot="any")["verdict"].to_list() == ["above", "above", "above", "above", "below"]
    for most_told in (1024, 3):
        _make_wide(monkeypatch, most_told)
        found = load_table(run)
        assert_frame_equal(found, wanted.filter(pl.col("expert") < most_told))


@pytest.mark.parametrize("convention", ["mixtral", "olmoe"])
def test_the_load_table_of_wide_routers_has_the_same_numbers(run, monkeypatch, convention):
    wanted = load_table(run, convention=convention)
    _make_wide(monkeypatch)
    found = load_table(run, convention=convention)
    chosen = wanted.filter(pl.col("slot") == "any", pl.col("assignments") > 0).select("router", "expert")
    assert_frame_equal(found, wanted.join(chosen, on=["router", "expert"], maintain_order="left"))
    _make_wide(monkeypatch, 2)
    fewer = load_table(run, convention=convention)
    assert fewer.filter(slot="any").group_by("router").len().sort("router")["len"].to_list() == [2, 1, 2]
    same = wanted.join(fewer.select("router", "expert", "slot"), on=["router", "expert", "slot"], maintain_order="left")
    often = same["assignments"] >= 5
    assert often.sum() > 8
    assert_frame_equal(fewer.filter(often), same.filter(often))


def test_the_balance_of_wide_routers_is_the_same_but_for_the_dead(run, monkeypatch):
    wanted = balance(run)
    _make_wide(monkeypatch)
    found = balance(run)
    unseen = (pl.col("dead") + pl.col("unseen")).alias("unseen")
    assert_frame_equal(found, wanted.with_columns(unseen, dead=pl.lit(None, pl.Int64)))


def test_pairs_are_the_same_beside_a_wide_router(run, monkeypatch):
    wanted = coactivation(run)
    _make_wide(monkeypatch)
    (run.path / "counts").rename(run.path / "gone")
    assert_frame_equal(coactivation(run), wanted)


def test_other_counts_of_a_wide_router_are_refused_with_its_size(run, monkeypatch):
    _make_wide(monkeypatch)
    for count in (load_counts, partial(label_table, label="kind"), vocabulary, affinity):
        with pytest.raises(BadInputError, match=r"router 0 \(.*\) has 4 experts, and this is counted of up to 3"):
            count(run)
    made = [table.file for table in tables_of(run)]
    assert made == ["load", "balance", "repetition", "position", "coactivation", "transitions", "paths"]
    for table in tables_of(run):
        table.make()


def test_a_run_without_a_counted_token_has_no_rows(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", [np.array([[0], [1]])], n_experts=4, window_position=[0, 1])
    _make_wide(monkeypatch)
    assert load_table(run).is_empty()
    assert balance(run).is_empty()
