"""What stands before the explorer's pages: the token, foreign pages, foreign names, and where it may listen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from moe_probe.errors import BadInputError
from moe_probe_app import serve

TOKEN = "a long secret; with ünïcode, and signs"
ASKED = "/layers?run=small&token=a%20long%20secret%3B%20with%20%C3%BCn%C3%AFcode%2C%20and%20signs&layer=3"
COOKIE = "moe_probe_token_1234"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str


async def _page(_request: object) -> PlainTextResponse:
    return PlainTextResponse("the page")


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


def guarded(host: str = "127.0.0.1", token: str | None = TOKEN) -> ASGIApp:
    """Return an application of one page and one socket behind what stands before the explorer."""
    paths = ["/", "/layers", "/_stcore/upload_file/a", "/{rest:path}"]
    routes = [*(Route(path, _page, methods=["GET", "POST", "PUT"]) for path in paths), WebSocketRoute("/ws", _socket)]
    return Starlette(routes=routes, middleware=serve.middleware(serve.host_names(host), 1234, token))


def ask(app: ASGIApp, address: str, method: str = "GET", **headers: str) -> Answer:
    """Send one request as a server hands it to an application; headers in words, `_` for `-`."""
    path, _, query = address.partition("?")
    sent: list[Mapping[str, object]] = []
    fields = {"host": "localhost:1234"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "websocket" if method == "WS" else "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in fields.items()],
        "server": ("127.0.0.1", 1234),
        "client": ("127.0.0.1", 5),
        "subprotocols": [],
    }

    async def receive() -> dict[str, object]:
        return {"type": "websocket.connect"} if method == "WS" else {"type": "http.request", "body": b""}

    async def send(message: Mapping[str, object]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    first = sent[0]
    if first["type"] == "websocket.accept":
        return Answer(101, {}, "")
    if first["type"] == "websocket.close":
        return Answer(403, {}, "")
    found = {name.decode(): value.decode() for name, value in first["headers"]}
    return Answer(first["status"], found, b"".join(one.get("body", b"") for one in sent[1:]).decode())


def cookie_of(app: ASGIApp) -> str:
    return ask(app, ASKED).headers["set-cookie"].split(";")[0]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "WS"])
@pytest.mark.parametrize("address", ["/", "/_stcore/upload_file/a", "/ws", "/static/main.js", "/ws?token=wrong"])
@pytest.mark.parametrize("cookie", ["", f"{COOKIE}=", f"{COOKIE}=wrong", f"{COOKIE}={'0' * 64}", f"other={TOKEN!a}"])
def test_nothing_is_there_for_those_without_the_token(method: str, address: str, cookie: str) -> None:
    answer = ask(guarded(), address, method, **({"cookie": cookie} if cookie else {}))
    assert answer.status == (403 if method == "WS" else 401)
    assert "the page" not in answer.body


@pytest.mark.parametrize(
    ("method", "address", "status"), [("GET", "/", 200), ("POST", "/layers", 200), ("WS", "/ws", 101)]
)
def test_everything_is_there_for_those_with_the_cookie(method: str, address: str, status: int) -> None:
    app = guarded()
    assert ask(app, address, method, cookie=cookie_of(app)).status == status


def test_the_token_in_the_address_is_taken_once_and_then_gone_from_it() -> None:
    answer = ask(guarded(), ASKED)
    assert answer.status == 303
    assert answer.headers["location"] == "/layers?run=small&layer=3"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert "secret" not in cookie
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["//evil.example/a", "/\\evil.example/a", "///evil.example/a"])
def test_the_way_on_never_leads_to_another_site(path: str) -> None:
    answer = ask(guarded(), path + "?" + ASKED.partition("?")[2])
    assert answer.headers["location"].startswith("/evil.example/a?")


@pytest.mark.parametrize("method", ["POST", "WS"])
def test_the_token_in_an_address_opens_no_socket_and_takes_no_upload(method: str) -> None:
    assert ask(guarded(), "/ws?" + ASKED.partition("?")[2], method).status in (401, 403)


def test_the_page_that_asks_keeps_where_the_reader_wanted_to_go_and_runs_nothing() -> None:
    answer = ask(guarded(), "/layers?run=%22%3E%3Cscript%3Ealert(1)%3C/script%3E&layer=3&token=wrong")
    assert answer.status == 401
    assert "<script" not in answer.body
    assert 'name="run" value="&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;"' in answer.body
    assert 'name="layer" value="3"' in answer.body
    assert "That is not the token." in answer.body
    assert "wrong" not in answer.body
    assert answer.headers["content-security-policy"].startswith("default-src 'none';")


def test_a_link_on_another_site_is_followed_anew_with_the_cookie_and_not_for_ever() -> None:
    assert 'http-equiv="refresh"' in ask(guarded(), "/", sec_fetch_site="cross-site").body
    assert 'http-equiv="refresh"' not in ask(guarded(), "/", sec_fetch_site="same-origin").body
    assert 'http-equiv="refresh"' not in ask(guarded(), "/").body


def test_the_cookie_of_another_token_or_another_port_opens_nothing() -> None:
    other = guarded(token="another secret")
    assert ask(other, "/", cookie=cookie_of(guarded())).status == 401
    app = guarded()
    assert ask(app, "/", cookie=cookie_of(app).replace("1234", "1235")).status == 401


def test_without_a_token_this_machine_is_let_in() -> None:
    assert ask(guarded(token=None), "/").status == 200
    assert ask(guarded(token=None), "/ws", "WS").status == 101


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost.evil.example", "http://[", "x"])
@pytest.mark.parametrize("method", ["WS", "POST"])
def test_another_sites_page_opens_no_socket_and_sends_nothing(origin: str, method: str) -> None:
    app = guarded()
    assert ask(app, "/ws", method, origin=origin, cookie=cookie_of(app)).status == 403
    assert ask(guarded(token=None), "/ws", method, origin=origin).status == 403


@pytest.mark.parametrize("origin", ["http://localhost:1234", "http://127.0.0.1:1234", "http://my.name"])
def test_the_explorers_own_page_opens_its_socket(origin: str) -> None:
    app = guarded("my.name")
    assert ask(app, "/ws", "WS", origin=origin, cookie=cookie_of(app)).status == 101


@pytest.mark.parametrize("method", ["GET", "WS"])
def test_only_names_of_the_server_are_answered(method: str) -> None:
    app = guarded("my.name", None)
    seen = {host: ask(app, "/ws", method, host=host).status for host in ("my.name:1234", "localhost", "evil.example")}
    assert seen == {
        "my.name:1234": 101 if method == "WS" else 200,
        "localhost": 101 if method == "WS" else 200,
        "evil.example": 400,
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.7", "my.name", "8.8.8.8"])
def test_others_are_let_in_only_with_a_token(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOE_PROBE_TOKEN", raising=False)
    with pytest.raises(BadInputError, match=rf"^host {re.escape(host)}: .*MOE_PROBE_TOKEN, or give --token$"):
        serve.main(tmp_path, port=None, open_browser=False, host=host)
    monkeypatch.setenv("MOE_PROBE_TOKEN", "from the environment")
    assert serve.check_token(host, None) == "from the environment"
    assert serve.check_token(host, "from the arguments") == "from the arguments"


def test_a_token_that_is_no_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_PROBE_TOKEN", "")
    assert serve.check_token("localhost", None) is None
    for token in ("", "1234567"):
        with pytest.raises(BadInputError, match="too easily guessed"):
            serve.main(tmp_path, port=None, open_browser=False, token=token)


@pytest.mark.parametrize("host", ["203.0.113.9", "no name at all", "::1"])
def test_an_address_that_is_not_this_machines_is_named(host: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=rf"^host {re.escape(host)}: "):
        serve.main(tmp_path, port=None, open_browser=False, host=host, token="long enough")


def test_on_all_addresses_the_machine_goes_by_its_own_names() -> None:
    names = serve.host_names("0.0.0.0")
    assert {"localhost", "127.0.0.1"} < set(names)
    assert "*" not in names
    assert serve.server_options(1234, "0.0.0.0")["server.address"] == "0.0.0.0"
    assert serve.server_options(1234, "0.0.0.0")["server.allowedHosts"] == list(names)
