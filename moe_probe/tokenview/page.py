"""A document's text view as one HTML file that needs nothing else: the explorer's own script and style, and the data.

The page asks the network for nothing, and its content security policy forbids it to: the one script and the one style
that may act are named by their hashes. It opens from a disk, is light or dark as the reader's system is, and prints
whole. It does not know the explorer.

Example:
    >>> from moe_probe.schema import Router
    >>> rest = "'none'; base-uri 'none'; form-action 'none'"
    >>> policy("let a;", "b {}").endswith(rest)
    True
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import moe_probe
from moe_probe.errors import BadInputError
from moe_probe.palette import EXPERT_COLOURS
from moe_probe.store.columns import find_router
from moe_probe.store.files import new_file, writing
from moe_probe.tokenview import PackableDocument, javascript, pack, stylesheet
from moe_probe.tokenview.squeeze import squeeze

if TYPE_CHECKING:
    from moe_probe.schema import Router
    from moe_probe.store import Run

_FOLDER = files("moe_probe.tokenview")
_COUNTED = (
    "Each token wears the colour of its first choice, the expert whose output had the largest weight in that layer."
)

_MADE_BY = f"Made by moe_probe {moe_probe.__version__}. This file loads nothing else."


def write_text_page(
    run: Run,
    document: int | str,
    path: str | Path,
    *,
    layer: int | None = None,
    focus: Sequence[int] = (),
    title: str | None = None,
) -> Path:
    """Write one document, coloured by its experts, to an HTML file that works on its own.

    Args:
        run: an open run.
        document: its number or its name.
        path: the file; it is replaced only when the new one is whole.
        layer: the layer that is shown first; None = the first there is.
        focus: experts that are focused at first, at most eight.
        title: what stands above the text; the document's name if None.

    Returns:
        The file.

    Raises:
        BadInputError: the run has no such document, layer or expert.
        MoeProbeError: the file cannot be written.
    """
    text = standalone(
        run.document(document), layer=layer, focus=focus, title=title, lead=about(run), run_name=run.path.name
    )
    target = Path(path)
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with new_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return target


def standalone(
    document: PackableDocument,
    *,
    layer: int | None = None,
    focus: Sequence[int] = (),
    title: str | None = None,
    lead: str = "",
    run_name: str = "",
    state: Mapping[str, Any] | None = None,
    stop: int | None = None,
    files: bool = True,
) -> str:
    """Return a document's text view as an HTML page.

    About 0.18 MB a thousand tokens of 32 layers with 2 of 8 experts. Experts and weights are the run's, bit by bit;
    entropies are rounded to the hundredth of a bit that is shown.

    Args:
        document: for example `run.document(0)`.
        layer: the layer that is shown first; None = the first there is.
        focus: experts that are focused at first, at most eight.
        title: what stands above the text; the document's name if None.
        lead: a line below the title.
        run_name: the run's name, for the names of files that the page hands out.
        state: the rest of what is shown at first, under the names of START in tokenview.js.
        stop: the token before which to stop; None = the document's end.
        files: whether the page may hand out a picture and tables; a frame without downloads cannot.

    Raises:
        BadInputError: there is no such layer, expert or token.
    """
    index = 0 if layer is None else find_router(list(document.routers), layer, None)
    _check_focus(focus, document.routers)
    squeezed = squeeze(pack(document, stop=stop))
    settings = {
        "size": squeezed.size,
        "told": squeezed.told,
        "state": {"router": index, "focus": list(focus), **(state or {})},
        "run": run_name,
        "files": files,
    }
    return page(title or document.name, lead, settings, squeezed.text)


def about(run: Run) -> str:
    """Return in a line what was traced: the run, its model, how it was held, its routers."""
    model = run.manifest.get("model", {})
    kinds = dict.fromkeys((router.n_slots, router.n_experts) for router in run.routers)
    shapes = ", ".join(f"{n_slots} of {n_experts:,} experts" for n_slots, n_experts in kinds)
    held = {"4bit": "in 4 bits", "8bit": "in 8 bits"}.get(str(model.get("quantization")), "")
    parts = [run.path.name, " ".join(filter(None, [str(model.get("name") or ""), held]))]
    return " · ".join(filter(None, [*parts, f"{len(run.routers)} routers, {shapes}"]))


def page(title: str, lead: str, settings: Mapping[str, Any], document: str) -> str:
    """Return the page around a squeezed document.

    Args:
        title: as text.
        lead: as text.
        settings: what page.js wants to know.
        document: what `squeeze` made of it.
    """
    script = f"{javascript()}\n{_read('unsqueeze.js')}\n{_read('page.js')}"
    style = f"{stylesheet()}\n{_read('page.css')}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy(script, style)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f'<meta name="generator" content="moe_probe {moe_probe.__version__}">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            f"<header><h1><bdi>{html.escape(title)}</bdi></h1><p>{html.escape(lead)}</p></header>",
            '<main id="view"><noscript><p>This page is drawn with JavaScript.</p></noscript></main>',
            f"<footer><p>{_COUNTED} {_MADE_BY}</p></footer>",
            f'<script type="application/json" id="settings">{_json_in_html(settings)}</script>',
            f'<script type="text/plain" id="document">{document}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def policy(script: str, style: str) -> str:
    """Return the content security policy of a page with this script and this style and nothing from elsewhere."""
    return (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _check_focus(focus: Sequence[int], routers: Sequence[Router]) -> None:
    n_experts = max((router.n_experts for router in routers), default=0)
    unknown = [expert for expert in focus if not 0 <= expert < n_experts]
    if unknown:
        raise BadInputError(f"focus {unknown}: the experts are 0 to {n_experts - 1}")
    if len(focus) > len(EXPERT_COLOURS):
        raise BadInputError(f"focus: {len(focus)} experts; there are colours for {len(EXPERT_COLOURS)}")


def _read(name: str) -> str:
    return _FOLDER.joinpath(name).read_text(encoding="utf-8")


def _json_in_html(value: object) -> str:
    """Return JSON that cannot end the element which holds it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
