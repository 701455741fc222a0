"""Every page on runs of every size and kind: it opens, shows what the run holds, and says what it does not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from app_pages import open_page, written

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import CODE, PROSE, Shape, make_run

from moe_probe import charts
from moe_probe.charts.labels import label_heatmap
from moe_probe.charts.look import MOST_EXPERTS
from moe_probe.charts.pair_cells import transition_cells
from moe_probe.charts.paths import path_flow
from moe_probe.importers import import_run
from moe_probe.store import Run, open_run
from moe_probe.tables import label_table, load_table, transitions
from moe_probe_app.settings import Settings, configure

pytestmark = pytest.mark.prove  # minutes on two cores

TEXT = {"prose/a.txt": PROSE, "code/b.py": CODE}
SHAPES = {
    "least": Shape(n_layers=1, n_experts=2, n_slots=1),
    "dense": Shape(n_layers=2, n_experts=4, n_slots=4),
    "pairs": Shape(n_layers=2, n_experts=4, n_slots=2, routers_a_layer=2),
    "dropped": Shape(n_layers=2, n_experts=4, n_slots=2, dropped_every=1),
    "numbers": Shape(n_layers=2, n_experts=4, n_slots=2, weights=False, scores=False, text=False),
    "deep": Shape(n_layers=64, n_experts=2, n_slots=1),
    "wide": Shape(n_layers=2, n_experts=MOST_EXPERTS + 76, n_slots=2),
}
PAGES = ("text", "layers", "syntax", "domains", "experts", "coactivation", "paths", "runs")
FEW_PAGES = {"deep": ("layers", "experts", "paths"), "wide": ("text", "layers", "syntax", "experts", "coactivation")}
OF_TWO_RUNS_OR_A_MODEL = ("compare", "ablate", "trace")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name, shape in SHAPES.items():
        make_run(root / name, TEXT if name != "wide" else {"a.txt": PROSE}, shape)
    trace = root / "trace.jsonl"
    trace.write_text('{"input_ids": [5, 6, 7, 8], "predicted_token_ids": [6, 7, 8, 9], "exp_ids": [[[1],[0]],[[0],[1]],'
                     '[[1],[1]],[[0],[0]]]}\n')  # fmt: skip
    import_run("olmoe", trace, root / "imported", n_experts=4)
    return root


@pytest.fixture(autouse=True)
def started(root: Path) -> Iterator[None]:
    configure(Settings(root))
    yield
    configure(Settings(Path("runs")))


@pytest.mark.parametrize(
    ("name", "page"),
    [
        *((name, page) for name in (*SHAPES, "imported") for page in FEW_PAGES.get(name, PAGES)),
        *(("numbers", page) for page in OF_TWO_RUNS_OR_A_MODEL),
    ],
)
def test_every_page_opens_on_it(name: str, page: str) -> None:
    assert open_page(page, run=name).query_params["run"] == name


@pytest.mark.parametrize(
    ("name", "page", "said"),
    [
        ("least", "paths", "This run has one layer with experts"),
        ("least", "coactivation", "Here each token goes to one expert"),
        ("dense", "coactivation", "Here each token goes to every expert"),
        ("dense", "layers", "In this layer every token goes to every expert"),
        ("pairs", "paths", "From layer 0 · attention to layer 0 · mlp"),
        ("dropped", "coactivation", "There is nothing to count in this layer"),
        ("numbers", "syntax", "This run holds no text, and so no labels"),
        ("numbers", "experts", "This run holds no text, and so no labels"),
        ("numbers", "domains", "The tokens are not labelled with their domain"),
        ("numbers", "runs", "none: only which experts were chosen is known"),
        ("numbers", "runs", "none: the routers&#x27; scores were not recorded"),
        ("numbers", "runs", "none: the trace held numbers only"),
        ("imported", "domains", "This run has no domains"),
        ("imported", "runs", "none: only which experts were chosen is known"),
        ("wide", "layers", "top 1,024 of 1,100 experts by load"),
        ("wide", "syntax", "Drawn: 64 of 1,100 experts"),
        ("wide", "experts", "The 1,024 of 1,100 experts that do most of the work."),
        ("wide", "coactivation", "more than 1,024 experts"),
    ],
)
def test_a_page_says_what_there_is_not(name: str, page: str, said: str) -> None:
    assert said in written(open_page(page, run=name))


@pytest.fixture(scope="module")
def wide(root: Path) -> Run:
    return open_run(root / "wide")


@pytest.mark.parametrize("picked", [(), (1_099, 3)])
def test_of_more_than_1024_experts_those_with_most_tokens_have_a_bar(wide: Run, picked: tuple[int, ...]) -> None:
    load = load_table(wide)
    bars = charts.load_histogram(load, 0, slot="0", focus=picked).data[0]
    counts = np.bincount(
        wide.experts(router=0)[:, 0][wide.tokens()["window_position"].to_numpy() >= 4], minlength=1_100
    )
    drawn = [said[3] for said in bars.customdata]
    assert len(set(drawn)) == MOST_EXPERTS
    assert set(picked) <= set(drawn)
    assert [said[0] for said in bars.customdata] == sorted(counts[drawn].tolist(), reverse=True)
    left = sorted(set(range(1_100)) - set(drawn))
    assert counts[left].max() <= min(counts[one] for one in drawn if one not in picked)


def test_each_cell_of_a_wide_heatmap_is_the_expert_that_it_names(wide: Run) -> None:
    load = load_table(wide)
    (heatmap,) = charts.load_heatmap(load, slot="any").data
    assert heatmap.z.shape == (2, MOST_EXPERTS)
    share = {(row["router"], row["expert"]): row["share"] for row in load.filter(slot="any").iter_rows(named=True)}
    for router in range(2):
        for cell in heatmap.customdata[router]:
            assert cell[0] == pytest.approx(share[router, int(cell[5])], abs=1e-7)


def test_the_colours_of_many_cells_do_not_all_go_to_a_few(wide: Run) -> None:
    load = load_table(wide).filter(slot="any")
    figure = charts.load_heatmap(load)
    relative = (load["share"] / load["uniform"]).to_numpy()
    assert figure.data[0].zmax < relative.max()
    assert (figure.data[0].z > figure.data[0].zmax).mean() <= 0.01
    assert f"the busiest has {relative.max():.1f}." in figure.layout.title.subtitle.text
    few = charts.load_heatmap(load.filter(pl.col("expert") < 9))
    assert few.data[0].zmax == pytest.approx(max(2.0, relative[load["expert"].to_numpy() < 9].max()))


def test_of_many_experts_the_specialised_and_the_picked_are_drawn_first(wide: Run) -> None:
    rows = label_table(wide, "upos")
    here = (pl.col("router") == 0) & (pl.col("slot") == "0") & (pl.col("domain") == "all")
    marked = rows.with_columns(
        verdict=pl.when(here & pl.col("expert").is_in([900, 1_001]) & (pl.col("label") == "NOUN"))
        .then(pl.lit("specialised"))
        .otherwise(pl.lit("not shown"))
    )
    figure = label_heatmap(marked, 0, slot="0", value="assignments", most=5, focus=(77,))
    drawn = {int(one) for one in figure.layout.yaxis.ticktext}
    assert len(drawn) == 5
    assert {77, 900, 1_001} < drawn
    loads = rows.filter(here).group_by("expert").agg(pl.col("assignments").sum())
    rest = loads.filter(~pl.col("expert").is_in([77, 900, 1_001])).sort("assignments", descending=True)
    assert sorted(loads.filter(pl.col("expert").is_in(drawn - {77, 900, 1_001}))["assignments"]) == sorted(
        rest["assignments"].head(2)
    )


def test_a_flow_names_two_routers_of_a_layer_apart(root: Path) -> None:
    table = transitions(open_run(root / "pairs"))
    names = {0: "Layer 0 · a<b>", 1: "Layer 0 · mlp", 2: "Layer 1 · a<b>", 3: "Layer 1 · mlp"}
    flow = path_flow(table, [0, 1, 2], names=names)
    assert [one.text for one in flow.layout.annotations] == [
        "layer 0 · a&lt;b&gt;",
        "layer 0 · mlp",
        "layer 1 · a&lt;b&gt;",
    ]
    step = transition_cells(table, 1, names=names)
    assert step.layout.xaxis.title.text == "expert of layer 1 · a&lt;b&gt;"
    assert step.layout.yaxis.title.text == "expert of layer 0 · mlp"
