"""What each Mixture-of-Experts block decides and returns, written out by hand from the papers, token by token.

The oracle of the tests. It takes the states that enter a block (seen by a hook on the block itself), and recomputes
from the weights which experts every token must go to, with which weight, and what the block must return. It calls
neither the model's router nor its experts, nor anything of moe_probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

BLOCKS = {
    # model type -> the MoE block of a layer, its router, its shared expert
    "mixtral": ("mlp", "gate", None),
    "olmoe": ("mlp", "gate", None),
    "qwen2_moe": ("mlp", "gate", "shared_expert"),
    "qwen3_moe": ("mlp", "gate", None),
    "gpt_oss": ("mlp", "router", None),
    "deepseek_v3": ("mlp", "gate", "shared_experts"),
    "granitemoe": ("block_sparse_moe", "router", None),
}


@dataclass(frozen=True)
class Scored:
    """One token's decision: what top-k is taken of, a distribution over experts, and the weights of chosen experts."""

    selection: list[float]
    distribution: list[float]
    weights: Callable[[list[int]], list[float]]


@dataclass(frozen=True)
class Decided:
    """What one block decides for every row of a forward, padding included; slots by weight, ties by expert."""

    layer: int
    experts: np.ndarray  # (rows, slots)
    weights: np.ndarray  # (rows, slots)
    entropy: np.ndarray  # (rows,) bits
    margin: np.ndarray  # (rows,)
    distribution: np.ndarray  # (rows, experts)
    tied: np.ndarray  # (rows,) the last chosen and the first unchosen expert have one score: either is right
    output: torch.Tensor  # (rows, hidden) what the block must return
    returned: torch.Tensor  # (rows, hidden) what it did return


@torch.no_grad()
def hand_forward(model: Any, run: Callable[[], object], *, outputs: bool = True) -> list[Decided]:
    """Call `run`, one forward of `model`, and return what each of its blocks must have decided, layer by layer."""
    config = model.config
    block_name, gate_name, shared_name = BLOCKS[config.model_type]
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    decoder = getattr(model, "model", model)
    blocks = {
        layer: getattr(module, block_name)
        for layer, module in enumerate(decoder.layers)
        if hasattr(getattr(module, block_name), "experts")
    }
    for layer, block in blocks.items():

        def keep(_: nn.Module, args: Any, output: Any, layer: int = layer) -> None:
            seen[layer] = (args[0].clone(), output[0] if isinstance(output, tuple) else output)

        handles.append(block.register_forward_hook(keep))
    run()
    for handle in handles:
        handle.remove()
    decided = []
    for layer, (states, returned) in seen.items():
        block = blocks[layer]
        states = states.reshape(-1, states.shape[-1])
        shared = _shared(block, shared_name, states) if shared_name and outputs else None
        decided.append(
            _decide(layer, config, block, getattr(block, gate_name), states, shared, returned.reshape(states.shape))
        )
    return decided


def _decide(
    layer: int,
    config: Any,
    block: nn.Module,
    gate: nn.Module,
    states: torch.Tensor,
    shared: torch.Tensor | None,
    returned: torch.Tensor,
) -> Decided:
    score = {"deepseek_v3": deepseek_v3, "gpt_oss": gpt_oss, "granitemoe": granitemoe, "mixtral": mixtral}.get(
        config.model_type, olmoe
    )
    logits = router_logits(config.model_type, gate, states)
    n_slots = config.num_experts_per_tok
    experts, weights, entropies, margins, distributions, tied = [], [], [], [], [], []
    output = torch.zeros_like(states, dtype=torch.float32)
    for token, row in enumerate(logits):
        scored = score(row, config, gate)
        order = sorted(range(len(row)), key=lambda expert: (-scored.selection[expert], expert))
        chosen, others = order[:n_slots], order[n_slots:]
        margins.append(scored.selection[chosen[-1]] - scored.selection[others[0]])
        tied.append(margins[-1] == 0)
        distributions.append(scored.distribution)
        entropies.append(-sum(p * math.log2(p) for p in scored.distribution if p > 0))
        slots = sorted(zip(scored.weights(chosen), chosen, strict=True), key=lambda slot: (-slot[0], slot[1]))
        experts.append([expert for _, expert in slots])
        weights.append([weight for weight, _ in slots])
        for weight, expert in slots:
            output[token] += weight * one_expert(config.model_type, block.experts, expert, states[token]).float()
    if shared is not None:
        output = output + shared.float()
    return Decided(
        layer,
        np.array(experts),
        np.array(weights),
        np.array(entropies),
        np.array(margins),
        np.array(distributions),
        np.array(tied),
        output,
        returned,
    )


