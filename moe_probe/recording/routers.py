"""Find where a model chooses experts, and how its decisions are read there.

One rule serves nearly every Mixture of Experts of transformers ≥ 5.24: a module called `experts` receives hidden
states (tokens, hidden), the chosen experts (tokens, slots) and their weights (tokens, slots), in this order. What it
is called with is what is executed. Models that do otherwise are refused with the reason. This module does not run a
model and knows no hooks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from moe_probe.errors import UnsupportedModelError
from moe_probe.recording.scores import Scoring, read_gate
from moe_probe.schema import Router

_REFUSED = {
    # Model types whose executed experts the rule would read wrongly or not at all.
    "doge": "its experts are rows of embeddings, picked by product keys: no module is called with its choices",
    "jetmoe": "its experts receive the tokens already regrouped by expert, without the experts' indices",
    "llama4": "its experts are called without indices: the router scales the input of every expert instead",
    "llama4_text": "its experts are called without indices: the router scales the input of every expert instead",
    "longcat_flash": "it also sends tokens to identity experts, which hold no weights to check a recording against",
    "nllb-moe": "transformers executes other experts than its router chose (it takes a one-hot of a one-hot)",
    "switch_transformers": "its experts are called with one-hot rows (tokens, 1, experts), in which a token that "
    "was dropped for lack of capacity keeps a weight",
    "zaya": "a token that skips its experts is sent to expert 0 with weight 0, the same as one that was routed there",
}
_GATE_NAMES = ("gate", "router")
_GATE_CLASS = re.compile(r"Router|Gating|TopKGate")
_SLOTS_NAMES = ("top_k", "num_experts_per_tok", "moe_top_k", "moe_topk", "top_k_experts", "num_experts_per_token")
_PRECISE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TABLES = (torch.int64, torch.bool)  # what a router may look experts up in; no quantisation packs weights into these


@dataclass(frozen=True, eq=False)
class Site:
    """A router together with the modules at which it is read.

    `gate` is the module that makes the logits, None where none was recognised; `scoring` how it makes selection
    scores of them, None where not known.
    """

    router: Router
    experts: nn.Module
    gate: nn.Module | None
    gate_name: str
    scoring: Scoring | None
    argument_names: Sequence[str] = field(repr=False)

    @property
    def where(self) -> str:
        """The router as messages name it."""
        return f"{self.router.name} (router {self.router.index}, layer {self.router.layer})"

    def read_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states, experts and weights of a call of the experts, given by position or by name.

        Raises:
            UnsupportedModelError: if the call does not hold them in the form of the rule.
        """
        given: list[Any] = [
            args[index] if index < len(args) else kwargs.get(name) for index, name in enumerate(self.argument_names)
        ]
        hidden, ids, weights = given
        if not all(isinstance(one, torch.Tensor) for one in given) or ids.dim() != 2 or ids.shape != weights.shape:
            shapes = [tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__ for one in given]
            raise UnsupportedModelError(
                f"{self.where}: its experts were called with {shapes}, not with hidden states, indices (tokens, slots) "
                "and weights (tokens, slots); this router cannot be read"
            )
        return hidden, ids, weights


def find_routers(model: nn.Module) -> list[Router]:
    """Return where a model chooses experts, in the order of its layers.

    Raises:
        UnsupportedModelError: if there is none, or its decisions cannot be read exactly; the message says why.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=8)
        >>> find_routers(MixtralForCausalLM(config))[1]
        Router(index=1, name='model.layers.1.mlp', layer=1, n_experts=8, n_slots=2, kind='softmax top-k')
    """
    return [site.router for site in find_sites(model)]


def find_sites(model: nn.Module) -> list[Site]:
    """Return the routers of a model with the modules at which they are read.

    Raises:
        UnsupportedModelError: as `find_routers`.
    """
    _refuse_known(model)
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] == "experts"]
    if not names:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no router found, since it has no module called 'experts'; is it a "
            "Mixture-of-Experts model of transformers 5.24 or later?"
        )
    return [_read_site(model, name, index) for index, name in enumerate(names)]


