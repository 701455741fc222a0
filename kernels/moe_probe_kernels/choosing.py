"""Which of its two ways an operation goes: its Triton kernel, or the torch reference beside it.

Triton is optional. The kernel runs on tensors of a GPU where Triton is installed, the reference everywhere else; both
give the same. It does not know the operations.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch

Way = Literal["triton", "torch"]


def which(device: torch.device | str | None = None) -> Way:
    """Return what an operation on tensors of `device` runs as, if it is not told otherwise.

    Args:
        device: where the tensors are; None for the GPU where torch sees one, else the CPU.

    Example:
        >>> which("cpu")
        'torch'
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return "triton" if torch.device(device).type == "cuda" and has_triton() else "torch"


def choose(device: torch.device, way: Way | None) -> Way:
    """Return the way that was asked for, or `which` where none was.

    Raises:
        ValueError: if the kernel was asked for and cannot run there.
    """
    if way is None:
        return which(device)
    if way not in ("triton", "torch"):
        raise ValueError(f"way {way!r}: choose 'triton' or 'torch', or None for what the device has")
    if way == "triton" and not has_triton():
        raise ValueError("way 'triton': Triton is not installed; pip install triton, or leave the way to the device")
    if way == "triton" and device.type != "cuda" and not is_interpreted():
        raise ValueError(
            f"way 'triton': the tensors are on {device}; move them to a GPU, or set TRITON_INTERPRET=1 before Python"
            " starts to have the kernel interpreted"
        )
    return way


@cache
def has_triton() -> bool:
    """Whether Triton is installed; it is not loaded."""
    return find_spec("triton") is not None


def is_interpreted() -> bool:
    """Whether kernels are interpreted, on any device: slow, and for tests only."""
    return os.environ.get("TRITON_INTERPRET") == "1"
