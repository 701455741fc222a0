"""How fast the explorer is in a real Chromium, beside Streamlit's own way of showing coloured text.

Three shapes: 50,000 tokens × 32 layers × 2 slots of 8 experts, 5,000 × 61 × 8 of 256, and one document of 200,000 × 32.
Claim, for the first two, in medians: a change of layer is repainted in under 50 ms, the first view stands in under 3 s,
a page that was seen before comes in under 1 s, a click in a chart shows its text in under 300 ms, the tab's heap with
its buffers stays under 150 MB, and a rerun that changes nothing sends under 5 KB. The rival, in the same run on the
same machine, is `st.html` with one coloured span a token. `explorer_clients.py` has ten readers at once.

    python benchmarks/explorer.py [--samples 21] [--shapes mixtral,deepseek,long] [--no-rival] [--no-clients]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/browser"))
from conftest import FLAGS, find_browser, free_port, serving, wait_until_up
from explorer_clients import run_clients
from synthetic_run import PROSE, Shape, make_run, tokenise

SIZE = {"width": 1400, "height": 900}


@dataclass(frozen=True)
class Case:
    """A document of so many tokens, of a model of a shape."""

    tokens: int
    shape: Shape

    @property
    def said(self) -> str:
        """The case in numbers."""
        return f"{self.tokens:,} × {self.shape.n_layers} × {self.shape.n_slots} of {self.shape.n_experts}"


CASES = {
    "mixtral": Case(50_000, Shape(32, 8, 2)),
    "deepseek": Case(5_000, Shape(61, 256, 8)),
    "long": Case(200_000, Shape(32, 8, 2)),
}
PAGES = ("Layers", "Syntax", "Domains", "Experts", "Co-activation", "Paths", "Runs")
BASELINE = """
import streamlit as st
from html import escape
from moe_probe.store import open_run
@st.cache_resource
def read():
    run = open_run({run!r})
    document = run.document(0)
    return document.tokens["text"].to_list(), [document.experts(router=r.index)[:, 0].tolist() for r in run.routers]
texts, experts = read()
st.session_state.setdefault("layer", 0)
if st.button("next"):
    st.session_state.layer = (st.session_state.layer + 1) % len(experts)
layer = st.session_state.layer
colours = {colours!r}
style = "<style>" + "".join(f".b{{i}}{{{{background:{{c}}}}}}" for i, c in enumerate(colours)) + "</style>"
spans = "".join(f'<span class="b{{e}}">{{escape(t)}}</span>' for t, e in zip(texts, experts[layer]))
box = "white-space:pre-wrap;height:600px;overflow:auto"
st.html(f'{{style}}<div id="text" data-layer="{{layer}}" style="{{box}}">{{spans}}</div>')
"""
# From an action to the first paint in which `done` holds: a message sent in an animation frame arrives after its paint.
MEASURE = """
async ({act, done}) => {
    const action = new Function(act), finished = new Function('return ' + done);
    const start = performance.now();
    action();
    while (!finished()) await new Promise((go) => requestAnimationFrame(go));
    await new Promise((go) => requestAnimationFrame(() => {
        const channel = new MessageChannel();
        channel.port1.onmessage = go;
        channel.port2.postMessage(0);
    }));
    return performance.now() - start;
}
"""
ROOT = (
    "[...document.querySelectorAll('*')].map((e) => e.shadowRoot?.querySelector('[data-testid=tokenview]'))"
    ".find(Boolean)"
)
# From the next press of the mouse to the first frame in which `done` holds, in `window.waited`.
WATCH = """
(done) => {
    const finished = new Function('return ' + done);
    window.waited = new Promise((go) => addEventListener('pointerdown', () => {
        const start = performance.now();
        const look = () => (finished() ? go(performance.now() - start) : requestAnimationFrame(look));
        requestAnimationFrame(look);
    }, { once: true, capture: true }));
}
"""
STILL = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
SERVE_BASELINE = (
    "import streamlit as st; from moe_probe_app.serve import server_options;"
    " st.App({script!r}).run(config=server_options({{port}}))"
)


@contextmanager
def serving_script(command: str, log: Path) -> Iterator[str]:
    """Run a server's command and yield its address."""
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", command.format(port=port)], stdout=out, stderr=out)
        try:
            wait_until_up(process, f"http://localhost:{port}/_stcore/health", log)
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def measure_first_view(browser: Browser, url: str) -> float:
    """Return the seconds from an address to coloured text."""
    page = browser.new_page(viewport=SIZE)
    start = time.perf_counter()
    page.goto(url)
    _wait_ready(page)
    seconds = time.perf_counter() - start
    page.close()
    return seconds


