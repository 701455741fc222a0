from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from hand_forward import hand_forward
from kernel_cases import score_token
from torch import nn
from torch.nn import functional

import moe_probe as mp
from moe_probe.recording.architectures import build
from moe_probe.recording.routers import find_sites
from moe_probe.recording.scores import Scoring, explains, read_gate, score
from moe_probe_kernels import Scoring as KernelScoring

SOFTMAX = Scoring("softmax", False, False, 1, 1, True)
SIGMOID = Scoring("sigmoid", False, True, 1, 1, True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_equal_logits_have_the_entropy_of_all_experts_and_no_margin() -> None:
    scores = score(SOFTMAX, torch.zeros(1, 2, 8), torch.tensor([[[0, 1], [5, 3]]]), torch.full((1, 2, 2), 0.5), None)
    assert scores.entropy.tolist() == [[3.0, 3.0]]
    assert scores.margin.tolist() == [[0.0, 0.0]]


def test_a_certain_router_has_no_entropy_even_where_probabilities_underflow_or_are_masked() -> None:
    logits = torch.tensor([[[200.0, 0.0, -200.0, -math.inf]]])
    scores = score(SOFTMAX, logits, torch.tensor([[[0]]]), torch.ones(1, 1, 1), None)
    assert scores.margin.item() == 1
    assert scores.entropy.item() == 0


def test_a_logit_that_is_not_a_number_shows_in_the_entropy() -> None:
    logits = torch.tensor([[[1.0, math.nan, 0.0], [1.0, 0.0, 0.0]]])
    for scoring in (SOFTMAX, SIGMOID):
        scores = score(scoring, logits, torch.tensor([[[0], [0]]]), torch.ones(1, 2, 1), torch.zeros(1, 3))
        assert scores.entropy.isnan().tolist() == [[True, False]]


def test_a_bias_moves_the_margin_of_a_sigmoid_router_but_not_its_entropy() -> None:
    logits = torch.tensor([[[0.25, 0.5, 0.25, 0.5]]]).logit()
    bias = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    scores = score(SIGMOID, logits, torch.tensor([[[0, 1]]]), torch.full((1, 1, 2), 0.5), bias)
    assert scores.entropy.item() == pytest.approx(2 * (1 / 6) * math.log2(6) + 2 * (1 / 3) * math.log2(3))
    assert scores.margin.item() == pytest.approx(0)
    unbiased = score(SIGMOID, logits, torch.tensor([[[1, 3]]]), torch.full((1, 1, 2), 0.5), torch.zeros(1, 4))
    assert unbiased.margin.item() == pytest.approx(0.25)
    assert unbiased.entropy.item() == pytest.approx(scores.entropy.item())


def test_experts_of_a_group_that_was_left_out_are_not_passed_over() -> None:
    scoring = Scoring("sigmoid", False, True, 2, 1, True)
    logits = torch.tensor([[[0.9, 0.1, 0.2, 0.6, 0.55, 0.5]]]).logit()  # group sums of two: 1.1 and 1.15
    bias = torch.zeros(1, 6)
    scores = score(scoring, logits, torch.tensor([[[3, 4]]]), torch.full((1, 1, 2), 0.5), bias)
    assert scores.margin.item() == pytest.approx(0.05)


def test_a_margin_is_infinite_where_nothing_was_left_out() -> None:
    scores = score(SOFTMAX, torch.zeros(1, 1, 2), torch.tensor([[[0, 1]]]), torch.full((1, 1, 2), 0.5), None)
    assert scores.margin.item() == math.inf


def test_a_dropped_slot_leaves_the_margin_of_the_others_or_of_what_was_chosen_before() -> None:
    logits = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]]).log()
    ids = torch.tensor([[[0, -1], [-1, -1]]])
    scores = score(SOFTMAX, logits, ids, torch.zeros(1, 2, 2), None, drops=True)
    torch.testing.assert_close(scores.margin, torch.tensor([[0.2, 0.3]]))


def test_probabilities_in_the_place_of_logits_are_taken_as_such() -> None:
    scoring = Scoring("softmax", False, False, 1, 1, True, of_probabilities=True)
    scores = score(scoring, torch.tensor([[[0.5, 0.25, 0.25, 0.0]]]), torch.tensor([[[0]]]), torch.ones(1, 1, 1), None)
    assert scores.entropy.item() == pytest.approx(1.5, abs=1e-6)
    assert scores.margin.item() == pytest.approx(0.25)


