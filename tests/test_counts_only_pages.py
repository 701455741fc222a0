"""The explorer and the command line on a run that holds counts only."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import app_pages
import pytest
import torch
import traced_models
from app_pages import written
from counted_documents import OPTIONS, documents
from streamlit.testing.v1 import AppTest

import moe_probe as mp
from moe_probe import schema
from moe_probe.cli import main
from moe_probe.tables import divergence, label_table
from moe_probe.tracing import trace
from moe_probe_app.settings import Settings, configure


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Iterator[Path]:
    torch.set_num_threads(1)
    lm = traced_models.language_model(tmp_path_factory.mktemp("model"))
    folder = tmp_path_factory.mktemp("runs")
    options = OPTIONS | {"labels": ("shape", "domain")}
    trace(lm, documents(), folder / "counted", counts_only=True, **options)
    configure(Settings(folder))
    yield folder
    configure(Settings(Path("runs")))


def test_layers_shows_the_loads(root: Path) -> None:
    page = app_pages.open_page("layers", run="counted")
    assert len(page.get("plotly_chart")) == 4


def test_syntax_shows_the_cells_and_says_why_none_is_specialised(root: Path) -> None:
    page = app_pages.open_page("syntax", run="counted")
    assert len(page.get("plotly_chart")) == 1
    assert "no cell is called specialised" in written(page)
    (table,) = (frame.value for frame in page.dataframe)
    expected = label_table(mp.open_run(root / "counted"), "shape").filter(router=0, slot="0")
    assert sorted(table["assignments"]) == sorted(expected["assignments"])


def test_domains_shows_how_far_they_lie_apart_and_says_what_is_missing(root: Path) -> None:
    page = app_pages.open_page("domains", run="counted")
    assert len(page.get("plotly_chart")) == 1
    assert "Shares and repetition need tokens" in written(page)
    (pairs,) = (frame.value for frame in page.dataframe)
    assert sorted(pairs["js_bits"]) == pytest.approx(
        divergence(mp.open_run(root / "counted")).filter(router=0)["js_bits"].sort().to_list()
    )


@pytest.mark.parametrize("name", ["text", "experts", "coactivation", "paths"])
def test_other_pages_say_that_there_are_counts_only(root: Path, name: str) -> None:
    page = AppTest.from_file(str(app_pages.PAGES / f"{name}.py"), default_timeout=60)
    page.query_params["run"] = "counted"
    page.run()
    (said,) = (error.message for error in page.exception)  # what components/refusal.py shows
    assert "the run holds counts only" in said


@pytest.mark.parametrize("name", ["layers", "syntax", "domains"])
def test_no_page_asks_for_a_click_that_would_lead_to_no_text(root: Path, name: str) -> None:
    page = app_pages.open_page(name, run="counted")
    assert "Click" not in written(page)
    assert not any(chart.proto.selection_mode for chart in page.get("plotly_chart"))


def test_runs_says_that_counts_are_all_there_is(root: Path) -> None:
    said = written(app_pages.open_page("runs", run="counted"))
    assert "<dt>Kept</dt><dd>counts only: no text" in said
    assert not [name for name in ("Text", "Weights", "Entropy and margin") if f"<dt>{name}</dt>" in said]


def test_a_run_of_counts_without_labels_is_to_be_traced_again(root: Path) -> None:
    folder = root / "plain"
    shutil.copytree(root / "counted", folder)
    manifest = json.loads((folder / schema.MANIFEST_FILE).read_text())
    (folder / schema.MANIFEST_FILE).write_text(json.dumps(manifest | {"labels": []}))
    for name in ("syntax", "runs"):
        said = written(app_pages.open_page(name, run="plain"))
        assert "moe-probe trace … --counts-only --labels upos,shape" in said
        assert "moe-probe label" not in said


def test_what_a_page_refuses_wears_the_stylesheet(root: Path) -> None:
    page = AppTest.from_file(str(app_pages.PAGES / "main.py"), default_timeout=60)
    page.query_params["run"] = "counted"
    page.run()
    assert "the run holds counts only" in written(page)
    (style,) = page._tree[2].get("html")  # markup without anything to see goes to a part of its own
    assert ".mp-callout" in style.proto.body


def test_the_command_line_traces_counts_and_refuses_what_needs_tokens(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(documents()[number].text)
    inputs = [str(tmp_path / f"{number}.txt") for number in range(5)]
    command = ["trace", "tiny-mixtral", *inputs, "--out", str(tmp_path / "run"), "--labels", "shape", "--counts-only"]
    assert _status(command) == 0
    assert mp.open_run(tmp_path / "run").counts_only
    assert _status([*command, "--generate", "3"]) == 2
    assert "leave out --counts-only" in capsys.readouterr().err
    assert _status(["info", str(tmp_path / "run")]) == 0
    assert "counts only" in capsys.readouterr().out
    assert _status(["export", str(tmp_path / "run"), "--out", str(tmp_path / "csv")]) == 0
    (left_out,) = (line for line in capsys.readouterr().err.splitlines() if "left out" in line)
    assert "experts" in left_out
    assert "coactivation" in left_out
    for refused in (
        ["export", str(tmp_path / "run"), "--out", str(tmp_path / "csv"), "--tokens"],
        ["label", str(tmp_path / "run"), "--with", "code"],
        ["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")],
    ):
        assert _status(refused) == 2
        assert "for the run holds counts only" in capsys.readouterr().err


def _status(arguments: list[str]) -> object:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code
