"""Which modules are being recorded: one recording at a time for each. It does not know how."""

from __future__ import annotations

import weakref

from torch import nn

from moe_probe.errors import BadInputError

_open: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def claim(stream: nn.Module) -> None:
    """Note that a recording opens on a module.

    Raises:
        BadInputError: if one is open already.
    """
    if stream in _open:
        raise BadInputError(f"{type(stream).__name__}: it is being recorded already; close the recording that is open")
    _open.add(stream)


def release(stream: nn.Module) -> None:
    """Note that the recording on a module is closed."""
    _open.discard(stream)
