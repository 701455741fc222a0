"""Start the explorer's server: on this machine only, telling nobody, with every check that Streamlit has turned on."""

from __future__ import annotations

import importlib
import socket
import sys
import tomllib
import webbrowser
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from moe_probe.errors import BadInputError
from moe_probe.schema import MANIFEST_FILE
from moe_probe_app.settings import Settings, configure

ADDRESS = "127.0.0.1"
HOSTS = ("localhost", ADDRESS)
UPLOAD_MEGABYTES = 20
_USED_BY_PAGES = ("moe_probe.charts", "moe_probe_app.library")


def main(root: Path, *, port: int | None, open_browser: bool, model: str | None = None) -> None:
    """Serve the explorer until it is interrupted.

    Args:
        root: a folder of runs, or one run; then its neighbours can be opened too, and it is shown first.
        port: the port to listen on; None = a free one.
        open_browser: open the page in the default browser.
        model: a model to offer on the page Trace, beside the bundled one: a folder or a hub id.

    Raises:
        BadInputError: if `root` is no folder, or the port is taken.
    """
    root = root.resolve()
    if not root.is_dir():
        raise BadInputError(
            f"{root}: no such folder; trace a text first: moe-probe trace tiny-mixtral FILE --out {root}/first"
        )
    is_run = (root / MANIFEST_FILE).is_file()
    configure(Settings(root.parent if is_run else root, root.name if is_run else None, model))
    for module in _USED_BY_PAGES:  # a second of imports that the first reader need not wait for
        importlib.import_module(module)
    port = _choose_port(port)
    url = f"http://localhost:{port}"

    @asynccontextmanager
    async def announce(app: st.App) -> AsyncIterator[dict[str, Any]]:
        if open_browser:
            webbrowser.open(url)
        yield {}

    # Streamlit looks for its settings beside sys.argv[0] and hands the rest of it to the script: give it our own.
    sys.argv = [str(files("moe_probe_app").joinpath("pages/main.py"))]
    app = st.App(
        sys.argv[0],
        lifespan=announce,
        # A foreign name that resolves to this machine (DNS rebinding) passes Streamlit's own checks.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS))],
    )
    app.run(config=server_options(port))


def server_options(port: int) -> dict[str, Any]:
    """Return every Streamlit option that the explorer sets, by dotted name."""
    options: dict[str, Any] = {
        "server.address": ADDRESS,
        "server.port": port,
        "server.headless": True,
        "server.allowedHosts": list(HOSTS),
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.maxUploadSize": UPLOAD_MEGABYTES,
        "server.fileWatcherType": "none",
        # With a model in memory a full collection after every rerun takes half a second, in which nothing else runs.
        "runner.postScriptGC": False,
        "server.enableStaticServing": False,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": "localhost",
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "type",
        "client.showErrorLinks": False,
        "logger.level": "warning",
    }
    theme = tomllib.loads(files("moe_probe_app").joinpath("theme.toml").read_text(encoding="utf-8"))
    return options | _dotted(theme)


def _dotted(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            options |= _dotted(value, f"{prefix}{name}.")
        else:
            options[prefix + name] = value
    return options


def _choose_port(port: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port or 0))
        except OSError as error:
            raise BadInputError(f"port {port}: {error.strerror or error}; choose another with --port") from error
        return int(probe.getsockname()[1])
