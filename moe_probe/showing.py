"""How a run, a document or a recording shows itself in a notebook.

The pictures belong to the doors (`moe_probe.notebook`), which know all that stands above them; what is shown knows none
of that. So a notebook's question goes there by name, when it is asked, and importing a run loads no picture.
"""

from __future__ import annotations

import importlib

PICTURES = "moe_probe.notebook"


def as_html(value: object) -> str:
    """Return what a notebook shows of a value: the HTML that `moe_probe.notebook.picture` makes of it."""
    html: str = importlib.import_module(PICTURES).picture(value)
    return html
