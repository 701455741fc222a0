"""Random routers of seven kinds against their definitions, worked out here in float64 from the states they receive.

Tokens that are near a tie in the router's precision are left out where a tie decides, and only there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel

import moe_probe as mp

Array = npt.NDArray[np.float64]
BASE: dict[str, object] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "moe_intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FUZZED = settings(
    max_examples=30, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@dataclass(frozen=True)
class Drawn:
    """What the routers of one kind have in common, drawn at random."""

    n_experts: int
    n_slots: int
    dtype: torch.dtype
    spread: float  # standard deviation of the logits
    lengths: tuple[int, ...]  # tokens of each sequence
    left: bool  # whether padding comes first
    implementation: str
    seed: int


@st.composite
def drawn(draw: st.DrawFn, *, most_slots: int = 6) -> Drawn:
    n_experts = draw(st.integers(2, 12))
    return Drawn(
        n_experts,
        draw(st.integers(1, min(n_experts, most_slots))),
        draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        draw(st.sampled_from([0.02, 1.0, 6.0])),
        tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))),
        draw(st.booleans()),
        draw(st.sampled_from(["eager", "batched_mm", "grouped_mm"])),
        draw(st.integers(0, 2**31)),
    )


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def build(model_type: str, of: Drawn, **options: object) -> Any:
    """Return two layers of a random model of one kind, in evaluation mode, its logits as far spread as drawn."""
    torch.manual_seed(of.seed)
    config = AutoConfig.for_model(model_type, **(BASE | {"num_hidden_layers": 2} | options))
    model = AutoModel.from_config(config, dtype=of.dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
            if ".router." in name or ".gate." in name:
                parameter.normal_(std=of.spread / 4)  # of 16 normalised inputs
    if hasattr(model, "set_experts_implementation") and model_type not in ("llama4_text", "switch_transformers"):
        model.set_experts_implementation(of.implementation)
    return model


@dataclass(frozen=True)
class Seen:
    """What was recorded of one router, and the float64 logits of the states that it received, row by row."""

    experts: npt.NDArray[np.int32]  # (tokens, slots)
    weights: Array
    entropy: Array
    margin: Array
    probabilities: Array
    logits: Array  # (rows, experts), padding included, as exact as the model's type has them
    kept: npt.NDArray[np.bool_]  # (rows,)
    near: float  # how far the router's arithmetic may be off


def record(stream: Any, gates: list[nn.Module], of: Drawn, logits_of: Callable[[Any, Array], Array]) -> list[Seen]:
    """Run one padded batch and return what each router was seen to do."""
    longest = max(of.lengths)
    mask = torch.zeros(len(of.lengths), longest, dtype=torch.long)
    for row, length in enumerate(of.lengths):
        mask[row, longest - length if of.left else 0 : longest if of.left else length] = 1
    tokens = torch.randint(3, 32, mask.shape)
    states: dict[nn.Module, torch.Tensor] = {}
    handles = [
        gate.register_forward_pre_hook(lambda gate, args: states.__setitem__(gate, args[0].clone())) for gate in gates
    ]
    with mp.record(stream, self_check=True, probabilities=True) as recording, torch.no_grad():
        stream(input_ids=tokens, attention_mask=mask)
    for handle in handles:
        handle.remove()
    assert recording.self_check == "passed"
    routing = recording.routing()
    seen = []
    for index, gate in enumerate(gates):
        logits = logits_of(gate, states[gate].double().flatten(0, -2).numpy())
        scores = [routing.entropy(index), routing.margin(index), routing.probabilities(index)]
        assert all(score is not None for score in scores), "a router whose definition was read has scores"
        entropy, margin, probabilities = (np.asarray(score, np.float64) for score in scores)
        eps = torch.finfo(of.dtype).eps
        near = 1e-5 if of.dtype == torch.float32 else 2 * eps * max(1.0, float(np.abs(logits).max()))
        weights = routing.weights(index).astype(np.float64)
        kept = mask.flatten().bool().numpy()
        seen.append(Seen(routing.experts(index), weights, entropy, margin, probabilities, logits, kept, near))
    return seen


def rounded(logits: Array, dtype: torch.dtype) -> Array:
    """Return logits as a matrix product in a type leaves them."""
    return torch.from_numpy(logits).to(dtype).double().numpy()


def linear(dtype: torch.dtype) -> Callable[[Any, Array], Array]:
    """Return how a router that holds a matrix, and perhaps a bias, makes logits."""

    def logits(gate: Any, states: Array) -> Array:
        bias = gate.bias.detach().double().numpy() if getattr(gate, "bias", None) is not None else 0
        return rounded(states @ gate.weight.detach().double().numpy().T + bias, dtype)

    return logits


def softmax(values: Array) -> Array:
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def check(
    seen: Seen, selection: Array, distribution: Array, weights_of: Callable[[int, list[int]], list[float]]
) -> None:
    """Compare what was recorded with the definition: `selection`, `distribution` (rows, experts) and weights."""
    n_slots = seen.experts.shape[1]
    rows = np.flatnonzero(seen.kept)
    assert len(seen.experts) == len(rows)
    clear = 0
    for token, row in enumerate(rows):
        order = sorted(range(selection.shape[1]), key=lambda expert: (-selection[row, expert], expert))
        chosen = order[:n_slots]
        margin = selection[row, chosen[-1]] - selection[row, order[n_slots]] if n_slots < len(order) else np.inf
        if margin > seen.near:
            clear += 1
            assert sorted(seen.experts[token].tolist()) == sorted(chosen)
        expected = weights_of(row, seen.experts[token].tolist())
        np.testing.assert_allclose(seen.weights[token], expected, rtol=4 * seen.near + 1e-5, atol=seen.near / 4)
        assert (np.diff(seen.weights[token]) <= 0).all(), "slots are sorted by weight"
        if np.isinf(margin):
            assert seen.margin[token] == np.inf
        else:
            assert seen.margin[token] == pytest.approx(margin, abs=seen.near)
    entropy = -(distribution * np.log2(np.where(distribution > 0, distribution, 1))).sum(axis=1)
    np.testing.assert_allclose(seen.entropy, entropy[rows], atol=8 * seen.near)
    np.testing.assert_allclose(seen.probabilities, distribution[rows], atol=2 * seen.near)
    assert seen.near > 1e-3 or clear > 0 or len(rows) < 3, "float32 has few ties"


@FUZZED
@given(drawn())
def test_mixtral(of: Drawn) -> None:
    """Softmax of the logits, the best k of it, and these made to add up to 1 (arXiv 2401.04088, section 2.1)."""
    model = build("mixtral", of, num_local_experts=of.n_experts, num_experts_per_tok=of.n_slots)
    for seen in record(model, [layer.mlp.gate for layer in model.layers], of, linear(of.dtype)):
        shares = softmax(seen.logits)
        check(seen, shares, shares, lambda row, ids: softmax(seen.logits[row, ids]).tolist())  # noqa: B023


@FUZZED
@given(drawn(), st.sampled_from(["olmoe", "qwen3_moe"]), st.booleans())
def test_olmoe_and_qwen3(of: Drawn, model_type: str, norm: bool) -> None:
    """Softmax of the logits, the best k of it, made to add up to 1 where the configuration says so (2409.02060)."""
    model = build(
        model_type,
        of,
        num_experts=of.n_experts,
        num_experts_per_tok=of.n_slots,
        norm_topk_prob=norm,
        mlp_only_layers=[],
    )
    for seen in record(model, [layer.mlp.gate for layer in model.layers], of, linear(of.dtype)):
        shares = softmax(seen.logits)

        def weights(row: int, ids: list[int], shares: Array = shares) -> list[float]:
            chosen = shares[row, ids]
            return list(chosen / chosen.sum() if norm else chosen)

        check(seen, shares, shares, weights)


@FUZZED
@given(drawn())
def test_gpt_oss(of: Drawn) -> None:
    """The best k biased logits, then a softmax over those (arXiv 2508.10925)."""
    model = build("gpt_oss", of, num_local_experts=of.n_experts, num_experts_per_tok=of.n_slots)
    for seen in record(model, [layer.mlp.router for layer in model.layers], of, linear(of.dtype)):
        logits = seen.logits
        check(seen, logits, softmax(logits), lambda row, ids: softmax(logits[row, ids]).tolist())  # noqa: B023


@FUZZED
@given(drawn(most_slots=4), st.integers(1, 4), st.data())
def test_deepseek_v3(of: Drawn, n_groups: int, data: st.DataObject) -> None:
    """Sigmoid scores; groups, then experts, by score and bias; weights by score alone (2412.19437, section 2.1.2)."""
    size = data.draw(st.integers(2, 5), label="experts of a group")
    least = -(-of.n_slots // size)
    n_groups = max(n_groups, least)
    n_kept = data.draw(st.integers(least, n_groups), label="groups kept")
    norm, scaling = data.draw(st.booleans(), label="norm"), data.draw(st.sampled_from([1.0, 2.5]), label="scaling")
    bias_spread = data.draw(st.sampled_from([0.0, 0.2, 2.0]), label="bias")
    model = build(
        "deepseek_v3",
        of,
        n_routed_experts=n_groups * size,
        num_experts_per_tok=of.n_slots,
        n_group=n_groups,
        topk_group=n_kept,
        norm_topk_prob=norm,
        routed_scaling_factor=scaling,
        first_k_dense_replace=0,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    )
    for layer in model.layers:
        bias = layer.mlp.gate.e_score_correction_bias
        bias.copy_(torch.randn(n_groups * size) * bias_spread)
    gates = [layer.mlp.gate for layer in model.layers]
    for gate, seen in zip(gates, record(model, gates, of, linear(torch.float32)), strict=True):
        scores = sigmoid(seen.logits)
        biased = scores + gate.e_score_correction_bias.double().numpy()
        groups = np.sort(biased.reshape(len(biased), n_groups, size))[..., -2:].sum(-1)
        best = np.sort(groups)[:, ::-1]
        tied = best[:, n_kept - 1] - best[:, n_kept] < 1e-5 if n_kept < n_groups else np.zeros(len(best), bool)
        assert not tied.any(), "float32 has few ties"
        hidden = np.argsort(np.argsort(-groups)) >= n_kept
        selection = np.where(np.repeat(hidden, size, axis=1), -np.inf, biased)

        def weights(row: int, ids: list[int], scores: Array = scores) -> list[float]:
            chosen = scores[row, ids]
            return list((chosen / chosen.sum() if norm else chosen) * scaling)

        # Its router computes in float32 whatever the model's type, but weights are rounded with the model's.
        check(seen, selection, scores / scores.sum(axis=1, keepdims=True), weights)


@FUZZED
@given(drawn(most_slots=2))
def test_llama_4(of: Drawn) -> None:
    """The best logits, of which the sigmoid is the weight; nothing is made to add up to 1."""
    model = build(
        "llama4_text",
        of,
        num_local_experts=of.n_experts,
        num_experts_per_tok=of.n_slots,
        interleave_moe_layer_step=1,
        intermediate_size_mlp=16,
    )
    for seen in record(model, [layer.feed_forward.router for layer in model.layers], of, linear(of.dtype)):
        scores = sigmoid(seen.logits)
        shares = scores / scores.sum(axis=1, keepdims=True)
        check(seen, seen.logits, shares, lambda row, ids: scores[row, ids].tolist())  # noqa: B023


@FUZZED
@given(drawn(most_slots=1), st.integers(1, 5))
def test_switch(of: Drawn, capacity: int) -> None:
    """The best of a float32 softmax; beyond an expert's capacity in a sequence, padding counted, a token has none."""
    model: Any = build(
        "switch_transformers",
        of,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_heads=2,
        num_layers=2,
        num_decoder_layers=2,
        num_sparse_encoder_layers=2,
        num_experts=of.n_experts,
        expert_capacity=capacity,
    ).encoder
    gates = [block.layer[-1].mlp.router for block in model.block]
    width = max(of.lengths)
    for seen in record(model, gates, of, lambda gate, states: linear(torch.float32)(gate.classifier, states)):
        shares = softmax(seen.logits)
        ordered = np.sort(shares)[:, ::-1]
        # Probabilities are rounded to the model's type before the best is taken.
        unclear = ordered[:, 0] - ordered[:, 1] <= max(1e-5, 2 * torch.finfo(of.dtype).eps)
        recorded = np.full(len(shares), -9)
        recorded[seen.kept] = seen.experts[:, 0]
        weights = np.zeros(len(shares))
        weights[seen.kept] = seen.weights[:, 0]
        margins = np.zeros(len(shares))
        margins[seen.kept] = seen.margin
        for start in range(0, len(shares), width):
            taken = [0] * of.n_experts
            for row in range(start, start + width):
                if unclear[row]:  # who comes after it may find its expert full, or not
                    break
                expert = int(shares[row].argmax())
                taken[expert] += 1
                if seen.kept[row]:
                    full = taken[expert] > capacity
                    assert recorded[row] == (-1 if full else expert)
                    assert weights[row] == pytest.approx(0 if full else shares[row, expert], rel=1e-2)
                    assert margins[row] == pytest.approx(ordered[row, 0] - ordered[row, 1], abs=1e-2)
        entropy = -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1)
        np.testing.assert_allclose(seen.entropy, entropy[seen.kept], atol=1e-4)
        np.testing.assert_allclose(seen.probabilities, shares[seen.kept], atol=1e-5)
