from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts.agreement import (
    MEASURES,
    agreement_deciles,
    agreement_labels,
    agreement_lines,
    load_difference_heatmap,
    saturation_lines,
)
from moe_probe.charts.surprisal import surprisal_points
from moe_probe.errors import BadInputError
from moe_probe.tables.between import (
    AGREEMENT_COLUMNS,
    LOAD_DIFFERENCE_COLUMNS,
    SATURATION_COLUMNS,
    agreement,
    load_difference,
)
from moe_probe.tables.columns import schema_of
from moe_probe.tables.surprisal import SURPRISAL_COLUMNS

HOSTILE = "<b>bold</b> <a href='x'>$y$</a>\nline"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of two routers, in layers 3 and 7; the second agrees less."""
    folder = tmp_path_factory.mktemp("charts")
    rng = np.random.default_rng(0)
    a = [np.argsort(rng.random((900, 4)), axis=1)[:, :2] for _ in range(2)]
    b = [np.where(rng.random((900, 1)) < share, [[0, 1]], one) for one, share in zip(a, (0.1, 0.4), strict=True)]
    facts = {
        "documents": np.arange(900) // 30,
        "layers": [3, 7],
        "labels": {"upos": np.array([HOSTILE, "NOUN", "2024-01-01"])[rng.choice(3, 900, p=[0.2, 0.5, 0.3])]},
        "scores": {router: (np.ones(900), rng.random(900)) for router in (0, 1)},
    }
    return [write_run(folder / name, one, **facts) for name, one in (("a", a), ("b", b))]


@pytest.fixture(scope="module")
def frame(runs):
    return agreement(*runs, by="upos")


def texts(figure):
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def test_each_line_of_agreement_has_its_interval_and_its_chance_below_it(frame):
    figure = agreement_lines(frame)
    rows = frame.filter(decile="all", label_set="all")
    assert len(figure.data) == 2 * len(MEASURES)
    for measure, chance, line in zip(MEASURES, figure.data[::2], figure.data[1::2], strict=True):
        assert list(line.x) == [3, 7]
        assert list(line.y) == rows[measure].to_list()
        assert list(chance.y) == rows[f"{measure}_chance"].to_list()
        assert chance.line.dash == "dot"
        tops = [y + up for y, up in zip(line.y, line.error_y.array, strict=True)]
        assert tops == pytest.approx(rows[f"{measure}_ci_high"].to_list())
        bottoms = [y - down for y, down in zip(line.y, line.error_y.arrayminus, strict=True)]
        assert bottoms == pytest.approx(rows[f"{measure}_ci_low"].to_list())
        assert "%" in line.customdata[0]
    assert len({line.marker.symbol for line in figure.data[1::2]}) == 3
    assert "How often do both runs choose the same experts?" in texts(figure)
    assert "n = 900 tokens a layer" in texts(figure)


def test_two_routers_of_one_layer_are_two_lines_and_one_layer_is_drawn_as_points(frame):
    figure = agreement_lines(frame.with_columns(layer=pl.lit(5, pl.Int64)))
    assert {line.name for line in figure.data if line.showlegend is None} == {
        f"{name}, router {rank} of its layer" for name in MEASURES.values() for rank in (1, 2)
    }
    assert {line.mode for line in figure.data} == {"lines+markers"}


def test_deciles_are_cells_from_near_ties_to_clear_decisions(frame):
    figure = agreement_deciles(frame, measure="exact_set")
    (heat,) = figure.data
    rows = frame.filter(pl.col("decile") != "all")
    assert heat.z.shape == (2, 10)
    assert heat.z.ravel().tolist() == rows["exact_set"].to_list()
    assert heat.customdata[1, 3, 0] == rows["exact_set_chance"][13]
    assert heat.customdata[1, 3, 2] == "layer 7, decile 4"
    assert heat.customdata[1, 3, 3].startswith(" (")
    assert list(figure.layout.xaxis.ticktext) == [str(decile) for decile in range(1, 11)]
    assert list(figure.layout.yaxis.ticktext) == ["layer 3", "layer 7"]
    assert "same set of experts" in texts(figure)
    assert "random pairs of tokens" in texts(figure)


def test_labels_are_cells_the_commonest_first_and_never_act(frame):
    figure = agreement_labels(frame, "upos")
    names = list(figure.layout.xaxis.ticktext)
    assert names[:2] == ["NOUN", "2024-01-01"]
    assert "<b>" not in str(figure.data[0].customdata) + str(names)
    noun = frame.filter(label="NOUN").sort("router")["set_overlap"].to_list()
    assert figure.data[0].z[:, 0].tolist() == noun
    many = pl.concat([frame.filter(label="NOUN").with_columns(label=pl.lit(f"L{number}")) for number in range(50)])
    assert agreement_labels(many, "upos").data[0].z.shape == (2, 40)


def test_a_cell_without_an_interval_says_none(frame):
    bare = frame.with_columns(pl.lit(None, pl.Float64).alias(f"set_overlap_ci_{end}") for end in ("low", "high"))
    assert set(agreement_deciles(bare).data[0].customdata[:, :, 3].ravel()) == {""}
    assert set(agreement_lines(bare).data[1].error_y.array) == {0}


def test_loads_that_moved_are_seen_relative_to_even_use(runs):
    moved = load_difference(*runs)
    figure = load_difference_heatmap(moved)
    (heat,) = figure.data
    differences = moved.filter(slot="any")["difference"].to_numpy().reshape(2, 4)
    assert np.allclose(heat.z, differences * 4)
    assert heat.zmin == -heat.zmax
    assert heat.zmax == pytest.approx(np.abs(differences * 4).max())
    assert heat.customdata[1, 2, 4] == "layer 7"
    assert "q = " in heat.customdata[1, 2, 5]
    assert "Baseline: 0" in texts(figure)
    first = load_difference_heatmap(moved, slot="0")
    assert "first choice" in texts(first)
    assert np.allclose(first.data[0].z, moved.filter(slot="0")["difference"].to_numpy().reshape(2, 4) * 4)


def test_no_tokens_give_a_picture_that_says_so():
    empty = pl.DataFrame(schema=schema_of(AGREEMENT_COLUMNS))
    moved = pl.DataFrame(schema=schema_of(LOAD_DIFFERENCE_COLUMNS))
    for figure in (
        agreement_lines(empty),
        agreement_deciles(empty),
        agreement_labels(empty, "upos"),
        load_difference_heatmap(moved),
        saturation_lines(pl.DataFrame(schema=schema_of(SATURATION_COLUMNS))),
        surprisal_points(pl.DataFrame(schema=schema_of(SURPRISAL_COLUMNS))),
    ):
        assert "Not enough data" in texts(figure)
        assert not figure.data


def test_a_measure_that_is_none_is_refused(frame):
    with pytest.raises(BadInputError, match="measure 'kappa': draw one of set_overlap, first_choice, exact_set"):
        agreement_deciles(frame, measure="kappa")
    with pytest.raises(BadInputError, match="measure 'kappa': draw one of set_overlap, first_choice, exact_set"):
        saturation_lines(settled(2, [60, 300]), measure="kappa")


def settled(n_layers, steps):
    """A table of saturation: each layer agrees more with every step, later layers less."""
    rows = [
        {
            "checkpoint": place,
            "run": f"run {place}",
            "step": step,
            "layer": layer,
            "router": layer,
            "tokens": "all",
            "n": 500,
            **{name: 0.5 + 0.1 * place - 0.01 * layer for name in MEASURES},
            **{f"{name}_chance": 0.2 + 0.01 * layer for name in MEASURES},
            **{f"{name}_ci_low": 0.45 + 0.1 * place - 0.01 * layer for name in MEASURES},
            **{f"{name}_ci_high": 0.52 + 0.1 * place - 0.01 * layer for name in MEASURES},
        }
        for place, step in enumerate(steps)
        for layer in range(n_layers)
    ]
    return pl.DataFrame(rows, schema=schema_of(SATURATION_COLUMNS))


def test_saturation_is_a_line_a_layer_over_the_steps_of_training_above_chance():
    figure = saturation_lines(settled(3, [300, 60, 900]))  # the runs need not come in order
    low, high, *lines = figure.data
    assert [line.name for line in lines] == ["layer 0", "layer 1", "layer 2"]
    assert list(lines[1].x) == [60, 300, 900]
    assert list(lines[1].y) == pytest.approx([0.59, 0.49, 0.69])
    assert list(lines[1].error_y.array) == pytest.approx([0.02] * 3)
    assert list(lines[1].error_y.arrayminus) == pytest.approx([0.05] * 3)
    assert lines[1].customdata[0] == " (54.0% to 61.0%), chance 21.0%"
    assert list(low.y) == pytest.approx([0.2] * 3)
    assert list(high.y) == pytest.approx([0.22] * 3)
    assert high.fill == "tonexty"
    assert len({line.line.color for line in lines}) == 3
    assert figure.layout.xaxis.title.text == "training step"
    assert "random pairs of tokens" in texts(figure)
    assert "n = 500 tokens a point" in texts(figure)


def test_saturation_without_steps_runs_along_the_order_of_the_runs():
    figure = saturation_lines(settled(1, [60, None]), measure="exact_set")
    assert list(figure.data[2].x) == [0, 1]
    assert "order given" in figure.layout.xaxis.title.text
    assert "same set of experts" in texts(figure)


def test_of_many_layers_intervals_are_told_where_one_points_and_not_drawn():
    figure = saturation_lines(settled(32, [60, 300]))
    assert len(figure.data) == 2 + 32
    assert all(line.error_y.array is None for line in figure.data[2:])
    assert "Bars" not in texts(figure)
    assert "(" in figure.data[5].customdata[0]


def foretold(labels):
    """A table of surprisal: the total, then labels with ever fewer tokens."""
    rows = [
        {
            "tokens": "all",
            "label_set": "all" if place == 0 else "upos",
            "label": label,
            "surprisal_a": 5.0,
            "surprisal_b": 5.1,
            "difference": 0.1,
            "ci_low": None if place == 1 else 0.05,
            "ci_high": None if place == 1 else 0.2,
            "n": 1000 - place,
        }
        for place, label in enumerate(["all", *labels])
    ]
    return pl.DataFrame(rows, schema=schema_of(SURPRISAL_COLUMNS))


def test_surprisal_is_a_point_a_label_beside_no_change_and_labels_never_act():
    frame = foretold([HOSTILE, "2024-01-01", "NOUN"])
    figure = surprisal_points(frame, "upos")
    (points,) = figure.data
    names = list(figure.layout.yaxis.ticktext)
    assert names[0] == "all tokens"
    assert names[2:] == ["2024-01-01", "NOUN"]
    assert "<b>bold" not in str(points.customdata) + str(names)
    assert list(points.x) == [0.1] * 4
    assert list(points.error_x.array) == pytest.approx([0.1, 0, 0.1, 0.1])
    assert list(points.error_x.arrayminus) == pytest.approx([0.05, 0, 0.05, 0.05])
    assert "(+0.0500 to +0.2000)" in points.customdata[0]
    assert "(" not in points.customdata[1]
    (line,) = figure.layout.shapes
    assert line.x0 == line.x1 == 0
    assert "n = 997 to 1,000 tokens" in texts(figure)
    assert "On which upos does the second run foretell worse?" in texts(figure)
    assert "Does the second run foretell worse?" in texts(surprisal_points(frame))
    assert list(surprisal_points(frame).layout.yaxis.ticktext) == ["all tokens"]
    assert len(surprisal_points(foretold([f"L{place}" for place in range(60)]), "upos").data[0].x) == 41