def measure_layers(page: Page, n_layers: int, samples: int) -> list[float]:
    """Return the milliseconds of changes of layer, up and down, each to the next."""
    page.evaluate(f"window.root = {ROOT}")
    key = "document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{0}', bubbles: true, composed: true}}))"
    times = []
    for i in range(samples):
        forward = i % (2 * (n_layers - 1)) < n_layers - 1
        layer = int(page.evaluate("window.root.dataset.router")) + (1 if forward else -1)
        act = key.format("ArrowRight" if forward else "ArrowLeft")
        times.append(page.evaluate(MEASURE, {"act": act, "done": f"window.root.dataset.router === '{layer}'"}))
    return times


def measure_rerun(page: Page, received: list[int]) -> float:
    """Return the kilobytes that a rerun which changes nothing brings."""
    shown = int(page.evaluate("window.root.dataset.router"))
    page.wait_for_function(f"new URLSearchParams(location.search).get('layer') === '{shown}'", timeout=60_000)
    _wait_still(page)
    received.clear()
    page.keyboard.press("r")  # Streamlit's key for a rerun
    page.wait_for_timeout(1500)
    assert received, "the rerun sent nothing: was it asked for?"
    return sum(received) / 1000


def measure_pages(page: Page) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Return the seconds to each page, the first time, when it is counted, and two times after."""
    visits: list[dict[str, float]] = []
    for _ in range(3):
        seconds = {}
        for name in PAGES:
            done = f"document.querySelector('.mp-heading h1')?.textContent === '{name}' && {STILL}"
            seconds[name] = _click(page, name, done) / 1000
            _wait_still(page)
        seconds["Text"] = _click(page, "Text", f"{ROOT}?.dataset.router !== undefined && {STILL}") / 1000
        visits.append(seconds)
    return visits[0], visits[1:]


def _click(page: Page, name: str, done: str) -> float:
    page.evaluate(WATCH, done)
    page.get_by_role("link", name=name, exact=True).click()
    return float(page.evaluate("window.waited"))


def measure_chart_clicks(page: Page, samples: int) -> list[float]:
    """Return the milliseconds from a click on a cell of a heatmap to its text."""
    times = []
    for i in range(samples):
        page.get_by_role("link", name="Layers", exact=True).click()
        page.locator(".st-key-layers_heatmap .nsewdrag").wait_for(state="attached", timeout=60_000)
        _wait_still(page)
        layer = 1 + 3 * i % 20
        place = page.locator(".st-key-layers_heatmap .js-plotly-plot").evaluate(
            """(chart, layer) => {
                const { xaxis, yaxis } = chart._fullLayout;
                const box = chart.getBoundingClientRect();
                return [box.left + xaxis._offset + xaxis.l2p(3), box.top + yaxis._offset + yaxis.l2p(layer)];
            }""",
            layer,
        )
        page.mouse.move(place[0] - 3, place[1] - 2)
        page.mouse.move(*place)
        page.evaluate(WATCH, f"{ROOT}?.dataset.router === '{layer}'")
        page.mouse.click(*place)
        times.append(float(page.evaluate("window.waited")))
    return times


def measure_memory(browser: Browser, page: Page) -> tuple[float, float]:
    """Return the megabytes of the tab's heap with its buffers, and of its whole process."""
    tab = page.context.new_cdp_session(page)
    tab.send("HeapProfiler.collectGarbage")
    page.wait_for_timeout(500)
    heap = float(page.evaluate("performance.memory.usedJSHeapSize / 1e6"))
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    renderers = [one["id"] for one in processes if one["type"] == "renderer"]
    return heap, max(psutil.Process(pid).memory_full_info().uss for pid in renderers) / 1e6


