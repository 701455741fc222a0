"""The Syntax page's words and numbers on intervals and verdicts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import TEXTS, make_run

import moe_probe_app
from moe_probe.store import open_run
from moe_probe.tables.labels import label_table
from moe_probe_app.settings import Settings, configure


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    make_run(tmp_path / "small", TEXTS)
    configure(Settings(tmp_path))
    yield tmp_path
    configure(Settings(Path("runs")))


def test_the_numbers_are_those_over_all_documents_with_interval_and_verdict(root: Path) -> None:
    page = AppTest.from_file(str(Path(moe_probe_app.__file__).parent / "pages/syntax.py"), default_timeout=60)
    page.query_params["run"], page.query_params["layer"] = "small", "3"
    page.run()
    assert not page.exception
    shown = page.dataframe[0].value
    wanted = label_table(open_run(root / "small"), "upos", within=False).filter(router=3, slot="0")
    assert len(shown) == len(wanted)
    assert sorted(shown["lift"].dropna()) == pytest.approx(sorted(wanted["lift"].drop_nulls()))
    assert sorted(shown["ci_high"].dropna()) == pytest.approx(sorted(wanted["ci_high"].drop_nulls()))
    assert set(shown["verdict"]) <= {"specialised", "not shown", "not enough data", "this text only"}


def test_what_faint_means_is_said_where_cells_are_faint(root: Path) -> None:
    page = AppTest.from_file(str(Path(moe_probe_app.__file__).parent / "pages/syntax.py"), default_timeout=60)
    page.query_params["run"] = "small"
    page.run()
    assert any("Faint: it was not shown" in str(one.proto.body) for one in page.get("html"))
    page.selectbox(key="syntax_value").select("assignments").run()
    assert not any("Faint" in str(one.proto.body) for one in page.get("html"))
