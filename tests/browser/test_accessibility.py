"""Every page can be read by a machine and worked by the keyboard alone: axe-core, and a tour with the Tab key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from explorer_page import colours, expect_query, show_layer, view
from playwright.sync_api import Browser, Page, expect

PAGES = {
    "": "[data-testid=tokenview][data-ready]",
    "layers": ".js-plotly-plot",
    "syntax": ".js-plotly-plot",
    "domains": ".js-plotly-plot",
    "experts": ".js-plotly-plot",
    "coactivation": ".js-plotly-plot",
    "paths": ".js-plotly-plot",
    "compare": "[data-testid=stMain] h1, [data-testid=stMain] h2, [data-testid=stMain] [data-testid=stMarkdown]",
    "ablate": "[data-testid=stMain] button",
    "trace": "textarea",
    "runs": "[data-testid=stMain] table, [data-testid=stDataFrame]",
}
"""Each page's path, and what stands on it once it is drawn."""


THEMES: tuple[Literal["light", "dark"], ...] = ("dark", "light")
# What is drawn anew loses the focus.
STILL = """
() => new Promise((done) => {
    let timer;
    const wait = () => { clearTimeout(timer); timer = setTimeout(() => { watch.disconnect(); done(); }, 400); };
    const watch = new MutationObserver(wait);
    watch.observe(document.body, { childList: true, subtree: true });
    wait();
})
"""


def open_page(page: Page, server: str, path: str) -> None:
    page.goto(f"{server}/{path}?run=small&document=0&layer=1")
    expect(page.locator(PAGES[path]).first).to_be_visible()
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    page.evaluate(STILL)


def serious(page: Page) -> list[str]:
    """What axe-core calls serious or critical, a line each, with where it is."""
    found: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:160]} ({node.get('failureSummary', '')[:200]})"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.fixture(scope="module")
def reader(browser: Browser) -> Iterator[Page]:
    """A page of a browser that wants no motion."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, reduced_motion="reduce")
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module", params=PAGES, ids=lambda path: path or "text")
def path(request: pytest.FixtureRequest, reader: Page, server: str) -> str:
    """The path of each page, which is open; all tests that take it see one before the next."""
    reader.emulate_media(color_scheme="light")
    open_page(reader, server, request.param)
    return str(request.param)


@pytest.mark.usefixtures("path")
def test_no_page_has_a_serious_violation_light_or_dark(reader: Page) -> None:
    seen = set()
    for theme in THEMES:
        reader.emulate_media(color_scheme=theme)
        reader.evaluate(STILL)
        seen.add(reader.get_by_test_id("stApp").evaluate("(app) => getComputedStyle(app).backgroundColor"))
        assert serious(reader) == [], theme
    assert len(seen) == len(THEMES), "dark looks as light does"


STOPS = 10
# What is focused, through shadow roots, and a name for it.
FOCUSED = """
() => {
    let at = document.activeElement;
    while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
    if (!at || at === document.body) return null;
    const labels = [...(at.labels || [])].map((label) => label.textContent);
    const group = at.closest('[aria-label]')?.getAttribute('aria-label');
    const said = [at.getAttribute('aria-label'), ...labels, at.textContent, at.title, at.placeholder, group];
    const box = at.getBoundingClientRect();
    return {
        name: said.map((one) => (one || '').trim()).find(Boolean) || '',
        tag: `${at.tagName} ${at.getAttribute('role') || ''} ${at.className}`,
        box: [box.x, box.y, box.width, box.height],
    };
}
"""
LEAVE = """
() => {
    let at = document.activeElement;
    while (at?.shadowRoot?.activeElement) at = at.shadowRoot.activeElement;
    at.blur();
}
"""


def focus_link(page: Page, title: str) -> None:
    """Press Tab until the navigation's link to a page is focused."""
    for _ in range(40):
        page.keyboard.press("Tab")
        focused = page.evaluate(FOCUSED)
        if focused and focused["name"] == title and focused["tag"].startswith("A "):
            return
    raise AssertionError(f"the Tab key does not reach the link {title!r}")


def test_the_keyboard_alone_goes_through_all_pages(page: Page, server: str) -> None:
    open_page(page, server, "")
    for path in [one for one in PAGES if one]:
        focus_link(page, {"coactivation": "Co-activation"}.get(path, path.capitalize()))
        page.keyboard.press("Enter")
        expect(page.locator(PAGES[path]).first).to_be_visible()
        page.wait_for_url(f"{server}/{path}*", timeout=30_000)


def test_what_the_tab_key_reaches_has_a_name_and_shows_that_it_is_focused(path: str, reader: Page) -> None:
    main = reader.get_by_test_id("stMain")
    main.evaluate("(main) => { main.tabIndex = -1; main.focus(); }")
    stops = 0
    for _ in range(STOPS):
        reader.keyboard.press("Tab")
        focused = reader.evaluate(FOCUSED)
        if focused is None:
            break
        assert focused["name"], f"{path}: {focused['tag']} has no name"
        x, y, width, height = focused["box"]
        around = {
            "x": max(x - 6, 0),
            "y": max(y - 6, 0),
            "width": min(width, 600) + 12,
            "height": min(height, 300) + 12,
        }
        if width * height == 0 or y > 880:
            continue
        seen = reader.screenshot(clip=around, animations="disabled")  # at their end, that is: rings and borders ease in
        reader.evaluate(LEAVE)  # the next Tab goes on from here all the same
        assert reader.screenshot(clip=around, animations="disabled") != seen, (
            f"{path}: {focused['name'][:60]!r} looks the same without focus"
        )
        stops += 1
    assert stops or path in ("compare",), f"{path}: nothing can be reached"


def test_the_text_is_worked_by_keys_alone(page: Page, server: str) -> None:
    open_page(page, server, "")
    view(page).locator(".moe-text").focus()
    page.keyboard.press("End")
    show_layer(page, 5)
    expect_query(page, layer="5")
    page.keyboard.press("ArrowLeft")
    show_layer(page, 4)
    legend = view(page).locator(".moe-expert").nth(2)
    legend.focus()
    page.keyboard.press("Enter")
    expect(legend).to_have_attribute("aria-pressed", "true")
    expect_query(page, focus="2")
    assert set(colours(page, 60)) <= {2, -1}
    page.keyboard.press("/")
    expect(view(page).get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("river")
    expect_query(page, find="river")


def test_nothing_moves_where_motion_is_not_wanted(page: Page, server: str) -> None:
    page.emulate_media(reduced_motion="reduce")
    open_page(page, server, "")
    moving = view(page).evaluate(
        """(root) => [...root.querySelectorAll('*'), root].filter((one) => {
            const style = getComputedStyle(one);
            const times = [style.transitionDuration, style.animationDuration].join().split(',').map(parseFloat);
            return times.some((time) => time > 0.01);
        }).map((one) => one.className)"""
    )
    assert moving == []
