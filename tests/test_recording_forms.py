"""Routers that do not tell their choice as the rule says, each against its own arithmetic done by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import moe_probe as mp
from moe_probe.intervening.weights import ablate
from moe_probe.recording import capture
from moe_probe.recording.architectures import build
from moe_probe.recording.routers import find_sites
from moe_probe.recording.routing import Routing
from moe_probe.recording.survey import run_streams
from moe_probe.schema import DROPPED
from moe_probe.store.shards import RoutingBlock
from moe_probe_kernels import pack
from moe_probe_kernels.pack import Packed

TOKENS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(3))
EXCEPTIONS = ("dbrx", "jetmoe", "llama4_text", "longcat_flash", "switch_transformers", "zaya")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def _record(model: Any, **inputs: torch.Tensor) -> Routing:
    with mp.record(model) as recording:
        model(TOKENS, **inputs)
    assert recording.self_check == "passed"
    return recording.routing()


def _inputs_of(module: Any, model: Any) -> torch.Tensor:
    """Return the hidden states that a module receives in a forward, (tokens, hidden)."""
    kept: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone()))
    model(TOKENS)
    handle.remove()
    return kept[0]


def _sorted(ids: torch.Tensor, weights: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    order = weights.argsort(dim=-1, descending=True)
    return ids.gather(-1, order).numpy(), weights.gather(-1, order).numpy()


def test_switch_drops_tokens_beyond_an_experts_capacity() -> None:
    encoder = build("switch_transformers").encoder
    routing = _record(encoder)
    block = encoder.block[1].layer[1].mlp
    logits = block.router.classifier(_inputs_of(block.router, encoder))  # (sequences, length, experts)
    probabilities = logits.softmax(dim=-1)
    expected, weights = [], []
    for sequence in probabilities:
        taken = [0] * 8
        for token in sequence:
            expert = int(token.argmax())
            taken[expert] += 1
            expected.append(expert if taken[expert] <= 3 else DROPPED)
            weights.append(float(token.max()) if taken[expert] <= 3 else 0.0)
    assert 0 < expected.count(DROPPED) < 48
    assert routing.experts(0)[:, 0].tolist() == expected
    np.testing.assert_allclose(routing.weights(0)[:, 0], weights, rtol=1e-5)
    best = probabilities.flatten(0, 1).topk(2).values
    margin = routing.margin(0)
    assert margin is not None
    np.testing.assert_allclose(margin, (best[:, 0] - best[:, 1]), atol=1e-6)


def test_zaya_skips_experts_and_a_skip_is_not_expert_0() -> None:
    model: Any = build("zaya")
    gate = model.layers[0].mlp.gate
    gate.balancing_biases.zero_()
    gate.balancing_biases[0] = 0.3
    gate.router_mlp.out_proj.weight.mul_(10)
    kept: list[Any] = []
    handle = gate.register_forward_hook(lambda _, __, output: kept.append(output))
    routing = _record(model)
    handle.remove()
    probabilities = kept[0][0].softmax(dim=-1)
    chosen = (probabilities + gate.balancing_biases).argmax(dim=-1)  # the ninth is to skip
    assert {0, 8} <= set(chosen.tolist())
    expected = torch.where(chosen == 8, DROPPED, chosen)
    assert routing.experts(0)[:, 0].tolist() == expected.tolist()
    weights = probabilities.gather(-1, chosen[:, None]).squeeze(-1).masked_fill(chosen == 8, 0)
    np.testing.assert_allclose(routing.weights(0)[:, 0], weights, rtol=1e-5)


def test_llama4_scales_what_its_experts_receive() -> None:
    model: Any = build("llama4_text")
    routing = _record(model)
    for layer, block in enumerate(one.feed_forward for one in model.layers):
        logits = _inputs_of(block.router, model) @ block.router.weight.T
        values, ids = logits.topk(2)
        experts, weights = _sorted(ids, values.sigmoid())
        np.testing.assert_array_equal(routing.experts(layer), experts)
        np.testing.assert_allclose(routing.weights(layer), weights, rtol=1e-5)
        shares = logits.sigmoid() / logits.sigmoid().sum(dim=-1, keepdim=True)
        entropy, margin = routing.entropy(layer), routing.margin(layer)
        assert entropy is not None
        assert margin is not None
        np.testing.assert_allclose(entropy, -(shares * shares.log2()).sum(dim=-1), rtol=1e-4)
        third = logits.topk(3).values
        np.testing.assert_allclose(margin, (third[:, 1] - third[:, 2]), atol=1e-5)


def test_jetmoe_has_a_router_for_attention_and_one_for_its_mlp() -> None:
    model: Any = build("jetmoe")
    routing = _record(model)
    assert [router.layer for router in routing.routers] == [0, 0, 1, 1]
    assert {router.name.rpartition(".")[2] for router in routing.routers} == {"mlp", "experts"}
    for router in routing.routers:
        gate = model.get_submodule(router.name).router
        values, ids = (_inputs_of(gate, model) @ gate.layer.weight.T).topk(2)
        experts, weights = _sorted(ids, values.softmax(dim=-1))
        np.testing.assert_array_equal(routing.experts(router.index), experts)
        np.testing.assert_allclose(routing.weights(router.index), weights, rtol=1e-5)


def test_longcats_identity_experts_are_recorded_as_the_last() -> None:
    model: Any = build("longcat_flash")
    routing = _record(model)
    router = model.layers[0].mlp.router
    scores = (_inputs_of(router, model).flatten(0, -2) @ router.classifier.weight.T).softmax(dim=-1)
    ids = (scores + router.e_score_correction_bias).topk(2).indices
    experts, weights = _sorted(ids, (scores.gather(-1, ids) * router.routed_scaling_factor))
    np.testing.assert_array_equal(routing.experts(0), experts)
    np.testing.assert_allclose(routing.weights(0), weights, rtol=1e-5)
    assert routing.routers[0].n_experts == 8 + 4
    assert experts.max() >= 8


def test_a_hash_layer_sends_a_token_always_to_the_same_experts() -> None:
    model: Any = build("deepseek_v4")
    routing = _record(model)
    assert [router.kind for router in routing.routers] == ["hash", "sqrtsoftplus + bias top-k"]
    table = model.layers[0].mlp.gate.tid2eid
    np.testing.assert_array_equal(np.sort(routing.experts(0)), np.sort(table[TOKENS.flatten()].numpy()))
    assert routing.margin(0) is None


@pytest.mark.parametrize(
    ("model_type", "place"),
    [
        ("afmoe", "mlp.expert_bias"),
        ("ernie4_5_moe", "mlp.gate.moe_statics.e_score_correction_bias"),
        ("hy_v3", "mlp.e_score_correction_bias"),
        ("lfm2_moe", "feed_forward.expert_bias"),
        ("minimax_m2", "mlp.e_score_correction_bias"),
    ],
)
def test_a_bias_that_the_router_does_not_hold_itself_is_found(model_type: str, place: str) -> None:
    model: Any = build(model_type)
    layer = model.layers[-1]
    module, _, name = place.rpartition(".")
    bias = getattr(layer.get_submodule(module), name)
    bias.normal_(std=0.3)
    gate = getattr(layer, place.split(".")[0])
    gate = gate.router if model_type == "afmoe" else gate.gate
    kept: list[Any] = []
    handle = gate.register_forward_hook(lambda _, __, output: kept.append(output[0]))
    routing = _record(model)
    handle.remove()
    logits = kept[0]
    scores = logits.softmax(dim=-1) if model_type == "ernie4_5_moe" else logits.sigmoid()
    shares = scores / scores.sum(dim=-1, keepdim=True)
    best = (scores + bias.flatten()).topk(3).values
    entropy, margin = routing.entropy(len(routing.routers) - 1), routing.margin(len(routing.routers) - 1)
    assert entropy is not None
    assert margin is not None
    np.testing.assert_allclose(margin, best[:, 1] - best[:, 2], atol=1e-5)
    np.testing.assert_allclose(entropy, -(shares * shares.log2()).sum(dim=-1), rtol=1e-4)


@pytest.mark.parametrize(
    ("method", "kind"), [("greedy", "softmax top-k"), ("group_limited_greedy", "softmax + groups top-k")]
)
def test_deepseek_v2_scores_a_group_by_its_best_expert_if_at_all(method: str, kind: str) -> None:
    model: Any = build("deepseek_v2")
    gate = model.layers[1].mlp.gate
    for layer in model.layers:
        layer.mlp.gate.topk_method = method
    routing = _record(model)
    assert routing.routers[1].kind == kind
    scores = (_inputs_of(gate, model).flatten(0, -2) @ gate.weight.T).softmax(dim=-1)
    if method != "greedy":  # two groups of four, of which one is kept
        kept = scores.argmax(dim=-1, keepdim=True) // 4
        scores = scores.masked_fill(torch.arange(8) // 4 != kept, 0)
    best = scores.topk(3).values
    margin = routing.margin(1)
    assert margin is not None
    np.testing.assert_allclose(margin, best[:, 1] - best[:, 2], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=("bfloat16", "float16"))
@pytest.mark.parametrize("model_type", EXCEPTIONS)
def test_the_self_check_passes_in_half_precision(model_type: str, dtype: torch.dtype) -> None:
    for _, _, self_check in run_streams(build(model_type).to(dtype)):
        assert self_check == "passed"


def _next_expert(packed: Packed) -> Packed:
    return replace(packed, ids=torch.where(packed.ids >= 0, (packed.ids + 1) % 8, packed.ids))


def _heavier(packed: Packed) -> Packed:
    return replace(packed, weights=packed.weights * 1.25)


def _other_tokens(packed: Packed) -> Packed:
    return replace(packed, ids=packed.ids.roll(1, dims=2), weights=packed.weights.roll(1, dims=2))


@pytest.mark.parametrize("fault", [_next_expert, _heavier, _other_tokens])
@pytest.mark.parametrize("model_type", EXCEPTIONS)
def test_the_self_check_catches_a_wrong_recording(
    model_type: str, fault: Callable[[Packed], Packed], monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = build(model_type)
    monkeypatch.setattr(capture, "pack", lambda *args, **kwargs: fault(pack(*args, **kwargs)))
    with pytest.raises(mp.RoutingError, match="self-check failed"):
        run_streams(model)


def test_without_entropy_the_choice_is_recorded_all_the_same() -> None:
    model: Any = build("llama4_text")
    expected = _record(model)
    with mp.record(model, entropy=False) as recording:
        model(TOKENS)
    np.testing.assert_array_equal(recording.routing().experts(1), expected.experts(1))
    assert recording.routing().entropy(1) is None


def test_padding_is_left_out_of_every_form() -> None:
    mask = torch.ones_like(TOKENS)
    mask[0, :5] = 0
    for model_type in ("jetmoe", "llama4_text", "zaya"):
        routing = _record(build(model_type), attention_mask=mask)
        assert routing.n_tokens == 43
        assert routing.experts(0).shape[0] == 43


@pytest.mark.parametrize("model_type", ["jetmoe", "llama4_text", "switch_transformers"])
def test_what_can_only_be_recorded_cannot_be_changed(model_type: str) -> None:
    model: Any = build(model_type)
    stream = model.encoder if model_type == "switch_transformers" else model
    site = find_sites(stream)[0]
    message = "its experts are not called with the indices and weights .* recorded but not changed"
    with pytest.raises(mp.UnsupportedModelError, match=message):
        site.read_call((), {})
    with pytest.raises(mp.UnsupportedModelError, match="can be recorded but not intervened in"):
        ablate(stream, router=0, experts=[0]).__enter__()


def test_an_encoder_and_a_decoder_are_recorded_one_by_one() -> None:
    model: Any = build("switch_transformers")
    assert [router.name for router in mp.find_routers(model)] == [
        "encoder.block.1.layer.1.mlp",
        "decoder.block.1.layer.2.mlp",
    ]
    with pytest.raises(mp.UnsupportedModelError, match=r"record them one by one: model\.encoder and model\.decoder"):
        mp.record(model)
    with mp.record(model.encoder) as encoder, mp.record(model.decoder) as decoder:
        model(TOKENS, decoder_input_ids=TOKENS[:, :7])
    assert encoder.routing().n_tokens == 48
    assert decoder.routing().n_tokens == 14
    assert decoder.routing().position(0).tolist() == [*range(7), *range(7)]


def test_dropped_slots_are_null_on_disk() -> None:
    routing = _record(build("switch_transformers").encoder)
    router = routing.routers[0]
    block = RoutingBlock([router], [True], rows=routing.n_tokens)
    entropy, margin = routing.entropy(0), routing.margin(0)
    block.fill(0, np.arange(routing.n_tokens), routing.experts(0), routing.weights(0), entropy, margin)
    column = block.to_table().column("expert_0_0").to_pylist()
    assert [DROPPED if one is None else one for one in column] == routing.experts(0)[:, 0].tolist()
    assert None in column
    frame = routing.to_polars()
    assert frame["expert_0_0"].to_list() == routing.experts(0)[:, 0].tolist()


def test_a_router_whose_tokens_all_skip_is_no_error() -> None:
    model: Any = build("zaya")
    for layer in model.layers:
        layer.mlp.gate.balancing_biases[-1] = 2.0
    routing = _record(model)
    assert (routing.experts(1) == DROPPED).all()
    assert not routing.weights(1).any()


def test_a_dropped_slot_where_none_can_be_is_an_error() -> None:
    model: Any = build("mixtral")

    def drop(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, ids, weights = args
        return states, ids.masked_fill(ids == 3, DROPPED), weights

    model.set_experts_implementation("eager")
    model.layers[0].mlp.experts.forward = lambda states, ids, weights: states
    model.layers[0].mlp.experts.register_forward_pre_hook(drop)
    with mp.record(model, self_check=False) as recording:
        with pytest.raises(mp.RoutingError, match="expert index -1 is out of range"):
            model(TOKENS)
        with pytest.raises(mp.RoutingError, match="no forward was recorded"):
            recording.routing()


def test_batches_with_images_are_refused_where_their_experts_are_others() -> None:
    model: Any = build("ernie4_5_vl_moe_text")
    kinds = torch.zeros_like(TOKENS)
    assert _record(model, moe_mm_token_type_ids=kinds).n_tokens == 48
    kinds[:, :4] = 1
    with mp.record(model), pytest.raises(mp.RoutingError, match="leaves tokens out"):
        model(TOKENS, moe_mm_token_type_ids=kinds)
