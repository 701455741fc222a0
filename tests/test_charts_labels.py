"""What the pictures of labels and load say of intervals and verdicts."""

from __future__ import annotations

import re

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts import label_heatmap, load_heatmap, load_histogram
from moe_probe.tables.labels import label_table
from moe_probe.tables.load import load_table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Expert c takes the types of label c in most cases, in 40 documents of two domains."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 120, 6000)
    tags = rng.integers(0, 3, 120)
    first = np.where(rng.random(120) < 0.7, tags, rng.integers(0, 4, 120))[ids]
    return write_run(
        tmp_path_factory.mktemp("charts") / "run",
        [np.stack([first, (first + rng.integers(1, 4, 6000)) % 4], axis=1)],
        labels={"upos": np.array(["ADJ", "NOUN", "VERB"])[tags[ids]]},
        token_id=ids,
        documents=np.arange(6000) // 150,
        domains=["news", "<b>"] * 20,
    )


@pytest.fixture(scope="module")
def table(run):
    return label_table(run, "upos")


def shown(figure: go.Figure) -> set[tuple[int, str]]:
    """The cells in full colour."""
    heat, full = figure.data
    return {(int(heat.customdata[y, x, 0]), heat.customdata[y, x, 7]) for y, x in np.argwhere(~np.isnan(full.z))}


def subtitle(figure: go.Figure) -> str:
    return figure.layout.title.subtitle.text


def test_cells_that_are_not_specialised_are_faint(table):
    figure = label_heatmap(table, 0, slot="0")
    heat, full = figure.data
    specialised = table.filter(slot="0", domain="all", verdict="specialised").select("expert", "label").rows()
    assert shown(figure) == set(specialised) == {(0, "ADJ"), (1, "NOUN"), (2, "VERB")}
    assert heat.opacity < 0.5
    assert full.opacity is None
    drawn = ~np.isnan(full.z)
    assert np.array_equal(full.z[drawn], heat.z[drawn])
    assert (full.zmin, full.zmax, full.colorscale) == (heat.zmin, heat.zmax, heat.colorscale)
    assert (heat.showscale, full.showscale, full.hoverinfo) == (False, None, "skip")
    assert "Faint (9 of 12 cells): not shown to be specialised." in subtitle(figure)


def test_blank_cells_are_neither_faint_nor_full(table):
    figure = label_heatmap(table, 0, slot="0", minimum_expected=1e9)
    assert shown(figure) == set()
    assert "Faint (0 of 12 cells)" in subtitle(figure)
    assert "Blank (12)" in subtitle(figure)


def test_counts_and_shares_are_never_faint(table):
    for value in ("p_label_given_expert", "p_expert_given_label", "assignments"):
        (heat,) = label_heatmap(table, 0, value=value).data
        assert heat.opacity is None
        assert heat.colorbar.title.text is not None


def test_the_pointer_shows_the_interval_and_the_verdict(table):
    heat = label_heatmap(table, 0, slot="0").data[0]
    row = table.filter(slot="0", domain="all", expert=1, label="NOUN").row(0, named=True)
    (cell,) = [said for said in heat.customdata.reshape(-1, 10) if (said[0], said[7]) == (1, "NOUN")]
    assert cell[8] == f" ({row['ci_low']:.2f}–{row['ci_high']:.2f})"
    assert cell[9] == "specialised"
    assert "lift %{customdata[1]:.2f}%{customdata[8]}: %{customdata[9]}" in heat.hovertemplate
    unbounded = table.with_columns(ci_low=pl.lit(None, pl.Float64), ci_high=pl.lit(None, pl.Float64))
    assert set(label_heatmap(unbounded, 0).data[0].customdata[:, :, 8].ravel()) == {""}


def test_a_picture_of_one_domain_has_its_cells_and_says_so(table):
    figure = label_heatmap(table, 0, slot="0", domain="news")
    heat = figure.data[0]
    inside = table.filter(slot="0", domain="news")
    assert sorted(heat.customdata[:, :, 2].ravel()) == sorted(inside["assignments"].to_list())
    assert subtitle(figure).endswith("without the first four of a window, news.")
    assert f"n = {inside['n'][0]:,} assignments" in subtitle(figure)
    assert "&lt;b&gt;" in subtitle(label_heatmap(table, 0, domain="<b>"))
    assert "Not enough data" in subtitle(label_heatmap(table, 0, domain="law"))


def test_bars_of_the_histogram_have_their_intervals(run):
    load = load_table(run)
    rows = load.filter(slot="any")
    (bars,) = load_histogram(load, 0).data
    assert np.allclose(np.array(bars.y) + bars.error_y.array, rows["ci_high"])
    assert np.allclose(np.array(bars.y) - bars.error_y.arrayminus, rows["ci_low"])
    assert [said[2] for said in bars.customdata] == [
        f"95 %: {low:.2%} to {high:.2%}, {verdict}"
        for low, high, verdict in rows.select("ci_low", "ci_high", "verdict").rows()
    ]
    assert "with its 95 % interval" in subtitle(load_histogram(load, 0))


def test_the_load_heatmap_shows_the_interval_at_the_pointer(run):
    load = load_table(run)
    (heat,) = load_heatmap(load).data
    low, high, verdict = load.filter(slot="any", expert=2).select("ci_low", "ci_high", "verdict").row(0)
    assert heat.customdata[0, 2, 7] == f"95 %: {low:.2%} to {high:.2%}, {verdict}"
    assert "%{customdata[7]}" in heat.hovertemplate


def test_without_an_interval_the_verdict_stands_alone(tmp_path):
    load = load_table(write_run(tmp_path / "run", [np.array([[0], [1], [2]])]))
    (bars,) = load_histogram(load, 0).data
    assert [said[2] for said in bars.customdata] == ["not enough data"] * 3 + ["unseen"]
    assert list(bars.error_y.array) == [None] * 4
    assert not re.search("nan|None", " ".join(load_heatmap(load).data[0].customdata[0, :, 7]))


def test_a_load_in_the_olmoe_convention_is_compared_with_slots_over_experts(run):
    figure = load_histogram(load_table(run, convention="olmoe"), 0)
    assert "Share of the tokens, with its 95 % interval. Baseline, dashed: even use, 2/4 = 50.0%." in subtitle(figure)
    assert figure.layout.shapes[0].y0 == 0.5
