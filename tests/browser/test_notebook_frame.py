"""The frame that a notebook shows, inside a page as a notebook is one: it draws itself and reaches nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, FrameLocator, Page, expect

from moe_probe.notebook import show
from moe_probe.recording import Routing
from moe_probe.recording.routing import Decisions
from moe_probe.schema import Router
from moe_probe.store import open_run

SEEN = 60


def show_in_a_notebook(browser: Browser, markup: str) -> tuple[Page, FrameLocator]:
    context = browser.new_context(viewport={"width": 1100, "height": 800}, offline=True)
    page = context.new_page()
    page.said = []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(str(error)))  # type: ignore[attr-defined]
    page.set_content(f"<!doctype html><script>window.secret = 1</script><div>{markup}</div>")
    frame = page.frame_locator("iframe")
    expect(frame.locator("#view")).to_have_attribute("data-ready", "true")
    return page, frame


def colours(frame: FrameLocator) -> list[int]:
    return frame.locator("#view").evaluate(
        """(root, count) => [...root.querySelectorAll('.moe-cell span')].slice(0, count)
             .map((span) => Number((/\\bc(\\d)\\b/.exec(span.className) || [0, -1])[1]))""",
        SEEN,
    )


def test_a_document_is_drawn_in_its_frame_and_its_layers_change(browser: Browser, root: Path) -> None:
    document = open_run(root / "small").document(0)
    page, frame = show_in_a_notebook(browser, document._repr_html_())
    assert colours(frame) == document.experts(layer=0)[:SEEN, 0].tolist()
    frame.locator(".moe-scrubber").fill("3")
    expect(frame.locator("#view")).to_have_attribute("data-router", "3")
    assert colours(frame) == document.experts(layer=3)[:SEEN, 0].tolist()
    expect(frame.get_by_role("button", name="Export")).to_have_count(0)
    reached = frame.locator("#view").evaluate(
        "() => { try { return String(window.parent.secret); } catch (error) { return error.name; } }"
    )
    assert reached == "SecurityError"
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()


def test_a_recording_is_drawn_with_positions_or_with_the_texts_that_are_given(browser: Browser) -> None:
    rng = np.random.default_rng(3)
    experts = rng.permuted(np.tile(np.arange(8), (5, 1)), axis=1)[:, :2].T
    weights = np.array([[0.75] * 5, [0.25] * 5], np.float32)
    routing = Routing(
        [Router(0, "layers.4.mlp", 4, 8, 2, "softmax top-k")],
        [Decisions(experts, weights, None, None)],
        np.array([0, 0, 0, 1, 1], np.int32),
        np.array([0, 1, 2, 0, 1], np.int32),
    )
    page, frame = show_in_a_notebook(browser, routing._repr_html_())
    expect(frame.locator(".moe-title")).to_have_text("Layer 4")
    expect(frame.locator(".moe-cell span")).to_have_text(["0", "1", "2", "0", "1"])
    assert colours(frame) == experts[0].tolist()
    page.context.close()
    tokens = ["<b>One</b>", " two", " three", "Four", " five"]
    page, frame = show_in_a_notebook(browser, show(routing, tokens=tokens)._repr_html_())
    expect(frame.locator(".moe-cell span")).to_have_text([token.strip() for token in tokens])
    assert page.said == []  # type: ignore[attr-defined]
    page.context.close()
