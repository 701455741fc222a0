"""Hostile runs and uninvited readers in a real Chromium: nothing runs, nothing leaves, and the explorer stays up."""

from __future__ import annotations

import base64
import http.client
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from explorer_page import expect_query, view
from own_server import explorer
from playwright.sync_api import Browser, Page, expect
from synthetic_run import make_run

sys.path.insert(0, str(Path(__file__).parents[1]))
from hostile_runs import MARKUP, make_hostile, make_plain

from moe_probe.schema import MANIFEST_FILE

PAGES = ("", "layers", "syntax", "domains", "experts", "coactivation", "paths", "compare", "ablate", "trace", "runs")
TOKEN = "a token; with signs & 100 % secret"
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An explorer of hostile runs, and of a good one that is the oldest."""
    folder = tmp_path_factory.mktemp("hostile")
    plain = make_plain(folder / "plain")
    good = shutil.copytree(plain, folder / "runs/good")
    os.utime(good / MANIFEST_FILE, (1, 1))
    for name in ("deep json", "a label of markup", "half of the routing", "tokens elsewhere", "experts out of range"):
        make_hostile(folder / "runs", name, plain)
    make_hostile(folder / "runs", "markup everywhere", plain)
    marked = shutil.copytree(folder / "runs/markup-everywhere", folder / "runs" / MARKUP.replace("/", "_")[:120])
    os.utime(marked / MANIFEST_FILE, (2, 2))
    with explorer(folder / "runs", folder / "log.txt") as address:
        yield address


@pytest.fixture
def watched(page: Page) -> Page:
    """A page on which no dialog may open and no script of a run may run."""
    page.opened = []  # type: ignore[attr-defined]

    def seen(dialog: object) -> None:
        page.opened.append(str(dialog))  # type: ignore[attr-defined]
        dialog.dismiss()  # type: ignore[attr-defined]

    page.on("dialog", seen)
    return page


def settle(page: Page) -> None:
    """Wait until a page has run."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=90_000)


def ready(page: Page) -> None:
    """Wait until the token view has its document."""
    expect(page.get_by_test_id("tokenview")).to_have_attribute("data-ready", re.compile(r"\w+"), timeout=90_000)


def assert_harmless(page: Page, server: str) -> None:
    assert page.evaluate("window.hacked") is None
    assert page.opened == []  # type: ignore[attr-defined]
    assert page.locator("img[src='x'], img[src*='evil.example'], a[href*='evil.example']").count() == 0
    asked = [url for url in page.requests if not url.startswith((server, "data:", "blob:"))]  # type: ignore[attr-defined]
    assert asked == []
    expect(page.get_by_test_id("stException")).to_have_count(0)


@pytest.mark.parametrize("path", PAGES)
def test_markup_in_every_name_is_only_text(watched: Page, hostile: str, path: str) -> None:
    watched.goto(f"{hostile}/{path}?run=markup-everywhere&layer=1")
    settle(watched)
    assert_harmless(watched, hostile)


