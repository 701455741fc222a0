"""Expert choice: each expert takes tokens, so that a token has none, some or all (Zhou et al. 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from published_blocks import ExpertChoice
from recorded_runs import gates_of, record, tell

from moe_probe.recording import RouterSite


def _scattered(module: Any, inputs: tuple[Any, ...], output: Any) -> torch.Tensor:
    """Turn what each expert took, (experts, capacity), into gates (tokens, experts)."""
    gates, places = output
    n_tokens = BATCH * LENGTH
    return gates.new_zeros(len(gates), n_tokens).scatter(1, places, gates).T


BATCH, LENGTH, WIDTH, EXPERTS = 2, 12, 6, 4


def test_a_token_has_as_many_experts_as_took_it(tmp_path: Path):
    torch.manual_seed(15)
    model = ExpertChoice(WIDTH, EXPERTS, capacity_factor=1.4)
    x = torch.randn(BATCH, LENGTH, WIDTH)
    routing = record(model, [RouterSite("chosen", read=_scattered, n_slots=EXPERTS)], x)
    logits = x.flatten(0, 1).numpy() @ model.w_gate.detach().numpy()
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    by_hand = np.zeros_like(scores)
    for expert in range(EXPERTS):
        taken = np.argsort(-scores[:, expert])[:8]  # 24 tokens × 1.4 ÷ 4 experts
        by_hand[taken, expert] = scores[taken, expert]
    np.testing.assert_allclose(gates_of(routing, 0), by_hand, rtol=1e-5)
    sizes = (routing.experts(0) >= 0).sum(axis=1)
    assert sizes.min() == 0
    assert sizes.max() >= 3
    assert routing.sequence(0).tolist() == [0] * LENGTH + [1] * LENGTH
    tell(routing, tmp_path)
