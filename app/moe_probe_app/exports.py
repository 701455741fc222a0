"""The document that is looked at as a page of its own: made by the server when the view's menu asks for it.

Whoever may see the explorer may ask, and nobody else: the checks of host, origin and token stand before this route too.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from moe_probe.errors import MoeProbeError
from moe_probe.store import Run
from moe_probe.tokenview import routing_bytes
from moe_probe.tokenview.page import about, standalone
from moe_probe_app import library, selection, settings

PAGE = "/_moe_probe/page"
LARGEST = 40_000_000
"""Bytes of a document's routing above which a page of it would be more than a browser likes to open."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Disposition": "attachment",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def route() -> Route:
    """Return the route, to be served beside the pages.

    `/_moe_probe/page?run=…&document=0&router=3&focus=1,4` and so on, as in the explorer's own address, answers with the
    page; 404 if there is no such run or document, 413 if the document is too large.
    """
    return Route(PAGE, _page, methods=["GET"])


def fits(run: Run, document: int) -> bool:
    """Say whether a document, by its place in the run, is small enough for a page of its own."""
    tokens = int(run.documents()["tokens"][document])
    return routing_bytes(run.routers, tokens, weights=run.with_weights, scores=run.with_scores) <= LARGEST


def _page(request: Request) -> Response:
    root, name, place = (
        settings.current().root,
        request.query_params.get("run"),
        request.query_params.get("document", ""),
    )
    if name not in library.run_names(root):
        return PlainTextResponse("no such run; open the page again", 404)
    try:
        run = library.open_named(root, name)
        if not (place.isascii() and place.isdigit() and int(place) < run.n_documents):
            return PlainTextResponse("no such document; open the page again", 404)
        if not fits(run, int(place)):
            return PlainTextResponse(f"document {place} is too large for a page; export its table instead", 413)
        chosen = selection.from_query(request.query_params, name, run)
        document = run.document(run.documents()["document"][chosen.document])
        text = standalone(document, lead=about(run), run_name=run.path.name, state=selection.view_state(chosen))
    except (MoeProbeError, OSError) as error:
        return PlainTextResponse(f"this run cannot be read: {error}", 404)
    return Response(text, headers=_HEADERS, media_type="text/html")
