"""Co-activation, Paths and Compare in a real Chromium: a click leads to the text, a link names the second run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import polars as pl
import pytest
from explorer_page import click_cell, expect_query, show_layer, view
from playwright.sync_api import Page, expect
from synthetic_run import TEXTS, make_run

from moe_probe.charts.pair_cells import coactivation_cells
from moe_probe.schema import MANIFEST_FILE
from moe_probe.store import open_run
from moe_probe.tables import coactivation, paths


@pytest.fixture(scope="session")
def again(root: Path, server: str) -> str:
    """The text of the small run through another model; older than all, so that it is never the first to open."""
    path = make_run(root / "again", TEXTS, seed=8)
    os.utime(path / MANIFEST_FILE, (1, 1))
    return path.name


def test_a_cell_of_a_pair_shows_both_experts_in_the_text(page: Page, server: str, root: Path) -> None:
    page.goto(f"{server}/coactivation?run=small&layer=3")
    drawn = coactivation_cells(coactivation(open_run(root / "small")), 3, order="cluster")
    experts = drawn.layout.xaxis.ticktext
    click_cell(page, 2, 1, "coactivation_heatmap")
    show_layer(page, 3)
    expect_query(page, layer="3", focus=f"{experts[1]},{experts[2]}", slot="any")
    expect(view(page).locator(".moe-expert").nth(int(experts[2]))).to_have_attribute("aria-pressed", "true")


def test_a_row_of_the_pairs_opens_the_text_too(page: Page, server: str, root: Path) -> None:
    page.goto(f"{server}/coactivation?run=small&layer=3")
    table = coactivation(open_run(root / "small")).filter(pl.col("router") == 3, pl.col("expected") >= 5)
    first = table.sort("together", descending=True).row(0, named=True)
    page.get_by_text("All, most tokens first").click()
    grid = page.locator(".st-key-coactivation_table_all").get_by_test_id("stDataFrame")
    expect(grid.locator("canvas").first).to_be_visible()
    grid.scroll_into_view_if_needed()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    grid.locator(".dvn-scroller").click(position={"x": 14, "y": 52})
    show_layer(page, 3)
    expect_query(page, focus=f"{first['expert_a']},{first['expert_b']}", slot="any")


def test_a_step_and_a_path_lead_to_the_text(page: Page, server: str, root: Path) -> None:
    page.goto(f"{server}/paths?run=small&layer=3")
    expect(page.locator(".st-key-paths_flow .sankey-node")).to_have_count(6 * 8)
    click_cell(page, 5, 4, "paths_step")
    show_layer(page, 3)
    expect_query(page, layer="3", focus="4", slot=None)
    page.get_by_role("link", name="Paths").first.click()
    ways = paths(open_run(root / "small")).sort("rank_by_count")["path"]
    click_cell(page, 2, 1, "paths_top_count")
    show_layer(page, 2)
    expect_query(page, layer="2", focus=ways[1].split(">")[2])


def test_a_link_compares_two_runs_and_another_text_is_refused(page: Page, server: str, again: str) -> None:
    page.goto(f"{server}/compare?run=small&with={again}&layer=2")
    second = page.get_by_role("combobox", name="Compare with")
    expect(second).to_have_value(again)
    expect(page.get_by_role("heading", name="Whose load moved?")).to_be_visible()
    expect(page.locator(".js-plotly-plot .nsewdrag.drag").first).to_be_attached()
    expect(page.locator(".mp-callout")).to_contain_text("fewer than 5 documents")
    second.fill("other")
    page.get_by_role("option", name="other (other text or other routers)").click()
    expect(page.locator(".mp-callout", has_text="the runs are of different text")).to_be_visible()
    expect(page.get_by_role("heading", name="Whose load moved?")).to_have_count(0)
    expect(page).to_have_url(re.compile(r"[?&]against=other(&|$)"))
    asked = [url for url in page.requests if not url.startswith((server, "data:", "blob:"))]  # type: ignore[attr-defined]
    assert asked == []
    assert page.errors == []  # type: ignore[attr-defined]
