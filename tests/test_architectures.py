"""Every Mixture-of-Experts architecture that transformers holds, against an oracle that knows nothing of moe_probe.

The oracle sees what went into the experts and what came out, by plain hooks, and works in float64. It runs the experts
module itself on one expert at a time, and adds up with the experts and weights that were recorded.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

import moe_probe as mp
from moe_probe.recording import survey
from moe_probe.recording.architectures import build, find_architectures, is_text, read_model_class
from moe_probe.recording.routers import find_sites
from moe_probe.schema import DROPPED

ARCHITECTURES = survey.find_text_architectures()
REFUSED = {"doge", "inkling2_loop_text", "nllb-moe"}
PAGE = Path(__file__).parent.parent / "docs/models.md"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


examine = functools.cache(survey.examine)


class Seen:
    """What the modules of a model received and returned in one forward."""

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[nn.Module, list[Any]] = {}
        self.outputs: dict[nn.Module, Any] = {}
        for module in model.modules():
            module.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        self.inputs[module] = [*args, *kwargs.values()]
        # A copy: Llama 4 adds to what its shared expert returned.
        self.outputs[module] = output.clone() if isinstance(output, torch.Tensor) else output


def gates(experts: np.ndarray, weights: np.ndarray, n_experts: int) -> torch.Tensor:
    """Return the recorded choice as a factor for every expert, (tokens, experts) float64; refuse a repeated expert."""
    dense = np.zeros((len(experts), n_experts))
    for token, slot in np.argwhere(experts != DROPPED):
        assert dense[token, experts[token, slot]] == 0
        dense[token, experts[token, slot]] = weights[token, slot]
    return torch.from_numpy(dense)


def alone(experts: Any, expert: int, n_experts: int, hidden: torch.Tensor) -> torch.Tensor:
    """Return what the experts module itself makes of all tokens with one expert of weight 1 and another of 0."""
    ids = torch.tensor([expert, (expert + 1) % n_experts]).repeat(len(hidden), 1)
    weights = torch.tensor([1.0, 0.0], dtype=hidden.dtype).repeat(len(hidden), 1)
    if type(experts).__name__ == "SwitchTransformersExperts":
        ids = functional.one_hot(ids, n_experts)
    returned: torch.Tensor = experts(hidden, ids, weights)
    return returned.reshape(hidden.shape)


def assert_equal(returned: torch.Tensor, replayed: torch.Tensor) -> None:
    assert (returned.double().reshape(replayed.shape) - replayed).norm() <= 1e-4 * replayed.norm()
    assert replayed.norm() > 0


def check_call(seen: Seen, experts: nn.Module, factors: torch.Tensor) -> None:
    """Replay experts that are called with indices and weights."""
    hidden = seen.inputs[experts][0].double().flatten(0, -2)
    precise = copy.deepcopy(experts).double()
    for module in precise.modules():
        module._forward_hooks.clear()
    if hasattr(precise, "config"):
        precise.config = copy.deepcopy(precise.config)
        precise.config._experts_implementation = "eager"
    replayed = sum(
        factors[:, expert, None] * alone(precise, expert, factors.shape[1], hidden)
        for expert in range(factors.shape[1])
    )
    assert isinstance(replayed, torch.Tensor)
    assert_equal(seen.outputs[experts], replayed)


def check_llama4(seen: Seen, block: Any, factors: torch.Tensor) -> None:
    """Replay experts whose inputs the router scales."""
    hidden = seen.inputs[block.router][0].double()
    gate, up = (block.experts.gate_up_proj[:].double()).chunk(2, dim=-1)
    replayed = torch.zeros_like(hidden)
    for expert in range(factors.shape[1]):
        scaled = hidden * factors[:, expert, None]
        inner = functional.silu(scaled @ gate[expert]) * (scaled @ up[expert])
        replayed += inner @ block.experts.down_proj[expert].double()
    assert_equal(seen.outputs[block][0], replayed + seen.outputs[block.shared_expert].double())


def check_jetmoe(seen: Seen, block: Any, factors: torch.Tensor) -> None:
    """Replay an MLP whole; of an attention the queries that went into each expert, and what came out of each."""
    hidden = seen.inputs[block.router][0].double()
    w_in, w_out = block.input_linear.weight.double(), block.output_linear.weight.double()
    if type(block).__name__ == "JetMoeMoE":
        replayed = block.bias.double().expand(hidden.shape).clone()
        for expert in range(factors.shape[1]):
            gate, up = (hidden @ w_in[expert].T).chunk(2, dim=-1)
            replayed += factors[:, expert, None] * ((functional.silu(gate) * up) @ w_out[expert].T)
        assert_equal(seen.outputs[block], replayed)
        return
    # Rows are grouped by expert, and within one in any order of tokens.
    _, tokens, given, _, _ = seen.outputs[block.router]
    experts = factors.T.nonzero()[:, 0]
    assert torch.equal(factors[tokens, experts], given.double())
    for linear, matrices, inputs in (
        (block.input_linear, w_in, hidden[tokens]),
        (block.output_linear, w_out, seen.inputs[block.output_linear][0].double()),
    ):
        assert_equal(seen.outputs[linear], torch.einsum("pi,poi->po", inputs, matrices[experts]))


def check_returned(seen: Seen, block: nn.Module, experts: np.ndarray) -> None:
    """Compare with the indices that the router's module returned, where it returned any."""
    executed = np.sort(experts, axis=1)
    for name, child in block.named_children():
        returned = seen.outputs.get(child)
        if name == "experts" or not isinstance(returned, tuple):
            continue
        for one in returned:
            if isinstance(one, torch.Tensor) and not one.is_floating_point() and one.shape == experts.shape:
                ids = np.sort(one.numpy(), axis=1)
                np.testing.assert_array_equal(ids[executed != DROPPED], executed[executed != DROPPED])
                return


@pytest.mark.parametrize("model_type", [one for one in ARCHITECTURES if one not in REFUSED])
def test_what_is_recorded_gives_what_the_experts_returned(model_type: str) -> None:
    model = build(model_type, seed=1)
    sites = find_sites(model)
    assert sites
    seen = Seen(model)
    for stream, routing, self_check in survey.run_streams(model):
        assert self_check == "passed"
        assert routing.n_tokens == 48
        for router in routing.routers:
            block: Any = stream.get_submodule(router.name)
            experts, weights = routing.experts(router.index), routing.weights(router.index)
            factors = gates(experts, weights, router.n_experts)
            if model_type == "llama4_text":
                check_llama4(seen, block, factors)
            elif model_type == "jetmoe":
                check_jetmoe(seen, block, factors)
            else:
                check_call(seen, block.experts, factors)
            check_returned(seen, block, experts)
            assert len(np.unique(experts[experts != DROPPED])) > 1, "a router that always chooses the same shows little"


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_what_cannot_be_read_is_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(mp.UnsupportedModelError, match=f"the routers of {model_type} cannot be read: "):
        find_sites(build(model_type))


def test_the_page_of_models_is_what_is_found_today() -> None:
    written = PAGE.read_text()
    assert written == survey.write_table(examine(model_type) for model_type in ARCHITECTURES), (
        "stale: run python -m moe_probe.recording.survey docs/models.md"
    )


def test_experts_that_read_no_text_are_told_from_those_that_do() -> None:
    assert "vitpose_backbone" in find_architectures()
    assert not is_text(read_model_class(find_architectures()["vitpose_backbone"]))
    assert {"mixtral", "dbrx", "switch_transformers", "llama4_text", "sarvam_moe"} <= set(ARCHITECTURES)
