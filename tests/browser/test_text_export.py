"""What the Text page hands out: a page that works on its own, a picture and a table, each held against the run."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from explorer_page import show_layer, view
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect
from synthetic_run import PROSE, TEXTS, Shape, make_run

from moe_probe.palette import EXPERT_COLOURS
from moe_probe.store import DocumentRouting, Run, open_run
from moe_probe.tokenview.page import write_text_page

SEEN = 80
LEGEND = 2 * 300  # pixels at the right of a picture


@pytest.fixture(scope="session")
def small(root: Path) -> Run:
    return open_run(root / "small")


@pytest.fixture(scope="session")
def river(small: Run) -> DocumentRouting:
    return small.document("prose/river.txt")


def export(page: Page, item: str, to: Path) -> Path:
    """Choose an item of the menu with the keyboard alone, and keep the file under the name that it proposes."""
    page.get_by_role("button", name="Export").focus()
    page.keyboard.press("Enter")
    choice = page.get_by_role("menuitem", name=item)
    for _ in range(6):
        if choice.evaluate("(item) => item === item.getRootNode().activeElement"):
            break
        page.keyboard.press("ArrowDown")
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    target = to / download.value.suggested_filename
    download.value.save_as(target)
    return target


def open_alone(browser: Browser, file: Path, **options: object) -> Page:
    """Open a file where every request but that for the file itself fails, and every complaint is kept."""
    context = browser.new_context(
        viewport={"width": 1400, "height": 900}, offline=True, accept_downloads=True, **options
    )  # type: ignore[arg-type]
    page = context.new_page()
    page.asked = []  # type: ignore[attr-defined]
    page.said = []  # type: ignore[attr-defined]
    context.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page.on("request", lambda request: page.asked.append(request.url))  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(str(error)))  # type: ignore[attr-defined]
    page.goto(file.as_uri())
    expect(page.locator("#view")).to_have_attribute("data-ready", "true")
    return page


def colours(page: Page, count: int = SEEN) -> list[int]:
    """Return the colour of each of the first tokens as the browser paints it: its place in the palette, -1 for none."""
    painted = page.locator("#view").evaluate(
        "(root, count) => [...root.querySelectorAll('.moe-cell span')].slice(0, count)"
        ".map((span) => getComputedStyle(span).backgroundColor)",
        count,
    )
    places = {f"rgb({int(c[1:3], 16)}, {int(c[3:5], 16)}, {int(c[5:7], 16)})": n for n, c in enumerate(EXPERT_COLOURS)}
    return [places.get(colour, -1) for colour in painted]


def expect_layer(page: Page, layer: int) -> None:
    expect(page.locator("#view")).to_have_attribute("data-router", str(layer))


@pytest.fixture(scope="module")
def opened(browser: Browser, small: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    file = write_text_page(small, "prose/river.txt", tmp_path_factory.mktemp("page") / "river.html", layer=3)
    page = open_alone(browser, file)
    yield page
    page.context.close()


@pytest.fixture
def alone(opened: Page) -> Page:
    opened.keyboard.press("Escape")
    opened.keyboard.press("Home")
    expect_layer(opened, 0)
    return opened


def test_the_downloaded_page_shows_the_run_without_a_network(
    page: Page, server: str, browser: Browser, river: DocumentRouting, tmp_path: Path
) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=2&focus=1,4&token=7")
    show_layer(page, 2)
    expect(view(page).locator(".chosen")).to_have_count(1)
    file = export(page, "Web page", tmp_path)
    assert file.name == "small.prose_river.txt.layer-2.html"
    assert page.errors == []  # type: ignore[attr-defined]
    alone = open_alone(browser, file)
    expect_layer(alone, 2)
    first = river.experts(layer=2)[:SEEN, 0].tolist()
    assert colours(alone) == [expert if expert in (1, 4) else -1 for expert in first]
    expect(alone.locator(".moe-card")).to_contain_text("token 7")
    alone.keyboard.press("Escape")
    for layer in range(2, len(river.routers)):
        expect_layer(alone, layer)
        assert colours(alone) == river.experts(layer=layer)[:SEEN, 0].tolist()
        alone.keyboard.press("ArrowRight")
    assert alone.asked == [file.as_uri()]  # type: ignore[attr-defined]
    assert alone.said == []  # type: ignore[attr-defined]
    alone.context.close()


def test_its_scrubber_legend_search_and_tooltip_work(alone: Page, river: DocumentRouting) -> None:
    alone.locator(".moe-scrubber").fill("4")
    expect_layer(alone, 4)
    first = river.experts(layer=4)[:, 0]
    assert colours(alone) == first[:SEEN].tolist()
    rare = int(np.argmin(np.bincount(first[:SEEN], minlength=8)))
    alone.locator(".moe-expert").nth(rare).click()
    assert colours(alone) == [expert if expert == rare else -1 for expert in first[:SEEN].tolist()]
    share = f"{100 * (first == rare).mean():.1f}%"
    expect(alone.locator(".moe-expert").nth(rare).locator(".moe-share")).to_have_text(share)
    alone.locator(".moe-cell span").nth(5).hover()
    experts, weights = river.experts(layer=4)[5], river.weights(layer=4)[5]
    entropy = river.entropy(layer=4)
    assert entropy is not None
    tip = alone.locator(".moe-tip")
    expect(tip).to_contain_text(f"token 5Layer 4: {experts[0]} {weights[0]:.2f}{experts[1]} {weights[1]:.2f}")
    expect(tip).to_contain_text(f"router entropy {entropy[5]:.2f} bits")
    expect(tip).to_contain_text(f"upos: {river.tokens['upos'][5]}")
    alone.keyboard.press("/")
    alone.keyboard.type("the BRIDGE")
    found = "".join(river.tokens["text"]).lower().count("the bridge")
    expect(alone.locator(".moe-found")).to_have_text(f"{found} found")
    alone.keyboard.press("Enter")
    expect(alone.locator(".moe-token")).to_have_text("·the")


def test_its_card_follows_a_token_through_all_layers(alone: Page, river: DocumentRouting) -> None:
    alone.locator(".moe-cell span").nth(11).click()
    steps = alone.locator(".moe-step")
    expect(steps).to_have_count(len(river.routers))
    for router in river.routers:
        experts, weights = river.experts(router=router.index)[11], river.weights(router=router.index)[11]
        said = ", ".join(f"expert {e} × {w:.2f}" for e, w in zip(experts, weights, strict=True))
        expect(steps.nth(router.index)).to_have_attribute("aria-label", f"Layer {router.layer}: {said}")


def test_it_is_dark_where_the_system_is_and_light_on_paper(alone: Page) -> None:
    def paper() -> int:
        colour = alone.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) // 3

    alone.emulate_media(color_scheme="dark")
    dark = paper()
    alone.emulate_media(color_scheme="dark", media="print")
    printed = paper()
    alone.emulate_media(color_scheme="light", media="screen")
    assert dark < 40
    assert (printed, paper()) == (255, pytest.approx(253, abs=2))


def test_paper_holds_all_of_the_text_in_colour(browser: Browser, tmp_path: Path) -> None:
    run = open_run(make_run(tmp_path / "long", {"a.txt": PROSE * 30}, Shape(n_layers=2)))
    page = open_alone(browser, write_text_page(run, 0, tmp_path / "long.html"))
    document = run.document(0)
    n_tokens = document.tokens.height
    drawn = "() => document.querySelectorAll('.moe-cell span').length"
    assert page.evaluate(drawn) < n_tokens
    # A browser prints what is there once this event was handled, and waits for nothing else.
    assert page.evaluate(f"() => {{ dispatchEvent(new Event('beforeprint')); return ({drawn})(); }}") == n_tokens
    page.emulate_media(media="print")
    assert colours(page, n_tokens) == document.experts(layer=0)[:, 0].tolist()
    expect(page.locator(".moe-scrubber")).to_be_hidden()
    box = page.locator(".moe-text").evaluate("(text) => [text.scrollHeight, text.clientHeight]")
    assert box[0] <= box[1] + 1
    page.emulate_media(media="screen")
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    expect(page.locator(".moe-scrubber")).to_be_visible()
    assert page.evaluate(drawn) < n_tokens
    page.context.close()


def test_hostile_text_is_shown_and_does_nothing(browser: Browser, small: Run, tmp_path: Path) -> None:
    name = next(name for name in TEXTS if name.startswith("hostile"))
    file = write_text_page(small, name, tmp_path / "hostile.html", title="</title><script>window.hacked = 4</script>")
    page = open_alone(browser, file)
    expect(page.locator(".moe-text")).to_contain_text(TEXTS[name].split("\n")[0])
    assert page.evaluate("window.hacked") is None
    assert page.title() == "</title><script>window.hacked = 4</script>"
    assert page.locator("img").count() == 0
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()


def test_its_policy_lets_no_other_script_or_request_through(alone: Page) -> None:
    got = alone.evaluate(
        """async () => {
            const script = document.createElement('script');
            script.textContent = 'window.ran = 1';
            document.head.append(script);
            const image = new Image();
            image.src = 'http://127.0.0.1:9/x.png';
            const asked = await fetch('http://127.0.0.1:9/').then(() => 'answered', () => 'refused');
            return [window.ran ?? null, asked];
        }"""
    )
    assert got == [None, "refused"]
    broken = [line for line in alone.said if "Content Security Policy" in line]  # type: ignore[attr-defined]
    alone.said.clear()  # type: ignore[attr-defined]
    assert {word for word in ("script-src", "img-src", "connect-src") if any(word in line for line in broken)} == {
        "script-src",
        "img-src",
        "connect-src",
    }


def pixels(file: Path, *, right: int = 0, top: int = 0) -> tuple[tuple[int, int], list[int]]:
    """Return a picture's size, and how many pixels wear each of the experts' colours, less so many at an edge."""
    with Image.open(file) as image:
        part = image.crop((0, top, image.width - right, image.height))
        red, green, blue = np.asarray(part.convert("RGB")).astype(int).transpose(2, 0, 1)
        packed = (red << 16) + (green << 8) + blue
        return image.size, [int((packed == int(colour[1:], 16)).sum()) for colour in EXPERT_COLOURS]


def visible_text(text: Locator) -> int:
    """Return how many tokens of the text lie wholly inside its frame."""
    count: int = text.evaluate(
        """(text) => {
            const frame = text.getBoundingClientRect();
            return [...text.querySelectorAll('.moe-cell span')].filter((span) => {
                const box = span.getBoundingClientRect();
                return box.top >= frame.top - 1 && box.bottom <= frame.bottom + 1;
            }).length;
        }"""
    )
    return count


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_holds_the_colours_of_what_is_on_screen(
    page: Page, server: str, river: DocumentRouting, tmp_path: Path, scheme: str
) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(f"{server}/?run=small&document=0&layer=3")
    show_layer(page, 3)
    shown = visible_text(view(page).locator(".moe-text"))
    file = export(page, "Picture", tmp_path)
    assert file.name == "small.prose_river.txt.layer-3.png"
    size, everywhere = pixels(file)
    in_text = pixels(file, right=LEGEND)[1]
    width = view(page).evaluate("(root) => root.clientWidth")
    assert size[0] == 2 * width
    assert size[1] > 400
    first = Counter(river.experts(layer=3)[:shown, 0].tolist())
    assert all(
        here > there + 300 for here, there in zip(everywhere, in_text, strict=True)
    )  # the legend has all of them
    assert {expert for expert in range(8) if in_text[expert] > 100} == set(first)
    (top, _), (other, _) = first.most_common(2)
    view(page).locator(".moe-expert").nth(top).click()
    focused = pixels(export(page, "Picture", tmp_path), right=LEGEND)[1]
    assert focused[top] == pytest.approx(in_text[top], rel=0.1)
    assert focused[other] == 0
    assert page.errors == []  # type: ignore[attr-defined]


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))


def test_the_tables_are_the_runs(page: Page, server: str, root: Path, tmp_path: Path) -> None:
    wide = open_run(root / "wide").document(0)
    page.goto(f"{server}/?run=wide&document=0&layer=2")
    show_layer(page, 2)
    whole = export(page, "Table of all layers", tmp_path)
    one = export(page, "Table of the layers shown", tmp_path)
    assert (whole.name, one.name) == ("wide.prose_river.txt.all-layers.csv", "wide.prose_river.txt.layer-2.csv")
    for file, routers in ((whole, wide.routers), (one, [wide.routers[2]])):
        rows = read(file)
        assert [json.loads(row["token"]) for row in rows] == wide.tokens["text"].to_list()
        assert [int(row["position"]) for row in rows] == wide.tokens["position"].to_list()
        assert [row["upos"] for row in rows] == wide.tokens["upos"].to_list()
        assert {name for name in rows[0] if name.startswith("expert_")} == {
            f"expert_{router.index}_{slot}" for router in routers for slot in range(router.n_slots)
        }
        for router in routers:
            experts, weights = wide.experts(router=router.index), wide.weights(router=router.index)
            for slot in range(router.n_slots):
                written = [row[f"expert_{router.index}_{slot}"] for row in rows]
                assert [int(value) if value else -1 for value in written] == experts[:, slot].tolist()
                exact = np.array([float(row[f"weight_{router.index}_{slot}"]) for row in rows], np.float16)
                assert exact.tolist() == weights[:, slot].tolist()


def test_a_page_of_its_own_hands_out_the_same_numbers_and_a_picture(
    alone: Page, river: DocumentRouting, tmp_path: Path
) -> None:
    expect(alone.get_by_role("menuitem")).to_have_count(0)
    rows = read(export(alone, "Table of all layers", tmp_path))
    assert [json.loads(row["token"]) for row in rows] == river.tokens["text"].to_list()
    for router in river.routers:
        for slot in range(router.n_slots):
            experts, weights = river.experts(router=router.index)[:, slot], river.weights(router=router.index)[:, slot]
            assert [int(row[f"expert_{router.index}_{slot}"]) for row in rows] == experts.tolist()
            exact = np.array([float(row[f"weight_{router.index}_{slot}"]) for row in rows], np.float16)
            assert exact.tolist() == weights.tolist()
    alone.get_by_role("button", name="First, middle and last layer side by side").click()
    file = export(alone, "Picture", tmp_path)
    assert file.name == "small.prose_river.txt.layer-0_layer-2_layer-5.png"
    assert min(pixels(file, top=500)[1]) > 300  # below the three heads there is nothing but text
    alone.get_by_role("button", name="First, middle and last layer side by side").click()
    assert alone.said == []  # type: ignore[attr-defined]


def test_the_menu_closes_with_escape_and_leaves_the_view_as_it_was(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=1&focus=3")
    show_layer(page, 1)
    opener = page.get_by_role("button", name="Export")
    opener.click()
    expect(page.get_by_role("menuitem")).to_have_count(4)
    page.keyboard.press("Escape")
    expect(page.get_by_role("menu")).to_be_hidden()
    expect(opener).to_be_focused()
    expect(view(page).locator(".moe-expert").nth(3)).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize(
    ("query", "status"),
    [("run=nope&document=0", 404), ("run=../small&document=0", 404), ("run=small&document=99", 404), ("", 404)],
)
def test_the_route_refuses_what_is_not_there(page: Page, server: str, query: str, status: int) -> None:
    assert page.request.get(f"{server}/_moe_probe/page?{query}").status == status