def test_a_higher_score_that_was_passed_over_makes_the_margin_negative_and_is_not_believed() -> None:
    logits = torch.tensor([[[2.0, 1.0, 0.0]]])
    scores = score(SOFTMAX, logits, torch.tensor([[[1]]]), torch.ones(1, 1, 1), None)
    assert scores.margin.item() < -0.1
    assert not explains(SOFTMAX, 1, torch.float32, scores.margin.item(), 0.0)
    assert not explains(SOFTMAX, 1, torch.float32, math.nan, 0.0)


def test_a_scoring_that_was_not_read_is_believed_only_where_the_weights_are_in_proportion() -> None:
    guessed = Scoring("softmax", False, False, 1, 1, False)
    assert explains(guessed, 2, torch.float32, 0.1, 1e-5)
    assert not explains(guessed, 2, torch.float32, 0.1, 1e-2)
    assert explains(guessed, 2, torch.bfloat16, 0.1, 5e-3)
    assert not explains(guessed, 1, torch.float32, 0.1, 0.0), "a single share is 1 whatever the scores"


def test_probabilities_that_a_router_rounds_to_one_number_are_a_tie() -> None:
    logits = torch.tensor([[[0.0, 0.0008, -3.0]]])
    halves = logits.softmax(-1).bfloat16().flatten()
    assert halves[0] == halves[1]
    first = torch.tensor([[[0]]]), torch.ones(1, 1, 1, dtype=torch.bfloat16), None
    scoring = find_sites(build("switch_transformers").encoder)[0].scoring
    assert scoring is not None
    assert score(scoring, logits, *first).margin.item() == 0
    assert score(replace(scoring, rounded=False), logits, *first).margin.item() < -1e-4


@pytest.mark.parametrize(
    ("scoring", "defined"),
    [
        (Scoring("softmax", False, False, 8, 3, False), KernelScoring(n_groups=8, n_kept_groups=3)),
        (Scoring("softmax", False, False, 1, 4, False), KernelScoring()),  # groups that are not made use of
        (Scoring("sigmoid", True, False, 1, 1, False), KernelScoring("sigmoid", of_logits=True)),
        (
            Scoring("sigmoid", False, True, 4, 2, False, best_of_group=1),
            KernelScoring("sigmoid", n_groups=4, n_kept_groups=2, best_of_group=1),
        ),
        (
            Scoring("sigmoid", False, True, 4, 2, False, best_of_group=3),
            KernelScoring("sigmoid", n_groups=4, n_kept_groups=2, best_of_group=3),
        ),
        (Scoring("sqrtsoftplus", False, True, 1, 1, False), KernelScoring("sqrtsoftplus")),
        (Scoring("softmax", False, True, 1, 1, False, skips=True), KernelScoring(skips=True)),
        (
            Scoring("softmax", False, False, 1, 1, False, of_probabilities=True),
            KernelScoring(of_probabilities=True),
        ),
    ],
)
def test_a_scoring_means_what_its_definition_says_token_by_token(scoring: Scoring, defined: KernelScoring) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 20, 32, generator=generator)
    logits = logits.softmax(-1) if scoring.of_probabilities else logits
    # Of one group each, or no choice would be of groups that are kept.
    size = 32 // scoring.n_groups
    group = torch.randint(0, scoring.n_groups, (2, 20, 1), generator=generator)
    ids = group * size + torch.rand(2, 20, size, generator=generator).topk(4).indices
    ids = torch.where(ids == 31, -1, ids) if scoring.skips else ids
    weights = torch.rand(2, 20, 4, generator=generator) + 0.1
    bias = torch.randn(2, 32, generator=generator) * 0.1 if scoring.has_bias else None
    found = score(scoring, logits, ids, weights, bias, drops=scoring.skips)
    assert found.margin.isfinite().float().mean() > 0.2
    for layer in range(2):
        errors = []
        for token in range(20):
            chosen = ids[layer, token].tolist()
            entropy, margin, activated = score_token(
                logits[layer, token].double().tolist(), chosen, defined, None if bias is None else bias[layer].tolist()
            )
            assert found.entropy[layer, token].item() == pytest.approx(entropy, abs=1e-5)
            assert found.margin[layer, token].item() == pytest.approx(margin, abs=1e-5)
            shares = np.array([activated[expert] for expert in chosen])  # −1 is the last: to go to none
            given = weights[layer, token].double().numpy()
            errors.append(np.abs(given / given.sum() - shares / shares.sum()).max())
        assert found.share_error[layer].item() == pytest.approx(max(errors), abs=1e-5)


