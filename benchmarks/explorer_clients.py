"""Ten readers of one explorer at once: how long each waits, whether each sees its own, and what the server keeps.

Each reader has a browser context of its own, looks at a document of its own, and chooses layer after layer in the
sidebar with two seconds of thought in between. Claim: the median wait is under three times that of one reader alone, no
reader ever sees another's document or layer, and 200 interactions leave the server's memory where it was (under 50 MB
more).

    python benchmarks/explorer_clients.py [--clients 10] [--clicks 20]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.async_api import Browser, Page, async_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/browser"))
from conftest import FLAGS, find_browser, serving
from synthetic_run import PROSE, Shape, make_run

THOUGHT_SECONDS = 2.0
WARM_UP_CLICKS = 3
PATIENCE = 180_000  # milliseconds
SHAPE = Shape(16, 8, 2)
VIEW = (
    "[...document.querySelectorAll('*')].map((e) => e.shadowRoot?.querySelector('[data-testid=tokenview]'))"
    ".find(Boolean)"
)
# From the press on an option to the paint in which the view shows its layer.
WATCH = """
(layer) => {
    window.waited = new Promise((done) => addEventListener('pointerdown', () => {
        const start = performance.now();
        const look = () => (window.view.dataset.router === layer ? done(performance.now() - start) : requestAnimationFrame(look));
        look();
    }, { once: true, capture: true }));
}
"""  # noqa: E501


@dataclass(frozen=True)
class Waits:
    """How long one reader waited for each answer, in milliseconds, and what it saw that was not its own."""

    milliseconds: list[float]
    foreign: int


async def open_reader(browser: Browser, url: str, number: int) -> Page:
    """Open a reader's own document in a context of its own."""
    context = await browser.new_context(viewport={"width": 1000, "height": 700})
    page = await context.new_page()
    layer = number % SHAPE.n_layers
    await page.goto(f"{url}/?run=shared&document={number}&layer={layer}", timeout=PATIENCE)
    await page.wait_for_function(f"() => {VIEW}?.dataset.router === '{layer}'", timeout=PATIENCE)
    await page.evaluate(f"window.view = {VIEW}")
    return page


async def read(page: Page, number: int, clicks: int, thought: float) -> Waits:
    """Choose layer after layer in the sidebar."""
    chance = random.Random(number)
    await asyncio.sleep(chance.random() * thought)
    waits, foreign = [], 0
    layer = number % SHAPE.n_layers
    for _ in range(clicks):
        layer = (layer + 1 + chance.randrange(SHAPE.n_layers - 1)) % SHAPE.n_layers
        waits.append(await choose(page, layer))
        await asyncio.sleep(thought)
        foreign += not await sees_its_own(page, number, layer)
    return Waits(waits[WARM_UP_CLICKS:], foreign)


async def choose(page: Page, layer: int) -> float:
    """Choose a layer in the sidebar; return the milliseconds until it is seen."""
    name = f"Layer {layer}"
    box = page.get_by_test_id("stSidebar").get_by_role("combobox", name="Layer")
    await box.fill(name)
    option = page.get_by_role("option", name=name, exact=True)
    await option.wait_for()
    await page.evaluate(WATCH, str(layer))
    await option.click()
    return float(await page.evaluate("window.waited"))


async def sees_its_own(page: Page, document: int, layer: int) -> bool:
    """Say whether view and address show the reader's own document and layer."""
    seen = await page.evaluate(
        """() => ({
            layer: window.view.dataset.router,
            text: window.view.querySelector('.moe-text').textContent,
            query: Object.fromEntries(new URLSearchParams(location.search)),
        })"""
    )
    asked = seen["query"]
    return (
        seen["layer"] == asked["layer"] == str(layer)
        and asked["document"] == str(document)
        and f"Reader {document} " in seen["text"]
    )


async def measure(url: str, server: psutil.Process, clients: int, clicks: int) -> dict[str, float]:
    """Return medians in milliseconds for one reader and for many, what was foreign, and the server's megabytes."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        first = await open_reader(browser, url, 0)
        alone = await read(first, 0, clicks, THOUGHT_SECONDS)
        await first.context.close()
        pages = [await open_reader(browser, url, number) for number in range(clients)]
        before = server.memory_info().rss / 1e6
        together = await asyncio.gather(
            *(read(page, number, clicks, THOUGHT_SECONDS) for number, page in enumerate(pages))
        )
        await asyncio.sleep(THOUGHT_SECONDS)
        after = server.memory_info().rss / 1e6
        await browser.close()
    one = statistics.median(alone.milliseconds)
    many = statistics.median(wait for waits in together for wait in waits.milliseconds)
    return {
        "one reader, answer (ms)": one,
        f"{clients} readers, answer (ms)": many,
        "ratio, many ÷ one": many / one,
        "saw what was not theirs (times)": sum(waits.foreign for waits in (alone, *together)),
        "interactions of the many": clients * clicks,
        "server before the many (MB)": before,
        "server after (MB)": after,
    }


def run_clients(clients: int, clicks: int) -> dict[str, float]:
    """Make a run of a document for each reader, serve it, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        make_run(root / "shared", {f"a/{n}.txt": f"Reader {n} reads.\n" + PROSE * 12 for n in range(clients)}, SHAPE)
        with serving(root, Path(folder) / "log.txt") as url:
            port = int(url.rsplit(":", 1)[1])
            (server,) = {
                child.pid: child
                for child in psutil.Process().children(recursive=True)
                if any(one.laddr.port == port for one in child.net_connections() if one.status == "LISTEN")
            }.values()
            return asyncio.run(measure(url, server, clients, clicks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--clicks", type=int, default=20, help="of each reader")
    asked = parser.parse_args()
    for name, value in run_clients(asked.clients, asked.clicks).items():
        print(f"{name:44} {value:10.2f}")


if __name__ == "__main__":
    main()