def measure_case(browser: Browser, url: str, case: Case, samples: int) -> dict[str, float]:
    """Return all that is claimed of a shape."""
    found = {"first view, run not yet read (s)": measure_first_view(browser, url)}
    page = browser.new_page(viewport=SIZE)
    received: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: received.append(len(data))))
    page.goto(url)
    _wait_ready(page)
    found["first view (s)"] = statistics.median(measure_first_view(browser, url) for _ in range(samples))
    layers = measure_layers(page, case.shape.n_layers, samples)
    found |= {"layer change (ms)": statistics.median(layers), "layer change, slowest (ms)": max(layers)}
    found["unchanged rerun (KB)"] = measure_rerun(page, received)
    counted, seen = measure_pages(page)
    by_page = {name: statistics.median(visit[name] for visit in seen) for name in counted}
    slowest = max(by_page, key=by_page.__getitem__)
    found["page, when first counted, slowest (s)"] = max(counted.values())
    found |= {
        "page switch (s)": statistics.median(seconds for visit in seen for seconds in visit.values()),
        f"page switch, slowest: {slowest} (s)": by_page[slowest],
    }
    clicks = measure_chart_clicks(page, samples)
    found |= {"chart click to text (ms)": statistics.median(clicks), "chart click, slowest (ms)": max(clicks)}
    found["tab, heap and buffers (MB)"], found["tab, whole process (MB)"] = measure_memory(browser, page)
    page.close()
    return found


def measure_baseline(browser: Browser, url: str, samples: int, n_layers: int) -> float:
    """Return the median time of a layer change through st.html in milliseconds."""
    page = browser.new_page(viewport=SIZE)
    page.goto(url)
    page.locator("#text").wait_for(timeout=60_000)
    times = []
    for i in range(1, samples + 1):
        act = "[...document.querySelectorAll('button')].find((b) => b.textContent.trim() === 'next').click()"
        done = f"document.querySelector('#text')?.dataset.layer === '{i % n_layers}'"
        times.append(page.evaluate(MEASURE, {"act": act, "done": done}))
        _wait_still(page)
    return statistics.median(times)


def _wait_ready(page: Page) -> None:
    page.wait_for_function(
        f"() => {{ const root = {ROOT}; return root && root.dataset.router && root.querySelector('.moe-cell .c0') }}",
        timeout=60_000,
    )


def _wait_still(page: Page) -> None:
    # A locator, everywhere: the handle that wait_for_selector returns would keep its element, and a chart, in the tab.
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for(timeout=600_000)


def _text_of(tokens: int) -> str:
    return PROSE * (tokens // len(tokenise(PROSE)) + 1)


def _say(title: str, values: dict[str, float]) -> None:
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:44} {value:10.2f}", flush=True)


def measure_rival(folder: Path, samples: int, ours: float) -> dict[str, float]:
    """Return what `st.html` takes for the first shape, and the ratio."""
    from moe_probe.palette import EXPERT_COLOURS

    case = CASES["mixtral"]
    run = folder / "mixtral/large"
    (folder / "baseline.py").write_text(BASELINE.format(run=str(run), colours=list(EXPERT_COLOURS)))
    command = SERVE_BASELINE.format(script=str(folder / "baseline.py"))
    with sync_playwright() as playwright, serving_script(command, folder / "baseline.log") as url:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        theirs = measure_baseline(browser, url, samples, case.shape.n_layers)
        browser.close()
    return {"st.html, layer change (ms)": theirs, "ratio, ours ÷ st.html": ours / theirs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=21, help="of first views, layer changes and clicks, at least 15")
    parser.add_argument("--shapes", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--no-rival", action="store_true", help="leave st.html out")
    parser.add_argument("--no-clients", action="store_true", help="leave the ten readers out")
    asked = parser.parse_args()
    samples = max(asked.samples, 15)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found: dict[str, dict[str, float]] = {}
        for shape in asked.shapes.split(","):
            case = CASES[shape]
            make_run(folder / shape / "large", {"a/large.txt": _text_of(case.tokens)}, case.shape)
            with sync_playwright() as playwright, serving(folder / shape, folder / f"{shape}.log") as url:
                browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
                found[shape] = measure_case(browser, url, case, samples)
                browser.close()
            _say(case.said, found[shape])
        if "mixtral" in found and not asked.no_rival:
            _say("the rival", measure_rival(folder, samples, found["mixtral"]["layer change (ms)"]))
    if not asked.no_clients:
        _say("readers at once", run_clients(10, 20))


if __name__ == "__main__":
    main()
