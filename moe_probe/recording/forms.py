"""How a router tells what it chose: the rule that serves nearly all, and the few exceptions.

The rule: its experts are called with hidden states, the chosen experts and their weights, each (tokens, slots). A form
names where a router departs from that, how its choices are translated, and how one of its experts is applied alone.
A slot that executes no expert is `schema.DROPPED`, its weight 0. This module knows neither how modules are found nor
hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from moe_probe.schema import DROPPED

Choice = tuple[torch.Tensor, torch.Tensor]
"""Experts and weights, each (tokens, slots)."""


def _apply_fused(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    """Apply one of transformers' fused experts: matrices of all experts in one parameter, perhaps quantised here."""
    up = _up_name(experts)
    assert up is not None, "missing_weights() was asked before"
    inner = _linear(experts, up, expert, hidden)
    if up == "up_proj":
        inner = experts.act_fn(inner)
    elif hasattr(experts, "_apply_gate"):
        inner = experts._apply_gate(inner)
    else:
        gate, inner = inner.chunk(2, dim=-1)
        inner = experts.act_fn(gate) * inner
    output = _linear(experts, "down_proj", expert, inner)
    return experts.post_expert_norm(output) if getattr(experts, "has_post_expert_norm", False) else output


@dataclass(frozen=True)
class Form:
    """One way of telling what was chosen.

    Attributes:
        by_rule: whether the experts' call holds indices and weights as the rule says, so that they can be changed
            there.
        at_call: whether the choice is read from the experts' call, else from what the router returns.
        drops: whether a slot may execute no expert.
        n_slots: how many slots there are, where no configuration says so.
        logits: the place of the logits in what the router returns.
        translate: from what was seen (indices and weights of the call, or what the router returned) and the number of
            slots to the choice.
        combine: where the choice is not read from the call: from what the router and the experts returned, and the
            number of tokens, to the experts' sum, (tokens, hidden).
        apply: from experts, an index and hidden states to what that expert alone returns.
        scales_input: whether the weight multiplies what an expert receives, not what it returns.
        transposed: whether the experts' matrices are (inputs, outputs).
    """

    by_rule: bool = True
    at_call: bool = True
    drops: bool = False
    n_slots: int | None = None
    logits: int = 0
    translate: Callable[[Any, Any, int], Choice] = lambda ids, weights, n_slots: (ids, weights)
    combine: Callable[[Any, torch.Tensor, int], torch.Tensor] | None = None
    apply: Callable[[Any, int, torch.Tensor], torch.Tensor] = _apply_fused
    scales_input: bool = False
    transposed: bool = False


# DBRX: all experts' matrices one below the other.


