"""Pairs of experts as cells, the flow through layers, and the top paths: what is drawn is what the tables say."""

from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts.pair_cells import coactivation_cells, transition_cells
from moe_probe.charts.paths import path_flow, top_paths
from moe_probe.errors import BadInputError
from moe_probe.palette import CONTEXT, EXPERT_COLOURS
from moe_probe.tables.columns import schema_of
from moe_probe.tables.depths import PATH_COLUMNS, TRANSITION_COLUMNS, paths, transitions
from moe_probe.tables.pairs import COACTIVATION_COLUMNS, coactivation

N_TOKENS = 3000
SETS = np.array(list(itertools.permutations(range(8), 2)))
NAMES = {0: "layer 3", 1: "layer 7", 2: "layer 8"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Experts 1 and 6 are often chosen together; half of the tokens keep their experts from layer 3 to layer 7."""
    rng = np.random.default_rng(0)
    experts = [SETS[rng.integers(0, 56, N_TOKENS)] for _ in range(3)]
    experts[0][rng.random(N_TOKENS) < 0.3] = [1, 6]
    experts[1] = np.where(rng.random((N_TOKENS, 1)) < 0.5, experts[0], experts[1])
    return write_run(
        tmp_path_factory.mktemp("paths"),
        experts,
        n_experts=8,
        documents=np.arange(N_TOKENS) // 50,
        token=["<b>$x$</b> "] * N_TOKENS,
        layers=[3, 7, 8],
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """40 experts, of which 7 and 31 get most tokens, and 39 hardly any."""
    rng = np.random.default_rng(1)
    p = np.ones(40)
    p[[7, 31]], p[39] = 12.0, 0.05
    experts = [np.argsort(np.log(p) + rng.gumbel(size=(N_TOKENS, 40)), axis=1)[:, ::-1][:, :2] for _ in range(2)]
    return write_run(tmp_path_factory.mktemp("many"), experts, n_experts=40, documents=np.arange(N_TOKENS) // 50)


def texts(figure: go.Figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def cells_of(figure: go.Figure) -> dict[tuple[int, int], str]:
    """What each cell that can be clicked says, by the experts that a click gives."""
    (bars,) = [trace for trace in figure.data if isinstance(trace, go.Bar)]
    return {(int(one), int(other)): said for said, one, other in bars.customdata}


def colour_at(figure: go.Figure, row: int, column: int) -> tuple[bool, float]:
    """Whether a cell is in full colour, and the log2 of its lift."""
    faint, full = [trace for trace in figure.data if isinstance(trace, go.Heatmap)]
    assert faint.opacity < full.opacity == 1.0
    return (True, full.z[row, column]) if np.isfinite(full.z[row, column]) else (False, faint.z[row, column])


@pytest.mark.parametrize("router", [0, 2])  # of the first all pairs are told from chance, of the last hardly any
@pytest.mark.parametrize("order", ["index", "cluster"])
def test_each_cell_is_the_pair_that_its_ticks_name_in_whatever_order(run, order, router):
    frame = coactivation(run)
    figure = coactivation_cells(frame, router, order=order)
    experts = [int(name) for name in figure.layout.xaxis.ticktext]
    assert experts == [int(name) for name in figure.layout.yaxis.ticktext]
    assert sorted(experts) == list(range(8))
    said = cells_of(figure)
    assert len(said) == 8 * 7
    (bars,) = [trace for trace in figure.data if isinstance(trace, go.Bar)]
    for x, base, (_, one, other) in zip(bars.x, bars.base, bars.customdata, strict=True):
        assert (experts[round(base + 0.5)], experts[x]) == (one, other)
    for row in frame.filter(router=router).iter_rows(named=True):
        a, b = row["expert_a"], row["expert_b"]
        full, log_lift = colour_at(figure, experts.index(a), experts.index(b))
        assert log_lift == pytest.approx(np.log2(row["lift"]))
        assert full == (row["q_value"] is not None and row["q_value"] < 0.05)
        for one, other, share, other_share in (
            (a, b, "p_b_given_a", "p_a_given_b"),
            (b, a, "p_a_given_b", "p_b_given_a"),
        ):
            text = said[one, other]
            assert f"experts {one} and {other}" in text
            assert f"lift {row['lift']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f})" in text
            assert f"{row['together']:,} tokens, expected {row['expected']:,.1f}" in text
            assert f"{row[share]:.1%} of expert {one}'s tokens, {row[other_share]:.1%} of expert {other}'s" in text
            assert ("not told from chance" in text) == (not full)


def test_clusters_put_experts_that_are_chosen_together_side_by_side(run):
    figure = coactivation_cells(coactivation(run), 0, order="cluster")
    experts = [int(name) for name in figure.layout.xaxis.ticktext]
    assert abs(experts.index(1) - experts.index(6)) == 1


def test_experts_keep_their_order_where_no_pair_is_told_from_chance(run):
    frame = coactivation(run).with_columns(q_value=pl.lit(1.0))
    figure = coactivation_cells(frame, 0, order="cluster")
    assert list(figure.layout.xaxis.ticktext) == [str(expert) for expert in range(8)]


def test_of_many_experts_those_used_most_are_drawn_and_those_picked(many):
    frame = coactivation(many)
    figure = coactivation_cells(frame, 0, most=4, focus=[39, 99])
    drawn = [int(name) for name in figure.layout.xaxis.ticktext]
    assert len(drawn) == 4
    assert {7, 31, 39} < set(drawn)
    assert "Drawn: 4 of 40 experts" in texts(figure)
    assert 39 not in [int(name) for name in coactivation_cells(frame, 0, most=4).layout.xaxis.ticktext]
    steps = transition_cells(transitions(many), 0, most=4, focus=[39])
    assert {7, 31, 39} < {int(name) for name in steps.layout.yaxis.ticktext}
    assert "Drawn: 4 of 40 experts" in texts(steps)


def test_pairs_of_which_few_are_expected_are_blank_and_cannot_be_clicked(run):
    frame = coactivation(run).with_columns(expected=pl.when(pl.col("expert_a") > 0).then("expected"))
    figure = coactivation_cells(frame, 0)
    assert all(0 not in pair for pair in cells_of(figure))
    assert np.isnan(colour_at(figure, 0, 1)[1])


def test_an_order_that_there_is_not_is_refused(run):
    with pytest.raises(BadInputError, match="order 'size': sort by one of index, cluster"):
        coactivation_cells(coactivation(run), 0, order="size")


def test_a_step_says_what_its_row_says(run):
    frame = transitions(run)
    figure = transition_cells(frame, 0)
    said = cells_of(figure)
    rows = frame.filter(pl.col("router") == 0, pl.col("expected") >= 5)
    assert set(said) == set(rows.select("expert", "next_expert").iter_rows())
    row = rows.filter(expert=1, next_expert=1).row(0, named=True)
    assert "from expert 1 to expert 1" in said[1, 1]
    assert f"lift {row['lift']:.2f}" in said[1, 1]
    assert f"{row['tokens']:,} tokens, expected {row['expected']:,.1f}" in said[1, 1]
    assert colour_at(figure, 1, 1) == (True, pytest.approx(np.log2(row["lift"])))


def test_the_flow_carries_every_token_of_every_step(run):
    frame = transitions(run)
    figure = path_flow(frame, [0, 1, 2])
    (flow,) = figure.data
    # Of each router its eight experts, and a place for others that nothing flows through.
    labels, links = flow.node.label, flow.link
    carried = {
        (source, target): value for source, target, value in zip(links.source, links.target, links.value, strict=True)
    }
    for row in frame.filter(pl.col("tokens") > 0).iter_rows(named=True):
        source = 9 * row["router"] + row["expert"]
        target = 9 * row["next_router"] + row["next_expert"]
        assert (labels[source], labels[target]) == (str(row["expert"]), str(row["next_expert"]))
        assert carried.pop((source, target)) == row["tokens"]
    assert not carried
    assert [note.text for note in figure.layout.annotations] == ["layer 3", "layer 7", "layer 8"]
    assert f"n = {N_TOKENS:,} tokens" in texts(figure)


def test_only_what_is_told_from_chance_flows_in_colour(run):
    frame = transitions(run)
    (flow,) = path_flow(frame, [0, 1]).data
    rows = {(row["expert"], row["next_expert"]): row for row in frame.filter(router=0).iter_rows(named=True)}
    for source, target, colour, said in zip(
        flow.link.source, flow.link.target, flow.link.color, flow.link.customdata, strict=True
    ):
        row = rows[source, target - 9]
        told = row["q_value"] is not None and row["q_value"] < 0.05 and row["lift"] > 1
        red, green, blue = bytes.fromhex(EXPERT_COLOURS[source][1:])
        assert colour.startswith(f"rgba({red},{green},{blue}," if told else "rgba(128,128,128,")
        assert f"lift {row['lift']:.2f}" in said
    assert sum(not colour.startswith("rgba(128") for colour in flow.link.color) >= 8


def test_focus_leaves_the_other_experts_of_a_flow_faint(run):
    (flow,) = path_flow(transitions(run), [0, 1], focus=[1]).data
    full = [
        (source, target - 9)
        for source, target, colour in zip(flow.link.source, flow.link.target, flow.link.color, strict=True)
        if not colour.startswith("rgba(128")
    ]
    assert (1, 1) in full
    assert all(1 in pair for pair in full)


def test_of_many_experts_the_rest_of_a_flow_goes_together_and_no_token_is_lost(many):
    figure = path_flow(transitions(many), [0, 1], focus=[39])
    (flow,) = figure.data
    assert sum(flow.link.value) == N_TOKENS
    assert list(flow.node.label).count("others") == 2
    assert len(flow.node.label) == 2 * 9
    assert {"7", "31", "39"} < set(flow.node.label[:8])
    others = flow.node.label.index("others")
    assert flow.node.color[others] == CONTEXT
    assert all(
        colour.startswith("rgba(128")
        for source, colour in zip(flow.link.source, flow.link.color, strict=True)
        if source == others
    )
    assert "Drawn together" in texts(figure)


@pytest.mark.parametrize("routers", [[0], list(range(9))])
def test_a_flow_has_two_to_eight_routers(run, routers):
    with pytest.raises(BadInputError, match=f"{len(routers)} routers: draw the flow through 2 to 8"):
        path_flow(transitions(run), routers)


@pytest.mark.parametrize("by", ["count", "lift"])
def test_the_top_paths_stand_in_the_order_of_their_rank(run, by):
    frame = paths(run)
    figure = top_paths(frame, NAMES, by=by, most=5)
    rows = frame.filter(pl.col(f"rank_by_{by}") <= 5).sort(f"rank_by_{by}")
    cells, observed = figure.data[0], figure.data[-1]
    assert ">".join(cells.text[:3]) == rows["path"][0]
    assert list(cells.text) == [expert for path in rows["path"] for expert in path.split(">")]
    assert [(router, str(expert)) for _, router, expert in cells.customdata[:3]] == list(
        zip(NAMES, rows["path"][0].split(">"), strict=True)
    )
    assert list(cells.marker.color[:3]) == [EXPERT_COLOURS[int(expert)] for expert in cells.text[:3]]
    value, high = ("share", "share_ci_high") if by == "count" else ("lift", "ci_high")
    assert list(observed.x) == rows[value].to_list()
    assert list(observed.error_x.array) == pytest.approx((rows[high] - rows[value]).to_list())
    assert list(observed.customdata[0][1:]) == [0, int(rows["path"][0].split(">")[0])]
    if by == "count":
        assert list(figure.data[1].x) == pytest.approx((rows["expected_if_independent"] / rows["n"]).to_list())


def test_examples_and_names_are_shown_as_themselves(run):
    figure = top_paths(paths(run), NAMES | {0: "<i>layer</i>"})
    said = figure.data[-1].customdata[0][0]
    assert "&lt;b&gt;&#36;x&#36;&lt;/b&gt;" in said
    assert "<b>$" not in said
    assert figure.layout.xaxis.ticktext[0] == "&lt;i&gt;layer&lt;/i&gt;"


def test_top_paths_refuse_what_they_cannot_draw(run):
    frame = paths(run)
    with pytest.raises(BadInputError, match="by 'share': rank by one of count, lift"):
        top_paths(frame, NAMES, by="share")
    with pytest.raises(BadInputError, match="1 routers: the paths of this table go through 3"):
        top_paths(frame, {0: "layer 3"})


@pytest.mark.parametrize(
    "figure",
    [
        coactivation_cells(pl.DataFrame(schema=schema_of(COACTIVATION_COLUMNS)), 0, order="cluster"),
        transition_cells(pl.DataFrame(schema=schema_of(TRANSITION_COLUMNS)), 0),
        path_flow(pl.DataFrame(schema=schema_of(TRANSITION_COLUMNS)), [0, 1]),
        top_paths(pl.DataFrame(schema=schema_of(PATH_COLUMNS)), {0: "layer 0"}),
    ],
    ids=["coactivation", "transitions", "flow", "paths"],
)
def test_without_a_token_a_picture_says_so(figure):
    assert "Not enough data" in texts(figure)
    assert not figure.data
