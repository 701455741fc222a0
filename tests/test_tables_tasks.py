from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.errors import BadInputError
from moe_probe.tables.columns import schema_of
from moe_probe.tables.tasks import AFFINITY_COLUMNS, affinity

EXPERTS = np.array([[0, 1], [0, 2], [3, 0], [1, -1], [2, 1], [2, 1]])
WEIGHTS = np.array([[0.75, 0.25], [0.5, 0.5], [0.625, 0.375], [1.0, 0.0], [0.5, 0.25], [1.0, 0.5]])


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def small_run(folder, **changes):
    settings = {"weights": [WEIGHTS], "documents": [0, 0, 0, 0, 1, 1], "domains": ["law", "code"]} | changes
    return write_run(folder, [EXPERTS], **settings)


def test_scores_and_sets_by_hand(tmp_path):
    frame = affinity(small_run(tmp_path / "run"), p=0.4)
    assert frame.columns == list(schema_of(AFFINITY_COLUMNS))
    law = frame.filter(domain="law")
    assert law["token_share"].to_list() == [3 / 8, 2 / 8, 1 / 8, 1 / 8]  # one of eight slots was dropped
    assert law["domain_specialisation"].to_list() == [3 / 4, 2 / 4, 1 / 4, 1 / 4]
    assert law["gate_score"].to_list() == [1.625 / 4, 1.25 / 4, 0.5 / 4, 0.625 / 4]
    assert law["rank"].to_list() == [1, 2, 3, 4]
    assert law["in_set"].to_list() == [True, True, False, False]
    assert law["in_gate_set"].to_list() == [True, False, False, False]
    assert set(law["gate_uniform"]) == {1.0 / 4}
    assert frame.select("uniform", "domain_specialisation_uniform").unique().rows() == [(1 / 4, 2 / 4)]
    assert frame.select("domain", "n").unique(maintain_order=True).rows() == [("all", 6), ("code", 2), ("law", 4)]
    assert set(frame["slot"] + frame["tokens"]) == {"anyall"}


def test_each_layers_shares_add_up_to_the_slots_that_were_filled(tmp_path):
    rng = np.random.default_rng(0)
    experts = [np.stack([rng.permutation(6)[:3] for _ in range(400)]) for _ in range(2)]
    run = write_run(
        tmp_path / "run",
        experts,
        n_experts=6,
        documents=np.arange(400) // 20,
        domains=["a", "b"] * 10,
    )
    sums = affinity(run).group_by("domain", "router").agg(pl.col("token_share", "domain_specialisation").sum())
    assert sums.height == 6
    assert sums["token_share"].to_list() == pytest.approx([1.0] * 6)
    assert sums["domain_specialisation"].to_list() == pytest.approx([3.0] * 6)


def test_intervals_lie_around_the_scores_and_hold_the_truth(tmp_path):
    loads = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]])
    covered = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        run = write_run(
            tmp_path / str(seed),
            [np.array([[rng.choice(4, p=load)] for load in np.repeat(loads, 1000, axis=0)])],
            documents=np.arange(2000) // 50,
            domains=["a"] * 20 + ["b"] * 20,
            weights=[rng.uniform(0.5, 1.0, (2000, 1))],
        )
        frame = affinity(run)
        for name, load in zip(("a", "b"), loads, strict=True):
            part = frame.filter(domain=name)
            for score, truth in (("token_share", load), ("gate_score", 0.75 * load)):
                low, value, high = (part[f"{score}{end}"].to_numpy() for end in ("_ci_low", "", "_ci_high"))
                assert ((low < value) & (value < high)).all()
                assert (high - low < 0.13).all()
                covered.append((low < truth) & (truth < high))
    assert np.mean(covered) > 0.88
    assert set(frame["cluster_unit"]) == {"document"}


def test_sinks_are_left_out_and_documents_without_a_domain_have_no_rows_of_their_own(tmp_path):
    run = small_run(tmp_path / "run", domains=["law", None], window_position=[3, 4, 5, 6, 7, 8])
    frame = affinity(run)
    assert frame.select("domain", "n").unique(maintain_order=True).rows() == [("all", 5), ("law", 3)]
    assert set(frame["cluster_unit"]) == {"block"}


def test_tasks_can_be_the_values_of_a_label_of_words(tmp_path):
    run = small_run(tmp_path / "run", labels={"upos": ["NOUN", "VERB", "continuation", "NOUN", "untagged", "VERB"]})
    frame = affinity(run, by="upos")
    assert frame.select("domain", "n").unique(maintain_order=True).rows() == [("all", 4), ("NOUN", 2), ("VERB", 2)]
    assert set(frame["tokens"]) == {"word_initial"}
    assert frame.filter(domain="VERB")["token_share"].to_list() == [1 / 4, 1 / 4, 2 / 4, 0.0]


def test_a_weight_that_is_no_number_takes_the_gate_score_of_its_expert_only(tmp_path):
    weights = WEIGHTS.copy()
    weights[1, 1] = math.nan  # of expert 2
    frame = affinity(small_run(tmp_path / "run", weights=[weights])).filter(domain="law")
    assert frame["gate_score"].to_list() == [1.625 / 4, 1.25 / 4, None, 0.625 / 4]
    assert frame["gate_score_ci_high"][2] is None
    assert frame["gate_uniform"].null_count() == frame["in_gate_set"].null_count() == 4
    assert frame["token_share"].null_count() == 0
    assert has_no_nan(frame)


def test_the_weight_of_a_dropped_slot_is_nobodys(tmp_path):
    weights = WEIGHTS.copy()
    weights[3, 1] = math.nan
    frame = affinity(small_run(tmp_path / "run", weights=[weights]))
    assert frame["gate_score"].null_count() == 0


@pytest.mark.parametrize("p", [0, -0.1, 1.5, math.nan])
def test_a_part_out_of_range_is_refused(tmp_path, p):
    with pytest.raises(BadInputError, match="the part that the experts must reach lies above 0 and is at most 1"):
        affinity(small_run(tmp_path / "run"), p=p)


def test_a_label_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="label 'upos': the run has no such label"):
        affinity(small_run(tmp_path / "run"), by="upos")


@pytest.mark.parametrize(
    "experts",
    [np.zeros((0, 2), int), np.array([[1, 0]]), np.full((8, 2), -1)],
    ids=["empty run", "one token", "all dropped"],
)
def test_where_there_is_nothing_to_measure_there_are_nulls_and_no_warning(tmp_path, experts):
    frame = affinity(write_run(tmp_path / "run", [experts]))
    assert has_no_nan(frame)
    assert frame.height == (4 if len(experts) else 0)
    assert frame["token_share_ci_low"].null_count() == frame.height  # all in one block of one document
    if len(experts) == 8:
        assert set(frame["token_share"]) == set(frame["gate_score"]) == {0.0}
        assert not frame["in_set"].any()


def test_a_router_of_one_expert_gives_it_everything(tmp_path):
    frame = affinity(write_run(tmp_path / "run", [np.zeros((6, 1), int)], n_experts=1))
    assert frame.select("token_share", "uniform", "rank", "in_set").rows() == [(1.0, 1.0, 1, True)]
