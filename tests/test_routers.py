from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

import moe_probe as mp
from moe_probe.recording.routers import find_sites, find_stream

# What find_routers must say of the tiny models: first block, layers, experts, slots, kind.
EXPECTED = {
    "mixtral": ("model.layers.0.mlp", [0, 1, 2], 8, 2, "softmax top-k"),
    "olmoe": ("model.layers.0.mlp", [0, 1, 2], 16, 4, "softmax top-k"),
    "qwen2_moe": ("model.layers.0.mlp", [0, 1, 2], 8, 2, "softmax top-k"),
    "qwen3_moe": ("model.layers.0.mlp", [0, 1, 2], 16, 4, "softmax top-k"),
    "gpt_oss": ("model.layers.0.mlp", [0, 1, 2], 8, 2, "top-k softmax"),
    "deepseek_v3": ("model.layers.1.mlp", [1, 2], 16, 4, "sigmoid + bias + groups top-k"),
    "granitemoe": ("model.layers.0.block_sparse_moe", [0, 1, 2], 8, 2, "top-k softmax"),
}
REFUSED = {
    "doge": ({"is_moe": True, "num_experts": 16, "num_experts_per_tok": 2}, "no module is called with its choices"),
}
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_routers_are_found_where_the_model_has_its_blocks(architecture: str) -> None:
    name, layers, n_experts, n_slots, kind = EXPECTED[architecture]
    routers = mp.find_routers(tiny_models.build(architecture))
    assert routers[0].name == name
    assert [router.layer for router in routers] == layers
    assert [router.index for router in routers] == list(range(len(layers)))
    assert {(router.n_experts, router.n_slots, router.kind) for router in routers} == {(n_experts, n_slots, kind)}


def test_groups_are_named_only_where_there_are_several() -> None:
    config = AutoConfig.for_model("deepseek_v3", **SMALL, first_k_dense_replace=0, n_group=1, topk_group=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert mp.find_routers(model)[0].kind == "sigmoid + bias top-k"


def test_the_stream_is_the_decoder_whether_it_is_asked_for_by_head_or_by_body() -> None:
    model = tiny_models.build("mixtral")
    assert find_stream(model, find_sites(model)) is model.model
    assert find_stream(model.model, find_sites(model.model)) is model.model
    one_layer = model.model.layers[0]
    assert find_stream(one_layer, find_sites(one_layer)) is one_layer
    assert find_sites(one_layer)[0].router.name == "mlp"


@pytest.mark.parametrize("model_type", REFUSED)
def test_models_that_cannot_be_read_are_refused_with_the_reason(model_type: str) -> None:
    options, reason = REFUSED[model_type]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SMALL, **options}))
    with pytest.raises(mp.UnsupportedModelError, match=f"the routers of {model_type} cannot be read: .*{reason}"):
        mp.find_routers(model)


def test_an_encoder_decoder_that_cannot_be_read_is_refused_with_the_reason() -> None:
    config = AutoConfig.for_model("nllb-moe", vocab_size=64, d_model=64, num_layers=2, num_experts=4)
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    with pytest.raises(mp.UnsupportedModelError, match="other experts than its router"):
        mp.find_routers(model)


def test_a_dense_model_has_no_router() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL))
    with pytest.raises(mp.UnsupportedModelError, match=r"LlamaForCausalLM: no router found, .* no module called 'exp"):
        mp.find_routers(model)


class _Block(nn.Module):
    """A block with experts of a given kind."""

    def __init__(self, experts: nn.Module, **attributes: Any) -> None:
        super().__init__()
        self.experts = experts
        for name, value in attributes.items():
            setattr(self, name, value)


class _Experts(nn.Module):
    def forward(self, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return hidden


class _TwoArguments(nn.Module):
    def forward(self, hidden: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        return hidden


class _Mxfp4Experts(_Experts):
    def forward_routed(self, hidden: torch.Tensor, routing: object) -> torch.Tensor:
        return hidden


def _with(experts: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(experts, name, value)
    return experts


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            _Block(nn.ModuleList([nn.Linear(2, 2)])),
            r"experts \(ModuleList\): it takes \(\), not hidden states, indices",
        ),
        (_Block(_TwoArguments()), r"it takes \(hidden, indices\), not hidden states, indices and weights"),
        (_Block(_Mxfp4Experts()), "MXFP4 experts are called through forward_routed.*dequantize=True"),
        (_Block(_with(_Experts(), _is_expert_parallel=True)), "a process sees its own experts' choices only"),
        (_Block(_Experts(), top_k=2), "does not say how many experts it holds"),
        (_Block(_with(_Experts(), num_experts=4)), "how many experts a token goes to is written nowhere"),
    ],
)
def test_experts_that_the_rule_cannot_read_are_refused_with_the_reason(block: nn.Module, message: str) -> None:
    with pytest.raises(mp.UnsupportedModelError, match=message):
        mp.find_routers(nn.Sequential(block))


def test_experts_are_read_by_position_and_by_name_alike() -> None:
    site = find_sites(tiny_models.build("gpt_oss"))[0]
    hidden, ids, weights = torch.zeros(3, 64), torch.zeros(3, 2, dtype=torch.long), torch.zeros(3, 2)
    for args, kwargs in (
        ((hidden, ids, weights), {}),
        ((hidden, ids), {"routing_weights": weights}),
        ((), {"hidden_states": hidden, "routing_weights": weights, "router_indices": ids}),
    ):
        read = site.read_call(args, kwargs)
        assert all(one is other for one, other in zip(read, (hidden, ids, weights), strict=True))


def test_a_call_of_another_form_is_refused_with_its_shapes() -> None:
    site = find_sites(tiny_models.build("mixtral"))[0]
    one_hot = torch.zeros(3, 1, 8, dtype=torch.long)
    with pytest.raises(mp.UnsupportedModelError, match=r"called with \[\(3, 64\), \(3, 1, 8\), \(3, 1\)\], not with"):
        site.read_call((torch.zeros(3, 64), one_hot, torch.zeros(3, 1)), {})
    with pytest.raises(mp.UnsupportedModelError, match=r"called with \[\(3, 64\), 'NoneType', 'NoneType'\]"):
        site.read_call((torch.zeros(3, 64),), {})
