"""A process of its own, whatever earlier tests of the same worker have left behind."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from types import ModuleType

import pytest

# What takes most of the time to load a model for the first time. None of it reads settings of the hub's client or of
# transformers, starts a thread, or belongs to what a test wants to be missing.
_SLOW_TO_IMPORT = (
    "torch._dynamo.aot_compile",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor",
    "scipy.optimize",
    "mistral_common.tokens.tokenizers.tekken",
)


def spawn_context(monkeypatch: pytest.MonkeyPatch) -> SpawnContext:
    """Return the context whose processes start anew.

    Streamlit's AppTest leaves its script as `__main__`, which such a process would run first.
    """
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    return multiprocessing.get_context("spawn")


def warm_context(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Return the context whose processes have what is slow to import, and nothing that a test has done.

    They are forked by a process without threads that has imported that and no more, and serves all tests of a worker.
    """
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_SLOW_TO_IMPORT))
    return context


def execute(code: str, names: Mapping[str, object], environment: Mapping[str, str], said: Path) -> None:
    """Execute code as a script would be, in a process of its own: to be the target of one.

    Args:
        code: what to execute.
        names: what it finds under these names.
        environment: in place of that of the process that forks.
        said: folder of the files `out` and `err`, which get what is printed.
    """
    os.environ.clear()
    os.environ.update(environment)
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
    exec(compile(code, "a process of its own", "exec"), {"__name__": "__main__", **names})