def test_a_scoring_that_was_read_needs_no_proof_and_a_double_router_rounds_nothing() -> None:
    logits, ids = torch.tensor([[[1.0, 1.001, 0.0]]], dtype=torch.float64), torch.tensor([[[0]]])
    scores = score(replace(SOFTMAX, rounded=True), logits, ids, torch.full((1, 1, 1), 9.0, dtype=torch.float64), None)
    weights = torch.tensor([[[0.9, 0.1]]])
    for known, error in ((True, 0), (False, 0.9 - 0.5)):
        proven = score(replace(SOFTMAX, known=known), logits, torch.tensor([[[1, 0]]]), weights, None)
        assert proven.share_error.item() == pytest.approx(error, abs=1e-3)
    shares = np.exp([1.0, 1.001, 0.0]) / np.exp([1.0, 1.001, 0.0]).sum()
    assert scores.margin.item() == pytest.approx(shares[0] - shares[1], abs=1e-6)


def test_an_expert_that_there_is_not_is_scored_as_the_nearest_and_is_an_error_elsewhere() -> None:
    logits = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    for expert, nearest in ((7, 2), (-4, 0)):
        wild, tame = (
            score(SOFTMAX, logits, torch.tensor([[[one]]]), torch.ones(1, 1, 1), None) for one in (expert, nearest)
        )
        assert torch.equal(wild.margin, tame.margin)


class _SigmoidRouter(nn.Module):
    """A router that no dictionary names: sigmoid scores without a bias, which the rule takes for a softmax."""

    softmax = False

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.top_k = 2
        self.weight = gate.weight

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = functional.linear(states.reshape(-1, states.shape[-1]), self.weight)
        scores = logits.softmax(-1) if self.softmax else logits.sigmoid()
        weights, ids = scores.topk(2, dim=-1)
        return logits, weights, ids


class _SoftmaxRouter(_SigmoidRouter):
    """A router that no dictionary names and the rule reads rightly."""

    softmax = True


def _with_router(router_class: type[_SigmoidRouter]) -> nn.Module:
    model = tiny_models.build("mixtral")
    for layer in model.model.layers:
        layer.mlp.gate = router_class(layer.mlp.gate)
    return model


def test_an_unknown_router_has_scores_only_if_they_explain_its_choices() -> None:
    tokens = torch.arange(3, 40)[None]
    for router_class, is_known in ((_SoftmaxRouter, True), (_SigmoidRouter, False)):
        model = _with_router(router_class)
        with mp.record(model) as recording, torch.inference_mode():
            model(tokens)
        assert recording.self_check == "passed"
        assert (recording.routing().entropy(0) is not None) == is_known
        assert (recording.routing().margin(0) is not None) == is_known


def test_scores_that_stop_explaining_the_choices_are_an_error() -> None:
    model = tiny_models.build("mixtral")
    tokens = torch.arange(3, 40)[None]

    def replace(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, ids, weights = args
        return states, (ids + 1) % 8, weights

    with mp.record(model) as recording, torch.inference_mode():
        model(tokens)
        handle = model.model.layers[1].mlp.experts.register_forward_pre_hook(replace)
        with pytest.raises(mp.RoutingError, match=r"layer 1\): its logits explained .* record with entropy=False"):
            model(tokens)
        assert recording.take().n_tokens == tokens.numel()
    # What is recorded is what is executed, also where something else changed it after recording began.
    with mp.record(model, entropy=False, self_check=True) as recording, torch.inference_mode():
        model(tokens)
    changed = recording.routing()
    handle.remove()
    expected = hand_forward(model, lambda: model(tokens), outputs=False)[0]
    np.testing.assert_array_equal(changed.experts(0), expected.experts)
    assert changed.experts(1).max() < 8


def test_every_router_has_a_kind() -> None:
    for architecture in tiny_models.ARCHITECTURES:
        model = tiny_models.build(architecture)
        for module in model.modules():
            if type(module).__name__.endswith(("TopKRouter", "TopkRouter")):
                kind, scoring = read_gate(module)
                assert scoring is not None
                assert scoring.known
                assert kind


def _run(model: nn.Module, gate: nn.Module, tokens: torch.Tensor) -> tuple[mp.Routing, torch.Tensor, torch.Tensor]:
    """Record a forward; return the routing, and what one router received and returned as logits, a row a token."""
    kept: list[torch.Tensor] = []
    handle = gate.register_forward_hook(lambda _, args, output: kept.extend((args[0].clone(), output[0].clone())))
    with mp.record(model, probabilities=True) as recording, torch.no_grad():
        model(tokens)
    handle.remove()
    assert recording.self_check == "passed"
    return recording.routing(), kept[0].flatten(0, -2), kept[1]


TOKENS = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(5))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("float32", "bfloat16"))


