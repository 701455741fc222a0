"""A process of its own, whatever earlier tests of the same worker have left behind."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import SpawnContext
from types import ModuleType

import pytest


def spawn_context(monkeypatch: pytest.MonkeyPatch) -> SpawnContext:
    """Return the context whose processes start anew.

    Streamlit's AppTest leaves its script as `__main__`, which such a process would run first.
    """
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    return multiprocessing.get_context("spawn")