def test_a_run_whose_own_name_is_markup_is_shown_as_text(watched: Page, hostile: str) -> None:
    watched.goto(f"{hostile}/runs?run={MARKUP.replace('/', '_')[:120]}")
    settle(watched)
    expect(watched.get_by_text(re.compile(r"<script>window\.hacked=1")).first).to_be_attached()
    watched.goto(f"{hostile}/?run=markup-everywhere&layer=0")
    ready(watched)
    view(watched).locator(".moe-cell span").nth(4).hover()
    view(watched).locator(".moe-cell span").nth(4).click()
    expect(view(watched).locator(".moe-card")).to_contain_text("<script>")
    assert_harmless(watched, hostile)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deep-json", "damaged"),
        ("a-label-of-markup", "which no run has"),
        ("half-of-the-routing", "damaged or cut short"),
        ("tokens-elsewhere", "a link out of"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_words_and_the_good_one_opens_after(
    watched: Page, hostile: str, name: str, said: str
) -> None:
    watched.goto(f"{hostile}/?run={name}")
    expect(watched.locator(".mp-callout")).to_contain_text(said, timeout=60_000)
    assert_harmless(watched, hostile)
    watched.goto(f"{hostile}/?run=good&layer=1")
    ready(watched)
    expect(view(watched).locator(".moe-text")).to_contain_text("The river bends twice")
    expect_query(watched, run="good", layer="1")


def test_a_page_that_cannot_show_a_run_says_so_and_keeps_the_sidebar(watched: Page, hostile: str) -> None:
    watched.goto(f"{hostile}/layers?run=experts-out-of-range")
    expect(watched.locator(".mp-callout")).to_contain_text("has expert 250 in expert_0_0", timeout=60_000)
    watched.get_by_test_id("stSidebar").get_by_role("combobox", name="Run").fill("good")
    watched.get_by_role("option", name="good", exact=True).click()
    expect(watched.locator(".js-plotly-plot").first).to_be_visible(timeout=60_000)
    assert_harmless(watched, hostile)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An explorer that asks for a token, which it has from its environment."""
    folder = tmp_path_factory.mktemp("guarded")
    make_run(folder / "runs/small", {"a.txt": "The river bends twice.\n"})
    with explorer(folder / "runs", folder / "log.txt", variables={"MOE_PROBE_TOKEN": TOKEN}) as address:
        yield address
        assert TOKEN not in (folder / "log.txt").read_text()


def answered(address: str, path: str, method: str = "GET", **headers: str) -> int:
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    status = connection.getresponse().status
    connection.close()
    return status


def shakes_hands(address: str, **headers: str) -> int:
    key = base64.b64encode(os.urandom(16)).decode()
    return answered(address, "/_stcore/stream", Sec_WebSocket_Key=key, **UPGRADE, **headers)


def test_without_the_token_there_is_nothing(guarded: str) -> None:
    paths = (
        "/",
        "/layers",
        "/_stcore/health",
        "/_stcore/host-config",
        "/_moe_probe/layer?key=0123456789abcdef&router=0",
    )
    assert {answered(guarded, path) for path in paths} == {401}
    assert answered(guarded, "/?token=wrong") == 401
    assert answered(guarded, "/_stcore/upload_file/a/b", "PUT") == 401
    assert shakes_hands(guarded) == 403
    assert shakes_hands(guarded, Origin=guarded, Cookie="moe_probe_token_1=x") == 403


def test_the_token_opens_the_view_that_was_asked_for_and_leaves_the_address(
    page: Page, guarded: str, browser: Browser
) -> None:
    page.goto(f"{guarded}/?run=small&layer=2")
    page.get_by_label("This explorer asks for the token").fill("wrong guess")
    page.get_by_role("button", name="Open").click()
    expect(page.get_by_text("That is not the token.")).to_be_visible()
    page.get_by_label("That is not the token.").fill(TOKEN)
    page.get_by_role("button", name="Open").click()
    ready(page)
    expect(view(page).locator(".moe-text")).to_contain_text("The river bends twice.")
    expect_query(page, run="small", layer="2", token=None)
    [cookie] = [one for one in page.context.cookies() if one["name"].startswith("moe_probe_token")]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert TOKEN not in cookie["value"]
    assert page.evaluate("document.cookie").find("moe_probe_token") == -1
    held = f"{cookie['name']}={cookie['value']}"
    assert shakes_hands(guarded, Origin=guarded, Cookie=held) == 101
    assert shakes_hands(guarded, Origin="http://evil.example", Cookie=held) == 403
    fresh = browser.new_context()
    stranger = fresh.new_page()
    answer = stranger.goto(guarded)
    assert answer is not None
    assert answer.status == 401
    fresh.close()


def test_a_foreign_page_opens_no_socket_and_the_server_asks_nobody_who_it_is(hostile: str) -> None:
    assert shakes_hands(hostile, Origin=hostile) == 101
    assert shakes_hands(hostile, Origin="http://evil.example") == 403
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(
            urllib.request.Request(f"{hostile}/_stcore/health", b"", {"Origin": "http://evil.example"}), timeout=20
        )
