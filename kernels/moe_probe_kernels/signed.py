"""Unsigned integers of 16 and 32 bits, with which torch and Triton can do little, taken as signed ones."""

from __future__ import annotations

import torch

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32}


def as_signed(tensor: torch.Tensor) -> torch.Tensor:
    """Return the same bits as signed integers where they are of such a type."""
    return tensor.view(_SIGNED[tensor.dtype]) if tensor.dtype in _SIGNED else tensor
