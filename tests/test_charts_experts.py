from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts.experts import MOST_LABELS, expert_load, expert_mix
from moe_probe.palette import CONTEXT
from moe_probe.tables.columns import schema_of
from moe_probe.tables.labels import LABEL_COLUMNS, label_table
from moe_probe.tables.load import LOAD_COLUMNS, load_table

HOSTILE = "<b>NOUN</b> $x$"
COLOUR = "#123456"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Sixty documents; expert 1 of the first router takes most verbs, and no nouns."""
    rng = np.random.default_rng(1)
    tags = np.array([HOSTILE, "VERB", "ADJ"])[rng.integers(0, 3, 6000)]
    first = rng.integers(0, 4, 6000)
    first = np.where((tags == "VERB") & (rng.random(6000) < 0.7), 1, first)
    first = np.where((tags == HOSTILE) & (first == 1), 0, first)
    return write_run(
        tmp_path_factory.mktemp("experts"),
        [first[:, None], rng.integers(0, 3, (6000, 1))],
        labels={"upos": tags.tolist()},
        n_experts=[4, 3],
        documents=np.arange(6000) // 100,
        token_id=(np.searchsorted(np.unique(tags), tags) * 40 + rng.integers(0, 40, 6000)).tolist(),
        layers=[3, 7],
    )


def texts(figure: go.Figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def test_bars_are_the_experts_labels_with_the_share_in_all_text_beside_them(run):
    frame = label_table(run, "upos")
    figure = expert_mix(frame, 0, 1, label_set="upos", colour=COLOUR)
    share, baseline, lift = figure.data
    rows = {row["label"]: row for row in frame.filter(router=0, expert=1, slot="any").iter_rows(named=True)}
    labels = [said[-1] for said in share.customdata]
    assert labels[0] == "VERB"
    assert set(labels) == set(rows)
    assert list(share.x) == [rows[label]["p_label_given_expert"] for label in labels]
    for label, of_all in zip(labels, baseline.x, strict=True):
        if rows[label]["lift"]:
            assert rows[label]["p_label_given_expert"] / of_all == pytest.approx(rows[label]["lift"])
    assert sum(baseline.x) == pytest.approx(1)
    assert [said[1] for said in lift.customdata] == [rows[label]["lift"] for label in labels]
    assert {said[-2] for said in share.customdata} == {1}
    assert share.marker.color == COLOUR


def test_only_specialised_labels_have_a_full_dot(run):
    frame = label_table(run, "upos")
    lift = expert_mix(frame, 0, 1, label_set="upos").data[2]
    verdicts = [said[3] for said in lift.customdata]
    assert verdicts[0] == "specialised"
    assert list(lift.marker.symbol) == ["circle" if verdict == "specialised" else "circle-open" for verdict in verdicts]
    assert "circle-open" in lift.marker.symbol


def test_the_interval_of_lift_is_the_tables_and_a_lift_of_nothing_stays_on_the_axis(run):
    frame = label_table(run, "upos")
    figure = expert_mix(frame, 0, 1, label_set="upos")
    lift = figure.data[2]
    row = frame.filter(router=0, expert=1, slot="any", label="VERB").row(0, named=True)
    assert lift.x[0] + lift.error_x.array[0] == pytest.approx(row["ci_high"])
    assert lift.x[0] - lift.error_x.arrayminus[0] == pytest.approx(row["ci_low"])
    nothing = [said[1] for said in lift.customdata].index(0)
    low, high = (10**edge for edge in figure.layout.xaxis2.range)
    assert all(low <= x <= high for x in lift.x)
    assert lift.x[nothing] == min(lift.x) > 0
    assert len(figure.layout.xaxis2.tickvals) <= 7


def test_of_many_labels_those_given_most_are_drawn_and_it_says_so():
    names = [f"l{index:02}" for index in range(30)]
    common = {"layer": 0, "router": 0, "slot": "any", "tokens": "all", "domain": "all", "expert": 0, "lift": 1.0}
    rows = [
        common | {"label": name, "assignments": index + 1, "p_label_given_expert": (index + 1) / 465, "n": 465}
        for index, name in enumerate(names)
    ]
    frame = pl.DataFrame(rows, schema=schema_of(LABEL_COLUMNS))
    figure = expert_mix(frame, 0, 0, label_set="tag")
    assert [said[-1] for said in figure.data[0].customdata] == names[::-1][:MOST_LABELS]
    assert "The 14 of 30 labels" in texts(figure)
    assert "n = 465 of 465 assignments" in texts(figure)


def test_load_over_layers_colours_the_chosen_one_and_knows_layers_of_other_sizes(run):
    load = load_table(run)
    figure = expert_load(load, 2, 1, colour=COLOUR)
    rows = load.filter(expert=2, slot="any")
    bars, even = figure.data
    assert list(bars.y) == rows["share"].to_list()
    assert list(bars.marker.color) == [CONTEXT, COLOUR]
    assert list(even.y) == [pytest.approx(1 / 4), pytest.approx(1 / 3)]
    assert [said[-1] for said in bars.customdata] == [0, 1]
    assert list(figure.layout.xaxis.ticktext) == ["3", "7"]
    assert bars.y[1] + bars.error_y.array[1] == pytest.approx(rows["ci_high"][1])
    assert "another expert" in texts(figure)
    assert len(expert_load(load, 3, 0).data[0].y) == 1, "the second layer has no expert 3"


def test_two_routers_of_a_layer_are_told_apart(run):
    load = load_table(run).with_columns(layer=pl.lit(3, pl.Int64))
    assert list(expert_load(load, 0, 0).layout.xaxis.ticktext) == ["3 · 1", "3 · 2"]


def test_names_from_the_run_are_escaped(run):
    figure = expert_mix(label_table(run, "upos"), 0, 0, label_set="<i>upos</i>")
    assert "&lt;b&gt;NOUN&lt;/b&gt; &#36;x&#36;" in figure.layout.yaxis.ticktext
    assert "&lt;i&gt;upos&lt;/i&gt;" in texts(figure)
    said = [text for trace in (figure.data[0], figure.data[2]) for text in (one[0] for one in trace.customdata)]
    assert not any("<b>" in text for text in said)


def test_nothing_counted_is_said():
    assert "Not enough data" in texts(expert_mix(pl.DataFrame(schema=schema_of(LABEL_COLUMNS)), 0, 0, label_set="x"))
    assert "Not enough data" in texts(expert_load(pl.DataFrame(schema=schema_of(LOAD_COLUMNS)), 0, 0))
