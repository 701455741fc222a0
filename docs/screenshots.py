"""Take the pictures of explorer.md: every page of the explorer, in light and in dark, of the sample run.

    python docs/screenshots.py [--run RUN] [--out FOLDER] [--width 1400] [--only text,layers]

Without `--run` the sample texts are traced with the bundled model first, in full precision and in 4 bits, so that
Compare has two runs. A real Chromium is driven, as in the browser tests. The page Ablate is left as it opens.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/browser"))
from conftest import FLAGS, find_browser, serving

import moe_probe as mp
from moe_probe_data import SAMPLE

FOLDER = Path(__file__).parent / "images/explorer"
HEIGHT = 900
SETTLED = (
    "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
    " && !document.querySelector('[data-testid=stSpinner], [data-stale=true]')"
)


@dataclass(frozen=True)
class Shot:
    """A page's picture: its address, and what stands there once it is drawn (a test id, or else a chart)."""

    name: str
    query: Mapping[str, str] = field(default_factory=dict)
    shows: str = ".js-plotly-plot"


SHOTS = (
    Shot("text", {"document": "10", "layer": "2", "token": "24"}, "[data-testid=tokenview][data-ready]"),
    Shot("layers"),
    Shot("syntax", {"layer": "1"}),
    Shot("domains", {"layer": "3"}),
    Shot("experts", {"layer": "1"}),
    Shot("coactivation", {"layer": "1"}),
    Shot("paths", {"layer": "1"}),
    Shot("compare", {"layer": "4"}),
    Shot("ablate", {"layer": "1"}, "[data-testid=stMain] button"),
    Shot("trace", {}, "textarea"),
    Shot("runs", {}, "[data-testid=stDataFrame], table"),
)


def trace_sample(folder: Path) -> str:
    """Trace the sample texts twice and return the name of the run that is shown."""
    for name, quantization in (("sample-4bit", "4bit"), ("sample", None)):
        mp.trace(
            mp.load("tiny-mixtral", quantization=quantization),
            [SAMPLE],
            folder / name,
            labels=("upos", "shape", "code", "domain"),
            language="en",
            surprisal=True,
        )
    return "sample"


def open_shot(page: Page, address: str, shot: Shot, run: str) -> None:
    """Open a page and wait until nothing moves on it."""
    query = "&".join(f"{name}={value}" for name, value in {"run": run, **shot.query}.items())
    page.goto(f"{address}/{'' if shot.name == 'text' else shot.name}?{query}")
    expect(page.locator(shot.shows).first).to_be_visible(timeout=120_000)
    page.wait_for_function(SETTLED, timeout=120_000)
    page.wait_for_timeout(1_000)  # charts ease in


def save(png: bytes, path: Path) -> None:
    """Write a picture without loss, at half the size of a PNG."""
    Image.open(BytesIO(png)).convert("RGB").save(path, lossless=True, method=6)
    print(path)


def take(browser: Browser, address: str, run: str, folder: Path, width: int, only: set[str]) -> None:
    """Take every picture."""
    themes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for theme in themes:
        context = browser.new_context(
            viewport={"width": width, "height": HEIGHT}, color_scheme=theme, reduced_motion="reduce"
        )
        page = context.new_page()
        for shot in SHOTS:
            if not only or shot.name in only:
                open_shot(page, address, shot, run)
                save(page.screenshot(), folder / f"{shot.name}-{theme}.webp")
        context.close()


def main() -> None:
    """Trace, serve, take, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run to show, with its neighbours, in place of the sample run")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--width", type=int, default=1400)
    parser.add_argument("--only", default="", help="pages, separated by commas")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        root = asked.run.resolve().parent if asked.run else Path(scratch).resolve() / "runs"
        run = asked.run.name if asked.run else trace_sample(root)
        asked.out = asked.out.resolve()
        os.chdir(root.parent)  # as one would start the explorer, so that pictures show no folder above
        with serving(root, Path(scratch) / "log.txt") as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=find_browser(), args=FLAGS)
            take(browser, address, run, asked.out, asked.width, set(filter(None, asked.only.split(","))))
            browser.close()


if __name__ == "__main__":
    main()
