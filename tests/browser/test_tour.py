"""One visit from the first page to a link that is sent to somebody else: every step keeps what the one before chose."""

from __future__ import annotations

import re
from pathlib import Path

from explorer_page import choose, click_cell, colours, expect_query, query, show_layer, tokens, view
from playwright.sync_api import Browser, Page, expect

from moe_probe.store import open_run

SEEN = 60
LONG = 180_000


def go_to(page: Page, name: str) -> None:
    """Follow the navigation."""
    page.get_by_role("link", name=name, exact=True).click()
    expect(page.get_by_role("heading", name=name, exact=True)).to_be_visible()


def test_from_opening_a_run_to_the_same_view_in_a_fresh_browser(
    page: Page, server: str, root: Path, browser: Browser
) -> None:
    river = open_run(root / "small").document("prose/river.txt")

    page.goto(server)
    choose(page, "Run", "wide")
    expect_query(page, run="wide")
    choose(page, "Run", "small")
    expect_query(page, run="small", document="0")

    view(page).locator(".moe-text").focus()
    page.keyboard.press("Home")
    show_layer(page, 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    show_layer(page, 2)
    first = river.experts(layer=2)[:, 0].tolist()
    assert colours(page, SEEN) == first[:SEEN]

    view(page).locator(".moe-expert").nth(first[5]).click()
    expect_query(page, layer="2", focus=str(first[5]))
    tokens(page).nth(5).click()
    expect(view(page).locator(".moe-card")).to_contain_text("token 5")
    assert colours(page, SEEN) == [e if e == first[5] else -1 for e in first[:SEEN]]

    page.keyboard.press("/")
    word = next(text.strip() for text in river.tokens["text"].to_list() if len(text.strip()) > 3)
    page.keyboard.type(word)
    expect(view(page).locator(".hit").first).to_be_visible()
    page.keyboard.press("Escape")
    expect(view(page).locator(".hit")).to_have_count(0)
    expect_query(page, focus=None)

    go_to(page, "Syntax")
    expect_query(page, run="small", layer="2")
    click_cell(page, 1, 0)
    show_layer(page, 2)
    expect(view(page).locator(".moe-chip")).to_contain_text("upos = ")
    filtered = colours(page, SEEN)
    chosen = query(page)

    go_to(page, "Compare")
    expect_query(page, run="small", layer="2")
    expect(page.get_by_test_id("stMain")).to_contain_text("Compare with")

    go_to(page, "Ablate")
    page.get_by_role("textbox", name="Text").fill("In 1887 the old lighthouse was sold.")
    page.get_by_text("Tag English words").click()
    page.get_by_role("button", name="Open the text").click()
    experts = page.get_by_role("toolbar", name=re.compile("Experts of layer"))
    expect(experts).to_be_visible(timeout=LONG)
    experts.get_by_role("button", name="3", exact=True).click()
    page.get_by_role("button", name="Switch off expert 3").click()
    expect(page.get_by_test_id("changes")).to_have_attribute("data-ready", re.compile(r"\d+"), timeout=LONG)

    page.get_by_role("link", name="Text", exact=True).click()
    show_layer(page, 2)
    assert colours(page, SEEN) == filtered
    assert {name: query(page)[name] for name in ("run", "document", "layer", "focus", "label", "value")} == {
        name: chosen[name] for name in ("run", "document", "layer", "focus", "label", "value")
    }
    view(page).get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        view(page).get_by_role("menuitem", name="Web page").click()
    assert "river" in download.value.suggested_filename
    assert Path(download.value.path()).stat().st_size > 10_000

    fresh = browser.new_context(viewport={"width": 1400, "height": 900})
    again = fresh.new_page()
    again.goto(page.url)
    show_layer(again, 2)
    assert colours(again, SEEN) == filtered
    expect_query(again, **query(page))
    expect(view(again).locator(".moe-chip")).to_have_text(view(page).locator(".moe-chip").inner_text())
    fresh.close()
    assert page.errors == []  # type: ignore[attr-defined]
