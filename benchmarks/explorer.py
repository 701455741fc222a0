"""How fast the explorer's text is, in a real Chromium, beside Streamlit's own way of showing coloured text.

Claim: with 50,000 tokens × 32 layers × 2 slots a change of layer is repainted in under 50 ms (median), the first view
stands in under 3 s, and a rerun of the page that changes nothing sends under 5 KB. The rival, in the same run on the
same machine, is `st.html` with one coloured span a token.

    python benchmarks/explorer.py [--tokens 50000] [--samples 21]
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
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/browser"))
from conftest import FLAGS, find_browser, free_port, wait_until_up
from synthetic_run import PROSE, Shape, make_run, tokenise

LAYERS = 32
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
SERVE_OURS = (
    "from pathlib import Path; from moe_probe_app.serve import main;"
    " main(Path({root!r}), port={{port}}, open_browser=False)"
)
SERVE_BASELINE = (
    "import streamlit as st; from moe_probe_app.serve import server_options;"
    " st.App({script!r}).run(config=server_options({{port}}))"
)


@contextmanager
def serving(command: str, log: Path) -> Iterator[str]:
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", command.format(port=port)], stdout=out, stderr=out)
        try:
            wait_until_up(process, f"http://localhost:{port}/_stcore/health", log)
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def measure_view(browser: Browser, url: str, samples: int) -> dict[str, float]:
    """Return first views in seconds, layer changes in milliseconds, and a rerun's kilobytes."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    received: list[int] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: received.append(len(data))))
    start = time.perf_counter()
    page.goto(url)
    _wait_ready(page)
    cold = time.perf_counter() - start
    page.evaluate(f"window.root = {ROOT}")
    key = "document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{0}', bubbles: true, composed: true}}))"
    times = []
    for i in range(samples):
        forward = i % (2 * (LAYERS - 1)) < LAYERS - 1
        layer = int(page.evaluate("window.root.dataset.router")) + (1 if forward else -1)
        act = key.format("ArrowRight" if forward else "ArrowLeft")
        times.append(page.evaluate(MEASURE, {"act": act, "done": f"window.root.dataset.router === '{layer}'"}))
    shown = int(page.evaluate("window.root.dataset.router"))
    page.wait_for_function(f"new URLSearchParams(location.search).get('layer') === '{shown}'", timeout=60_000)
    _wait_still(page)
    received.clear()
    page.keyboard.press("r")  # Streamlit's key for a rerun
    page.wait_for_timeout(1500)
    assert received, "the rerun sent nothing: was it asked for?"
    again = browser.new_page(viewport={"width": 1400, "height": 900})
    start = time.perf_counter()
    again.goto(url)
    _wait_ready(again)
    warm = time.perf_counter() - start
    heap = page.evaluate("performance.memory ? performance.memory.usedJSHeapSize / 1e6 : NaN")
    return {
        "first view, run not yet read (s)": cold,
        "first view (s)": warm,
        "layer change (ms)": statistics.median(times),
        "layer change, slowest (ms)": max(times),
        "unchanged rerun (KB)": sum(received) / 1000,
        "page's heap (MB)": heap,
    }


def measure_baseline(browser: Browser, url: str, samples: int) -> float:
    """Return the median time of a layer change through st.html in milliseconds."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(url)
    page.wait_for_selector("#text", timeout=60_000)
    times = []
    for i in range(1, samples + 1):
        act = "[...document.querySelectorAll('button')].find((b) => b.textContent.trim() === 'next').click()"
        done = f"document.querySelector('#text')?.dataset.layer === '{i % LAYERS}'"
        times.append(page.evaluate(MEASURE, {"act": act, "done": done}))
        _wait_still(page)
    return statistics.median(times)


def _wait_ready(page: Page) -> None:
    page.wait_for_function(
        f"() => {{ const root = {ROOT}; return root && root.dataset.ready && root.querySelector('.c0') }}",
        timeout=60_000,
    )


def _wait_still(page: Page) -> None:
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=60_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--samples", type=int, default=21, help="layer changes measured, at least 15")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        root = Path(folder)
        text = PROSE * (asked.tokens // len(tokenise(PROSE)) + 1)
        run = make_run(root / "runs/large", {"large.txt": text}, Shape(LAYERS, 8, 2))
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(FLAGS))
        command = SERVE_OURS.format(root=str(root / "runs"))
        with serving(command, root / "view.log") as url:
            ours = measure_view(browser, url, max(asked.samples, 15))
        from moe_probe.palette import EXPERT_COLOURS

        (root / "baseline.py").write_text(BASELINE.format(run=str(run), colours=list(EXPERT_COLOURS)))
        command = SERVE_BASELINE.format(script=str(root / "baseline.py"))
        with serving(command, root / "baseline.log") as url:
            theirs = measure_baseline(browser, url, max(asked.samples, 15))
        browser.close()
    for name, value in ours.items():
        print(f"{name:36} {value:10.2f}")
    print(f"{'st.html, layer change (ms)':36} {theirs:10.2f}")
    print(f"{'ratio, ours ÷ st.html':36} {ours['layer change (ms)'] / theirs:10.4f}")


if __name__ == "__main__":
    main()
