from __future__ import annotations

import itertools

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts.domains import MOST_DOMAINS, divergence_matrix, domain_shares, repetition_by_domain
from moe_probe.errors import BadInputError
from moe_probe.tables.columns import schema_of
from moe_probe.tables.distances import DIVERGENCE_COLUMNS, divergence
from moe_probe.tables.neighbours import REPETITION_COLUMNS, repetition
from moe_probe.tables.tasks import AFFINITY_COLUMNS, affinity

HOSTILE = "<b>prose</b> $x$"
DOMAINS = (HOSTILE, "code", "poems")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Thirty documents of three domains: in the first router `code` has experts of its own, in the second none has."""
    rng = np.random.default_rng(0)
    documents = np.arange(3000) // 100
    own = rng.integers(0, 2, (3000, 1))
    split = np.where((documents % 3 == 1)[:, None], own, 2 + own)
    return write_run(
        tmp_path_factory.mktemp("domains"),
        [split, rng.integers(0, 4, (3000, 1))],
        n_experts=4,
        documents=documents,
        labels={"domain": [DOMAINS[document % 3] for document in documents]},
        domains=[DOMAINS[document % 3] for document in range(30)],
        token_id=rng.integers(0, 40, 3000),
        layers=[3, 7],
    )


def texts(figure: go.Figure) -> str:
    return f"{figure.layout.title.text} {figure.layout.title.subtitle.text}"


def bars(figure: go.Figure) -> dict[tuple[int, int, str], go.Bar]:
    """Each bar's height by what a click on it says."""
    return {
        tuple(said[-3:]): height
        for trace in figure.data
        if isinstance(trace, go.Bar)
        for said, height in zip(trace.customdata, trace.y, strict=True)
    }


def test_a_bar_for_each_expert_and_domain_says_its_share_and_its_place(run):
    frame = affinity(run)
    figure = domain_shares(frame, [0, 1])
    wanted = frame.filter(pl.col("domain") != "all")
    assert bars(figure) == {
        (row["router"], row["expert"], row["domain"]): row["token_share"] for row in wanted.iter_rows(named=True)
    }
    drawn = bars(domain_shares(frame, [0]))
    assert drawn[0, 2, "code"] == drawn[0, 0, "poems"] == 0
    assert drawn[0, 0, "code"] + drawn[0, 1, "code"] == pytest.approx(1)
    assert "1/4" in texts(figure)
    assert [shape.y0 for shape in figure.layout.shapes] == [0.25, 0.25]
    assert [figure.layout.yaxis.title.text, figure.layout.yaxis2.title.text] == ["layer 3", "layer 7"]


def test_intervals_of_shares_are_the_tables(run):
    frame = affinity(run)
    figure = domain_shares(frame, [1])
    first = figure.data[0]
    row = frame.filter(router=1, expert=0, domain=first.customdata[0][-1]).row(0, named=True)
    assert first.y[0] + first.error_y.array[0] == pytest.approx(row["token_share_ci_high"])
    assert first.y[0] - first.error_y.arrayminus[0] == pytest.approx(row["token_share_ci_low"])


def test_bars_of_one_domain_stand_side_by_side_and_do_not_reach_the_next(run):
    figure = domain_shares(affinity(run), [0])
    for domain in range(3):
        edges = [(trace.x[domain] - trace.width / 2, trace.x[domain] + trace.width / 2) for trace in figure.data]
        assert all(left[1] == pytest.approx(right[0]) for left, right in itertools.pairwise(edges))
        assert domain - 0.5 < edges[0][0]
        assert edges[-1][1] < domain + 0.5


def test_each_expert_stands_in_the_legend_once(run):
    figure = domain_shares(affinity(run), [0, 1])
    named = [trace.name for trace in figure.data if trace.showlegend]
    assert named == ["expert 0", "expert 1", "expert 2", "expert 3"]


def wide(n_experts: int, n_domains: int = 2) -> pl.DataFrame:
    rows = [
        {
            "domain": domain,
            "layer": 0,
            "router": 0,
            "expert": expert,
            "token_share": (expert + 1) / sum(range(n_experts + 1)),
            "uniform": 1 / n_experts,
            "n": 100 + place,
        }
        for place, domain in enumerate(["all", *(f"d{index}" for index in range(n_domains))])
        for expert in range(n_experts)
    ]
    return pl.DataFrame(rows, schema=schema_of(AFFINITY_COLUMNS))


