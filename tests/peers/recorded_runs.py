"""A recording of a hand-written router becomes a run, and every table is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

import moe_probe as mp
from moe_probe.recording import Routing
from moe_probe.recording.sites import RouterSite

WORDS = ("The", " cat", " sat", " on", " a", " mat", ".", " It", " was", " warm")


def record(model: torch.nn.Module, sites: list[RouterSite], *inputs: torch.Tensor) -> Routing:
    """Record one forward, and see that the output is the same with it and without, bit for bit."""
    state = torch.random.get_rng_state()
    with torch.inference_mode():
        alone = model(*inputs)
        torch.random.set_rng_state(state)
        with mp.record(model, routers=sites) as recording:
            recorded = model(*inputs)
    for one, other in zip(_tensors(alone), _tensors(recorded), strict=True):
        assert torch.equal(one, other)
    assert recording.self_check == "not run: hand-written router"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return recording.routing()


def _tensors(output: object) -> list[torch.Tensor]:
    return [output] if isinstance(output, torch.Tensor) else [one for one in output if isinstance(one, torch.Tensor)]  # type: ignore[attr-defined]


def gates_of(routing: Routing, router: int) -> np.ndarray:
    """Return what a router recorded as dense gates, (tokens, experts), to hold against gates made by hand."""
    ids, weights = routing.experts(router), routing.weights(router)
    gates = np.zeros((len(ids), routing.routers[router].n_experts), np.float32)
    tokens, slots = np.nonzero(ids >= 0)
    assert (weights[ids < 0] == 0).all()
    assert (np.diff(weights, axis=1) <= 0).all(), "slots are sorted by weight"
    gates[tokens, ids[tokens, slots]] = weights[tokens, slots]
    return gates


def tell(routing: Routing, folder: Path) -> mp.Run:
    """Write a run, read it back, and ask it for its tables: none may fail or hold a NaN."""
    texts = [WORDS[position % len(WORDS)] for position in routing.position(0).tolist()]
    run = mp.write_run(routing, folder / "run", tokens=texts, model="by hand")
    assert run.routers == routing.routers
    assert run.manifest["self_check"] == "not run: hand-written router"
    for router in run.routers:
        index = router.index
        np.testing.assert_array_equal(run.experts(router=index), routing.experts(index))
        np.testing.assert_allclose(run.weights(router=index), routing.weights(index), rtol=1e-3, atol=1e-7)
    for frame in (
        mp.load_table(run),
        mp.balance(run),
        mp.specialisation(run, "phase"),
        mp.repetition(run),
        mp.coactivation(run),
        mp.vocabulary_summary(run),
    ):
        floats = frame.select(pl.col(pl.Float64, pl.Float32).is_nan().any())
        assert not any(floats.row(0)) if floats.width and frame.height else True
    load = mp.load_table(run).filter(pl.col("slot") == "any")
    for router in run.routers:
        of_router = load.filter(pl.col("router") == router.index)
        kept = routing.experts(router.index)[routing.position(router.index) >= 4]
        counted = np.bincount(kept[kept >= 0], minlength=router.n_experts)
        assert of_router.sort("expert")["assignments"].to_list() == counted.tolist()
    return run
