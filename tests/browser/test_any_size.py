"""Runs of any size and kind in a real Chromium: layers that come one by one, and what a run does not hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import serving
from explorer_page import click_cell, colours, expect_query, show_layer, tokens, view
from playwright.sync_api import BrowserContext, Page, expect
from synthetic_run import CODE, PROSE, TEXTS, Shape, make_run

from moe_probe.store import DocumentRouting, open_run

pytestmark = pytest.mark.prove  # minutes on two cores

SEEN = 60
EVERYTHING_IS_LARGE = "from moe_probe_app import library; library.SENT_BYTES = 0"
LAYERS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of unlike kinds."""
    folder = tmp_path_factory.mktemp("any_size")
    make_run(folder / "deep", TEXTS, Shape(n_layers=LAYERS))
    make_run(folder / "numbers", {"a.txt": PROSE}, Shape(3, 8, 2, weights=False, scores=False, text=False))
    make_run(folder / "dense", {"a.txt": PROSE}, Shape(2, 24, 24))
    make_run(folder / "pairs", {"a.txt": PROSE}, Shape(2, 8, 2, routers_a_layer=2))
    make_run(folder / "broad", {"a.txt": PROSE}, Shape(10, 256, 2))
    make_run(folder / "many", {f"d/{i:03}.txt": CODE if i == 137 else PROSE for i in range(200)}, Shape(1, 8, 1))
    return folder


