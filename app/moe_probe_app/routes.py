"""What the page asks for by itself: one layer, or one token's path, of a document too large to be sent at once.

A document is named by the key under which the server sent its text, so that no request names a file, and a layer of one
version of a run is never painted on the text of another. Whoever may see the pages may ask, and nobody else: the checks
of host, origin and token stand before these routes as before the pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from moe_probe.errors import MoeProbeError
from moe_probe_app import library, settings

LAYER = "/_moe_probe/layer"
PATH = "/_moe_probe/path"
_KEY = re.compile(r"[0-9a-f]{16}")
_NUMBER = re.compile(r"[0-9]{1,9}")
_HEADERS = {
    # The key changes with what it names.
    "Cache-Control": "private, max-age=3600, immutable",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def routes() -> list[Route]:
    """Return the routes, to be served beside the pages.

    `/_moe_probe/layer?key=…&router=3` and `/_moe_probe/path?key=…&token=17` answer with what `pack_routing` wrote. They
    answer 400 if a parameter is missing, given twice, unknown or no whole number, and 404 if there is no such document,
    router or token.
    """
    return [Route(LAYER, _layer, methods=["GET"]), Route(PATH, _path, methods=["GET"])]


def _layer(request: Request) -> Response:
    return _answer(request, "router", library.packed_layer)


def _path(request: Request) -> Response:
    return _answer(request, "token", library.packed_path)


def _answer(request: Request, name: str, packed: Callable[[Path, str, int], bytes | None]) -> Response:
    asked = request.query_params.multi_items()
    given = dict(asked)
    if len(asked) != 2 or given.keys() != {"key", name}:
        return PlainTextResponse(f"ask with key and {name}, once each", 400)
    if not _KEY.fullmatch(given["key"]) or not _NUMBER.fullmatch(given[name]):
        return PlainTextResponse(f"key is 16 hexadecimal digits, {name} a whole number", 400)
    try:
        data = packed(settings.current().root, given["key"], int(given[name]))
    except (MoeProbeError, OSError):  # the files were changed or are damaged; the page itself says which
        data = None
    if data is None:
        return PlainTextResponse("no such document, layer or token; open the page again", 404)
    return Response(data, headers=_HEADERS, media_type="application/octet-stream")
