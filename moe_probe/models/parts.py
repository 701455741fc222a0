"""Which part of a language model each of its tensors belongs to: experts, router, attention, embedding, head or other.

Modules are told apart by their names and classes as transformers (and code that follows its habits) gives them. A
shared expert runs for every token, whatever the router says, so it counts as `other`, like any dense layer. This
module does not know precisions or bytes.
"""

from __future__ import annotations

import re

from torch import nn
from transformers import PreTrainedModel

PARTS = ("experts", "router", "attention", "embedding", "head", "other")
"""The parts of a model, in the order of every table."""

_STRENGTH = {"other": 0, "attention": 1, "experts": 2, "router": 3}
_ROUTER_CLASS = re.compile(r"Router|Gating|TopKGate")
_ROUTER_NAMES = {"gate", "router", "gating"}
_ROUTER_TENSOR = re.compile(r"(correction|expert|router)_bias|router")
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def find_parts(model: PreTrainedModel) -> dict[str, str]:
    """Return the part of every parameter and buffer by its dotted name; tied weights are listed once.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=8)
        >>> parts = find_parts(MixtralForCausalLM(config))
        >>> parts["model.layers.0.mlp.experts.down_proj"], parts["model.layers.0.mlp.gate.weight"]
        ('experts', 'router')
    """
    owners = _part_of_modules(model)
    names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
    parts = {}
    for name in names:
        module, _, tensor = name.rpartition(".")
        parts[name] = "router" if owners[module] == "other" and _ROUTER_TENSOR.search(tensor) else owners[module]
    return parts


def _part_of_modules(model: PreTrainedModel) -> dict[str, str]:
    """Return the part of every module by its dotted name: its parent's, unless its own is a stronger one."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    parts = {"": "other"}
    for name, module in model.named_modules():
        for child_name, child in module.named_children():
            full_name = f"{name}.{child_name}" if name else child_name
            if child is head:
                parts[full_name] = "head"
            elif isinstance(child, nn.Embedding):
                parts[full_name] = "embedding"
            else:
                own = _own_part(child_name, child, module)
                parent = parts[name]
                parts[full_name] = own if _STRENGTH[own] > _STRENGTH.get(parent, 0) else parent
    return parts


def _own_part(name: str, module: nn.Module, parent: nn.Module) -> str:
    class_name = type(module).__name__
    # A dense layer may call a projection `gate`; next to experts the name means a router.
    if _ROUTER_CLASS.search(class_name) or (name in _ROUTER_NAMES and hasattr(parent, "experts")):
        return "router"
    if name == "experts" or class_name.endswith("Experts"):
        return "experts"
    if (_ATTENTION.search(name) and "norm" not in name) or class_name.endswith("Attention"):
        return "attention"
    return "other"
