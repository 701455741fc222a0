"""The Domains page: what it says where there are domains, one, or none, and where their labels are missing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import app_pages
import polars as pl
import pytest
from app_pages import written
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import TEXTS, make_run

from moe_probe.store import open_run
from moe_probe.tables import divergence, repetition
from moe_probe_app import library
from moe_probe_app.settings import Settings, configure


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("made") / "small", TEXTS)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "small")
    configure(Settings(tmp_path))
    yield tmp_path
    configure(Settings(Path("runs")))


def open_page() -> AppTest:
    return app_pages.open_page("domains", run="small", layer="3")


def set_domains(root: Path, domains: list[str | None]) -> None:
    path = root / "small/documents.parquet"
    pl.read_parquet(path).with_columns(domain=pl.Series(domains, dtype=pl.String)).write_parquet(path)


def test_the_page_shows_shares_divergence_and_repetition_of_the_chosen_layer(root: Path) -> None:
    page = open_page()
    text = written(page)
    assert len(page.get("plotly_chart")) == 4
    for said in ("How much of each domain", "Which domains go to other experts in layer 3", "same expert in layer 3"):
        assert said in text
    run = open_run(root / "small")
    pairs, repeats = (frame.value for frame in page.dataframe)
    assert sorted(pairs["js_bits"]) == pytest.approx(divergence(run).filter(router=3)["js_bits"].sort().to_list())
    assert list(repeats["first_choice"]) == pytest.approx(repetition(run).filter(router=3)["first_choice"].to_list())


def test_the_other_measure_shows_the_other_numbers_and_other_chances(root: Path) -> None:
    page = open_page()
    page.radio(key="domains_measure").set_value("either").run()
    assert not page.exception
    wanted = repetition(open_run(root / "small")).filter(router=3)
    shown = page.dataframe[1].value
    assert list(shown["either"]) == pytest.approx(wanted["either"].to_list())
    assert list(shown["document_either"]) == pytest.approx(wanted["document_either"].to_list())
    assert "share an expert in any slot" in written(page)


def test_names_of_domains_are_shown_as_they_are(root: Path) -> None:
    set_domains(root, ["<b>a</b> $x$ :red[y]", "b", "c"])
    page = open_page()
    assert "<b>a" not in written(page)
    assert "<b>a</b> $x$ :red[y]" in set(page.dataframe[1].value["domain"])


def test_a_run_without_domains_says_so_and_what_to_do(root: Path) -> None:
    set_domains(root, [None, None, None])
    page = open_page()
    assert "This run has no domains" in written(page)
    assert "sub-folder" in written(page)
    assert "moe-probe trace made-up my_texts/" in written(page)
    assert not page.get("plotly_chart")


def test_a_run_of_one_domain_names_it(root: Path) -> None:
    set_domains(root, ["<i>prose</i>"] * 3)
    page = open_page()
    assert "This run has one domain: &lt;i&gt;prose&lt;/i&gt;" in written(page)
    assert not page.get("plotly_chart")


def test_without_the_label_it_shows_what_it_can_and_says_how_to_add_the_rest(root: Path) -> None:
    manifest = root / "small/run.json"
    held = json.loads(manifest.read_text())
    held["labels"] = [one for one in held["labels"] if one["name"] != "domain"]
    manifest.write_text(json.dumps(held))
    page = open_page()
    assert f"moe-probe label {root / 'small'} --with domain" in written(page)
    assert len(page.get("plotly_chart")) == 3
    assert "Jensen" not in written(page)


def test_a_document_with_the_value_is_found_and_the_present_one_is_kept_where_it_has_it(root: Path) -> None:
    set_domains(root, ["one", "other", "other"])
    run = open_run(root / "small")
    assert library.document_with(run, "domain", "other", now=0) == 1
    assert library.document_with(run, "domain", "other", now=2) == 2
    assert library.document_with(run, "domain", "nowhere", now=1) == 1
    assert library.document_with(run, "upos", "NOUN", now=1) == 1
