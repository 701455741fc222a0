from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts import depth_lines, escape, label_heatmap, load_heatmap, load_histogram
from moe_probe.errors import BadInputError
from moe_probe.palette import CONTEXT, EXPERT_COLOURS
from moe_probe.tables import (
    BALANCE_COLUMNS,
    LABEL_COLUMNS,
    LOAD_COLUMNS,
    SPECIALISATION_COLUMNS,
    balance,
    label_table,
    load_table,
    schema_of,
    specialisation,
)

HOSTILE = "<b>bold</b> <a href='x'>$y$</a>\nline"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    tags = rng.integers(0, 3, 900)
    chosen = np.where(rng.random(900) < 0.8, 3 - tags, rng.integers(0, 4, 900))
    return write_run(
        tmp_path_factory.mktemp("charts"),
        [np.stack([chosen, (chosen + 1) % 4], axis=1), rng.permuted(np.tile([0, 1, 2, 3], (900, 1)), axis=1)[:, :2]],
        labels={"upos": np.array([HOSTILE, "NOUN", "2024-01-01"])[tags]},
        scores={0: (np.full(900, 1.5), np.full(900, 0.25)), 1: (np.full(900, 1.0), np.full(900, 0.5))},
        token_id=tags * 50 + rng.integers(0, 50, 900),
        layers=[3, 7],
        documents=np.arange(900) // 30,
    )


def texts(figure: go.Figure) -> str:
    title = figure.layout.title
    return f"{title.text} {title.subtitle.text}"


def test_the_load_heatmap_shows_shares_relative_to_even_use(run):
    load = load_table(run)
    figure = load_heatmap(load)
    (heat,) = figure.data
    shares = load.filter(slot="any")["share"].to_numpy().reshape(2, 4)
    assert np.allclose(heat.z, shares * 4)
    assert list(figure.layout.yaxis.ticktext) == ["layer 3", "layer 7"]
    assert "Which experts does each layer use?" in texts(figure)
    assert "Baseline: 1, even use" in texts(figure)
    assert "n = 1,800 assignments" in texts(figure)
    assert "without the first four of a window" in texts(figure)
    assert heat.customdata[0, 2, 6] == "layer 3"
    assert heat.customdata[0, 2, 4] == pytest.approx(shares[0, 2] * 4)
    first = load_heatmap(load, slot="0")
    assert np.allclose(first.data[0].z, load.filter(slot="0")["share"].to_numpy().reshape(2, 4) * 4)
    assert "first choice" in texts(first)


def test_two_routers_of_one_layer_are_two_rows(tmp_path):
    experts = [np.array([[0], [1]])] * 3
    figure = load_heatmap(load_table(write_run(tmp_path / "run", experts, layers=[0, 0, 1])))
    assert list(figure.layout.yaxis.ticktext) == ["layer 0 · 1", "layer 0 · 2", "layer 1"]


def test_a_selectable_heatmap_has_an_invisible_bar_on_every_cell_that_says_which(run):
    figure = load_heatmap(load_table(run), selectable=True)
    heat, cells = figure.data
    places = {
        (int(x), float(base)): tuple(said[-2:])
        for x, base, said in zip(cells.x, cells.base, cells.customdata, strict=True)
    }
    assert places[(2, 0.5)] == (1, 2)  # the row below the first: router 1, expert 2
    assert len(places) == 8
    assert set(cells.y) == {1}
    assert cells.marker.color == "rgba(0,0,0,0)"
    plain = load_heatmap(load_table(run)).data[0]
    assert cells.hovertemplate == plain.hovertemplate
    assert "%{z" not in cells.hovertemplate
    assert "%{x" not in cells.hovertemplate
    for x, base, said in zip(cells.x, cells.base, cells.customdata, strict=True):
        assert list(said[:-2]) == list(plain.customdata[int(base + 0.5), int(x)])
    assert (heat.customdata, heat.hoverinfo) == (None, "skip")  # what lies on top speaks for it
    labels = label_heatmap(label_table(run, "upos"), 0, selectable=True).data[1]
    assert {said[-1] for said in labels.customdata} == {HOSTILE, "NOUN", "2024-01-01"}
    assert "%{customdata[11]" not in labels.hovertemplate  # the label as it is, markup and all, is never shown
    assert len(labels.customdata[0]) == 12


def test_of_many_cells_a_point_each_says_which_and_none_is_drawn(run):
    rows = load_table(run).filter(slot="any", router=0)
    many = pl.concat([rows.with_columns(router=pl.lit(router, pl.Int64)) for router in range(600)])
    heat, points = load_heatmap(many, selectable=True).data
    assert (heat.type, points.type, points.mode) == ("heatmap", "scatter", "markers")
    assert (points.marker.opacity, points.marker.maxdisplayed) == (0, 1)
    assert len(points.x) == many.height > 2_000
    for x, y, said in zip(points.x, points.y, points.customdata, strict=True):
        assert (int(y), int(x)) == tuple(said[-2:])
        assert said[5] == x


