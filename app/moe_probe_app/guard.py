"""Stands before every page, file and socket of the explorer: no foreign page, and with a token nobody without it.

It knows nothing of Streamlit: it wraps any ASGI application.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from html import escape
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

PARAMETER = "token"
_READING = ("GET", "HEAD")
_REFUSED = 1008  # a websocket that was not accepted yet is then answered with 403
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color-scheme:light dark;max-width:34rem;margin:18vh auto;padding:0 1rem}"
)
_PRIVATE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
}


class OriginGuard:
    """Refuses what another site's page asks for, before anything looks up who that may be.

    A browser sends `Origin` with every websocket and with everything that is more than reading.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        """Let pages of `hosts` through."""
        self._app = app
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        kind = scope["type"]
        asks = kind == "websocket" or (kind == "http" and scope["method"] not in _READING)
        if asks and not self._is_own(Headers(scope=scope).getlist("origin")):
            await _refuse(scope, receive, send, PlainTextResponse("this page is not the explorer's\n", 403))
            return
        await self._app(scope, receive, send)

    def _is_own(self, origins: list[str]) -> bool:
        return all(_host_of(origin) in self._hosts for origin in origins)


class TokenGuard:
    """Lets those through who know the token: by a cookie, which is set once from `?token=` in the address.

    The cookie is not the token but its digest, cannot be read by a script and goes to this site only. Comparisons take
    as long whatever is compared.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        """Ask for `token`; remember it in a cookie of the name `cookie`, which must not be that of another explorer."""
        self._app = app
        self._cookie = cookie
        self._digest = _digest(token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        known = hmac.compare_digest(connection.cookies.get(self._cookie, "").encode(), self._digest.encode())
        given = connection.query_params.getlist(PARAMETER)
        reads = scope["type"] == "http" and scope["method"] in _READING
        if reads and any(hmac.compare_digest(_digest(one), self._digest) for one in given):
            await self._let_in(connection)(scope, receive, send)
        elif not known:
            await _refuse(scope, receive, send, _ask(connection, wrong=bool(given)))
        else:
            await self._app(scope, receive, send)

    def _let_in(self, connection: HTTPConnection) -> Response:
        """Send the browser to the same address without the token, with the cookie."""
        rest = [pair for pair in _query(connection) if pair[0] != PARAMETER]
        # One slash only: an address that begins with two would lead to another site.
        path = "/" + str(connection.scope["path"]).lstrip("/\\")
        response = RedirectResponse(path + (f"?{urlencode(rest)}" if rest else ""), 303, _PRIVATE)
        secure = connection.url.scheme in ("https", "wss")
        response.set_cookie(self._cookie, self._digest, path="/", secure=secure, httponly=True, samesite="strict")
        return response


async def _refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": _REFUSED})
    else:
        await response(scope, receive, send)


def _ask(connection: HTTPConnection, *, wrong: bool) -> Response:
    """Return a page that asks for the token and then leads to where the reader wanted to go."""
    kept = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in _query(connection)
        if name != PARAMETER
    )
    # A strict cookie does not come along from a link on another site. Once this page is there, its own request has it.
    crossed = connection.headers.get("sec-fetch-site") == "cross-site" and not wrong
    again = '<meta http-equiv="refresh" content="0">' if crossed else ""
    said = "That is not the token." if wrong else "This explorer asks for the token that it was started with."
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8">{again}<title>moe_probe</title><style>{_STYLE}</style>'
        f'<h1>moe_probe</h1><form><p><label for="token">{said}</label></p>{kept}'
        f'<input id="token" type="password" name="{PARAMETER}" autocomplete="off" required autofocus> '
        "<button>Open</button></form></html>",
        401,
        _PRIVATE,
    )


def _query(connection: HTTPConnection) -> list[tuple[str, str]]:
    return parse_qsl(connection.url.query, keep_blank_values=True)


def _digest(token: str) -> str:
    return hashlib.sha256(b"moe_probe explorer\0" + token.encode("utf-8", "surrogatepass")).hexdigest()


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).hostname
    except ValueError:
        return None
