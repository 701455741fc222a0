"""What the explorer was started with: the folder of runs and, perhaps, a model to trace with.

The server and its pages share one process, so this is a value of the process, set once before the server starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BUNDLED = "tiny-mixtral"
"""The model that comes with moe_probe."""
UPLOAD_MEGABYTES = 20
"""The largest file that may be uploaded."""


@dataclass(frozen=True)
class Settings:
    """`root` holds the runs; `first_run` is opened first; `model` may be traced with, beside the bundled one."""

    root: Path
    first_run: str | None = None
    model: str | None = None


_chosen = Settings(Path("runs"))


def configure(settings: Settings) -> None:
    """Set what the pages will see."""
    global _chosen
    _chosen = settings


def current() -> Settings:
    """Return what the explorer was started with."""
    return _chosen


def models() -> list[str]:
    """Return the models that may be loaded: the bundled one, and the one that was named at the start."""
    return list(dict.fromkeys([BUNDLED, *([_chosen.model] if _chosen.model else [])]))