def test_cells_without_a_number_cannot_be_selected_nor_too_many_cells(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((9, 1), int)], labels={"upos": ["A", "B", "A"] * 3})
    assert {said[-2] for said in label_heatmap(label_table(run, "upos"), 0, selectable=True).data[1].customdata} == {0}
    rows = load_table(run).filter(slot="any")
    many = pl.concat([rows.with_columns(router=pl.lit(router, pl.Int64)) for router in range(5001)])
    assert len(load_heatmap(many, selectable=True).data) == 1


def test_the_histogram_wears_the_experts_colours_and_has_the_line_of_even_use(run):
    load = load_table(run)
    figure = load_histogram(load, 0)
    (bars,) = figure.data
    assert list(bars.marker.color) == list(EXPERT_COLOURS[:4])
    assert list(bars.y) == load.filter((pl.col("slot") == "any") & (pl.col("router") == 0))["share"].to_list()
    (line,) = figure.layout.shapes
    assert (line.y0, line.y1) == (0.25, 0.25)
    assert "layer 3" in texts(figure)
    assert "1/4 = 25.0%" in texts(figure)


def test_of_many_experts_only_the_picked_are_coloured(tmp_path):
    load = load_table(write_run(tmp_path / "run", [np.arange(64)[:, None]], n_experts=64))
    colours = load_histogram(load, 0, focus=[9, 4]).data[0].marker.color
    assert (colours[9], colours[4], colours[5]) == (EXPERT_COLOURS[0], EXPERT_COLOURS[1], CONTEXT)
    assert sum(colour != CONTEXT for colour in load_histogram(load, 0).data[0].marker.color) == 8


def test_lines_over_depth_carry_their_intervals(run):
    frame = specialisation(run)
    figure = depth_lines(frame, ["type_level_bits", "held_out_bits"])
    band, line, _, _ = figure.data
    assert list(line.x) == [3, 7]
    assert list(line.y) == frame["type_level_bits"].to_list()
    assert list(band.y) == frame["type_ci_high"].to_list() + frame["type_ci_low"].to_list()[::-1]
    assert "Bands: 95 % intervals" in texts(figure)
    assert "about upos" in texts(figure)
    assert len({trace.marker.symbol for trace in figure.data if trace.name}) == 2


def test_entropy_over_depth_is_drawn_below_its_ceiling(run):
    figure = depth_lines(balance(run), ["load_entropy_bits", "mean_token_entropy_bits"])
    assert figure.layout.shapes[0].y0 == pytest.approx(2.0)
    assert list(figure.data[1].y) == [1.5, 1.0]
    assert depth_lines(balance(run), ["effective_experts"]).layout.shapes[0].y0 == pytest.approx(4.0)
    assert not depth_lines(balance(run), ["gini"]).layout.shapes


def test_two_routers_of_one_layer_are_two_lines(tmp_path):
    experts = [np.array([[0], [1]])] * 4
    figure = depth_lines(balance(write_run(tmp_path / "run", experts, layers=[0, 0, 1, 1])), ["gini"])
    assert [list(trace.x) for trace in figure.data] == [[0, 1], [0, 1]]
    assert {trace.line.dash for trace in figure.data} == {"solid", "dot"}


def test_depth_lines_refuse_what_they_cannot_draw(run):
    with pytest.raises(BadInputError, match=r"columns \['dropped'\]: draw one to four of max_violation, "):
        depth_lines(balance(run), ["dropped"])
    with pytest.raises(BadInputError, match="they have the units 0 to 1, bits; draw one unit"):
        depth_lines(balance(run), ["gini", "load_entropy_bits"])
    with pytest.raises(BadInputError, match=r"columns \[\]: draw one to four of"):
        depth_lines(balance(run), [])


def test_the_label_heatmap_centres_on_lift_one_and_sorts_specialists_to_a_diagonal(run):
    frame = label_table(run, "upos").filter(router=0, slot="0")
    figure = label_heatmap(label_table(run, "upos"), 0, slot="0")
    heat = figure.data[0]
    order = [int(expert) for expert in figure.layout.yaxis.ticktext]
    common = (
        frame.group_by("label").agg(pl.col("assignments").sum()).sort("assignments", descending=True)["label"].to_list()
    )
    assert [text.replace("&#36;", "$") for text in figure.layout.xaxis.ticktext][common.index("NOUN")] == "NOUN"
    for row in frame.iter_rows(named=True):
        shown = heat.z[order.index(row["expert"]), common.index(row["label"])]
        expected = max(row["lift"], 2**-10)
        assert shown == pytest.approx(math.log2(expected))
    assert (heat.zmid, -heat.zmin) == (0, heat.zmax)
    best = frame.sort("lift", descending=True).unique("expert", keep="first")
    places = [common.index(best.filter(expert=expert)["label"].item()) for expert in order]
    assert places == sorted(places)
    plain = label_heatmap(label_table(run, "upos"), 0, sort_experts=False)
    assert list(plain.layout.yaxis.ticktext) == ["0", "1", "2", "3"]


