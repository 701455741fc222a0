from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_models
import torch
from hand_forward import hand_forward
from torch import nn
from torch.nn import functional

import moe_probe as mp
from moe_probe.recording.scores import Scoring, explains, read_gate, score

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
