"""What a reader sees of the explorer's pages, in words for the tests."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Locator, Page, expect

COLOUR = re.compile(r"\bc(\d)\b")


def view(page: Page) -> Locator:
    """Return the token view, once its document is there."""
    found = page.get_by_test_id("tokenview")
    expect(found).to_have_attribute("data-ready", re.compile(r"\w+"))
    return found


def tokens(page: Page) -> Locator:
    """Return the tokens that are on screen, in order."""
    return view(page).locator(".moe-cell span")


def colours(page: Page, count: int) -> list[int]:
    """Return the colour of each of the first tokens; with up to eight experts it is the expert's number."""
    return page.get_by_test_id("tokenview").evaluate(
        """(root, count) => [...root.querySelectorAll('.moe-cell span')].slice(0, count)
             .map((span) => Number((/\\bc(\\d)\\b/.exec(span.className) || [0, -1])[1]))""",
        count,
    )


def show_layer(page: Page, layer: int) -> None:
    """Wait until the view shows a layer."""
    expect(page.get_by_test_id("tokenview")).to_have_attribute("data-router", str(layer))


def query(page: Page) -> dict[str, str]:
    """Return the address's parameters."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def expect_query(page: Page, **wanted: str | None) -> None:
    """Wait until the address says what is wanted; None = the parameter is absent."""
    page.wait_for_function(
        """(wanted) => {
            const query = new URLSearchParams(location.search);
            return Object.entries(wanted).every(([name, value]) => query.get(name) === value);
        }""",
        arg=wanted,
        timeout=60_000,
    )


def choose(page: Page, label: str, option: str) -> None:
    """Choose an option in one of the sidebar's lists."""
    page.get_by_test_id("stSidebar").get_by_role("combobox", name=label).fill(option)
    page.get_by_role("option", name=option, exact=True).click()


def click_cell(page: Page, x: float, y: float, key: str | None = None) -> None:
    """Click into the chart of a key, or the page's first, at a place in the units of its axes.

    A category counts as its number.
    """
    chart = page.locator(f".st-key-{key} .js-plotly-plot" if key else ".js-plotly-plot").first
    expect(chart.locator(".nsewdrag").first).to_be_attached()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    chart.scroll_into_view_if_needed()
    at = chart.evaluate(
        """(chart, [x, y]) => {
            const { xaxis, yaxis } = chart._fullLayout;
            const box = chart.getBoundingClientRect();
            return [box.left + xaxis._offset + xaxis.l2p(x), box.top + yaxis._offset + yaxis.l2p(y)];
        }""",
        [x, y],
    )
    page.mouse.move(at[0] - 3, at[1] - 2)
    page.mouse.move(*at)
    page.wait_for_timeout(100)  # what is clicked is what the chart saw the mouse on, and it looks twenty times a second
    page.mouse.click(*at)
