"""Interventions in what the experts are called with: weights set to zero, an expert put into a slot.

Which experts would have been chosen is not touched. It does not know how a router chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moe_probe.intervening.places import check_experts, find_place
from moe_probe.recording.routers import Site

Change = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From experts and weights of a call, each (tokens, slots), to what is called instead."""


@contextmanager
def ablate(
    model: nn.Module,
    layer: int | None = None,
    experts: Sequence[int] = (),
    *,
    router: int | None = None,
    keep_sum: bool = False,
) -> Iterator[None]:
    """Switch experts off: where they were chosen their weight is zero, and no other takes their place.

    It equals a checkpoint in which the experts' output weights are zero. The sum of a token's weights falls by what
    the experts had of it; with `keep_sum` the token's other experts are scaled up to the former sum, and only a token
    whose every expert is switched off has none.

    Args:
        model: a model in which `find_routers` finds routers.
        layer: the transformer block, where it has one router.
        experts: the experts' indices.
        router: the router's index, instead of `layer`.
        keep_sum: whether the token's other experts take over the weight.

    Raises:
        BadInputError: no such layer, router or expert.
        UnsupportedModelError: the router cannot be read, or the model is compiled already.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=8)
        >>> model = MixtralForCausalLM(config).eval()
        >>> tokens = torch.tensor([[1, 2, 3]])
        >>> with torch.inference_mode():
        ...     before = model(tokens).logits
        ...     with ablate(model, layer=1, experts=range(8)):
        ...         without = model(tokens).logits
        ...     after = model(tokens).logits
        >>> torch.equal(before, without), torch.equal(before, after)
        (False, True)
    """
    site = find_place(model, layer, router)
    chosen = check_experts(site, experts)

    def change(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        off = torch.isin(ids, torch.tensor(chosen, device=ids.device))
        left = weights.masked_fill(off, 0)
        if keep_sum:
            total = left.float().sum(dim=-1, keepdim=True)
            scale = torch.where(total > 0, weights.float().sum(dim=-1, keepdim=True) / total, 0.0)
            left = torch.where(off.any(dim=-1, keepdim=True), (left.float() * scale).to(weights.dtype), weights)
        return ids, left

    with changed_call(site, change):
        yield


@contextmanager
def force(model: nn.Module, layer: int | None = None, expert: int = 0, *, router: int | None = None) -> Iterator[None]:
    """Send every token to an expert: where it was not chosen it takes the slot of the least weight, with that weight.

    The sum of a token's weights stays. Tokens that had chosen the expert stay as they were. Record with
    `entropy=False`: a router's scores do not explain a forced choice.

    Args:
        model: a model in which `find_routers` finds routers.
        layer: the transformer block, where it has one router.
        expert: the expert's index.
        router: the router's index, instead of `layer`.

    Raises:
        BadInputError: no such layer, router or expert.
        UnsupportedModelError: the router cannot be read, or the model is compiled already.
    """
    site = find_place(model, layer, router)
    (forced,) = check_experts(site, [expert])

    def change(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The last slot: of equal weights that of the higher index.
        least = ids.masked_fill(weights > weights.amin(dim=-1, keepdim=True), -1).argmax(dim=-1, keepdim=True)
        replaced = ids.scatter(-1, least, forced)
        return torch.where((ids == forced).any(dim=-1, keepdim=True), ids, replaced), weights

    with changed_call(site, change):
        yield


@contextmanager
def changed_call(site: Site, change: Change) -> Iterator[None]:
    """Call a router's experts with something else; hooks of several interventions act in the order of their making."""

    def hook(
        experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _, ids, weights = site.read_call(args, kwargs)
        instead = dict(zip(site.argument_names[1:], change(ids, weights), strict=True))
        positional = [instead.get(name, given) for name, given in zip(site.argument_names, args, strict=False)]
        named = {name: value for name, value in instead.items() if name in kwargs}
        return (*positional, *args[len(positional) :]), {**kwargs, **named}

    plain: Any = torch.compiler.disable
    handle = site.experts.register_forward_pre_hook(plain(hook), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
