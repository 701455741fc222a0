"""Noisy top-k gating between recurrent layers, step by step (Shazeer et al. 2017)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published_blocks import RecurrentMixture
from recorded_runs import gates_of, record, tell

import moe_probe as mp
from moe_probe.errors import BadInputError
from moe_probe.recording import RouterSite

TIME, BATCH, WIDTH, EXPERTS, K = 11, 3, 8, 6, 2


def _site(rows: str | None = None) -> RouterSite:
    return RouterSite("gate", read=lambda module, inputs, gates: gates, rows=rows)


def test_the_steps_of_a_recurrent_mixture_are_the_positions_of_its_sequences(tmp_path: Path):
    torch.manual_seed(0)
    model = RecurrentMixture(WIDTH, EXPERTS, K)
    x = torch.randn(TIME, BATCH, WIDTH)
    torch.manual_seed(7)
    routing = record(model, [_site()], x)

    torch.manual_seed(7)
    state = (torch.zeros(BATCH, WIDTH), torch.zeros(BATCH, WIDTH))
    gate_weight, noise_weight = (one.detach().numpy() for one in (model.gate.w_gate, model.gate.w_noise))
    by_hand = np.zeros((BATCH, TIME, EXPERTS), np.float32)
    for time in range(TIME):
        with torch.no_grad():
            state = model.below(x[time], state)
        hidden, noise = state[0].numpy(), torch.randn(BATCH, EXPERTS).numpy()
        noisy = hidden @ gate_weight + noise * np.log1p(np.exp(hidden @ noise_weight))
        for row in range(BATCH):
            best = np.argsort(-noisy[row])[:K]
            chances = np.exp(noisy[row][best] - noisy[row].max())
            by_hand[row, time, best] = chances / chances.sum()
    np.testing.assert_allclose(gates_of(routing, 0), by_hand.reshape(-1, EXPERTS), rtol=1e-4, atol=1e-7)
    assert routing.sequence(0).tolist() == [row for row in range(BATCH) for _ in range(TIME)]
    assert routing.position(0).tolist() == list(range(TIME)) * BATCH
    assert routing.routers[0].n_slots == K
    tell(routing, tmp_path)


def test_one_step_alone_may_be_of_many_sequences_or_one_and_has_to_be_told():
    model = RecurrentMixture(WIDTH, EXPERTS, K)
    step = torch.randn(1, BATCH, WIDTH)
    with mp.record(model, routers=[_site()]), pytest.raises(BadInputError, match="rows='batch sequence'"):
        model(step)
    routing = record(model, [_site("batch")], step)
    assert routing.sequence(0).tolist() == [0, 1, 2]
    assert routing.position(0).tolist() == [0, 0, 0]