def _apply_dbrx(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    inside = experts.mlp
    shape = (experts.num_experts, experts.ffn_hidden_size, experts.hidden_size)
    w1, v1, w2 = (matrix.view(shape)[expert] for matrix in (inside.w1, inside.v1, inside.w2))
    alone: torch.Tensor = inside(hidden, w1, v1, w2)
    return alone


# JetMoe: a router for attention and one for the MLP; the slots of all tokens come grouped by expert.


def _from_groups(returned: Sequence[Any], _: object, n_slots: int) -> Choice:
    """Put groups back into tokens' slots; the groups' sizes say which expert's they are."""
    order, _tokens, gates, sizes, logits = returned
    grouped = torch.arange(len(sizes), device=order.device).repeat_interleave(torch.tensor(sizes, device=order.device))
    ids = torch.empty_like(order).scatter(0, order, grouped)
    weights = torch.empty_like(gates).scatter(0, order, gates)
    return ids.view(len(logits), n_slots), weights.view(len(logits), n_slots)


def _sum_of_groups(returned: Sequence[Any], output: torch.Tensor, n_tokens: int) -> torch.Tensor:
    _, tokens, gates, _, _ = returned
    return output.new_zeros(n_tokens, output.shape[-1]).index_add(0, tokens, output * gates[:, None])


def _apply_matrix(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    return functional.linear(hidden, experts.weight[expert])


# Llama 4: every expert is run on every token, with inputs scaled by a factor that is 0 where it was not chosen.


def _from_gates(returned: Sequence[torch.Tensor], _: object, n_slots: int) -> Choice:
    weights, ids = returned[0].topk(n_slots, dim=-1)
    return _without(ids, weights, weights == 0)


def _sum_of_all(returned: Any, output: torch.Tensor, n_tokens: int) -> torch.Tensor:
    return output.view(-1, n_tokens, output.shape[-1]).sum(dim=0)


# LongCat: the last experts hold no weights and return what they receive.


def _apply_or_pass(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    return hidden if expert >= experts.num_routed_experts else _apply_fused(experts, expert, hidden)


# Switch: one-hot rows (tokens, 1, experts), all zero for a token beyond its expert's capacity, which keeps a weight.


def _from_one_hot(one_hot: torch.Tensor, weights: torch.Tensor, n_slots: int) -> Choice:
    return _without(one_hot.argmax(dim=-1), weights, one_hot.sum(dim=-1) == 0)


def _apply_module(experts: Any, expert: int, hidden: torch.Tensor) -> torch.Tensor:
    alone: torch.Tensor = experts[f"expert_{expert}"](hidden)
    return alone


# Zaya: a skip is called as expert 0 with weight 0. An expert of weight 0 adds nothing either, so that both are drops.


def _from_skips(ids: torch.Tensor, weights: torch.Tensor, n_slots: int) -> Choice:
    return _without(ids, weights, weights == 0)


RULE = Form()
EXCEPTIONS = {
    # By the class of the module that holds the experts.
    "DbrxExperts": Form(apply=_apply_dbrx),
    "JetMoeParallelExperts": Form(
        by_rule=False,
        at_call=False,
        logits=4,
        translate=_from_groups,
        combine=_sum_of_groups,
        apply=_apply_matrix,
    ),
    "Llama4TextExperts": Form(
        by_rule=False,
        at_call=False,
        drops=True,
        logits=1,
        translate=_from_gates,
        combine=_sum_of_all,
        scales_input=True,
        transposed=True,
    ),
    "LongcatFlashExperts": Form(apply=_apply_or_pass),
    "SwitchTransformersExperts": Form(
        by_rule=False, drops=True, n_slots=1, logits=2, translate=_from_one_hot, apply=_apply_module
    ),
    "ZayaExperts": Form(drops=True, translate=_from_skips),
}


def form_of(experts: nn.Module) -> Form:
    """Return how the choices of these experts are told."""
    return EXCEPTIONS.get(type(experts).__name__, RULE)


def missing_weights(experts: nn.Module) -> str | None:
    """Return why one expert cannot be applied alone, None if it can."""
    name = type(experts).__name__
    if form_of(experts).apply is not _apply_fused and not _up_name(experts):
        packed = next((one for one, tensor in experts.named_parameters() if not tensor.is_floating_point()), None)
        if packed is not None:
            return f"{name}.{packed} is quantised in a way that is not known here"
        at_random = experts.training and any(isinstance(one, nn.Dropout) and one.p for one in experts.modules())
        return "in training its experts drop out at random" if at_random else None
    up = _up_name(experts)
    activated = hasattr(experts, "_apply_gate") or hasattr(experts, "act_fn")
    if up is None or not hasattr(experts, "down_proj") or not activated:
        return f"{name} does not hold its weights as transformers' fused experts do"
    for one in (up, "down_proj"):
        weights = getattr(experts, one)
        fused = isinstance(weights, torch.Tensor) and weights.dim() == 3 and weights.is_floating_point()
        fused = fused and weights.element_size() > 1  # of 8 bits, scales that are held elsewhere belong to them
        if not fused and not hasattr(weights, "dequantise"):
            return f"{name}.{one} is quantised in a way that is not known here"
    return None


def _without(ids: torch.Tensor, weights: torch.Tensor, dropped: torch.Tensor) -> Choice:
    """Return a choice in which some slots execute no expert."""
    return ids.masked_fill(dropped, DROPPED), weights.masked_fill(dropped, 0)


def _linear(experts: Any, name: str, expert: int, inputs: torch.Tensor) -> torch.Tensor:
    weights = getattr(experts, name)
    if isinstance(weights, torch.Tensor):
        transposed = getattr(experts, "is_transposed", False) or form_of(experts).transposed
        matrix = weights[expert].T if transposed else weights[expert]
    else:
        matrix = weights.dequantise(expert, inputs.dtype)  # (outputs, inputs)
    bias = getattr(experts, f"{name}_bias")[expert] if getattr(experts, "has_bias", False) else None
    return functional.linear(inputs.to(matrix.dtype), matrix, bias)


def _up_name(experts: nn.Module) -> str | None:
    return next((name for name in ("gate_up_proj", "up_proj") if hasattr(experts, name)), None)
