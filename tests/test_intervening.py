from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import moe_probe as mp
from moe_probe.errors import BadInputError, RoutingError, UnsupportedModelError
from moe_probe.intervening import ablate, force, reroute
from moe_probe.recording.routers import find_sites

ARCHITECTURES = ("mixtral", "olmoe", "deepseek_v3", "gpt_oss", "qwen3_moe", "phimoe", "jamba")
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
TOKENS = torch.arange(3, 35).reshape(2, 16)
LAYER = 1


def run(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(TOKENS, use_cache=False).logits


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_models.build(request.param)


def gate_of(model: nn.Module) -> nn.Module:
    (site,) = [site for site in find_sites(model) if site.router.layer == LAYER]
    assert site.gate is not None
    return site.gate


def experts_of(model: nn.Module) -> nn.Module:
    (site,) = [site for site in find_sites(model) if site.router.layer == LAYER]
    return site.experts


def without_experts(model: PreTrainedModel, experts: list[int]) -> PreTrainedModel:
    """A checkpoint in which the experts put out nothing."""
    edited = copy.deepcopy(model)
    held = experts_of(edited)
    with torch.no_grad():
        for name, parameter in held.named_parameters():
            if name.startswith("down_proj"):
                parameter[experts] = 0
    return edited


def biased(model: PreTrainedModel, experts: list[int]) -> PreTrainedModel:
    """A model whose router has a selection bias of −1e4, written by hand for each kind."""
    edited = copy.deepcopy(model)
    gate = gate_of(edited)
    bias = torch.zeros(gate.num_experts)
    bias[experts] = -1e4
    if hasattr(gate, "e_score_correction_bias"):
        gate.e_score_correction_bias += bias
    elif isinstance(gate, nn.Linear) or hasattr(gate, "bias"):
        gate.bias = nn.Parameter(bias + (0 if gate.bias is None else gate.bias.detach()))
    else:
        gate.forward = softmax_router(
            gate, bias, normalise=getattr(model.config, "norm_topk_prob", model.config.model_type == "mixtral")
        )
    return edited


def softmax_router(gate: nn.Module, bias: torch.Tensor, *, normalise: bool) -> Callable[[torch.Tensor], object]:
    def forward(hidden: torch.Tensor) -> object:
        logits = hidden.reshape(-1, gate.weight.shape[1]) @ gate.weight.T + bias
        weights, ids = logits.exp().div(logits.exp().sum(-1, keepdim=True)).topk(gate.top_k, dim=-1)
        if normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights, ids

    return forward


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ablation_equals_a_checkpoint_with_the_experts_zeroed(model: PreTrainedModel, implementation: str) -> None:
    model.set_experts_implementation(implementation)
    before = run(model)
    with ablate(model, LAYER, [1, 4]):
        ablated = run(model)
    assert torch.equal(run(model), before)
    assert not torch.equal(ablated, before)
    torch.testing.assert_close(ablated, run(without_experts(model, [1, 4])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rerouting_equals_a_selection_bias_of_minus_ten_thousand(model: PreTrainedModel, implementation: str) -> None:
    model.set_experts_implementation(implementation)
    before = run(model)
    with reroute(model, LAYER, [0, 3]):
        rerouted = run(model)
    assert torch.equal(run(model), before)
    assert not torch.equal(rerouted, before)
    torch.testing.assert_close(rerouted, run(biased(model, [0, 3])), atol=1e-5, rtol=1e-5)


def test_a_recording_sees_what_was_executed(model: PreTrainedModel) -> None:
    with mp.record(model) as recording:
        run(model)
        plain = recording.take()
        with reroute(model, LAYER, [0, 3]):
            run(model)
        rerouted = recording.take()
    with mp.record(model, entropy=False) as recording, ablate(model, LAYER, [1]), torch.inference_mode():
        model(TOKENS, use_cache=False)
    ablated = recording.routing()
    router = next(router.index for router in plain.routers if router.layer == LAYER)
    assert np.isin(plain.experts(router), [0, 3]).any()
    assert not np.isin(rerouted.experts(router), [0, 3]).any()
    off = ablated.experts(router) == 1
    assert off.any()
    assert (ablated.weights(router)[off] == 0).all()
    assert (ablated.weights(router)[~off] > 0).all()


def test_keeping_the_sum_scales_the_others_up(model: PreTrainedModel) -> None:
    router = next(site.router.index for site in find_sites(model) if site.router.layer == LAYER)
    with mp.record(model, entropy=False) as recording:
        run(model)
        plain = recording.take()
        with ablate(model, LAYER, [1, 2], keep_sum=True):
            run(model)
        kept = recording.take()
    off = np.isin(kept.experts(router), [1, 2])
    alone = off.all(axis=1)
    sums = kept.weights(router).sum(axis=1)
    assert (kept.weights(router)[off] == 0).all()
    assert (sums[alone] == 0).all()
    np.testing.assert_allclose(sums[~alone], plain.weights(router).sum(axis=1)[~alone], rtol=1e-5)


def test_forcing_puts_the_expert_into_the_least_slot_with_its_weight(model: PreTrainedModel) -> None:
    router = next(site.router.index for site in find_sites(model) if site.router.layer == LAYER)
    before = run(model)
    with mp.record(model, entropy=False) as recording:
        run(model)
        plain = recording.take()
        expert = int(plain.experts(router)[0, 0])
        with force(model, LAYER, expert):
            run(model)
        forced = recording.take()
    assert torch.equal(run(model), before)
    had = (plain.experts(router) == expert).any(axis=1)
    assert not had.all()
    np.testing.assert_array_equal(forced.experts(router)[had], plain.experts(router)[had])
    wanted = plain.experts(router)[~had]
    wanted[:, -1] = expert
    # As sets: where weights are equal, which slot is which follows the index.
    np.testing.assert_array_equal(np.sort(forced.experts(router)[~had], axis=1), np.sort(wanted, axis=1))
    np.testing.assert_array_equal(forced.weights(router), plain.weights(router))


def test_interventions_stack_and_may_be_closed_in_any_order() -> None:
    model = tiny_models.build("deepseek_v3")
    before = run(model)
    first, second = reroute(model, 1, [0, 1]), reroute(model, 1, [1, 2])
    third = ablate(model, 2, [5])
    for one in (first, second, third):
        one.__enter__()
    all_three = run(model)
    first.__exit__(None, None, None)
    two = run(model)
    third.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert torch.equal(run(model), before)
    both = biased(model, [0, 1, 2])
    with ablate(both, 2, [5]):
        torch.testing.assert_close(all_three, run(both), atol=1e-5, rtol=1e-5)
    one_left = biased(model, [1, 2])
    with ablate(one_left, 2, [5]):
        torch.testing.assert_close(two, run(one_left), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3"])
def test_an_exception_restores_everything(architecture: str) -> None:
    model = tiny_models.build(architecture)
    before = run(model)
    with pytest.raises(ZeroDivisionError), reroute(model, 1, [2]), ablate(model, 2, [1]), force(model, 1, 3):
        assert 1 / (run(model).numel() * 0)
    assert torch.equal(run(model), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_forward_that_fails_inside_the_router_leaves_nothing_behind() -> None:
    model = tiny_models.build("mixtral")
    before = run(model)
    gate = gate_of(model)

    def fail(module: nn.Module, args: object, output: object) -> None:
        raise ZeroDivisionError

    handle = gate.register_forward_hook(fail)
    with reroute(model, 1, [2]):
        with pytest.raises(ZeroDivisionError):
            run(model)
        assert torch.nn.functional.linear(torch.ones(1, 2), torch.ones(8, 2)).eq(2).all()
        handle.remove()
        assert not torch.equal(run(model), before)
    assert torch.equal(run(model), before)


def test_interventions_work_in_a_model_loaded_in_four_bits() -> None:
    lm = mp.load("tiny-mixtral", quantization="4bit")
    before = run(lm.model)
    with ablate(lm.model, 3, [0, 1]), reroute(lm.model, 4, [2]):
        changed = run(lm.model)
    assert not torch.equal(changed, before)
    assert torch.equal(run(lm.model), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": 9, "experts": [0]}, r"layer 9: it has no router; layers with one are 0, 1, 2"),
        ({"layer": 1, "experts": [8]}, r"model\.layers\.1\.mlp .*: expert 8: it has 8, counted from 0"),
        ({"layer": 1, "experts": []}, r"experts \[\]: give at least one"),
        ({"router": 3, "experts": [0]}, r"router 3: the model has 3, 0 to 2"),
        ({"experts": [0]}, r"layer None, router None: give one of them"),
        ({"layer": 1, "router": 1, "experts": [0]}, r"layer 1, router 1: give one of them"),
    ],
)
@pytest.mark.parametrize("intervention", [ablate, reroute])
def test_what_is_not_there_is_refused(
    intervention: Callable[..., object], arguments: dict[str, object], message: str
) -> None:
    model = tiny_models.build("mixtral")
    with pytest.raises(BadInputError, match=message), intervention(model, **arguments):
        pass


def test_too_few_experts_left_is_refused_also_over_several_interventions() -> None:
    model = tiny_models.build("mixtral")
    before = run(model)
    with reroute(model, 1, [0, 1, 2, 3]):
        with pytest.raises(BadInputError, match="are banned and 1 left, but a token goes to 2"):
            reroute(model, 1, [3, 4, 5, 6]).__enter__()
        assert not torch.equal(run(model), before)
    assert torch.equal(run(model), before)


def test_a_compiled_model_is_refused() -> None:
    model = torch.compile(tiny_models.build("mixtral"))
    with pytest.raises(UnsupportedModelError, match="compiled already"), ablate(model, 1, [0]):
        pass


def test_groups_that_leave_no_other_choice_are_an_error_and_not_a_wrong_number() -> None:
    # Groups of four experts, of which two are kept: with two experts left in one group and one in each of the others,
    # four that are not banned never lie in two groups.
    model = tiny_models.build("deepseek_v3")
    banned = [0, 1, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    with reroute(model, 1, banned), pytest.raises(RoutingError, match="32 of 32 tokens still went to experts"):
        run(model)


def test_a_router_without_one_linear_map_is_refused() -> None:
    model = tiny_models.build("mixtral")
    gate = gate_of(model)

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = (hidden[:, None, :] * gate.weight).sum(-1)
        weights, ids = logits.softmax(-1).topk(2)
        return logits, weights, ids

    gate.forward = forward
    with reroute(model, 1, [0]), pytest.raises(UnsupportedModelError, match="makes its logits in 0 linear maps of 8"):
        run(model)


def test_experts_that_are_called_in_another_form_are_refused() -> None:
    config = AutoConfig.for_model("jetmoe", vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    for intervention in (ablate, reroute):
        with pytest.raises(UnsupportedModelError, match="not called with indices and weights that could be changed"):
            intervention(model, experts=[0], router=0).__enter__()
