"""The explorer on a folder of a test's own, as the command line starts it."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import REPOSITORY, free_port


def wait_until_answered(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Ask until the server answers whatever, also that it wants a token, or has ended."""
    for _ in range(600):
        if process.poll() is not None:
            pytest.fail(f"the server ended before it was up:\n{log.read_text()}", pytrace=False)
        connection = http.client.HTTPConnection("localhost", port, timeout=5)
        try:
            connection.request("GET", "/_stcore/health")
            connection.getresponse().read()
            return
        except (OSError, http.client.HTTPException):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.15)
        finally:
            connection.close()
    pytest.fail(f"the server did not answer:\n{log.read_text()}", pytrace=False)


@contextmanager
def explorer(root: Path, log: Path, *, host: str = "127.0.0.1", variables: Mapping[str, str] = {}) -> Iterator[str]:
    """Serve a folder of runs; yield the address."""
    port = free_port()
    command = (
        "from pathlib import Path; from moe_probe_app.serve import main;"
        f" main(Path({str(root)!r}), port={port}, open_browser=False, host={host!r})"
    )
    folders = (REPOSITORY, REPOSITORY / "app", REPOSITORY / "kernels", os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders)), **variables}
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, "-c", command], stdout=out, stderr=out, env=environment)
        try:
            wait_until_answered(process, port, log)
            yield f"http://localhost:{port}"
            assert process.poll() is None, log.read_text()
        finally:
            process.terminate()
            process.wait(timeout=20)
