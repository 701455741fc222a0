"""Blocks of published models, read by hand: DBRX's four of sixteen, Mistral's reference code, Grok-1's two of eight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from published_blocks import FlatLanguageModel, Grok1Block, MoeLayer
from recorded_runs import gates_of, record, tell
from transformers import DbrxConfig, DbrxForCausalLM

import moe_probe as mp
from moe_probe.recording import RouterSite

TOKENS = torch.randint(0, 32, (2, 11), generator=torch.Generator().manual_seed(0))


def test_dbrx_read_by_hand_is_dbrx_as_it_is_found(tmp_path: Path):
    torch.manual_seed(0)
    config = DbrxConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        max_seq_len=64,
        vocab_size=32,
        ffn_config={"ffn_hidden_size": 32, "hidden_size": 32, "moe_num_experts": 16, "moe_top_k": 4},
        attn_config={"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 10_000.0},
    )
    model = DbrxForCausalLM(config).eval()

    def read(experts: Any, inputs: tuple[Any, ...], output: Any) -> tuple[torch.Tensor, torch.Tensor]:
        _, ids, weights = inputs
        return ids, weights

    site = RouterSite("transformer.blocks.*.ffn.experts", read=read, n_experts=16)
    routing = record(model, [site], TOKENS)
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    found = recording.routing()
    assert recording.self_check.startswith("passed")
    for router in found.routers:
        np.testing.assert_array_equal(routing.experts(router.index), found.experts(router.index))
        np.testing.assert_array_equal(routing.weights(router.index), found.weights(router.index))
    assert [(router.layer, router.n_experts, router.n_slots) for router in routing.routers] == [(0, 16, 4), (1, 16, 4)]
    np.testing.assert_array_equal(routing.sequence(0), found.sequence(0))
    np.testing.assert_array_equal(routing.position(0), found.position(0))
    tell(routing, tmp_path)


def test_the_flat_block_of_mistrals_reference_code_is_cut_into_its_sequences(tmp_path: Path):
    torch.manual_seed(0)
    model = FlatLanguageModel([MoeLayer(16, 8, 2) for _ in range(2)], 16, 32)

    def read(gate: Any, inputs: Any, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chosen, experts = logits.topk(2)
        return experts, chosen.softmax(dim=-1), logits

    routing = record(model, [RouterSite("layers.*.gate", read=read)], TOKENS)
    hidden = model.embedding(TOKENS).detach().flatten(0, 1).numpy()
    for index, block in enumerate(model.layers.values()):
        logits = hidden @ block.gate.weight.detach().numpy().T
        all_chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        best = np.argsort(-logits, axis=1)[:, :2]
        shares = np.take_along_axis(all_chances, best, 1)
        shares = shares / shares.sum(axis=1, keepdims=True)
        np.testing.assert_array_equal(routing.experts(index), best)
        np.testing.assert_allclose(routing.weights(index), shares, rtol=1e-4)
        entropy, margin = routing.entropy(index), routing.margin(index)
        assert entropy is not None
        assert margin is not None
        np.testing.assert_allclose(entropy, -(all_chances * np.log2(all_chances)).sum(axis=1), rtol=1e-4)
        ordered = -np.sort(-logits, axis=1)
        np.testing.assert_allclose(margin, ordered[:, 1] - ordered[:, 2], rtol=1e-3, atol=1e-6)
        matrices = np.stack([expert.weight.detach().numpy() for expert in block.experts])
        outputs = np.einsum("td,ehd->teh", hidden, matrices)
        hidden = hidden + np.einsum("tk,tkh->th", shares, np.take_along_axis(outputs, best[..., None], 1))
    assert routing.sequence(0).tolist() == [0] * 11 + [1] * 11
    assert [router.n_experts for router in routing.routers] == [8, 8]
    run = tell(routing, tmp_path)
    assert run.with_scores == [True, True]


def test_groks_two_of_eight_keep_their_weights_as_they_are(tmp_path: Path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(32, 16), Grok1Block(16), Grok1Block(16))

    def read(router: Any, inputs: Any, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, experts = logits.softmax(dim=-1).topk(2)
        return experts, weights

    routing = record(model, [RouterSite("*.router", read=read)], TOKENS)
    hidden = model[0](TOKENS).detach().flatten(0, 1)
    for index, block in enumerate(list(model)[1:]):
        logits = hidden.numpy() @ block.router.weight.detach().numpy().T
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        by_hand = np.where(chances >= -np.sort(-chances, axis=1)[:, 1:2], chances, 0)
        np.testing.assert_allclose(gates_of(routing, index), by_hand, rtol=1e-4)
        outputs = torch.stack([expert(hidden) for expert in block.experts], dim=1).detach()
        hidden = (torch.from_numpy(by_hand)[..., None] * outputs).sum(dim=1)
    assert (routing.weights(0).sum(axis=1) < 0.999).all()
    assert [router.layer for router in routing.routers] == [1, 2]
    tell(routing, tmp_path)
