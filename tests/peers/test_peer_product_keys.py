"""A million tiny experts, retrieved by product keys with several heads (PEER, He 2024, arXiv 2407.04153)."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from PEER_pytorch import PEER
from recorded_runs import WORDS, record

import moe_probe as mp
from moe_probe.counts import iter_expert_loads
from moe_probe.errors import BadInputError
from moe_probe.info import describe
from moe_probe.recording import RouterSite, Routing
from moe_probe.schema import routing_file
from moe_probe.tokenview import pack

HEADS, SLOTS, WIDTH, EXPERTS = 2, 8, 8, 1_000_000
BATCH, LENGTH = 2, 12


def _heads(peer: Any, inputs: tuple[Any, ...], output: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Choose as PEER's forward does, from its own queries and keys: a router a head."""
    queries = peer.to_queries(peer.norm(inputs[0]))  # (2, batch, sequence, heads, key)
    similar = torch.einsum("pbnhd,hkpd->pbnhk", queries, peer.keys)
    (one, other), (rows, columns) = similar.topk(peer.product_key_topk, dim=-1)
    scores = (one[..., :, None] + other[..., None, :]).flatten(-2)
    ids = (rows[..., :, None] * peer.num_keys + columns[..., None, :]).flatten(-2)
    kept, places = scores.topk(peer.num_experts_per_head_topk, dim=-1)
    ids, weights = ids.gather(-1, places), peer.score_activation(kept)
    return [(ids[:, :, head], weights[:, :, head]) for head in range(peer.heads)]


@pytest.fixture(scope="module")
def peer() -> PEER:
    torch.manual_seed(0)
    return PEER(WIDTH, heads=HEADS, num_experts=EXPERTS, num_experts_per_head=SLOTS, non_competing_scores=False).eval()


@pytest.fixture(scope="module")
def recorded(peer: PEER) -> tuple[Routing, dict[str, np.ndarray]]:
    """Return what was recorded, and what the layer looked up and multiplied by while it was."""
    executed: dict[str, np.ndarray] = {}

    def looked_up(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        executed["ids"] = inputs[0].flatten(0, 1).numpy()

    def scored(module: Any, inputs: Any, output: torch.Tensor) -> None:
        executed["weights"] = output.flatten(0, 1).numpy()

    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    handles = [
        peer.weight_down_embed.register_forward_pre_hook(looked_up),
        peer.score_activation.register_forward_hook(scored),
    ]
    with torch.inference_mode():
        peer(x)
        for handle in handles:
            handle.remove()
    return record(peer, [RouterSite("", read=_heads, n_experts=EXPERTS)], x), executed


def test_each_head_of_peer_is_a_router_that_recorded_what_was_looked_up(recorded):
    routing, executed = recorded
    assert [(router.name, router.n_experts, router.n_slots) for router in routing.routers] == [
        (":0", EXPERTS, SLOTS),
        (":1", EXPERTS, SLOTS),
    ]
    assert executed["ids"].max() > 65_535
    for head in range(HEADS):
        order = np.argsort(-executed["weights"][:, head], axis=1, kind="stable")
        np.testing.assert_array_equal(routing.experts(head), np.take_along_axis(executed["ids"][:, head], order, 1))
        np.testing.assert_allclose(
            routing.weights(head), np.take_along_axis(executed["weights"][:, head], order, 1), rtol=1e-5
        )


def test_product_keys_find_the_best_of_a_million_sums(peer, recorded):
    routing, _ = recorded
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).flatten(0, 1)
    weight = peer.to_queries[0].weight.detach().numpy().reshape(2, HEADS, -1, WIDTH)
    keys = peer.keys.detach().numpy()
    for token in (0, 7, 23):
        queries = weight @ x[token].numpy()  # (2, heads, key)
        for head in range(HEADS):
            sums = np.add.outer(keys[head, :, 0] @ queries[0, head], keys[head, :, 1] @ queries[1, head]).ravel()
            assert set(np.argsort(-sums)[:SLOTS]) == set(routing.experts(head)[token])


def test_a_run_of_a_million_experts_is_stored_in_32_bits_and_told_in_little_memory(recorded, tmp_path: Path, capsys):
    routing, _ = recorded
    texts = [WORDS[position % len(WORDS)] for position in routing.position(0).tolist()]
    run = mp.write_run(routing, tmp_path / "run", tokens=texts, model="PEER")
    assert {
        str(pq.read_schema(run.path / routing_file(0)).field(f"expert_0_{slot}").type) for slot in range(SLOTS)
    } == {"uint32"}
    for head in range(HEADS):
        np.testing.assert_array_equal(run.experts(router=head), routing.experts(head))
    assert run.document(0).routing["expert_1_0"].dtype == pl.UInt32
    shown = pack(run.document(0))  # what the token view draws
    assert np.frombuffer(shown, np.uint8).size < 10_000
    assert run.experts(router=1)[:LENGTH].astype("<u4").tobytes() in shown

    tracemalloc.start()
    sizes = [loads.load.size for loads in iter_expert_loads(run)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sizes == [EXPERTS] * HEADS
    assert peak < 100 * 2**20  # a table of 64 clusters would be 512 MB
    load, balance = mp.load_table(run), mp.balance(run)
    late = routing.position(0) >= 4
    for head in range(HEADS):
        ids, counts = np.unique(routing.experts(head)[late], return_counts=True)
        rows = load.filter(slot="any", router=head).sort("expert")
        assert rows["expert"].to_list() == ids.tolist()
        assert rows["assignments"].to_list() == counts.tolist()
        shares = counts / counts.sum()
        of_router = balance.filter(router=head).row(0, named=True)
        assert of_router["effective_experts"] == pytest.approx(2 ** -(shares * np.log2(shares)).sum(), rel=1e-9)
        assert of_router["max_violation"] == pytest.approx(counts.max() / (counts.sum() / EXPERTS) - 1, rel=1e-9)
        assert of_router["unseen"] == EXPERTS - len(ids)
    assert mp.coactivation(run).is_empty()
    written = {path.stem for path in mp.export_csv(run, tmp_path / "tables")}
    assert {"load", "balance", "repetition", "position", "paths"} < written
    assert not {"experts", "vocabulary", "affinity"} & written
    describe(run)
    printed = " ".join(capsys.readouterr().out.split())
    assert "8 of 1000000 experts, hand-written" in printed
    assert "router 1 has 1,000,000 experts: tables with a number for each expert" in printed


@pytest.mark.parametrize("table", [mp.vocabulary, mp.vocabulary_summary, mp.affinity, mp.expert_names, mp.label_table])
def test_a_table_with_a_number_for_each_of_a_million_experts_is_refused_with_the_number(
    table, recorded, tmp_path: Path
):
    run = mp.write_run(recorded[0], tmp_path / "run")
    arguments = (run, "phase") if table is mp.label_table else (run,)
    with pytest.raises(
        BadInputError, match=r"router 0 \(:0\) has 1,000,000 experts, and this is counted of up to 16,384"
    ):
        table(*arguments)