@DTYPES
def test_sparsemixer_takes_the_best_logit_and_then_the_best_of_the_others(dtype: torch.dtype) -> None:
    model = build("phimoe").to(dtype)
    gate = model.layers[1].mlp.router
    routing, states, _ = _run(model, gate, TOKENS)
    logits = functional.linear(states, gate.weight.detach()).double().numpy()
    order = np.sort(logits)[:, ::-1]
    np.testing.assert_allclose(routing.margin(1), order[:, 1] - order[:, 2], atol=1e-6)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(routing.entropy(1), -(shares * np.log2(shares)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(routing.probabilities(1), shares, rtol=1e-4)
    clear = order[:, 1] > order[:, 2]
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(np.sort(routing.experts(1))[clear], np.sort(np.argsort(-logits)[:, :2])[clear])


def test_sparsemixer_in_training_draws_at_random_so_that_no_score_explains_it() -> None:
    model = build("phimoe").train()
    for layer in model.layers:
        layer.mlp.router.router_jitter_noise = 1.0
    torch.manual_seed(0)
    with mp.record(model, self_check=False) as recording, torch.inference_mode():
        model(TOKENS)
    assert recording.routing().margin(1) is None


@DTYPES
def test_deepseek_v4_scores_experts_by_the_root_of_softplus_and_a_bias(dtype: torch.dtype) -> None:
    model = build("deepseek_v4").to(dtype)
    gate = model.layers[1].mlp.gate
    gate.e_score_correction_bias.normal_(std=0.3)
    routing, states, _ = _run(model, gate, TOKENS)
    logits = functional.linear(states, gate.weight.detach())
    affinities = np.sqrt(np.log1p(np.exp(logits.double().numpy())))  # from the definition
    # What top-k is taken of has the model's precision.
    selection = (functional.softplus(logits).sqrt() + gate.e_score_correction_bias).double().numpy()
    best = np.sort(selection)[:, ::-1]
    np.testing.assert_allclose(routing.margin(1), best[:, 1] - best[:, 2], atol=1e-5)
    shares = affinities / affinities.sum(1, keepdims=True)
    np.testing.assert_allclose(routing.probabilities(1), shares, rtol=1e-4)
    np.testing.assert_allclose(routing.entropy(1), -(shares * np.log2(shares)).sum(1), rtol=1e-5)
    assert routing.margin(0) is None, "a table says which experts a token goes to"
    assert routing.probabilities(0) is None


@DTYPES
def test_to_skip_all_experts_is_one_choice_more(dtype: torch.dtype) -> None:
    model = build("zaya").to(dtype)
    gate = model.layers[1].mlp.gate
    gate.balancing_biases.normal_(std=0.05)
    gate.balancing_biases[-1] = 0.3
    gate.router_mlp.out_proj.weight.data.mul_(10)
    routing, _, logits = _run(model, gate, TOKENS)
    index = len(routing.routers) - 1
    assert logits.shape[1] == routing.routers[index].n_experts + 1 == 9
    shares = np.exp(logits.double().numpy())
    shares /= shares.sum(1, keepdims=True)
    selection = logits.softmax(-1).double().numpy() + gate.balancing_biases.double().numpy()
    best = np.sort(selection)[:, ::-1]
    np.testing.assert_allclose(routing.margin(index), best[:, 0] - best[:, 1], atol=1e-6)
    np.testing.assert_allclose(routing.entropy(index), -(shares * np.log2(shares)).sum(1), rtol=1e-5)
    np.testing.assert_allclose(routing.probabilities(index), shares[:, :8], rtol=1e-4, atol=1e-7)
    chosen = np.where(routing.experts(index)[:, 0] < 0, 8, routing.experts(index)[:, 0])
    assert 0 < (chosen == 8).sum() < len(chosen)
    np.testing.assert_array_equal(chosen, selection.argmax(1))


# --- probabilities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_probabilities_are_the_distribution_of_the_oracle_without_padding(architecture: str) -> None:
    model = tiny_models.build(architecture)
    tokens = torch.arange(3, 27).reshape(2, 12)
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    decided = hand_forward(model, lambda: model(tokens, attention_mask=mask), outputs=False)
    with mp.record(model, probabilities=True) as recording, torch.inference_mode():
        model(tokens, attention_mask=mask)
        model(tokens[:1])
    routing = recording.routing()
    kept = mask.flatten().bool().numpy()
    for router, expected in zip(routing.routers, decided, strict=True):
        shares = routing.probabilities(router.index)
        assert shares is not None
        assert shares.dtype == np.float32
        assert shares.shape == (20 + 12, router.n_experts)
        np.testing.assert_allclose(shares[:20], expected.distribution[kept], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)


def test_without_being_asked_for_there_are_no_probabilities() -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    assert recording.routing().probabilities(0) is None
    with pytest.raises(mp.BadInputError, match="probabilities=True with entropy=False"):
        mp.record(model, entropy=False, probabilities=True)


def test_where_scores_are_not_known_there_are_no_probabilities() -> None:
    model = _with_router(_SigmoidRouter)
    with mp.record(model, probabilities=True) as recording, torch.inference_mode():
        model(TOKENS)
    assert recording.routing().probabilities(0) is None


class _Nan(nn.Module):
    """A router whose logits of two tokens hold a NaN, and that chooses and weighs as if they did not."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.top_k, self.gate = gate.top_k, gate

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, weights, ids = self.gate(states)
        logits[2, 5] = logits[7, 0] = math.nan
        return logits, weights, ids


def test_a_row_that_is_no_number_is_flagged_in_probabilities_and_else_an_error() -> None:
    model = tiny_models.build("mixtral")
    model.model.layers[1].mlp.gate = _Nan(model.model.layers[1].mlp.gate)
    with mp.record(model, probabilities=True) as recording, torch.inference_mode():
        model(TOKENS)
    routing = recording.routing()
    shares = routing.probabilities(1)
    assert shares is not None
    flagged = np.isnan(shares)
    assert np.flatnonzero(flagged.all(1)).tolist() == np.flatnonzero(flagged.any(1)).tolist() == [2, 7]
    assert np.flatnonzero(np.isnan(routing.entropy(1))).tolist() == [2, 7]
    assert not np.isnan(routing.probabilities(2)).any()
    message = r"layer 1\): 2 of 48 tokens have NaN or infinite weights or logits"
    with mp.record(model) as recording, torch.inference_mode(), pytest.raises(mp.RoutingError, match=message):
        model(TOKENS)


def test_weights_that_are_no_numbers_are_an_error_with_probabilities_too() -> None:
    model = tiny_models.build("gpt_oss")
    model.model.layers[1].mlp.router.bias.data[3] = math.nan
    with mp.record(model, probabilities=True), torch.inference_mode():  # noqa: SIM117
        with pytest.raises(mp.RoutingError, match=r"layer 1\): 48 of 48 tokens have NaN or infinite weights"):
            model(TOKENS)


def test_a_router_that_adds_its_bias_in_half_precision_is_scored_so() -> None:
    model = build("lfm2_moe").to(torch.bfloat16)
    block = model.layers[1].feed_forward
    routing, states, _ = _run(model, block.gate, TOKENS)
    scores = functional.linear(states, block.gate.weight.detach()).sigmoid() + block.expert_bias
    assert scores.dtype == torch.bfloat16
    best = np.sort(scores.double().numpy())[:, ::-1]
    np.testing.assert_allclose(routing.margin(1), best[:, 1] - best[:, 2], atol=1e-6)
