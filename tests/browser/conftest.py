"""A real server on a free port, a real Chromium, and runs made up for them: one of each a session."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from synthetic_run import CODE, PROSE, TEXTS, Shape, make_run

BROWSERS = (
    "chromium-headless-shell",  # the same without windows, which take half of the processor's time
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
REPOSITORY = Path(__file__).parents[2]

expect.set_options(timeout=40_000)


def find_browser() -> str:
    """Return a Chromium that is installed; these tests mean nothing without one, so they never pass it over."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.fail(
        f"no Chromium found (looked for {', '.join(BROWSERS)}); install one: apt-get install chromium-headless-shell,"
        " or playwright install chromium and put it on PATH",
        pytrace=False,
    )


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three runs, the small one the newest."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "wide", {"prose/river.txt": PROSE * 3}, Shape(n_layers=5, n_experts=64, n_slots=4, dropped_every=5))
    make_run(root / "other", {"prose/river.txt": PROSE, "code/area.py": CODE}, seed=11)
    make_run(root / "small", TEXTS)
    return root


@pytest.fixture(scope="session")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The explorer as the command line starts it; yields its address."""
    with serving(root, tmp_path_factory.mktemp("server") / "log.txt") as address:
        yield address


@contextmanager
def serving(root: Path, log: Path, before: str = "") -> Iterator[str]:
    """Start the explorer on a folder of runs, on a free port; yields its address, and stops it at the end.

    `before` is Python that the server runs first.
    """
    port = free_port()
    command = (
        f"{before}\n"
        "from pathlib import Path; from moe_probe_app.serve import main;"
        f" main(Path({str(root)!r}), port={port}, open_browser=False)"
    )
    path = os.pathsep.join(
        map(str, (REPOSITORY, REPOSITORY / "app", REPOSITORY / "kernels", os.environ.get("PYTHONPATH", "")))
    )
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", command], stdout=out, stderr=out, env={**os.environ, "PYTHONPATH": path}
        )
        try:
            wait_until_up(process, f"http://localhost:{port}/_stcore/health", log)
            yield f"http://localhost:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Ask until the server answers, or has ended."""
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"the server ended before it was up:\n{log.read_text()}", pytrace=False)
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            try:
                process.wait(timeout=0.15)
            except subprocess.TimeoutExpired:
                continue
    pytest.fail(f"the server did not answer:\n{log.read_text()}", pytrace=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests."""
    path = find_browser()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def kept_context(browser: Browser) -> Iterator[BrowserContext]:
    """A browser context for all tests that want nothing special: what the server sends is fetched and compiled once."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def context(kept_context: BrowserContext) -> Iterator[BrowserContext]:
    """A browser context with no pages, no cookies and nothing stored: no memory of other tests."""
    yield kept_context
    for page in kept_context.pages:
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(page.url))
        kept_context.new_cdp_session(page).send(
            "Storage.clearDataForOrigin", {"origin": origin, "storageTypes": "local_storage,indexeddb,cache_storage"}
        )
        page.close()
    kept_context.clear_cookies()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    """A fresh page, which remembers every request and every error in `page.requests` and `page.errors`."""
    page = context.new_page()
    page.requests = []  # type: ignore[attr-defined]
    page.errors = []  # type: ignore[attr-defined]
    page.on("request", lambda request: page.requests.append(request.url))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.errors.append(str(error)))  # type: ignore[attr-defined]
    return page
