"""Mixtures that no top-k cuts: Jacobs et al. 1991, and stacked as by Eigen et al. 2013."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from published_blocks import AdaptiveMixture, StackedMixture
from recorded_runs import gates_of, record, tell

import moe_probe as mp
from moe_probe.recording import RouterSite


def _softmax(x: np.ndarray, linear: torch.nn.Linear) -> np.ndarray:
    logits = x @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    gates: np.ndarray = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return gates


def _gates(module: object, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output


def test_every_expert_of_an_adaptive_mixture_is_recorded_with_its_gate(tmp_path: Path):
    torch.manual_seed(0)
    model = AdaptiveMixture(6, 4)
    x = torch.randn(40, 6)  # no sequence: patterns one after the other
    routing = record(model, [RouterSite("gating", read=_gates, dense=True)], x)
    np.testing.assert_allclose(gates_of(routing, 0), _softmax(x.numpy(), model.gating[0]), rtol=1e-5)
    assert (routing.experts(0) >= 0).all()
    assert routing.position(0).tolist() == list(range(40))
    run = tell(routing, tmp_path)
    # Every token holds every expert, so that no expert can be chosen for anything.
    assert mp.balance(run)["effective_experts"].to_list() == [4.0]
    assert mp.balance(run)["dropped"].to_list() == [0]


def test_both_layers_of_a_stacked_mixture_are_recorded(tmp_path: Path):
    torch.manual_seed(1)
    model = StackedMixture(6, (4, 3))
    x = torch.randn(2, 9, 6)
    routing = record(model, [RouterSite("layers.*.gating", read=_gates, dense=True)], x)
    assert [(router.name, router.layer, router.n_experts) for router in routing.routers] == [
        ("layers.0.gating", 0, 4),
        ("layers.1.gating", 1, 3),
    ]
    inner = x.numpy().reshape(-1, 6)
    first = model.layers[0]
    gates = _softmax(inner, first.gating[0])
    np.testing.assert_allclose(gates_of(routing, 0), gates, rtol=1e-5)
    outputs = [inner @ one.weight.detach().numpy().T + one.bias.detach().numpy() for one in first.experts]
    between = np.maximum(sum(gates[:, [number]] * output for number, output in enumerate(outputs)), 0)
    np.testing.assert_allclose(gates_of(routing, 1), _softmax(between, model.layers[1].gating[0]), rtol=1e-4)
    assert routing.sequence(0).tolist() == [0] * 9 + [1] * 9
    tell(routing, tmp_path)