@pytest.fixture(scope="module")
def address(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An explorer for which every document is too large to be sent at once."""
    with serving(folder, tmp_path_factory.mktemp("log") / "log.txt", EVERYTHING_IS_LARGE) as address:
        yield address


@pytest.fixture(scope="module")
def deep(folder: Path) -> DocumentRouting:
    return open_run(folder / "deep").document("prose/river.txt")


def layers_asked(page: Page) -> list[str]:
    return [url for url in page.requests if "/_moe_probe/layer" in url]  # type: ignore[attr-defined]


def test_a_layer_that_comes_by_itself_wears_the_right_colours(page: Page, address: str, deep: DocumentRouting) -> None:
    page.goto(f"{address}/?run=deep&document=0&layer=7")
    show_layer(page, 7)
    assert colours(page, SEEN) == deep.experts(layer=7)[:SEEN, 0].tolist()
    view(page).locator(".moe-text").focus()
    for key, layer in (("ArrowRight", 8), ("Home", 0), ("End", LAYERS - 1), ("ArrowLeft", LAYERS - 2)):
        page.keyboard.press(key)
        show_layer(page, layer)
        assert colours(page, SEEN) == deep.experts(layer=layer)[:SEEN, 0].tolist()
    assert page.errors == []  # type: ignore[attr-defined]


def test_neighbours_come_before_they_are_asked_for_and_none_comes_twice(page: Page, address: str) -> None:
    page.goto(f"{address}/?run=deep&document=0&layer=5")
    show_layer(page, 5)
    wait_for_all(page)
    for key in ("ArrowRight", "ArrowLeft", "Home", "End"):
        page.keyboard.press(key)
    show_layer(page, LAYERS - 1)
    asked = layers_asked(page)
    assert len(asked) == len(set(asked)) == LAYERS
    assert asked[0].endswith("router=5")


def wait_for_all(page: Page) -> None:
    for _ in range(100):
        if len(layers_asked(page)) == LAYERS:
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{len(layers_asked(page))} of {LAYERS} layers came")


def test_the_path_of_a_token_needs_no_layer_to_be_here(page: Page, address: str, deep: DocumentRouting) -> None:
    page.goto(f"{address}/?run=deep&document=0&layer=0&token=7")
    steps = view(page).locator(".moe-step")
    expect(steps).to_have_count(LAYERS)
    for router in deep.routers:
        experts, weights = deep.experts(router=router.index)[7], deep.weights(router=router.index)[7]
        said = ", ".join(f"expert {e} × {w:.2f}" for e, w in zip(experts, weights, strict=True))
        expect(steps.nth(router.index)).to_have_attribute("aria-label", f"Layer {router.layer}: {said}")
    steps.nth(9).click()
    show_layer(page, 9)
    assert colours(page, SEEN) == deep.experts(layer=9)[:SEEN, 0].tolist()


def test_three_layers_side_by_side_come_together(page: Page, address: str, deep: DocumentRouting) -> None:
    page.goto(f"{address}/?run=deep&document=0&layer=2&view=three")
    cells = view(page).locator(".moe-row").first.locator(".moe-cell")
    expect(cells).to_have_count(3)
    for pane, layer in enumerate((0, (LAYERS - 1) // 2, LAYERS - 1)):
        wanted = re.compile(rf"\bc{deep.experts(layer=layer)[3, 0]}\b")
        expect(cells.nth(pane).locator("span").nth(3)).to_have_class(wanted)


def test_a_layer_that_does_not_come_is_said_and_the_one_before_stays(
    page: Page, address: str, deep: DocumentRouting
) -> None:
    page.route("**/_moe_probe/layer*router=4", lambda route: route.fulfill(status=404, body="no such document"))
    page.goto(f"{address}/?run=deep&document=0&layer=3")
    show_layer(page, 3)
    page.keyboard.press("ArrowRight")
    expect(view(page).locator(".moe-trouble")).to_have_text("This layer could not be brought: no such document")
    assert colours(page, SEEN) == deep.experts(layer=3)[:SEEN, 0].tolist()
    page.keyboard.press("ArrowRight")
    show_layer(page, 5)
    expect(view(page).locator(".moe-trouble")).to_have_text("")
    assert colours(page, SEEN) == deep.experts(layer=5)[:SEEN, 0].tolist()


def test_two_readers_of_two_documents_see_each_their_own(
    context: BrowserContext, address: str, folder: Path, deep: DocumentRouting
) -> None:
    other = open_run(folder / "deep").document("code/area.py")
    one, two = context.new_page(), context.new_page()
    one.goto(f"{address}/?run=deep&document=0&layer=3")
    two.goto(f"{address}/?run=deep&document=2&layer=6")
    show_layer(one, 3)
    show_layer(two, 6)
    one.bring_to_front()  # a page that nobody looks at draws nothing
    expect(tokens(one)).not_to_have_count(0)
    assert colours(one, SEEN) == deep.experts(layer=3)[:SEEN, 0].tolist()
    two.bring_to_front()
    expect(tokens(two)).not_to_have_count(0)
    assert colours(two, SEEN) == other.experts(layer=6)[:SEEN, 0].tolist()
    two.keyboard.press("Home")
    show_layer(two, 0)
    expect_query(two, layer="0")
    expect_query(one, layer="3", document="0")


def test_a_run_without_text_and_weights_shows_what_it_has(page: Page, address: str, folder: Path) -> None:
    ids = open_run(folder / "numbers").tokens()["token_id"].to_list()
    page.goto(f"{address}/?run=numbers&layer=1&token=2")
    show_layer(page, 1)
    expect(view(page).locator(".moe-lacks")).to_contain_text("no text: the numbers are its tokens' ids")
    expect(view(page).locator(".moe-lacks")).to_contain_text("Weights were not recorded")
    assert tokens(page).nth(4).text_content() == str(ids[4])
    expect(view(page).locator(".moe-token")).to_have_text(str(ids[2]))
    expect(view(page).locator(".moe-card")).not_to_contain_text("entropy")


def test_of_many_slots_the_heaviest_are_shown(page: Page, address: str, folder: Path) -> None:
    experts = open_run(folder / "dense").document(0).experts(layer=0)[5]
    page.goto(f"{address}/?run=dense&layer=0&token=5&slot=any")
    step = view(page).locator(".moe-step").first
    expect(step).to_have_attribute("aria-label", re.compile(rf"^Layer 0: expert {experts[0]} × .*, and 16 more$"))
    expect(view(page).locator(".moe-side")).to_contain_text("Every token goes to every expert here")


def test_two_routers_of_a_layer_are_told_apart_on_the_way(page: Page, address: str) -> None:
    page.goto(f"{address}/?run=pairs&router=1&token=5")
    expect(view(page).locator(".moe-step-name")).to_have_text(["0·1", "0·2", "1·1", "1·2"])
    expect(view(page).locator(".moe-title")).to_have_text("Layer 0 · mlp")


def test_a_cell_among_thousands_opens_the_text_there(page: Page, address: str) -> None:
    page.goto(f"{address}/layers?run=broad")
    click_cell(page, 137, 6, "layers_heatmap")
    show_layer(page, 6)
    expect_query(page, layer="6", focus="137")


def test_one_document_of_two_hundred_is_found_by_typing(page: Page, address: str) -> None:
    page.goto(f"{address}/?run=many")
    show_layer(page, 0)
    box = page.get_by_test_id("stSidebar").get_by_role("combobox", name="Document")
    box.fill("137")
    page.get_by_role("option").first.click()
    expect_query(page, document="137")
    expect(view(page).locator(".moe-text")).to_contain_text("def area(shapes)")
