"""The report in a real Chromium that reaches no network: charts drawn, nothing asked for, nothing acting, and paper."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from synthetic_run import CODE, HOSTILE, PROSE, TEXTS, make_run

from moe_probe.report import write_report
from moe_probe.store import open_run

A4_PIXELS = 680  # the width of an A4 page less its margins, at 96 pixels an inch


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    texts = {f"prose/{n}.txt": PROSE for n in range(6)} | {f"code/{n}.py": CODE * 2 for n in range(5)} | TEXTS
    texts |= {"<img src=x onerror='window.hacked=3'>/a.txt": HOSTILE * 4}
    return write_report(open_run(make_run(folder / "run", texts)), folder / "report.html")


@pytest.fixture(scope="module")
def opened(browser: Browser, report: Path) -> Iterator[Page]:
    """The report, opened where every request but that for the file itself fails, and every complaint is kept."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.asked = []  # type: ignore[attr-defined]
    page.said = []  # type: ignore[attr-defined]
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page.on("request", lambda request: page.asked.append(request.url))  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(str(error)))  # type: ignore[attr-defined]
    page.goto(report.as_uri())
    page.locator("html[data-drawn]").wait_for(state="attached")
    yield page
    context.close()


def test_it_asks_for_nothing_and_draws_every_chart(opened: Page, report: Path) -> None:
    charts = opened.locator(".drawing")
    assert charts.count() >= 5
    assert opened.locator("html").get_attribute("data-drawn") == str(charts.count())
    for index in range(charts.count()):
        drawing = charts.nth(index).locator(".main-svg").first
        expect(drawing).to_be_visible()
        assert charts.nth(index).locator(".cartesianlayer .plot, .cartesianlayer .subplot").count() >= 1
    assert opened.asked == [report.as_uri()]  # type: ignore[attr-defined]
    assert opened.said == []  # type: ignore[attr-defined]
    assert opened.evaluate("performance.getEntriesByType('resource').length") == 0


def test_hostile_text_is_shown_and_does_nothing(opened: Page) -> None:
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img").count() == 0
    expect(opened.locator(".panes")).to_contain_text("<script>window.hacked = 1</script>")


def test_nothing_sticks_out_on_a_wide_or_a_narrow_screen(opened: Page) -> None:
    for width in (1400, 390):
        opened.set_viewport_size({"width": width, "height": 900})
        wait_until(opened, "document.documentElement.scrollWidth <= innerWidth")
    assert opened.locator("main").evaluate("main => main.getBoundingClientRect().width") <= 900


def test_a_dark_screen_gets_a_dark_page_and_paper_a_light_one(opened: Page) -> None:
    opened.emulate_media(color_scheme="dark")
    dark = _lightness(opened, "body", "backgroundColor"), _lightness(opened, ".drawing .xtick text", "fill")
    opened.emulate_media(color_scheme="dark", media="print")
    paper = _lightness(opened, "body", "backgroundColor"), _lightness(opened, ".drawing .xtick text", "fill")
    opened.emulate_media(color_scheme="light", media="screen")
    light = _lightness(opened, "body", "backgroundColor"), _lightness(opened, ".drawing .xtick text", "fill")
    assert dark[0] < 0.2 < 0.7 < dark[1]
    assert paper[1] < 0.3 < 0.9 < paper[0]
    assert light[1] < 0.3 < 0.9 < light[0]


def test_on_paper_no_chart_is_wider_than_the_page_and_folds_are_gone(opened: Page, tmp_path: Path) -> None:
    opened.set_viewport_size({"width": 1400, "height": 900})
    wait_until(opened, "document.querySelector('.drawing .main-svg').getBoundingClientRect().width > 700")
    wide = opened.locator(".drawing .main-svg").first.bounding_box()
    assert wide is not None
    assert wide["width"] > A4_PIXELS
    opened.emulate_media(media="print")
    # As on paper, the page grows narrow without a word to the charts, so that they are not drawn anew.
    body = opened.locator("body")
    body.evaluate(f"body => {{ body.style.width = '{A4_PIXELS}px'; }}")
    edge = body.evaluate("body => body.getBoundingClientRect().right")
    for right in opened.locator(".drawing .main-svg").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().right)"
    ):
        assert right <= edge + 1
    body.evaluate("body => { body.style.width = ''; }")
    expect(opened.locator("nav")).to_be_hidden()
    expect(opened.locator("details").first).to_be_hidden()
    pages = opened.pdf(path=tmp_path / "report.pdf", format="A4").count(b"/Type /Page\n")
    assert 3 <= pages <= 40
    opened.emulate_media(media="screen")


def test_without_javascript_all_words_and_tables_are_there(browser: Browser, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    expect(page.locator("section")).to_have_count(9)
    expect(page.locator("figcaption h3").first).to_have_text("Which experts does each layer use?")
    expect(page.locator("noscript").first).to_be_attached()
    page.locator("summary").first.click()
    expect(page.locator("details table").first).to_be_visible()
    assert page.locator("tbody tr").count() > 40
    context.close()


def test_a_link_of_the_contents_leads_to_its_section(opened: Page) -> None:
    opened.get_by_role("link", name="What stands against these numbers?").click()
    expect(opened.get_by_role("heading", name="What stands against these numbers?")).to_be_in_viewport()


def wait_until(page: Page, holds: str) -> None:
    """Wait until a condition holds. Playwright's own way of it needs eval, which the page's policy forbids."""
    script = """() => new Promise((done, fail) => {
        let frames = 0;
        const look = () => {
            if (HOLDS) done();
            else if (++frames > 600) fail(new Error('in vain'));
            else requestAnimationFrame(look);
        };
        look();
    })"""
    page.evaluate(script.replace("HOLDS", holds))


def _lightness(page: Page, selector: str, style: str) -> float:
    """How light a colour on the page is, 0 to 1."""
    colour = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{style}")
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / (3 * 255)
