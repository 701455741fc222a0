"""Routers that drop: GShard and GLaM, ST-MoE, Switch, and two levels of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mixture_of_experts import HeirarchicalMoE
from mixture_of_experts import MoE as GShardMoE
from published_blocks import Switch
from recorded_runs import gates_of, record, tell
from st_moe_pytorch import MoE as StMoE
from torch.nn import functional

import moe_probe as mp
from moe_probe.recording import RouterSite


def _combined(module: object, inputs: object, output: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Read a combine tensor (batch, sequence, experts, place in the expert's buffer)."""
    return output[1].sum(dim=-1)


def _top_two_by_hand(probabilities: np.ndarray, draws: np.ndarray, capacity: int, threshold: float) -> np.ndarray:
    """GShard's algorithm 1 (arXiv 2006.16668), one token after the other: (tokens, experts)."""
    gates = np.zeros_like(probabilities)
    order = np.argsort(-probabilities, axis=1)
    first, second = order[:, 0], order[:, 1]
    one, other = probabilities[np.arange(len(first)), first], probabilities[np.arange(len(first)), second]
    both = one + other + 1e-9
    held = np.zeros(probabilities.shape[1], int)
    for token, expert in enumerate(first):
        if held[expert] < capacity:
            held[expert] += 1
            gates[token, expert] = one[token] / both[token]
    for token, expert in enumerate(second):
        if draws[token] < other[token] / both[token] / threshold:
            if held[expert] < capacity:
                gates[token, expert] = other[token] / both[token]
            held[expert] += 1
    return gates


def test_top_two_with_capacity_and_a_random_second_choice_is_gshards(tmp_path: Path):
    torch.manual_seed(3)
    model = GShardMoE(8, num_experts=4, capacity_factor_eval=1.0, second_threshold_eval=0.6).eval()
    x = torch.randn(3, 16, 8)
    torch.manual_seed(5)
    routing = record(model, [RouterSite("gate", read=_combined, n_slots=2)], x)
    torch.manual_seed(5)
    draws = torch.zeros(3, 16).uniform_(0, 1).numpy()
    probabilities = (x @ model.gate.w_gating).softmax(dim=-1).detach().numpy()
    by_hand = np.concatenate([_top_two_by_hand(*each, 4, 0.6) for each in zip(probabilities, draws, strict=True)])
    np.testing.assert_allclose(gates_of(routing, 0), by_hand, rtol=1e-5)
    executed = (routing.experts(0) >= 0).sum(axis=1)
    assert sorted(set(executed.tolist())) == [0, 1, 2]
    run = tell(routing, tmp_path)
    late = routing.position(0) >= 4
    assert mp.balance(run)["dropped"].to_list() == [int((2 - executed[late]).sum())]


def test_the_recorded_gates_of_st_moe_give_what_it_returns(tmp_path: Path):
    torch.manual_seed(0)
    model = StMoE(dim=8, num_experts=4, gating_top_n=2, capacity_factor_eval=1.0, threshold_eval=0.3).eval()
    x = torch.randn(2, 16, 8)
    routing = record(model, [RouterSite("gate", read=_combined)], x)
    gates = torch.from_numpy(gates_of(routing, 0)).view(2, 16, 4)
    with torch.inference_mode():
        outputs = torch.stack([expert(x) for expert in model.experts.experts], dim=-1)
        returned = model(x).outputs
    torch.testing.assert_close((outputs * gates[:, :, None]).sum(dim=-1), returned, rtol=1e-4, atol=1e-6)
    counts = (routing.experts(0) >= 0).sum(axis=1)
    assert 0 < (counts < 2).sum() < len(counts)
    tell(routing, tmp_path)


def test_a_token_beyond_the_capacity_of_switch_is_dropped(tmp_path: Path):
    torch.manual_seed(0)
    model = Switch(8, n_experts=4, capacity_factor=0.8)
    x = torch.randn(2, 15, 8)
    routing = record(model, [RouterSite("dispatch", read=lambda module, inputs, gates: gates)], x)
    logits = x.flatten(0, 1).numpy() @ model.router.weight.detach().numpy().T + model.router.bias.detach().numpy()
    capacity, held, by_hand = 6, [0] * 4, []
    for row in logits:
        expert = int(row.argmax())
        held[expert] += 1
        by_hand.append(expert if held[expert] <= capacity else -1)
    assert routing.experts(0)[:, 0].tolist() == by_hand
    assert by_hand.count(-1) >= 5
    run = tell(routing, tmp_path)
    late = routing.position(0) >= 4
    assert mp.balance(run)["dropped"].to_list() == [int((routing.experts(0)[late] < 0).sum())]


class _Levels:
    """Reads two levels: the second chooses among the places of the first one's buffers, not among tokens."""

    def __init__(self) -> None:
        self.sent: torch.Tensor | None = None

    def outer(self, module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.sent = output[1]  # (batch, sequence, groups, places)
        return output[1].sum(dim=-1)

    def inner(self, module: Any, inputs: Any, output: tuple[torch.Tensor, ...]) -> torch.Tensor:
        assert self.sent is not None
        within = output[1].sum(dim=-1)  # (groups, batch, places, experts of the group)
        return torch.einsum("bngc,gbce->bnge", self.sent, within).flatten(2)


def test_two_levels_of_experts_are_two_routers_whose_gates_give_what_it_returns(tmp_path: Path):
    torch.manual_seed(2)
    model = HeirarchicalMoE(8, num_experts=(3, 4)).eval()
    x = torch.randn(2, 20, 8)
    levels = _Levels()
    sites = [RouterSite("gate_outer", read=levels.outer), RouterSite("gate_inner", read=levels.inner)]
    torch.manual_seed(11)
    routing = record(model, sites, x)
    assert [(router.name, router.n_experts) for router in routing.routers] == [("gate_outer", 3), ("gate_inner", 12)]
    assert routing.routers[0].n_slots == 2
    with torch.inference_mode():
        torch.manual_seed(11)
        returned, _ = model(x)
        w1, w2 = model.experts.w1.flatten(0, 1), model.experts.w2.flatten(0, 1)
        hidden = functional.relu(torch.einsum("bnd,edh->bneh", x, w1))
        outputs = torch.einsum("bneh,ehd->bned", hidden, w2)
        gates = torch.from_numpy(gates_of(routing, 1)).view(2, 20, 12)
        torch.testing.assert_close((outputs * gates[..., None]).sum(dim=2), returned, rtol=1e-4, atol=1e-6)
    # An expert of the second level runs only where the first level chose its group.
    groups = gates_of(routing, 0) > 0
    assert (groups[:, :, None] | ~(gates_of(routing, 1).reshape(-1, 3, 4) > 0)).all()
    tell(routing, tmp_path)
