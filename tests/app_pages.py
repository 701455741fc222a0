"""Opens a page of the explorer as a script of its own, and reads what it wrote."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

import moe_probe_app

PAGES = Path(moe_probe_app.__file__).parent / "pages"


def open_page(name: str, **query: str) -> AppTest:
    """Run a page with a query in its address; it must not fail."""
    page = AppTest.from_file(str(PAGES / f"{name}.py"), default_timeout=60)
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception, page.exception
    return page


def written(page: AppTest) -> str:
    """Return all the markup of a page."""
    return "\n".join(str(one.proto.body) for one in page.get("html"))