def find_stream(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Return the module whose forward is one pass of tokens through all the sites.

    It is the innermost transformers model that holds every site (for a causal language model its decoder without the
    head), so that a call of the head's model and a direct call of the decoder are both seen. Without one, `model`.
    """
    names = [site.router.name.split(".") if site.router.name else [] for site in sites]
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    for length in range(len(shared), -1, -1):
        module = model.get_submodule(".".join(shared[:length]))
        if hasattr(module, "main_input_name"):  # every PreTrainedModel says which argument holds its tokens
            return module
    return model


def check_gates(sites: Sequence[Site]) -> None:
    """Refuse routers that do not compute in floating point: quantised, they choose other experts than the model's.

    Raises:
        UnsupportedModelError: naming the router's tensor and its type.
    """
    for site in sites:
        if site.gate is None:
            continue
        for name, tensor in [*site.gate.named_parameters(), *site.gate.named_buffers()]:
            if tensor.dtype not in (*_PRECISE, *_TABLES) or type(tensor).__name__ in ("Params4bit", "Int8Params"):
                raise UnsupportedModelError(
                    f"{site.gate_name}.{name}: the router is quantised ({str(tensor.dtype).removeprefix('torch.')}), "
                    "so that it chooses other experts than the model's own; load it with moe_probe.load, which keeps "
                    "routers in full precision, or keep it out of the quantisation"
                )


def _refuse_known(model: nn.Module) -> None:
    for module in model.modules():
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if model_type in _REFUSED:
            raise UnsupportedModelError(
                f"{type(model).__name__}: the routers of {model_type} cannot be read: {_REFUSED[model_type]}"
            )


def _read_site(model: nn.Module, experts_name: str, index: int) -> Site:
    experts = model.get_submodule(experts_name)
    name = experts_name.rpartition(".")[0]
    block = model.get_submodule(name)
    label = f"{experts_name} ({type(experts).__name__})"
    names = _argument_names(experts, label)
    gate_name, gate = _find_gate(block)
    kind, scoring = read_gate(gate) if gate is not None else ("unknown", None)
    n_experts = getattr(experts, "num_experts", None)
    if not isinstance(n_experts, int):
        raise UnsupportedModelError(f"{label}: it does not say how many experts it holds (num_experts)")
    n_slots = _find_number(_SLOTS_NAMES, gate, block, getattr(block, "config", None), _config_above(model, name))
    if n_slots is None:
        raise UnsupportedModelError(f"{label}: how many experts a token goes to is written nowhere (top_k)")
    router = Router(index, name, _layer(name, index), n_experts, n_slots, kind)
    return Site(router, experts, gate, f"{name}.{gate_name}", scoring, names)


def _argument_names(experts: nn.Module, label: str) -> list[str]:
    """Return the names of the experts' first three arguments, or refuse experts that the rule cannot read."""
    if hasattr(experts, "forward_routed"):
        raise UnsupportedModelError(
            f"{label}: MXFP4 experts are called through forward_routed, which hides the chosen experts; load the model "
            "with quantization_config=Mxfp4Config(dequantize=True), or through moe_probe.load"
        )
    if getattr(experts, "_is_expert_parallel", False):
        raise UnsupportedModelError(
            f"{label}: under expert parallelism a process sees its own experts' choices only; load the model without it"
        )
    parameters = [
        one.name
        for one in inspect.signature(type(experts).forward).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ][1:]
    if len(parameters) < 3:
        raise UnsupportedModelError(
            f"{label}: it takes ({', '.join(parameters)}), not hidden states, indices and weights of the chosen "
            "experts; this router cannot be read"
        )
    return parameters[:3]


def _find_gate(block: nn.Module) -> tuple[str, nn.Module | None]:
    children = dict(block.named_children())
    for name in _GATE_NAMES:
        if name in children:
            return name, children[name]
    for name, child in children.items():
        if _GATE_CLASS.search(type(child).__name__):
            return name, child
    return "", None


def _find_number(names: Sequence[str], *holders: object) -> int | None:
    """Return the first whole number that one of the holders has under one of the names."""
    for holder in holders:
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int):
                return value
    return None


def _config_above(model: nn.Module, name: str) -> object:
    """Return the config of the innermost module around `name` that has one."""
    parts = name.split(".") if name else []
    for length in range(len(parts), -1, -1):
        config = getattr(model.get_submodule(".".join(parts[:length])), "config", None)
        if config is not None:
            return config
    return None


def _layer(name: str, index: int) -> int:
    """Return the first number in a dotted path: that of the transformer block. Without one, the router's own index."""
    return next((int(part) for part in name.split(".") if part.isdigit()), index)
