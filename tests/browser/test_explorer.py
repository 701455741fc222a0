"""A tour of the explorer in a real Chromium: what it shows is what the run says, and every view has its address."""

from __future__ import annotations

import csv
import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import polars as pl
import pytest
from explorer_page import choose, click_cell, colours, expect_query, query, show_layer, tokens, view
from playwright.sync_api import Browser, Page, expect
from synthetic_run import HOSTILE

from moe_probe.store import DocumentRouting, open_run
from moe_probe.tables import label_table

SEEN = 60  # tokens compared


@pytest.fixture(scope="session")
def river(root: Path) -> DocumentRouting:
    return open_run(root / "small").document("prose/river.txt")


def test_tokens_wear_the_colours_of_the_experts_that_the_run_says(
    page: Page, server: str, river: DocumentRouting
) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=0")
    show_layer(page, 0)
    assert colours(page, SEEN) == river.experts(layer=0)[:SEEN, 0].tolist()
    view(page).locator(".moe-text").focus()
    for layer in range(1, len(river.routers)):
        page.keyboard.press("ArrowRight")
        show_layer(page, layer)
        assert colours(page, SEEN) == river.experts(layer=layer)[:SEEN, 0].tolist()
    page.keyboard.press("Home")
    show_layer(page, 0)
    assert colours(page, SEEN) == river.experts(layer=0)[:SEEN, 0].tolist()
    assert page.errors == []  # type: ignore[attr-defined]


