"""Where others' published data lie: in the folder that the environment variable MOE_PROBE_REFERENCE names.

None of it is part of this project. What its licence and size allow to be typed stands in the tests themselves.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "MOE_PROBE_REFERENCE"


def reference(name: str) -> Path:
    """Return the path of one reference file; skip the test where it is not at hand."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} is not set: it names the folder of others' published data")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"{VARIABLE}={folder} holds no {name}")
    return path
