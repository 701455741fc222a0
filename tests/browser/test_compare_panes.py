"""Two panes over one text in a real Chromium: what each wears, what changed between them, how they move together."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from explorer_page import expect_query
from playwright.sync_api import Locator, Page, expect
from synthetic_run import PROSE, Shape, make_run

from moe_probe.schema import MANIFEST_FILE
from moe_probe.store import DocumentRouting, open_run

SEEN = 40
HOVERED = ".over"


@pytest.fixture(scope="session")
def twins(root: Path, server: str) -> tuple[DocumentRouting, DocumentRouting]:
    """A long text through two models, older than all other runs, so that neither is the first to open."""
    texts = {"long.txt": PROSE * 12, "short.txt": PROSE}
    for name, seed in (("twin-a", 3), ("twin-b", 4)):
        path = make_run(root / name, texts, Shape(n_layers=3, n_experts=4), seed=seed)
        os.utime(path / MANIFEST_FILE, (1, 1))
    return open_run(root / "twin-a").document(0), open_run(root / "twin-b").document(0)


def panes(page: Page) -> Locator:
    found = page.get_by_test_id("panes")
    expect(found).to_have_attribute("data-ready", re.compile(r"\w+"), timeout=60_000)
    return found


def worn(page: Page, side: int) -> list[int]:
    """Return the experts that the first tokens of a pane wear, -1 = none."""
    return panes(page).evaluate(
        """(root, [side, count]) => [...root.querySelectorAll('.moe-pane')[side].querySelectorAll('.moe-cell span')]
             .slice(0, count).map((span) => Number((/\\bc(\\d)\\b/.exec(span.className) || [0, -1])[1]))""",
        [side, SEEN],
    )


def shown_top(page: Page, side: int) -> tuple[int, float]:
    """Return the first token that is wholly in sight of a pane, and how far from its top."""
    return tuple(
        panes(page).evaluate(
            """(root, side) => {
                const scroller = root.querySelectorAll('.moe-text')[side];
                const top = scroller.getBoundingClientRect().top;
                const all = [...scroller.querySelectorAll('.moe-cell span')];
                const first = all.find((span) => span.getBoundingClientRect().top >= top);
                return [first._token, first.getBoundingClientRect().top - top];
            }""",
            side,
        )
    )


MOVED_TOGETHER = """(root, before) => new Promise((done, fail) => {
    const top = (scroller) => {
        const edge = scroller.getBoundingClientRect().top;
        const all = [...scroller.querySelectorAll('.moe-cell span')];
        const first = all.find((span) => span.getBoundingClientRect().top >= edge);
        return first && [first._token, first.getBoundingClientRect().top - edge];
    };
    let frames = 0;
    const look = () => {
        const [a, b] = [...root.querySelectorAll('.moe-text')].map(top);
        if (a && b && a[0] === b[0] && Math.abs(a[1] - b[1]) < 2 && a[0] !== before) done();
        else if (++frames > 900) fail(new Error(`the panes show ${a} and ${b}`));
        else requestAnimationFrame(look);
    };
    look();
})"""


def test_two_runs_stand_side_by_side_and_the_difference_is_counted(
    page: Page, server: str, twins: tuple[DocumentRouting, DocumentRouting]
) -> None:
    page.goto(f"{server}/compare?run=twin-a&against=twin-b&document=0&layer=1")
    expect(panes(page)).to_have_attribute("data-router", "1")
    first, second = (run.experts(layer=1)[:, 0] for run in twins)
    assert worn(page, 0) == first[:SEEN].tolist()
    assert worn(page, 1) == second[:SEEN].tolist()
    n, changed = len(first), int((first != second).sum())
    chance = 1 - sum((first == e).mean() * (second == e).mean() for e in range(4))
    said = page.get_by_test_id("changed")
    share = f"{changed:,} of {n:,} tokens ({100 * changed / n:.1f}%)"
    expect(said).to_have_text(f"{share} changed their first choice; by chance {100 * chance:.1f}%")
    expect(panes(page).locator(".moe-pane h3")).to_have_text(["twin-a", "twin-b"])
    panes(page).get_by_role("button", name=re.compile("Colour only the tokens that changed")).click()
    kept = [e if e != o else -1 for e, o in zip(first[:SEEN].tolist(), second[:SEEN].tolist(), strict=True)]
    expect_query(page, difference="1", against="twin-b")
    assert worn(page, 0) == kept
    dimmed = panes(page).locator(".moe-pane").first.locator(".moe-cell span.dim").count()
    assert dimmed >= kept.count(-1)
    sets = [[set(row) for row in run.experts(layer=1).tolist()] for run in twins]
    page.get_by_test_id("stSidebar").get_by_text("Any slot").click()
    differ = sum(a != b for a, b in zip(*sets, strict=True))
    expect(said).to_contain_text(f"{differ:,} of {n:,} tokens ({100 * differ / n:.1f}%) changed their set of experts")
    expect_query(page, slot="any", difference="1")
    assert page.errors == []  # type: ignore[attr-defined]


def test_n_and_p_go_from_change_to_change_and_a_link_reopens_it(
    page: Page, server: str, twins: tuple[DocumentRouting, DocumentRouting]
) -> None:
    first, second = (run.experts(layer=2)[:, 0] for run in twins)
    changed = [i for i in range(len(first)) if first[i] != second[i]]
    page.goto(f"{server}/compare?run=twin-a&against=twin-b&document=0&layer=2&difference=1")
    expect(panes(page)).to_have_attribute("data-changed", str(len(changed)))
    page.keyboard.press("n")
    page.keyboard.press("n")
    page.keyboard.press("n")
    expect_query(page, token=str(changed[2]))
    page.keyboard.press("p")
    expect_query(page, token=str(changed[1]), layer="2", difference="1")
    chosen = panes(page).locator(".moe-cell span.chosen")
    expect(chosen).to_have_count(2)
    card = panes(page).locator(".moe-pair")
    expect(card).to_contain_text(f"token {changed[1]}changed")
    for run, name in zip(twins, ("twin-a", "twin-b"), strict=True):
        e, w = run.experts(layer=2)[changed[1]], run.weights(layer=2)[changed[1]]
        expect(card).to_contain_text(f"{name} Layer 2: expert {e[0]} × {w[0]:.2f}, expert {e[1]} × {w[1]:.2f}")
    page.reload()
    expect(panes(page)).to_have_attribute("data-changed", str(len(changed)))
    expect(panes(page).locator(".moe-pair")).to_contain_text(f"token {changed[1]}changed")
    panes(page).get_by_role("button", name=re.compile("Previous change")).click()
    expect_query(page, token=str(changed[0]))
    panes(page).get_by_role("button", name=re.compile("Previous change")).click()
    expect_query(page, token=str(changed[-1]))


def test_two_layers_of_one_run_are_compared(
    page: Page, server: str, twins: tuple[DocumentRouting, DocumentRouting]
) -> None:
    page.goto(f"{server}/compare?run=twin-a&document=0&layer=0&other_layer=2")
    expect(panes(page)).to_have_attribute("data-other", "2")
    experts = [twins[0].experts(layer=layer)[:, 0] for layer in range(3)]
    assert worn(page, 0) == experts[0][:SEEN].tolist()
    assert worn(page, 1) == experts[2][:SEEN].tolist()
    expect(panes(page)).to_have_attribute("data-changed", str(int((experts[0] != experts[2]).sum())))
    page.keyboard.press("ArrowRight")
    expect_query(page, layer="1", other_layer="2", against=None)
    expect(panes(page)).to_have_attribute("data-changed", str(int((experts[1] != experts[2]).sum())))
    panes(page).get_by_label("Layer of the right pane").select_option("Layer 0")
    expect_query(page, layer="1", other_layer="0")
    assert worn(page, 1) == experts[0][:SEEN].tolist()
    second = page.get_by_role("combobox", name="Compare with")
    expect(second).to_have_value("Another layer of this run")
    second.fill("twin-b")
    page.get_by_role("option", name="twin-b", exact=True).click()
    expect_query(page, against="twin-b", other_layer=None, layer="1")
    assert worn(page, 1) == twins[1].experts(layer=1)[:SEEN, 0].tolist()


@pytest.mark.parametrize("leader", [0, 1])
def test_the_panes_scroll_together_by_token(page: Page, server: str, twins: object, leader: int) -> None:
    page.goto(f"{server}/compare?run=twin-a&against=twin-b&document=0&layer=1&numbers=1")
    expect(panes(page)).to_have_attribute("data-router", "1")
    text = panes(page).locator(".moe-text").nth(leader)
    for by in (700, 900, -400):
        text.hover()
        before = shown_top(page, leader)[0]
        page.mouse.wheel(0, by)
        panes(page).evaluate(MOVED_TOGETHER, before)
    assert shown_top(page, 0)[0] == shown_top(page, 1)[0] > 0


def test_what_is_pointed_at_is_marked_on_both_sides(
    page: Page, server: str, twins: tuple[DocumentRouting, DocumentRouting]
) -> None:
    page.goto(f"{server}/compare?run=twin-a&against=twin-b&document=0&layer=1")
    expect(panes(page)).to_have_attribute("data-router", "1")
    panes(page).locator(".moe-pane").nth(1).locator(".moe-cell span").nth(6).hover()
    marked = panes(page).locator(f".moe-cell span{HOVERED}")
    expect(marked).to_have_count(2)
    assert marked.evaluate_all("all => all.map((one) => one._token)") == [6, 6]
    tip = panes(page).locator(".moe-tip")
    for run, name in zip(twins, ("twin-a", "twin-b"), strict=True):
        expect(tip).to_contain_text(f"{name} Layer 1: expert {run.experts(layer=1)[6, 0]} × ")
    panes(page).locator(".moe-pane").nth(1).locator(".moe-cell span").nth(6).click()
    expect(panes(page).locator(".moe-cell span.chosen")).to_have_count(2)
    expect_query(page, token="6")


def test_on_a_narrow_screen_one_pane_stands_below_the_other(page: Page, server: str, twins: object) -> None:
    page.goto(f"{server}/compare?run=twin-a&against=twin-b&document=0&layer=1")
    expect(panes(page)).to_have_attribute("data-router", "1")
    left, right = (panes(page).locator(".moe-pane").nth(side) for side in (0, 1))
    expect(left).to_be_visible()
    boxes = left.bounding_box(), right.bounding_box()
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    page.set_viewport_size({"width": 880, "height": 900})
    boxes = left.bounding_box(), right.bounding_box()
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_runs_over_other_text_have_no_panes(page: Page, server: str, twins: object) -> None:
    page.goto(f"{server}/compare?run=twin-a&against=small&document=0&layer=1")
    expect(page.locator(".mp-callout").first).to_contain_text("cannot be compared")
    expect(page.get_by_test_id("panes")).to_have_count(0)
