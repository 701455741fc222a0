"""What is said where a page fails: the reader keeps the sidebar and every other run, and the log keeps the cause."""

from __future__ import annotations

import logging
from collections.abc import Callable

import polars as pl

from moe_probe.errors import MoeProbeError
from moe_probe_app.components import plain

_LOG = logging.getLogger(__name__)
_LONGEST = 600


def show(page: Callable[[], None]) -> None:
    """Run a page; whatever it raises is said in words, as text."""
    try:
        page()
    except (MoeProbeError, OSError) as error:
        _say(str(error))
    except (Exception, pl.exceptions.PanicException) as error:  # a run may come from anywhere, and hold anything
        _LOG.exception("a page failed")
        _say(f"{type(error).__name__}: {error}")


def _say(reason: str) -> None:
    short = reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]} …"
    plain.callout(
        "error",
        "This page cannot show this run",
        f"{short}{'' if short.endswith(('.', '…')) else '.'} Choose another run, or another page.",
    )
