"""Tracing from the page in a real Chromium: a file is uploaded, a trace is stopped, and its part can be looked at."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from explorer_page import expect_query, view
from own_server import explorer
from playwright.sync_api import Page, expect
from synthetic_run import make_run

from moe_probe.store import open_run

WAIT = 180_000
SENTENCE = "The baker walks along the river and greets the geese."


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traced")
    make_run(folder / "runs/first", {"a.txt": "One two three."})
    return folder / "runs"


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with explorer(runs, runs.parent / "log.txt") as found:
        yield found


def upload(page: Page, address: str, name: str, data: bytes) -> None:
    """Choose a file on the page Trace, and untick the tagger."""
    page.goto(f"{address}/trace")
    page.get_by_text("Tag parts of speech").click()
    page.get_by_test_id("stFileUploader").locator("input[type=file]").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )
    uploader = page.get_by_test_id("stFileUploader")
    expect(uploader.get_by_role("button", name=f"Remove {name}")).to_be_visible(timeout=60_000)
    expect(uploader.get_by_role("progressbar")).to_have_count(0, timeout=60_000)


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def test_a_file_is_traced_and_its_documents_can_be_looked_at(page: Page, address: str, runs: Path) -> None:
    rows = [{"text": SENTENCE, "domain": "prose"}, {"text": "x = 1\n", "domain": "code"}]
    upload(page, address, "Two <b>texts.jsonl.gz", gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    press(page, "Trace")
    expect(page.get_by_test_id("tokenview")).to_have_attribute("data-ready", re.compile(r"\w+"), timeout=WAIT)
    expect(view(page).locator(".moe-text")).to_contain_text(SENTENCE)
    expect_query(page, run="two-b-texts-jsonl", document="0")
    run = open_run(runs / "two-b-texts-jsonl")
    assert run.complete
    assert run.documents()["domain"].to_list() == ["prose", "code"]
    assert [name.rpartition(".jsonl.gz")[2] for name in run.documents()["name"]] == ["#1", "#2"]


def test_a_bomb_and_a_zip_are_refused_and_the_server_stays(page: Page, address: str, runs: Path) -> None:
    before = sorted(path.name for path in runs.iterdir())
    upload(page, address, "bomb.txt.gz", gzip.compress(b"a" * 300_000_000, 1))
    press(page, "Trace")
    expect(page.locator(".mp-callout")).to_contain_text("bomb.txt.gz: more than 50,000,000 bytes", timeout=WAIT)
    assert sorted(path.name for path in runs.iterdir()) == before
    page.goto(f"{address}/?run=first")
    expect(page.get_by_test_id("tokenview")).to_have_attribute("data-ready", re.compile(r"\w+"), timeout=WAIT)
    expect(view(page).locator(".moe-text")).to_contain_text("One two three.")


def test_a_trace_is_stopped_from_the_page_and_its_part_is_kept(page: Page, address: str, runs: Path) -> None:
    row = json.dumps({"text": f"{SENTENCE} " * 30})
    upload(page, address, "long.jsonl", "\n".join([row] * 800).encode())
    press(page, "Trace")
    progress = page.get_by_test_id("stProgress")
    # Three parts at least are through by then, of which one is whole on the disk.
    done = r"([6-9],\d{3}|\d{2,3},\d{3}) of [\d,]+ tokens through the model"
    expect(progress).to_contain_text(re.compile(done), timeout=WAIT)
    press(page, "Stop")
    stopped = page.locator(".mp-callout")
    expect(stopped).to_contain_text("tokens are traced and kept as “long”.", timeout=WAIT)
    kept = int(re.search(r"first ([\d,]+) tokens", stopped.inner_text()).group(1).replace(",", ""))  # type: ignore[union-attr]
    run = open_run(runs / "long")
    assert not run.complete
    assert run.n_tokens == kept > 0
    press(page, "Look at them")
    expect(page.get_by_test_id("tokenview")).to_have_attribute("data-ready", re.compile(r"\w+"), timeout=WAIT)
    expect(view(page).locator(".moe-text")).to_contain_text(SENTENCE)
    expect_query(page, run="long")
