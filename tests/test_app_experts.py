"""The Experts page: cards and the portrait of one expert, in words that come from the tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import app_pages
import polars as pl
import pytest
from app_pages import written
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import CODE, HOSTILE, PROSE, Shape, make_run

from moe_probe.store import Run, open_run
from moe_probe.tables import expert_names, load_table
from moe_probe_app.components import portrait
from moe_probe_app.settings import Settings, configure

LAYER = 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    kinds = {"prose": PROSE, "code": CODE, "hostile": HOSTILE}
    make_run(root / "many", {f"{kind}/{i}.txt": text[17 * i :] * 3 for i in range(6) for kind, text in kinds.items()})
    make_run(root / "wide", {"a/a.txt": PROSE, "b/b.txt": CODE}, Shape(n_layers=2, n_experts=64, n_slots=4))
    return root


@pytest.fixture(autouse=True)
def started(root: Path) -> Iterator[None]:
    configure(Settings(root))
    yield
    configure(Settings(Path("runs")))


@pytest.fixture
def run(root: Path) -> Run:
    return open_run(root / "many")


def open_page(**query: str) -> AppTest:
    return app_pages.open_page("experts", **({"run": "many", "layer": str(LAYER)} | query))


def named(run: Run, *, with_name: bool) -> dict[str, object]:
    here = expert_names(run).filter(router=LAYER).filter(pl.col("label").is_not_null() == with_name)
    assert len(here), "the run has no such expert"
    return here.row(0, named=True)


def test_the_portrait_says_what_the_tables_say(run: Run) -> None:
    row = named(run, with_name=True)
    page = open_page(focus=str(row["expert"]))
    text = unescape(written(page))
    load = load_table(run).filter(router=LAYER, expert=row["expert"], slot="any").row(0, named=True)
    assert f"<h2>{row['name']}</h2>" in text
    assert f"{load['share']:.1%} ({load['ci_low']:.1%} to {load['ci_high']:.1%})" in text
    assert f"n = {row['n']:,} assignments" in text
    for token in str(row["top_tokens_by_lift"]).split(" "):
        assert f"<code>{token}</code>" in text
    assert text.count("<mark>") == str(row["snippets"]).count("⟦")
    assert len(page.get("plotly_chart")) == 3
    assert page.button(key="experts_named_text")


def test_an_expert_without_a_name_has_no_snippets_and_no_way_to_them(run: Run) -> None:
    row = named(run, with_name=False)
    page = open_page(focus=str(row["expert"]))
    text = written(page)
    assert f"<h2>{row['name']}</h2>" in text
    assert "<mark>" not in text
    assert "no label is shown to be this expert" in text
    assert [one.key for one in page.button] == ["experts_text"]


def test_without_a_focus_the_first_expert_is_shown_and_the_address_stays(run: Run) -> None:
    page = open_page()
    assert page.selectbox(key="experts_expert").value == 0
    assert "focus" not in page.query_params
    page.selectbox(key="experts_expert").select(5).run()
    assert not page.exception
    assert page.query_params["focus"] == "5"
    assert page.sidebar.multiselect(key="sidebar_focus").value == [5]


def test_a_layer_has_a_card_for_each_of_its_experts(run: Run) -> None:
    page = open_page(focus="2")
    (component,) = page.get("bidi_component")
    data = json.loads(component.proto.json)
    wanted = expert_names(run).filter(router=LAYER).sort("expert")
    assert [card["expert"] for card in data["cards"]] == wanted["expert"].to_list()
    assert [card["name"] for card in data["cards"]] == wanted["name"].to_list()
    assert data["pressed"] == 2


def test_many_experts_are_shown_too() -> None:
    page = open_page(run="wide", layer="1", focus="63")
    assert page.selectbox(key="experts_expert").value == 63
    assert 'mp-expert" style="background-color: #FFD2FF">63<' in written(page), "it wears the first focus colour"


def test_hostile_tokens_and_snippets_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(portrait.plain, "html", shown.append)
    portrait.head(1, '"><script>', "<b>name</b>", ["<i>fact</i>"])
    portrait.tokens("Title", "note", "<script>alert(1)</script> & :red[x]")
    portrait.snippets("before <img src=x> ⟦<u>token</u>⟧ after ‖ second ⟦one⟧")
    text = "".join(shown)
    for markup in ("<script>", "<b>name", "<i>fact", "<img", "<u>"):
        assert markup not in text
    assert "before &lt;img src=x&gt; <mark>&lt;u&gt;token&lt;/u&gt;</mark> after" in text
    assert text.count("<mark>") == 2


def test_a_run_without_labels_says_how_to_add_some(tmp_path: Path) -> None:
    manifest = make_run(tmp_path / "many", {"a.txt": PROSE}) / "run.json"
    held = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(held | {"labels": []}))
    configure(Settings(tmp_path))
    page = open_page()
    assert f"moe-probe label {tmp_path / 'many'} --with upos,shape" in written(page)
    assert len(page.get("plotly_chart")) == 1
