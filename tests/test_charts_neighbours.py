from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts.neighbours import repetition_lines
from moe_probe.charts.pairs import coactivation_heatmap, transition_heatmap
from moe_probe.errors import BadInputError
from moe_probe.tables.columns import schema_of
from moe_probe.tables.depths import TRANSITION_COLUMNS, transitions
from moe_probe.tables.neighbours import REPETITION_COLUMNS, repetition
from moe_probe.tables.pairs import COACTIVATION_COLUMNS, coactivation

SETS = np.array(list(itertools.combinations(range(8), 2)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    experts = [SETS[rng.integers(0, 28, 3000)] for _ in range(2)]
    experts[0][rng.random(3000) < 0.2] = [4, 6]
    experts[1] = np.where(rng.random((3000, 1)) < 0.5, experts[0], experts[1])
    return write_run(
        tmp_path_factory.mktemp("charts"),
        experts,
        n_experts=8,
        documents=np.arange(3000) // 50,
        domains=["<b>prose</b>", "code"] * 30,
        token_id=rng.integers(0, 40, 3000),
        layers=[3, 7],
    )


def texts(figure: go.Figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def test_lines_show_what_was_observed_against_four_chances(run):
    frame = repetition(run)
    figure = repetition_lines(frame)
    rows = frame.filter(domain="all")
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert drawn == {
        "chance: even routing": rows["uniform_first"].to_list(),
        "chance: two tokens of a domain": rows["load_first"].to_list(),
        "chance: two tokens of a document": rows["document_first"].to_list(),
        "chance: the same tokens elsewhere": rows["token_first"].to_list(),
        "observed": rows["first_choice"].to_list(),
    }
    bars = figure.data[-1].error_y
    assert list(bars.array) == pytest.approx((rows["first_ci_high"] - rows["first_choice"]).to_list())
    assert list(bars.arrayminus) == pytest.approx((rows["first_choice"] - rows["first_ci_low"]).to_list())
    assert list(figure.layout.xaxis.ticktext) == ["3", "7"]
    assert "it is not syntax" in texts(figure)
    assert f"n = {60 * 49:,} pairs" in texts(figure)


def test_sets_and_domains_can_be_drawn(run):
    frame = repetition(run)
    figure = repetition_lines(frame, "<b>prose</b>", measure="either")
    rows = frame.filter(domain="<b>prose</b>")
    assert list(figure.data[-1].y) == rows["either"].to_list()
    assert list(figure.data[0].y) == rows["uniform_either"].to_list()
    assert "&lt;b&gt;prose&lt;/b&gt;" in texts(figure)
    with pytest.raises(BadInputError, match="measure 'sets': draw one of first_choice, either"):
        repetition_lines(frame, measure="sets")


def test_two_routers_of_a_layer_stand_side_by_side(run):
    frame = repetition(run).with_columns(layer=pl.lit(3, pl.Int64))
    assert list(repetition_lines(frame).layout.xaxis.ticktext) == ["3 · 1", "3 · 2"]


def test_each_pair_of_experts_has_two_cells_and_those_not_told_from_chance_are_faint(run):
    frame = coactivation(run)
    figure = coactivation_heatmap(frame, 0)
    faint, full = figure.data
    assert (faint.opacity, full.opacity, faint.showscale) == (0.35, 1.0, False)
    both = np.where(np.isnan(full.z), faint.z, full.z)
    assert np.allclose(both, both.T, equal_nan=True)
    assert np.isnan(np.diagonal(both)).all()
    for row in frame.filter(router=0).iter_rows(named=True):
        a, b = row["expert_a"], row["expert_b"]
        layer, other = (full, faint) if row["q_value"] < 0.05 else (faint, full)
        assert layer.z[b, a] == pytest.approx(np.log2(row["lift"]))
        assert np.isnan(other.z[a, b])
        assert layer.customdata[a, b, 7] == row["p_b_given_a"]
        assert layer.customdata[b, a, 7] == row["p_a_given_b"]
    assert full.z[4, 6] > 0
    assert -full.zmin == full.zmax
    untold = frame.filter((pl.col("router") == 0) & (pl.col("q_value") >= 0.05)).height
    assert f"Faint or blank ({untold} of 28)" in texts(figure)
    assert "layer 3" in texts(figure)
    assert "adjacent" not in texts(figure)
    assert "adjacent ranks only" in texts(coactivation_heatmap(coactivation(run, adjacent=True), 0))


def test_transitions_go_from_the_rows_to_the_columns(run):
    frame = transitions(run)
    figure = transition_heatmap(frame, 0)
    both = np.where(np.isnan(figure.data[1].z), figure.data[0].z, figure.data[1].z)
    for row in frame.iter_rows(named=True):
        if row["expected"] >= 5 and row["tokens"]:
            drawn = max(np.log2(row["lift"]), -4)
            assert both[row["expert"], row["next_expert"]] == pytest.approx(drawn)
    assert "From layer 3 to layer 7" in texts(figure)
    assert figure.layout.xaxis.title.text == "expert of layer 7"
    assert figure.layout.yaxis.title.text == "expert of layer 3"


@pytest.mark.filterwarnings("error")
def test_empty_tables_say_that_there_is_not_enough_data(run):
    tables = {"repetition": REPETITION_COLUMNS, "pairs": COACTIVATION_COLUMNS, "steps": TRANSITION_COLUMNS}
    empty = {name: pl.DataFrame(schema=schema_of(columns)) for name, columns in tables.items()}
    figures = [
        repetition_lines(empty["repetition"]),
        repetition_lines(repetition(run), "no such domain"),
        coactivation_heatmap(empty["pairs"], 0),
        coactivation_heatmap(coactivation(run), 9),
        transition_heatmap(empty["steps"], 0),
        transition_heatmap(transitions(run), 1),  # the last router leads nowhere
    ]
    assert all("Not enough data" in texts(figure) for figure in figures)


@pytest.mark.filterwarnings("error")
def test_nulls_leave_gaps(tmp_path):
    bare = write_run(tmp_path / "run", [np.array([[0, 1], [0, 2], [1, 0]])] * 2)
    figure = repetition_lines(repetition(bare))
    assert list(figure.data[3].y) == [None, None]  # no type occurs often enough
    assert list(figure.data[4].error_y.array) == [0, 0]
    heat = coactivation_heatmap(coactivation(bare), 0)
    assert all(np.isnan(trace.z).all() for trace in heat.data)  # fewer than five expected everywhere
