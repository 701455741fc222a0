"""Domains and Experts in a real Chromium: a click leads to those tokens in the text, and a card to its expert."""

from __future__ import annotations

import pytest
from explorer_page import click_cell, colours, expect_query, show_layer, view
from playwright.sync_api import Page, expect

from moe_probe.store import DocumentRouting, open_run

SEEN = 40


@pytest.fixture(scope="session")
def code(root) -> DocumentRouting:
    return open_run(root / "small").document("code/area.py")


def assert_quiet(page: Page, server: str) -> None:
    """No script failed, no text became markup that ran, and nothing was asked of another machine."""
    assert page.errors == []  # type: ignore[attr-defined]
    assert page.evaluate("window.hacked") is None
    asked = page.requests  # type: ignore[attr-defined]
    assert [url for url in asked if not url.startswith((server, "data:", "blob:"))] == []


def test_a_bar_of_a_domain_opens_a_document_of_it_in_the_text(page: Page, server: str, root, code) -> None:
    page.goto(f"{server}/domains?run=small&document=0&layer=3")
    run = open_run(root / "small")
    sizes = dict(run.documents().select("domain", "tokens").iter_rows())
    place = sorted(sizes, key=lambda name: -sizes[name]).index("code")
    # The bar of expert 2, the third of eight that take 0.84 of the room, just above its foot.
    click_cell(page, place - 0.42 + 0.84 / 8 * 2.5, 0.005)
    show_layer(page, 3)
    expect_query(page, label="domain", value="code", focus="2", document="2", layer="3")
    first = code.experts(layer=3)[:SEEN, 0].tolist()
    assert colours(page, SEEN) == [2 if expert == 2 else -1 for expert in first]
    assert_quiet(page, server)


def test_a_card_shows_its_expert_and_its_tokens_are_a_press_away(page: Page, server: str) -> None:
    page.goto(f"{server}/experts?run=small&document=0&layer=3")
    cards = page.get_by_test_id("cards").get_by_role("button")
    expect(cards).to_have_count(8)
    expect(cards.nth(0)).to_have_attribute("aria-pressed", "true")
    cards.nth(5).click()
    expect_query(page, focus="5")
    expect(cards.nth(5)).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".mp-expert")).to_have_text("5")
    cards.nth(5).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect_query(page, focus="6")
    expect(cards.nth(6)).to_be_focused()
    page.get_by_role("button", name="Show its tokens in the text").click()
    show_layer(page, 3)
    expect_query(page, focus="6", layer="3")
    expect(view(page).locator(".moe-expert").nth(6)).to_have_attribute("aria-pressed", "true")
    assert_quiet(page, server)


def test_a_bar_of_an_experts_labels_filters_the_text(page: Page, server: str) -> None:
    page.goto(f"{server}/experts?run=small&document=0&layer=3&focus=1")
    expect(page.locator(".js-plotly-plot")).to_have_count(3)
    chart = page.locator(".js-plotly-plot").first
    label, share = chart.evaluate("({ data: [bars] }) => [bars.customdata[0][5], bars.x[0]]")
    click_cell(page, share / 3, 0)
    show_layer(page, 3)
    expect_query(page, focus="1", label="upos", value=label)
    expect(view(page).locator(".moe-chip")).to_contain_text(f"upos = {label}")
    assert_quiet(page, server)
