"""The Ablate page in a real Chromium, with the bundled model: from a pasted text to its tokens' changes and back."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

TEXT = (
    "In 1887 the old <b>lighthouse</b> was sold. <script>window.hacked = 1</script> <img src=x onerror='alert(1)'>\n"
    "Nobody knew :red[why], and $x$ was 240 pounds."
)
LONG = 180_000
FULL = 75
MUCH = 0.25


def main(page: Page) -> Locator:
    return page.get_by_test_id("stMain")


def open_text(page: Page, server: str, text: str) -> None:
    page.goto(f"{server}/ablate?run=small")
    page.get_by_role("textbox", name="Text").fill(text)
    page.get_by_text("Tag English words").click()
    page.get_by_role("button", name="Open the text").click()
    expect(page.get_by_role("toolbar", name="Experts of layer 0")).to_be_visible(timeout=LONG)


def expert(page: Page, number: int) -> Locator:
    return page.get_by_role("toolbar").get_by_role("button", name=str(number), exact=True)


def changes(page: Page) -> Locator:
    """Return the coloured text, once it is there."""
    shown = page.get_by_test_id("changes")
    expect(shown).to_have_attribute("data-ready", re.compile(r"\d+"), timeout=LONG)
    return shown


def tokens(page: Page) -> Locator:
    return changes(page).locator(".mpc-text [data-at]")


def bars(page: Page) -> Locator:
    return page.locator(".st-key-ablate_bars .js-plotly-plot")


def csv_rows(page: Page, name: str) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.locator(f".st-key-csv_{name}").get_by_role("button").click()
    with Path(download.value.path()).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(browser: Browser, server: str) -> Iterator[Page]:
    """A page on which two experts were switched off, for all tests that only look."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    page = context.new_page()
    page.requests, page.errors = [], []  # type: ignore[attr-defined]
    page.on("request", lambda request: page.requests.append(request.url))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
    open_text(page, server, TEXT)
    expect(main(page)).to_contain_text("Press the experts to switch off")
    for number in (2, 3):
        expert(page, number).click()
        expect(expert(page, number)).to_have_attribute("aria-pressed", "true")
    begin = page.get_by_role("button", name="Switch off experts 2, 3")
    expect(main(page)).to_contain_text("Takes about")
    begin.click()
    changes(page)
    yield page
    context.close()


def test_tokens_wear_the_sign_and_the_size_of_their_change(measured: Page) -> None:
    rows = csv_rows(measured, "token_changes")
    assert "".join(row["text"] for row in rows) == TEXT
    expect(tokens(measured)).to_have_count(len(rows))
    last = changes(measured).locator(".mpc-ticks span").last.inner_text()
    bound = float(re.sub(r"[^\d.]", "", last))
    names = tokens(measured).evaluate_all("all => all.map((one) => one.className)")
    mixes = tokens(measured).evaluate_all("all => all.map((one) => one.style.getPropertyValue('--mix'))")
    for row, name, mix in zip(rows, names, mixes, strict=True):
        change = float(row["change_bits"])
        assert ("worse" in name, "better" in name) == (change > 0, change < 0)
        assert float(mix.strip("%")) == pytest.approx(FULL * min(1, abs(change) / bound), abs=0.1)
        assert ("much" in name) == (abs(change) / bound >= MUCH)  # a line below it says the sign without colour
    assert any("worse much" in name for name in names)


def test_markup_in_the_text_is_only_text(measured: Page) -> None:
    text = changes(measured).locator(".mpc-text")
    expect(text).to_contain_text("<b>lighthouse</b> was sold. <script>window.hacked = 1</script> <img src=x")
    expect(text).to_contain_text(":red[why], and $x$")
    assert measured.evaluate("window.hacked") is None
    expect(main(measured).locator("img[src='x']")).to_have_count(0)


def test_pointing_at_a_token_says_its_numbers_and_they_can_stand_beside(measured: Page) -> None:
    row = csv_rows(measured, "token_changes")[4]
    before, change = float(row["surprisal_bits"]), float(row["change_bits"])
    tokens(measured).nth(4).hover()
    said = changes(measured).get_by_role("status").inner_text()
    found = re.search(r"surprisal ([\d.]+) → ([\d.]+) bits", said)
    assert found is not None
    assert [float(one) for one in found.groups()] == pytest.approx([before, before + change], abs=0.006)
    assert f"shape: {row['shape']}" in said
    numbers = changes(measured).get_by_role("button", name="Numbers")
    numbers.click()
    expect(numbers).to_have_attribute("aria-pressed", "true")
    mark = tokens(measured).nth(4).evaluate("(one) => getComputedStyle(one, '::after').content")
    assert float(mark.strip('"').replace("−", "-")) == pytest.approx(change, abs=0.06)
    numbers.click()


