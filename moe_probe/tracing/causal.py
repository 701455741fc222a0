"""Spares a model the mask of padding on the right, if it never looks there.

What a decoder makes of a token hangs on none that follows it, so that padding on the right changes nothing, and
attention without a mask is faster. Whether a model is such a one is tried, and not read from its name. It does not know
what is recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_ROUNDING = 1e-3
"""A token that follows must change what is made of the one before it by less than this part of its own change."""


@contextmanager
def without_mask(decoder: nn.Module) -> Iterator[None]:
    """Hide the mask from a model while the block is open; hooks that were there before still see it."""
    handle = decoder.register_forward_pre_hook(_hide, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def looks_ahead(decoder: nn.Module, device: torch.device) -> bool:
    """Say whether a model makes something else of a token when another one follows it, or cannot tell.

    Args:
        decoder: takes `input_ids`, and returns hidden states first.
        device: of its embedding.
    """
    ids = torch.tensor([[0, 0], [0, 1]], device=device)
    positions = torch.arange(2, device=device).expand_as(ids)
    try:
        with torch.inference_mode():
            # Whoever hooked the model is to hear of the texts only.
            hidden: torch.Tensor = decoder.forward(input_ids=ids, position_ids=positions, use_cache=False)[0]
            first, second = (hidden[0] - hidden[1]).float().abs().amax(dim=-1).tolist()
    except Exception:  # a model that someone changed may fail in any way
        return True  # if the texts fail too, they say why
    return not first < _ROUNDING * second


def _hide(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "attention_mask": None}