def test_cells_with_too_small_an_expected_count_are_blank_and_counted(run):
    frame = label_table(run, "upos")
    least = frame.filter(router=0, slot="any")["expected"].sort()
    figure = label_heatmap(frame, 0, minimum_expected=float(least[5]) + 1e-9)
    assert int(np.isnan(figure.data[0].z).sum()) == 6
    assert "Blank (6): fewer than" in texts(figure)
    counts = label_heatmap(frame, 0, value="assignments", minimum_expected=1e9)
    assert not np.isnan(counts.data[0].z).any()


def test_a_cell_that_never_occurred_is_at_the_end_of_the_scale(tmp_path):
    run = write_run(tmp_path / "run", [np.repeat([0, 1], 50)[:, None]], labels={"upos": ["A"] * 50 + ["B"] * 50})
    heat = label_heatmap(label_table(run, "upos"), 0).data[0]
    assert heat.z[0, 1] < heat.zmin
    assert np.isfinite(heat.z[:2]).all()
    assert np.isnan(heat.z[2:]).all()  # experts without any token


@pytest.mark.parametrize("value", ["p_label_given_expert", "p_expert_given_label", "assignments"])
def test_other_values_have_a_scale_from_zero_and_a_title_of_their_own(run, value):
    frame = label_table(run, "upos")
    figure = label_heatmap(frame, 0, value=value)
    assert figure.data[0].zmin == 0
    assert sorted(figure.data[0].z.ravel()) == sorted(frame.filter(router=0, slot="any")[value].to_list())
    assert texts(figure) != texts(label_heatmap(frame, 0))
    with pytest.raises(BadInputError, match="value 'n': draw one of lift, p_label_given_expert"):
        label_heatmap(frame, 0, value="n")


def test_text_from_a_run_is_never_markup(run):
    assert escape(HOSTILE) == "&lt;b&gt;bold&lt;/b&gt; &lt;a href='x'&gt;&#36;y&#36;&lt;/a&gt; line"
    figure = label_heatmap(label_table(run, "upos"), 0)
    shown = [*figure.layout.xaxis.ticktext, *(str(text) for text in figure.data[0].customdata[0, :, 7])]
    assert not any("<" in text or "$" in text for text in shown)
    assert any(text.startswith("&lt;b&gt;bold") for text in shown)
    assert "&amp;lt;" not in "".join(shown)  # escaped once


def test_long_labels_are_cut_on_the_axis_and_whole_at_the_pointer(tmp_path):
    name = "an exceedingly long name of a label"
    run = write_run(tmp_path / "run", [np.zeros((9, 1), int)], labels={"topic": [name] * 9}, word_level=())
    figure = label_heatmap(label_table(run, "topic"), 0)
    assert figure.layout.xaxis.ticktext[0] == "an exceedingly long n…"
    assert figure.data[0].customdata[0, 0, 7] == name


def test_backgrounds_are_transparent_and_the_layout_leaves_colours_to_the_template(run):
    for figure in (
        load_heatmap(load_table(run)),
        load_histogram(load_table(run), 0),
        label_heatmap(label_table(run, "upos"), 0),
    ):
        assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
        assert figure.layout.paper_bgcolor is None
        assert figure.layout.font.color is None
        assert "<script" not in figure.to_json()


@pytest.mark.filterwarnings("error")
def test_empty_tables_say_that_there_is_not_enough_data():
    tables = {
        "load": LOAD_COLUMNS,
        "balance": BALANCE_COLUMNS,
        "label": LABEL_COLUMNS,
        "specialisation": SPECIALISATION_COLUMNS,
    }
    empty = {name: pl.DataFrame(schema=schema_of(columns)) for name, columns in tables.items()}
    figures = [
        load_heatmap(empty["load"]),
        load_histogram(empty["load"], 0),
        depth_lines(empty["balance"], ["gini"]),
        depth_lines(empty["specialisation"], ["type_level_bits"]),
        label_heatmap(empty["label"], 0),
    ]
    assert all("Not enough data" in texts(figure) for figure in figures)


@pytest.mark.filterwarnings("error")
def test_a_run_whose_every_slot_was_dropped_is_not_enough_data(tmp_path):
    run = write_run(tmp_path / "run", [np.full((5, 2), -1)], labels={"upos": ["A", "B", "A", "B", "A"]})
    load_heatmap(load_table(run))
    assert "Not enough data" in texts(load_histogram(load_table(run), 0))
    assert "Not enough data" in texts(label_heatmap(label_table(run, "upos"), 0))
    assert "Not enough data" in texts(depth_lines(balance(run), ["gini"]))