def test_of_many_experts_those_used_most_or_picked_are_drawn_and_it_says_so():
    drawn = {said[1] for said in bars(domain_shares(wide(40), [0]))}
    assert drawn == set(range(32, 40))
    assert "Drawn: 8 of 40 experts" in texts(domain_shares(wide(40), [0]))
    assert {said[1] for said in bars(domain_shares(wide(40), [0], focus=[3, 39]))} == {3, 39}
    assert "Drawn" not in texts(domain_shares(wide(8), [0]))


def test_of_many_domains_the_largest_are_drawn_and_it_says_so():
    figure = domain_shares(wide(2, 40), [0])
    assert {said[2] for said in bars(figure)} == {f"d{index}" for index in range(40 - MOST_DOMAINS, 40)}
    assert "The 32 largest of 40 domains" in texts(figure)


def test_the_matrix_has_what_was_measured_below_its_diagonal_and_chance_above(run):
    frame = divergence(run)
    figure = divergence_matrix(frame, 0)
    names = sorted(DOMAINS)
    z = np.array(figure.data[0].z)
    for row in frame.filter(router=0).iter_rows(named=True):
        one, other = names.index(row["value"]), names.index(row["other_value"])
        assert z[other, one] == row["js_bits"]
        assert z[one, other] == row["null_mean_bits"]
    assert np.isnan(np.diag(z)).all()
    assert figure.data[0].zmin == 0
    assert figure.data[0].zmax == pytest.approx(1)


def test_only_pairs_that_stand_are_marked(run):
    frame = divergence(run)
    split = divergence_matrix(frame, 0)
    code = sorted(DOMAINS).index("code")
    assert len(split.data[1].x) == 2
    assert all(code in pair for pair in zip(split.data[1].x, split.data[1].y, strict=True))
    assert "2 of 3 pairs stand" in texts(split)
    at_the_edge = frame.with_columns(q_value=pl.lit(0.05))
    assert len(divergence_matrix(at_the_edge, 0).data[1].x) == 0
    blocks = frame.with_columns(cluster_unit=pl.lit("block"))
    assert len(divergence_matrix(blocks, 0).data[1].x) == 0, "of one text nothing stands for others"
    assert "this text only" in texts(divergence_matrix(blocks, 0))


def test_repetition_by_domain_draws_the_observed_and_four_chances(run):
    frame = repetition(run)
    figure = repetition_by_domain(frame, 1)
    rows = frame.filter(router=1)
    drawn = {trace.name: list(trace.x) for trace in figure.data}
    assert drawn == {
        "chance: even routing": rows["uniform_first"].to_list(),
        "chance: two tokens of a domain": rows["load_first"].to_list(),
        "chance: two tokens of a document": rows["document_first"].to_list(),
        "chance: the same tokens elsewhere": rows["token_first"].to_list(),
        "observed": rows["first_choice"].to_list(),
    }
    bar = figure.data[-1].error_x
    assert list(bar.array) == pytest.approx((rows["first_ci_high"] - rows["first_choice"]).to_list())
    assert figure.layout.yaxis.ticktext[0] == "all documents"
    assert "it is not syntax" in texts(figure)
    either = repetition_by_domain(frame, 1, measure="either")
    assert list(either.data[-1].x) == rows["either"].to_list()
    with pytest.raises(BadInputError, match="measure 'sets': draw one of first_choice, either"):
        repetition_by_domain(frame, 1, measure="sets")


def test_names_from_the_run_are_escaped(run):
    drawn = (domain_shares(affinity(run), [0]), divergence_matrix(divergence(run), 0))
    for figure in (*drawn, repetition_by_domain(repetition(run), 0)):
        said = [str(one) for one in (figure.layout.xaxis.ticktext or ()) + (figure.layout.yaxis.ticktext or ())]
        assert "&lt;b&gt;prose&lt;/b&gt; &#36;x&#36;" in said
    hovers = [text for row in drawn[1].data[0].customdata for text in row]
    assert any("&lt;b&gt;prose" in text for text in hovers)
    assert not any("<b>prose" in text for text in hovers)


def test_nothing_counted_is_said():
    for figure in (
        domain_shares(pl.DataFrame(schema=schema_of(AFFINITY_COLUMNS)), [0]),
        divergence_matrix(pl.DataFrame(schema=schema_of(DIVERGENCE_COLUMNS)), 0),
        repetition_by_domain(pl.DataFrame(schema=schema_of(REPETITION_COLUMNS)), 0),
    ):
        assert "Not enough data" in texts(figure)