def router_logits(model_type: str, gate: Any, states: torch.Tensor) -> torch.Tensor:
    """Return (rows, experts): a matrix product in the model's type, but DeepSeek-V3's in float32 always."""
    if model_type == "deepseek_v3":
        return states.float() @ gate.weight.float().T
    if model_type == "gpt_oss":
        return functional.linear(states, gate.weight, gate.bias)
    return states @ gate.weight.T


def mixtral(logits: torch.Tensor, config: Any, gate: Any) -> Scored:
    """Softmax(TopK(x · W)) (arXiv 2401.04088, section 2.1), kept in float32."""
    values = logits.float().tolist()
    return Scored(_softmax(values), _softmax(values), lambda chosen: _softmax([values[expert] for expert in chosen]))


def olmoe(logits: torch.Tensor, config: Any, gate: Any) -> Scored:
    """TopK(Softmax(x · W)) (arXiv 2409.02060, section 2), in the model's type; Qwen's too, where asked renormalised."""
    probabilities = _softmax(logits.float().tolist())

    def weights(chosen: list[int]) -> list[float]:
        total = sum(probabilities[expert] for expert in chosen) if config.norm_topk_prob else 1.0
        return _rounded([probabilities[expert] / total for expert in chosen], logits.dtype)

    return Scored(probabilities, probabilities, weights)


def gpt_oss(logits: torch.Tensor, config: Any, gate: Any) -> Scored:
    """Top-k of the logits, then a softmax over those (gpt-oss model card, arXiv 2508.10925), in the model's type."""
    values = logits.float().tolist()
    return Scored(
        values,
        _softmax(values),
        lambda chosen: _rounded(_softmax([values[expert] for expert in chosen]), logits.dtype),
    )


def granitemoe(logits: torch.Tensor, config: Any, gate: Any) -> Scored:
    """Top-k of the logits, then a softmax over those, in the model's type."""
    return gpt_oss(logits, config, gate)


def deepseek_v3(logits: torch.Tensor, config: Any, gate: Any) -> Scored:
    """Sigmoid scores; groups and experts by score + bias; weights by score alone (arXiv 2412.19437, section 2.1.2)."""
    scores = [float(score) for score in logits.sigmoid()]
    biased = (logits.sigmoid() + gate.e_score_correction_bias).tolist()
    size = len(scores) // config.n_group
    groups = [biased[start : start + size] for start in range(0, len(biased), size)]
    strength = [sum(sorted(group)[-2:]) for group in groups]
    kept = sorted(range(len(groups)), key=lambda group: -strength[group])[: config.topk_group]
    selection = [value if expert // size in kept else -math.inf for expert, value in enumerate(biased)]

    def weights(chosen: list[int]) -> list[float]:
        total = sum(scores[expert] for expert in chosen) if config.norm_topk_prob else 1.0
        return [scores[expert] / total * config.routed_scaling_factor for expert in chosen]

    return Scored(selection, [score / sum(scores) for score in scores], weights)


def one_expert(model_type: str, experts: Any, expert: int, state: torch.Tensor) -> torch.Tensor:
    """Return the output of one expert for one token's state (hidden,), from the bare weights."""
    up = matrix(experts.gate_up_proj, expert, state.dtype, transposed=model_type == "gpt_oss") @ state
    if model_type == "gpt_oss":  # gate and up are interleaved, biased and clamped
        up = up + experts.gate_up_proj_bias[expert]
        gated, linear = up[0::2].clamp(max=7.0), up[1::2].clamp(-7.0, 7.0)
        inner = (linear + 1) * gated * torch.sigmoid(1.702 * gated)
        return matrix(experts.down_proj, expert, state.dtype, transposed=True) @ inner + experts.down_proj_bias[expert]
    gated, linear = up[: len(up) // 2], up[len(up) // 2 :]
    inner = gated * torch.sigmoid(gated) * linear  # SwiGLU
    return matrix(experts.down_proj, expert, state.dtype, transposed=False) @ inner


def matrix(weights: Any, expert: int, dtype: torch.dtype, *, transposed: bool) -> torch.Tensor:
    """Return one expert's matrix (outputs, inputs), whether it is held in full or packed in 4 or 8 bits."""
    if isinstance(weights, torch.Tensor):
        return weights[expert].T if transposed else weights[expert]
    dequantised: torch.Tensor = weights.dequantise(expert, dtype)
    return dequantised


def _shared(block: Any, name: str, states: torch.Tensor) -> torch.Tensor:
    """Return what the experts that every token goes to add; they are dense layers, so the model's own may run them."""
    shared: torch.Tensor = getattr(block, name)(states)
    if hasattr(block, f"{name}_gate"):
        shared = torch.sigmoid(getattr(block, f"{name}_gate")(states)) * shared
    return shared


def _softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(values)) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def _rounded(values: list[float], dtype: torch.dtype) -> list[float]:
    return [float(value) for value in torch.tensor(values).to(dtype)]