def test_labels_stand_beside_the_text_and_their_table_can_be_taken_away(measured: Page) -> None:
    expect(main(measured)).to_contain_text("What changed when experts 2 and 3 of layer 0 were switched off")
    expect(bars(measured).locator(".barlayer .point").first).to_be_attached()
    expect(main(measured).get_by_role("heading", name="Which tokens does switching off expert")).to_be_visible()
    expect(main(measured)).to_contain_text("This text only")
    left, right = changes(measured).bounding_box(), bars(measured).bounding_box()
    assert left is not None
    assert right is not None
    assert left["x"] + left["width"] <= right["x"]
    table = csv_rows(measured, "effect")
    assert {(row["label_set"], row["experts"]) for row in table} == {("shape", "2 3")}
    assert {row["verdict"] for row in table} <= {"not enough data", "not shown", "this text only"}


def test_on_a_narrow_page_the_chart_stands_below_the_text_and_nothing_sticks_out(measured: Page) -> None:
    measured.set_viewport_size({"width": 800, "height": 1000})
    chart = bars(measured).element_handle()
    measured.wait_for_function(
        "([text, chart]) => chart.getBoundingClientRect().top > text.getBoundingClientRect().bottom",
        arg=[changes(measured).element_handle(), chart],
    )
    edge = main(measured).bounding_box()
    assert edge is not None
    for one in (changes(measured), bars(measured)):
        box = one.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= edge["x"] + edge["width"] + 1
    measured.set_viewport_size({"width": 1400, "height": 1000})


def test_text_is_readable_on_every_colour_in_light_and_in_dark(measured: Page) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        measured.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        measured.wait_for_function(_IS_PAPER, arg=[changes(measured).element_handle(), scheme])
        found = changes(measured).evaluate(_CONTRAST)
        papers.add(found["paper"])
        assert min(found["contrasts"]) >= 4.5
    assert len(papers) == 2


_IS_PAPER = """([root, scheme]) =>
    getComputedStyle(root).getPropertyValue('--paper').trim().startsWith(scheme === 'light' ? '#f' : '#1')"""
_CONTRAST = """(root) => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const light = (...colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
            const part = value / 255;
            return part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const paper = getComputedStyle(root).getPropertyValue('--paper');
    const contrasts = [...root.querySelectorAll('.mpc-mark, .mpc-text [data-at]')].map((one) => {
        const style = getComputedStyle(one);
        const [a, b] = [light(style.color), light(paper, style.backgroundColor)].sort((x, y) => y - x);
        return (a + 0.05) / (b + 0.05);
    });
    return { paper, contrasts };
}"""


def test_the_whole_way_goes_with_the_keyboard_alone_and_survives_a_look_elsewhere(page: Page, server: str) -> None:
    open_text(page, server, "In 1887 the old lighthouse was sold.")
    expert(page, 0).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    begin = page.get_by_role("button", name="Switch off expert 1")
    expect(begin).to_be_enabled()
    for _ in range(20):
        if begin.evaluate("(one) => one === document.activeElement"):
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    changes(page).locator(".mpc-text").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    tip = changes(page).get_by_role("status")
    expect(tip).to_be_visible()
    expect(tip).to_contain_text(re.compile(r"token 1 · shape: \w+"))
    expect(tip).to_contain_text(re.compile(r"surprisal \d+\.\d+ → \d+\.\d+ bits"))
    page.keyboard.press("End")
    expect(tokens(page).last).to_have_class(re.compile("chosen"))
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.get_by_role("link", name="Layers").click()
    expect(page.get_by_role("heading", name="Layers", exact=True)).to_be_visible()
    page.get_by_role("link", name="Ablate").click()
    changes(page)
    expect(expert(page, 1)).to_have_attribute("aria-pressed", "true")
    assert page.errors == []  # type: ignore[attr-defined]


def test_a_run_whose_model_is_not_at_hand_says_which_command(page: Page, server: str) -> None:
    page.goto(f"{server}/ablate?run=small")
    page.get_by_text("Documents of the run").click()
    expect(main(page)).to_contain_text(re.compile("moe-probe explore .* --model made-up"))


def test_no_request_leaves_the_machine_and_nothing_goes_wrong(measured: Page, server: str) -> None:
    asked = [url for url in measured.requests if not url.startswith((server, "data:", "blob:"))]  # type: ignore[attr-defined]
    assert asked == []
    assert measured.errors == []  # type: ignore[attr-defined]
