"""Start the explorer's server: telling nobody, with every check that Streamlit has turned on.

By default it is there for this machine only; on another address it asks for a token.
"""

from __future__ import annotations

import errno
import importlib
import ipaddress
import os
import socket
import sys
import tomllib
import webbrowser
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from moe_probe.errors import BadInputError
from moe_probe.schema import MANIFEST_FILE
from moe_probe_app import exports
from moe_probe_app.guard import PARAMETER, OriginGuard, TokenGuard
from moe_probe_app.routes import routes
from moe_probe_app.settings import UPLOAD_MEGABYTES, Settings, configure

ADDRESS = "127.0.0.1"
HOSTS = ("localhost", ADDRESS)
TOKEN_VARIABLE = "MOE_PROBE_TOKEN"
"""Where the token is read if it is not given: a variable of the environment is in no list of processes."""
SHORTEST_TOKEN = 8
_USED_BY_PAGES = ("moe_probe.charts", "moe_probe_app.library")


def main(
    root: Path,
    *,
    port: int | None,
    open_browser: bool,
    model: str | None = None,
    host: str = ADDRESS,
    token: str | None = None,
) -> None:
    """Serve the explorer until it is interrupted.

    Args:
        root: a folder of runs, or one run; then its neighbours can be opened too, and it is shown first.
        port: the port to listen on; None = a free one.
        open_browser: open the page in the default browser.
        model: a model to offer on the page Trace, beside the bundled one: a folder or a hub id.
        host: the name or IPv4 address to listen on; 0.0.0.0 = all of this machine's.
        token: what every reader must know; None = what MOE_PROBE_TOKEN holds, or no token.

    Raises:
        BadInputError: if `root` is no folder, the port is taken, the host cannot be listened on, or it is not this
            machine alone and there is no token.
    """
    token = check_token(host, token)
    host = ADDRESS if host.lower() == "localhost" else host
    root = root.resolve()
    if not root.is_dir():
        raise BadInputError(
            f"{root}: no such folder; trace a text first: moe-probe trace tiny-mixtral FILE --out {root}/first"
        )
    is_run = (root / MANIFEST_FILE).is_file()
    configure(Settings(root.parent if is_run else root, root.name if is_run else None, model))
    for module in _USED_BY_PAGES:  # a second of imports that the first reader need not wait for
        importlib.import_module(module)
    port = _choose_port(host, port)
    names = host_names(host)
    url = f"http://{names[0]}:{port}"

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
        middleware=middleware(names, port, token),
        routes=[*routes(), exports.route()],
    )
    app.run(config=server_options(port, host))


def check_token(host: str, token: str | None) -> str | None:
    """Return the token to ask for: the one given, else that of the environment; None on this machine alone.

    Raises:
        BadInputError: if others can reach `host` and there is no token, or it is too short to be a secret.
    """
    where = "--token" if token is not None else TOKEN_VARIABLE
    token = token if token is not None else os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not is_this_machine(host):
        raise BadInputError(
            f"host {host}: others can reach it, so a token is needed; set {TOKEN_VARIABLE}, or give --token"
        )
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise BadInputError(
            f"{where}: a token of {len(token)} characters is too easily guessed; give at least {SHORTEST_TOKEN}"
        )
    return token


def is_this_machine(host: str) -> bool:
    """Say whether only this machine can reach a server that listens on `host`.

    Example:
        >>> [is_this_machine(host) for host in ("localhost", "127.0.0.1", "0.0.0.0", "192.168.0.7", "my.name")]
        [True, True, False, False, False]
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may be changed to mean anything


def host_names(host: str) -> tuple[str, ...]:
    """Return the names that a browser may call the server by, the best first.

    Where it listens on all addresses, these are the machine's name and the addresses that the name has.
    """
    if host == "0.0.0.0":
        name = socket.gethostname()
        try:
            addresses = [str(address) for address in socket.gethostbyname_ex(name)[2]]
        except OSError:
            addresses = []
        return tuple(dict.fromkeys([name.lower(), *addresses, *HOSTS, host]))
    return HOSTS if host in HOSTS else tuple(dict.fromkeys([host.lower(), *HOSTS]))


def middleware(names: Sequence[str], port: int, token: str | None) -> list[Middleware]:
    """Return what stands before the pages, the first one outermost; all of it holds for websockets too."""
    return [
        # A foreign name that resolves to this machine (DNS rebinding) passes Streamlit's own checks.
        Middleware(TrustedHostMiddleware, allowed_hosts=list(names), www_redirect=False),
        # Streamlit refuses foreign pages as well, but asks a server on the internet for this machine's address first.
        Middleware(OriginGuard, hosts=names),
        # Cookies are shared by all ports of a host.
        *([] if token is None else [Middleware(TokenGuard, token=token, cookie=f"moe_probe_{PARAMETER}_{port}")]),
    ]


def server_options(port: int, host: str = ADDRESS) -> dict[str, Any]:
    """Return every Streamlit option that the explorer sets, by dotted name."""
    names = host_names(host)
    options: dict[str, Any] = {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.allowedHosts": list(names),
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.maxUploadSize": UPLOAD_MEGABYTES,
        "server.fileWatcherType": "none",
        # With a model in memory a full collection after every rerun takes half a second, in which nothing else runs.
        "runner.postScriptGC": False,
        "server.enableStaticServing": False,
        "browser.gatherUsageStats": False,
        "browser.serverAddress": names[0],
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


def _choose_port(host: str, port: int | None) -> int:
    try:
        address = socket.gethostbyname(host)
    except (OSError, UnicodeError) as error:
        raise BadInputError(
            f"host {host}: no name or IPv4 address of this machine ({error}); give another with --host"
        ) from None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port or 0))
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
                raise BadInputError(f"host {host}: {error.strerror}; give an address of this machine") from error
            raise BadInputError(f"port {port}: {error.strerror or error}; choose another with --port") from error
        return int(probe.getsockname()[1])
