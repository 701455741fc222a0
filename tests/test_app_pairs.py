"""Co-activation, Paths and Compare as scripts: their numbers, and what they say where they have none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from app_pages import open_page, written
from hand_made_runs import write_run
from surprisal_runs import with_surprisal

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import PROSE, TEXTS, Shape, make_run

from moe_probe.errors import BadInputError
from moe_probe.store import open_run
from moe_probe.tables import coactivation, paths
from moe_probe_app.components import comparison
from moe_probe_app.settings import Settings, configure

HOSTILE = "<b>other</b> :red[x]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs over one text, one over another, one of another model, and one whose name is markup."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "wide", TEXTS, Shape(n_layers=3, n_experts=16, n_slots=4))
    make_run(root / HOSTILE.replace("/", "_"), {"a.txt": PROSE})
    make_run(root / "again", TEXTS, seed=8)
    make_run(root / "small", TEXTS)
    return root


@pytest.fixture(autouse=True)
def started(root: Path) -> Iterator[None]:
    configure(Settings(root))
    yield
    configure(Settings(Path("runs")))


@pytest.mark.parametrize("name", ["coactivation", "paths", "compare"])
@pytest.mark.parametrize("run_name", ["small", "wide"])
def test_a_page_shows_the_run_and_the_layer_of_its_address(name: str, run_name: str) -> None:
    page = open_page(name, run=run_name, layer="2")
    assert page.sidebar.selectbox(key="sidebar_layer").value == 2
    assert page.query_params["run"] == run_name


@pytest.mark.parametrize("name", ["coactivation", "paths", "compare"])
def test_without_runs_a_page_says_how_to_make_one(name: str, tmp_path: Path) -> None:
    configure(Settings(tmp_path))
    assert "moe-probe trace tiny-mixtral" in written(open_page(name))


def test_the_pairs_are_those_of_the_layer_as_the_table_says(root: Path) -> None:
    page = open_page("coactivation", run="small", layer="3")
    page.radio(key="coactivation_pairs").set_value("all").run()
    shown = page.dataframe[0].value
    wanted = coactivation(open_run(root / "small")).filter(router=3)
    wanted = wanted.filter(wanted["expected"] >= 5).sort("together", descending=True)
    assert shown["together"].to_list() == wanted["together"].to_list()
    assert shown["lift"].to_list() == pytest.approx(wanted["lift"].to_list())
    assert shown["ci_high"].to_list() == pytest.approx(wanted["ci_high"].to_list(), nan_ok=True)


def test_only_pairs_with_a_focused_expert_are_listed(root: Path) -> None:
    page = open_page("coactivation", run="wide", layer="1", focus="3")
    page.radio(key="coactivation_pairs").set_value("all").run()
    shown = page.dataframe[0].value
    assert len(shown)
    assert ((shown["expert_a"] == 3) | (shown["expert_b"] == 3)).all()
    assert "focused experts only" in written(page)


def test_a_higher_minimum_leaves_out_rare_pairs(root: Path) -> None:
    page = open_page("coactivation", run="wide", layer="1")
    page.radio(key="coactivation_pairs").set_value("all").run()
    before = page.dataframe[0].value
    page.number_input(key="coactivation_minimum").set_value(40).run()
    after = page.dataframe[0].value
    assert 0 < len(after) < len(before)
    assert after["expected"].min() >= 40


def test_where_each_token_has_one_expert_there_are_no_pairs(tmp_path: Path) -> None:
    make_run(tmp_path / "one", TEXTS, Shape(n_slots=1))
    configure(Settings(tmp_path))
    assert "each token goes to one expert" in written(open_page("coactivation"))


def test_the_paths_are_those_through_the_layers_that_were_chosen(root: Path) -> None:
    page = open_page("paths", run="small")
    run = open_run(root / "small")
    assert page.dataframe[0].value["path"].to_list() == paths(run)["path"].to_list()[:100]
    page.select_slider(key="paths_stretch_6").set_range(2, 3).run()
    page.radio(key="paths_rank").set_value("lift").run()
    assert not page.exception
    wanted = paths(run, layers=[2, 3]).drop_nulls("rank_by_lift").sort("rank_by_lift")
    shown = page.dataframe[0].value
    assert shown["path"].to_list() == wanted["path"].to_list()
    assert shown["lift"].to_list() == pytest.approx(wanted["lift"].to_list())


def test_of_many_layers_eight_are_drawn_and_that_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "deep", {"a.txt": PROSE}, Shape(n_layers=12))
    configure(Settings(tmp_path))
    page = open_page("paths", layer="11")
    assert "leads to it" in written(page)
    page.select_slider(key="paths_stretch_12").set_range(1, 11).run()
    assert "first 8 are drawn" in written(page)
    assert page.dataframe[0].value["path"][0].count(">") == 7
    page.select_slider(key="paths_stretch_12").set_range(4, 4).run()
    assert not page.exception
    assert "A path needs two layers" in written(page)


def test_a_run_of_one_layer_has_no_ways_but_neighbours(tmp_path: Path) -> None:
    make_run(tmp_path / "flat", TEXTS, Shape(n_layers=1))
    configure(Settings(tmp_path))
    page = open_page("paths")
    assert "This run has one layer with experts" in written(page)
    assert "Do neighbouring tokens go to the same expert?" in written(page)


def test_the_newest_run_over_the_same_text_is_compared_first(root: Path) -> None:
    page = open_page("compare", run="small")
    second = page.selectbox(key="compare_second")
    assert second.value == "again"
    assert second.options[0] == "again"
    assert second.options[-1] == "Another layer of this run"
    assert sorted(second.options[1:-1]) == sorted(
        f"{name} (other text or other routers)" for name in (HOSTILE.replace("/", "_"), "wide")
    )
    text = written(page)
    assert "How often do both runs choose the same experts?" in text
    assert "On which upos do both runs choose the same experts?" in text
    assert "Whose load moved?" in text
    assert "fewer than 5 documents" in text
    assert "trace both runs with --surprisal" in text


def test_a_link_names_the_second_run_and_why_it_does_not_fit_is_said(root: Path) -> None:
    page = open_page("compare", run="small", **{"with": "wide"})
    assert page.selectbox(key="compare_second").value == "wide"
    assert "only runs of models with the same routers can be compared. Choose another run." in written(page)
    assert "Whose load moved?" not in written(page)
    page.selectbox(key="compare_second").select("again").run()
    assert "Whose load moved?" in written(page)


def test_other_text_is_refused_in_words_and_its_name_is_only_text(root: Path) -> None:
    page = open_page("compare", run="small", **{"with": HOSTILE.replace("/", "_")})
    text = written(page)
    assert "the runs are of different text" in text
    assert "&lt;b&gt;other&lt;_b&gt; :red[x]" in text
    assert "<b>other" not in text


@pytest.mark.parametrize("asked", ["../../etc", "small", "nothing"])
@pytest.mark.parametrize("name", ["with", "against"])
def test_a_second_run_that_is_not_offered_is_not_opened(root: Path, name: str, asked: str) -> None:
    page = open_page("compare", run="small", **{name: asked})
    assert page.selectbox(key="compare_second").value == "again"
    assert page.query_params["against"] == "again"
    assert "with" not in page.query_params


def test_another_layer_of_the_run_is_compared_and_kept_in_the_address(root: Path) -> None:
    page = open_page("compare", run="small", layer="2", other_layer="4", difference="1")
    assert page.selectbox(key="compare_second").value == "Another layer of this run"
    assert page.query_params["other_layer"] == "4"
    assert page.query_params["difference"] == "1"
    assert "Experts of two layers share nothing but their numbers" in written(page)
    assert "Whose load moved?" not in written(page)
    page.selectbox(key="compare_second").select("again").run()
    assert not page.exception
    assert "Whose load moved?" in written(page)
    assert "other_layer" not in page.query_params
    page.selectbox(key="compare_second").select("Another layer of this run").run()
    assert page.query_params["other_layer"] == "3"
    assert "against" not in page.query_params


def test_a_document_has_one_twin_of_the_same_tokens(root: Path, tmp_path: Path) -> None:
    names = list(TEXTS)
    small = open_run(root / "small")
    make_run(tmp_path / "turned", {name: TEXTS[name] for name in reversed(names)})
    assert comparison.twin(small, 0, open_run(tmp_path / "turned")) == 2
    make_run(tmp_path / "other", {**TEXTS, names[1]: "Another text."})
    other = open_run(tmp_path / "other")
    assert comparison.twin(small, 0, other) == 0
    with pytest.raises(BadInputError, match="is of other tokens in the second run"):
        comparison.twin(small, 1, other)
    make_run(tmp_path / "fewer", {names[1]: TEXTS[names[1]]})
    with pytest.raises(BadInputError, match="has 0 documents of the name"):
        comparison.twin(small, 0, open_run(tmp_path / "fewer"))
    with pytest.raises(BadInputError, match="the same routers"):
        comparison.twin(small, 0, open_run(root / "wide"))


def test_alone_in_its_folder_a_run_says_how_to_get_a_second_one(tmp_path: Path) -> None:
    make_run(tmp_path / "one", TEXTS)
    configure(Settings(tmp_path))
    page = open_page("compare")
    assert page.selectbox(key="compare_second").options == ["Another layer of this run"]
    assert "No other run here is over the same text" in written(page)
    assert f"--out {tmp_path}/second" in written(page)


def test_a_second_run_that_is_broken_is_passed_over_and_says_so_when_chosen(tmp_path: Path) -> None:
    make_run(tmp_path / "good", TEXTS)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text('{"schema_version": 99}')
    configure(Settings(tmp_path))
    page = open_page("compare", run="good")
    assert page.selectbox(key="compare_second").value == "Another layer of this run"
    page.selectbox(key="compare_second").select("bad").run()
    assert "schema version 99" in written(page)


def test_surprisal_is_compared_where_both_runs_have_it_and_layers_without_margins_say_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    experts = [np.argsort(rng.random((600, 4)), axis=1)[:, :2]]
    for name, more in (("one", 0.0), ("two", 0.5)):
        run = write_run(tmp_path / name, experts, documents=np.arange(600) // 60)
        with_surprisal(run, rng.gamma(2, 2, 600) + more)
    configure(Settings(tmp_path))
    page = open_page("compare", run="one")
    text = written(page)
    assert "Does the second run foretell worse?" in text
    assert "trace both runs with --surprisal" not in text
    assert "does not know how close its decisions were" in text


def test_runs_fit_by_tokens_documents_and_routers(root: Path) -> None:
    small = open_run(root / "small")
    assert comparison.fitting(root, ["wide", "again", HOSTILE.replace("/", "_"), "missing"], small) == ["again"]
