"""Find where a model chooses experts, and how its decisions are read there.

One rule serves nearly every Mixture of Experts of transformers ≥ 5.24: a module called `experts` receives hidden
states (tokens, hidden), the chosen experts (tokens, slots) and their weights (tokens, slots), in this order. What it
is called with is what is executed. `forms` knows the few that do otherwise; models that cannot be read exactly are
refused with the reason. This module does not run a model and knows no hooks.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from moe_probe.errors import UnsupportedModelError
from moe_probe.recording.forms import RULE, Form, form_of
from moe_probe.recording.scores import Scoring, find_bias, read_gate
from moe_probe.schema import Router

_REFUSED = {
    # Model types whose executed experts the rule would read wrongly or not at all.
    "doge": "its experts are rows of embeddings, picked by product keys: no module is called with its choices",
    "inkling2_loop_text": "some of its layers run several times in a forward, and choose anew each time",
    "nllb-moe": "transformers executes other experts than its router chose (it takes a one-hot of a one-hot)",
}
_BLOCKS = {
    # Blocks without a module called `experts`, or with another module of that name: where their experts are called.
    "JetMoeMoA": "input_linear",
    "JetMoeMoE": "input_linear",
}
_OTHER_SENSES = {"vision_moe"}
"""Blocks that run only where a batch holds images, beside one for its text."""
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
    form: Form = field(default=RULE, repr=False)
    bias_at: tuple[nn.Module, str] | None = field(default=None, repr=False)

    @property
    def bias(self) -> torch.Tensor:
        """The correction bias of a router that has one, (experts,), as it is now."""
        assert self.bias_at is not None, "the scoring says whether there is one"
        found: torch.Tensor = getattr(*self.bias_at)
        return found.detach().flatten()

    @property
    def where(self) -> str:
        """The router as messages name it."""
        return f"{self.router.name} (router {self.router.index}, layer {self.router.layer})"

    def read_call(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states, experts and weights of a call of the experts, given by position or by name.

        They are those of the call, which is where an intervention changes them; recording reads `read_choice`.

        Raises:
            UnsupportedModelError: if the call does not hold them in the form of the rule.
        """
        if not self.form.by_rule:
            raise UnsupportedModelError(
                f"{self.where}: its experts are not called with the indices and weights of the chosen experts, so that "
                "its choice can be recorded but not changed"
            )
        hidden, ids, weights = given = args if len(args) == 3 else self._given(args, kwargs)
        if not _are_tensors(given) or ids.dim() != 2 or ids.shape != weights.shape:
            raise self._unreadable(given)
        return hidden, ids, weights

    def read_choice(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states, and experts and weights as executed, of a call of the experts.

        Raises:
            UnsupportedModelError: if the call does not hold them in the router's form.
        """
        if self.form.by_rule:
            hidden, ids, weights = self.read_call(args, kwargs)
        else:
            hidden, ids, weights = given = self._given(args, kwargs)
            if not _are_tensors(given) or ids.dim() != 3 or ids.shape[:2] != weights.shape:
                raise self._unreadable(given)
        return hidden, *self.form.translate(ids, weights, self.router.n_slots)

    def _given(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        return [
            args[index] if index < len(args) else kwargs.get(name) for index, name in enumerate(self.argument_names)
        ]

    def _unreadable(self, given: Sequence[Any]) -> UnsupportedModelError:
        shapes = [tuple(one.shape) if isinstance(one, torch.Tensor) else type(one).__name__ for one in given]
        return UnsupportedModelError(
            f"{self.where}: its experts were called with {shapes}, not with hidden states, indices (tokens, slots) "
            "and weights (tokens, slots); this router cannot be read"
        )


def _are_tensors(given: Sequence[Any]) -> bool:
    return all([isinstance(one, torch.Tensor) for one in given])


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
    modules = dict(model.named_modules())
    _refuse_known(model, modules.values())
    names = [name for name, module in modules.items() if _holds_experts(name, module)]
    if not names:
        raise UnsupportedModelError(
            f"{type(model).__name__}: no router found, since it has no module called 'experts'; is it a "
            "Mixture-of-Experts model of transformers 5.24 or later?"
        )
    return [_read_site(model, name, index) for index, name in enumerate(names)]


def _holds_experts(name: str, module: nn.Module) -> bool:
    if type(module).__name__ in _BLOCKS:
        return True
    *above, last = name.split(".")
    return last == "experts" and not _OTHER_SENSES.intersection(above)


def find_stream(model: nn.Module, sites: Sequence[Site]) -> nn.Module:
    """Return the module whose forward is one pass of tokens through all the sites.

    It is the innermost transformers model that holds every site (for a causal language model its decoder without the
    head), so that a call of the head's model and a direct call of the decoder are both seen. Without one, `model`.

    Raises:
        UnsupportedModelError: if an encoder and a decoder hold routers; the message names both.
    """
    names = [site.router.name.split(".") if site.router.name else [] for site in sites]
    shared: list[str] = []
    for parts in zip(*names, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    innermost = {_innermost_model(model, parts) for parts in names}
    stream = model.get_submodule(".".join(_innermost_model(model, shared)))
    if len(innermost) > 1 and getattr(getattr(stream, "config", None), "is_encoder_decoder", False):
        parts_of_it = " and ".join("model." + ".".join(one) for one in sorted(innermost, reverse=True))
        raise UnsupportedModelError(
            f"{type(model).__name__}: its encoder and its decoder are streams of different tokens; record them one by "
            f"one: {parts_of_it} (both recordings may be open at once)"
        )
    return stream


def _innermost_model(model: nn.Module, parts: Sequence[str]) -> tuple[str, ...]:
    """Return the path of the innermost transformers model on the way to a module, () where there is none."""
    for length in range(len(parts), 0, -1):
        # Every PreTrainedModel says which argument holds its tokens.
        if hasattr(model.get_submodule(".".join(parts[:length])), "main_input_name"):
            return tuple(parts[:length])
    return ()


def refuse_compiled(model: nn.Module) -> None:
    """Refuse a model that is compiled already: compiled code leaves out hooks that come later.

    Raises:
        UnsupportedModelError: naming the model.
    """
    if hasattr(model, "_orig_mod") or any(module._compiled_call_impl is not None for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__}: it is compiled already, and compiled code leaves out hooks that come later; "
            "record or change the model before torch.compile, or an uncompiled one"
        )


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


def _refuse_known(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    for module in modules:
        model_type = getattr(getattr(module, "config", None), "model_type", None)
        if model_type in _REFUSED:
            raise UnsupportedModelError(
                f"{type(model).__name__}: the routers of {model_type} cannot be read: {_REFUSED[model_type]}"
            )


def _read_site(model: nn.Module, name: str, index: int) -> Site:
    """Return the router whose experts, or whose block of a known class, has this name."""
    found = model.get_submodule(name)
    within = _BLOCKS.get(type(found).__name__)
    block_name = name if within else name.rpartition(".")[0]
    block = model.get_submodule(block_name)
    experts = getattr(found, within) if within else found
    label = f"{name} ({type(found).__name__})"
    form = form_of(experts)
    names = _argument_names(experts, label) if form.at_call else []
    gate_name, gate = _find_gate(block)
    kind, scoring = read_gate(gate, block) if gate is not None else ("unknown", None)
    n_experts = find_number(("total_experts", "num_experts"), experts)
    if n_experts is None:
        raise UnsupportedModelError(f"{label}: it does not say how many experts it holds (num_experts)")
    config = _config_above(model, block_name)
    n_slots = form.n_slots or find_number(_SLOTS_NAMES, gate, block, getattr(block, "config", None), config)
    if n_slots is None:
        raise UnsupportedModelError(f"{label}: how many experts a token goes to is written nowhere (top_k)")
    if gate is None and not form.at_call:
        raise UnsupportedModelError(f"{label}: its router is not where it is expected")
    router = Router(index, block_name, layer_of(block_name, index), n_experts, n_slots, kind)
    return Site(
        router,
        experts,
        gate,
        f"{block_name}.{gate_name}",
        scoring,
        names,
        form,
        find_bias(gate, block) if gate else None,
    )


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


def find_number(names: Sequence[str], *holders: object) -> int | None:
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


def layer_of(name: str, index: int) -> int:
    """Return the first number in a dotted path: that of the transformer block. Without one, the router's own index."""
    return next((int(part) for part in name.split(".") if part.isdigit()), index)