def test_the_sidebar_and_the_view_show_the_same_layer(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=1")
    show_layer(page, 1)
    page.keyboard.press("End")
    show_layer(page, 5)
    expect(page.get_by_test_id("stSidebar").get_by_role("combobox", name="Layer")).to_have_value("Layer 5")
    expect_query(page, layer="5")
    choose(page, "Layer", "Layer 2")
    show_layer(page, 2)
    expect_query(page, layer="2")


def test_a_click_in_the_legend_focuses_an_expert_and_shift_adds_one(
    page: Page, server: str, river: DocumentRouting
) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=3")
    legend = view(page).locator(".moe-expert")
    expect(legend).to_have_count(8)
    first = river.experts(layer=3)[:, 0]
    share = (first == 2).mean()
    expect(legend.nth(2).locator(".moe-share")).to_have_text(f"{100 * share:.1f}%")
    legend.nth(2).click()
    expect(legend.nth(2)).to_have_attribute("aria-pressed", "true")
    assert colours(page, SEEN) == [2 if expert == 2 else -1 for expert in first[:SEEN]]
    legend.nth(5).click(modifiers=["Shift"])
    expect_query(page, focus="2,5")
    assert colours(page, SEEN) == [expert if expert in (2, 5) else -1 for expert in first[:SEEN]]
    expect(page.get_by_test_id("stMultiSelect").get_by_text("Expert 5")).to_be_visible()
    page.keyboard.press("Escape")
    expect_query(page, focus=None)
    assert colours(page, SEEN) == first[:SEEN].tolist()


def test_any_slot_underlines_the_second_choice(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=3&slot=any&focus=4")
    show_layer(page, 3)
    experts = river.experts(layer=3)
    second = next(i for i in range(SEEN) if experts[i, 1] == 4 and experts[i, 0] != 4)
    neither = next(i for i in range(SEEN) if 4 not in experts[i])
    expect(tokens(page).nth(second)).to_have_class(re.compile(r"\bu4\b"))
    expect(tokens(page).nth(neither)).to_have_class(re.compile(r"\bdim\b"))


def test_a_click_on_a_token_shows_its_path_through_all_layers(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=0")
    show_layer(page, 0)
    tokens(page).nth(7).click()
    steps = view(page).locator(".moe-step")
    expect(steps).to_have_count(6)
    for router in river.routers:
        experts, weights = river.experts(router=router.index)[7], river.weights(router=router.index)[7]
        said = ", ".join(f"expert {e} × {w:.2f}" for e, w in zip(experts, weights, strict=True))
        expect(steps.nth(router.index)).to_have_attribute("aria-label", f"Layer {router.layer}: {said}")
    card = view(page).locator(".moe-card")
    expect(card).to_contain_text("token 7")
    expect(card).to_contain_text(f"upos {river.tokens['upos'][7]}")
    expect_query(page, token="7")
    steps.nth(4).click()
    show_layer(page, 4)


def test_the_tooltip_says_token_labels_slots_and_entropy(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=2")
    show_layer(page, 2)
    tokens(page).nth(5).hover()
    tip = view(page).locator(".moe-tip")
    expect(tip).to_be_visible()
    entropy = river.entropy(layer=2)
    assert entropy is not None
    experts, weights = river.experts(layer=2)[5], river.weights(layer=2)[5]
    expect(tip).to_contain_text(f"token 5Layer 2: {experts[0]} {weights[0]:.2f}{experts[1]} {weights[1]:.2f}")
    expect(tip).to_contain_text(f"router entropy {entropy[5]:.2f} bits")
    expect(tip).to_contain_text(f"upos: {river.tokens['upos'][5]}")


def test_a_search_marks_what_it_finds_and_escape_clears_it(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=0")
    show_layer(page, 0)
    page.keyboard.press("/")
    page.keyboard.type("the BRIDGE")
    text = "".join(river.tokens["text"])
    expect(view(page).locator(".moe-found")).to_have_text(f"{text.lower().count('the bridge')} found")
    page.keyboard.press("Enter")
    expect(view(page).locator(".moe-token")).to_have_text("·the")
    expect_query(page, find="the BRIDGE")
    page.keyboard.press("Escape")
    expect(view(page).locator(".hit")).to_have_count(0)
    expect_query(page, find=None, token=None)


def test_three_layers_stand_side_by_side(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=4")
    show_layer(page, 4)
    view(page).get_by_role("button", name="First, middle and last layer side by side").click()
    heads = view(page).locator(".moe-head h3")
    expect(heads).to_have_text(["Layer 0", "Layer 2", "Layer 5"])
    cells = view(page).locator(".moe-row").first.locator(".moe-cell")
    expect(cells).to_have_count(3)
    for pane, layer in enumerate((0, 2, 5)):
        expect(cells.nth(pane).locator("span").nth(3)).to_have_class(
            re.compile(rf"\bc{river.experts(layer=layer)[3, 0]}\b")
        )
    expect_query(page, view="three")


def test_numbers_can_stand_beside_the_tokens(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=1")
    show_layer(page, 1)
    view(page).get_by_role("button", name="Show each token's expert number").click()
    expect(tokens(page).nth(2)).to_have_attribute("data-expert", str(river.experts(layer=1)[2, 0]))
    expect_query(page, numbers="1")


def test_space_plays_the_layers_to_the_last(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=3")
    show_layer(page, 3)
    page.keyboard.press(" ")
    show_layer(page, 5)
    expect_query(page, layer="5")


def test_a_link_reopens_the_very_view(page: Page, server: str, browser: Browser) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=1")
    show_layer(page, 1)
    page.keyboard.press("ArrowRight")
    view(page).locator(".moe-expert").nth(3).click()
    tokens(page).nth(4).click()
    expect_query(page, layer="2", focus="3", token="4")
    seen = colours(page, SEEN)
    fresh = browser.new_context(viewport={"width": 1400, "height": 900})
    again = fresh.new_page()
    again.goto(page.url)
    show_layer(again, 2)
    assert colours(again, SEEN) == seen
    expect(view(again).locator(".moe-card")).to_contain_text("token 4")
    expect(view(again).locator(".moe-expert").nth(3)).to_have_attribute("aria-pressed", "true")
    expect_query(again, **query(page))
    fresh.close()


def test_a_link_with_nonsense_opens_the_first_view(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=../../etc&document=99&layer=-4&focus=9999,x,3&slot=%3Cb%3E&token=1e9&label=nope&value=1")
    show_layer(page, 0)
    expect_query(page, run="small", document="0", layer="0", focus="3", slot=None, token=None, label=None)


def test_hostile_text_is_shown_as_itself(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=small&document=1&layer=0")
    show_layer(page, 0)
    line = HOSTILE.split("\n")[0]
    expect(view(page).locator(".moe-text")).to_contain_text(line)
    expect(page.get_by_test_id("stSidebar").get_by_role("combobox", name="Document")).to_have_value(
        "hostile/<b>markup</b> :red[x] $x$.txt"
    )
    view(page).locator(".moe-cell span", has_text="script").first.click()
    expect(view(page).locator(".moe-token")).to_have_text("script")
    assert page.evaluate("window.hacked") is None
    assert page.locator("img[src='x']").count() == 0


def test_the_csv_holds_every_token_with_its_experts(page: Page, server: str, river: DocumentRouting) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=0")
    view(page).get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        view(page).get_by_role("menuitem", name="Table of all layers").click()
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode(), newline="")))
    assert [json.loads(row["token"]) for row in rows] == river.tokens["text"].to_list()
    assert [int(row["expert_3_1"]) for row in rows] == river.experts(layer=3)[:, 1].tolist()
    assert [float(row["weight_3_0"]) for row in rows] == pytest.approx(river.weights(layer=3)[:, 0].tolist(), rel=1e-3)


def test_many_experts_are_coloured_by_focus_and_dropped_slots_are_said(page: Page, server: str, root: Path) -> None:
    wide = open_run(root / "wide").document(0)
    page.goto(f"{server}/?run=wide&layer=2")
    show_layer(page, 2)
    first = wide.experts(layer=2)[:, 0].tolist()
    expect(view(page).locator(".moe-expert")).to_have_count(8)
    top = sorted(set(first), key=lambda e: (-first.count(e), e))[:8]
    assert colours(page, SEEN) == [top.index(e) if e in top else -1 for e in first[:SEEN]]
    rare = next(e for e in first[:SEEN] if e not in top)
    choose(page, "Focused experts", f"Expert {rare}")
    expect_query(page, focus=str(rare))
    assert colours(page, SEEN) == [0 if e == rare else -1 for e in first[:SEEN]]
    page.keyboard.press("Escape")
    choose_any = page.get_by_test_id("stSidebar").get_by_text("Any slot")
    choose_any.click()
    dropped = int((wide.experts(layer=2) == -1).sum())
    expect(view(page).locator(".moe-side")).to_contain_text(f"dropped: {dropped} slots held no expert")


def test_a_cell_of_the_load_heatmap_opens_the_text_there(page: Page, server: str) -> None:
    page.goto(f"{server}/layers?run=small&layer=0")
    click_cell(page, 5, 4)
    show_layer(page, 4)
    expect_query(page, layer="4", focus="5")
    expect(view(page).locator(".moe-expert").nth(5)).to_have_attribute("aria-pressed", "true")


def test_a_cell_of_the_syntax_heatmap_filters_the_text(
    page: Page, server: str, root: Path, river: DocumentRouting
) -> None:
    page.goto(f"{server}/syntax?run=small&layer=3")
    table = label_table(open_run(root / "small"), "upos").filter(router=3, slot="0")
    labels = (
        table.group_by("label").agg(pl.col("assignments").sum()).sort("assignments", "label", descending=[True, False])
    )
    picked = labels["label"][1]
    click_cell(page, 1, 0)
    show_layer(page, 3)
    expect_query(page, label="upos", value=picked)
    expert = int(query(page)["focus"])
    expect(view(page).locator(".moe-chip")).to_contain_text(f"upos = {picked}")
    first, tags = river.experts(layer=3)[:SEEN, 0].tolist(), river.tokens["upos"][:SEEN].to_list()
    wanted = [expert if (e, tag) == (expert, picked) else -1 for e, tag in zip(first, tags, strict=True)]
    assert colours(page, SEEN) == wanted
    view(page).locator(".moe-chip").click()
    expect_query(page, label=None, value=None)
    assert colours(page, SEEN) == [e if e == expert else -1 for e in first]


def test_charts_that_are_gone_leave_nothing_in_the_tab(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=0")
    tab = page.context.new_cdp_session(page)
    nodes = []
    for _ in range(4):
        page.get_by_role("link", name="Layers", exact=True).click()
        expect(page.locator(".st-key-layers_heatmap .nsewdrag")).to_be_attached()
        page.get_by_role("link", name="Text", exact=True).click()
        show_layer(page, 0)
        expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
        tab.send("HeapProfiler.collectGarbage")
        nodes.append(tab.send("Memory.getDOMCounters")["nodes"])
    assert nodes[3] - nodes[1] < 100, nodes  # a chart is some hundreds


def test_the_whole_way_goes_with_the_keyboard_alone(page: Page, server: str) -> None:
    page.goto(f"{server}/?run=small&document=0&layer=0")
    show_layer(page, 0)
    page.keyboard.press("ArrowRight")
    show_layer(page, 1)
    page.keyboard.press("Shift+ArrowRight")
    expect(view(page).locator(".moe-card")).to_contain_text("token 0")
    page.keyboard.press("Shift+ArrowRight")
    expect_query(page, token="1")
    legend = view(page).locator(".moe-expert").nth(2)
    for _ in range(60):
        page.keyboard.press("Tab")
        if legend.evaluate("(row) => row === row.getRootNode().activeElement"):
            break
    page.keyboard.press("Enter")
    expect_query(page, focus="2")
    expect(legend).to_be_focused()
    page.keyboard.press("Escape")
    expect_query(page, focus=None)


def test_a_pasted_sentence_is_traced_and_opens(page: Page, server: str) -> None:
    page.goto(f"{server}/trace")
    text = page.get_by_role("textbox", name="Text")
    text.fill("Geese fly <b>south</b>.")
    page.get_by_text("Tag parts of speech").click()
    page.get_by_role("button", name="Trace", exact=True).click()
    expect(page.get_by_test_id("tokenview")).to_have_attribute("data-ready", re.compile(r"\w+"), timeout=180_000)
    expect(view(page).locator(".moe-text")).to_contain_text("Geese fly <b>south</b>.")
    expect_query(page, run="geese-fly-b-south")


def test_a_foreign_host_name_is_refused(server: str) -> None:
    request = urllib.request.Request(f"{server}/_stcore/health", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)


def test_no_request_leaves_the_machine(page: Page, server: str) -> None:
    for path in (
        "/",
        "/layers",
        "/syntax",
        "/domains",
        "/experts",
        "/coactivation",
        "/paths",
        "/compare",
        "/ablate",
        "/trace",
        "/runs",
    ):
        page.goto(f"{server}{path}?run=small")
        expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
        page.wait_for_load_state("networkidle")
    asked = [url for url in page.requests if not url.startswith((server, "data:", "blob:"))]  # type: ignore[attr-defined]
    assert asked == []
    assert page.errors == []  # type: ignore[attr-defined]
