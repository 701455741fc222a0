"""Whole distributions over experts on disk: row by row those of the model, and never in the way of anything else."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import traced_models
from hand_forward import hand_forward
from torch import nn

import moe_probe as mp
from moe_probe.errors import MoeProbeError, RunError
from moe_probe.models import LanguageModel
from moe_probe.schema import Router
from moe_probe.tracing import probabilities as room
from moe_probe.tracing.probabilities import describe_probabilities, probabilities_bytes, telling_size
from moe_probe.watching import Progress

DOCUMENTS = [mp.Document(f"d{n}", traced_models.text(8 + 9 * n, seed=n)) for n in range(4)]
OPTIONS: dict[str, Any] = {"labels": (), "context": 24, "shard_rows": 60, "batch_tokens": 96, "probabilities": True}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    torch.set_num_threads(1)
    return traced_models.language_model(tmp_path_factory.mktemp("model"), "deepseek_v3")


@pytest.fixture(scope="module")
def run(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> mp.Run:
    return mp.trace(lm, DOCUMENTS, tmp_path_factory.mktemp("runs") / "run", **OPTIONS)


def test_every_row_holds_the_distribution_of_its_token(lm: LanguageModel, run: mp.Run) -> None:
    model: Any = lm.model
    assert len(run.shards) > 1
    tokens = run.tokens(["document", "position", "token_id"])
    shares = {router.index: run.probabilities(router=router.index) for router in run.routers}
    for number in range(len(DOCUMENTS)):
        rows = np.flatnonzero(tokens["document"].to_numpy() == number)
        ids = tokens["token_id"].to_numpy()[rows]
        for start in range(0, len(ids), 23):  # a window of 24, the first of which is <s>
            window = torch.tensor([[1, *ids[start : start + 23].tolist()]])
            decided = hand_forward(model, lambda window=window: model.model(window, use_cache=False), outputs=False)
            for router, expected in zip(run.routers, decided, strict=True):
                found = shares[router.index]
                assert found is not None
                assert found.dtype == np.float32
                np.testing.assert_allclose(
                    found[rows[start : start + 23]], expected.distribution[1:], rtol=2e-3, atol=1e-6
                )
    shape = (run.n_tokens, run.routers[1].n_experts)
    by_layer = run.probabilities(layer=run.routers[1].layer)
    assert by_layer is not None
    assert by_layer.shape == shape


def test_the_entropy_on_disk_is_that_of_the_probabilities_on_disk(run: mp.Run) -> None:
    for router in run.routers:
        shares, entropy = run.probabilities(router=router.index), run.entropy(router=router.index)
        assert shares is not None
        assert entropy is not None
        logarithms = np.log2(np.where(shares > 0, shares, 1))
        np.testing.assert_allclose(-(shares * logarithms).sum(1), entropy, rtol=5e-3)


def test_polars_duckdb_and_pyarrow_read_the_files_alike(run: mp.Run) -> None:
    path = run.path / "probabilities" / "part-000001.parquet"
    expected = run.probabilities(router=0)
    assert expected is not None
    first = pq.read_metadata(run.path / "probabilities" / "part-000000.parquet").num_rows
    expected = expected[first : first + pq.read_metadata(path).num_rows]
    assert pq.read_schema(path).names == [f"probabilities_{router.index}" for router in run.routers]
    by_arrow = pq.read_table(path)["probabilities_0"].to_pylist()
    by_polars = pl.read_parquet(path)["probabilities_0"].to_list()
    by_duckdb = duckdb.sql(f"select probabilities_0 from read_parquet('{path}')").fetchall()
    for found in (by_arrow, by_polars, [row[0] for row in by_duckdb]):
        np.testing.assert_array_equal(np.array(found, np.float32), expected)
    sides = f"read_parquet('{run.path}/tokens/*.parquet') positional join read_parquet('{run.path}/probabilities/*')"
    assert len(duckdb.sql(f"select token, probabilities_0[3] from {sides}").fetchall()) == run.n_tokens


def test_a_run_without_probabilities_says_so_and_is_otherwise_the_same(
    lm: LanguageModel, run: mp.Run, tmp_path: Path
) -> None:
    bare = mp.trace(lm, DOCUMENTS, tmp_path / "bare", **(OPTIONS | {"probabilities": False}))
    with pytest.raises(RunError, match="bare: the run has no probabilities; trace anew with --probabilities"):
        bare.probabilities(router=0)
    assert not (bare.path / "probabilities").exists()
    assert "probabilities" not in json.dumps(bare.manifest)
    assert bare.tokens().equals(run.tokens())
    for router in run.routers:
        np.testing.assert_array_equal(bare.experts(router=router.index), run.experts(router=router.index))
        np.testing.assert_array_equal(bare.entropy(router=router.index), run.entropy(router=router.index))
    with pytest.raises(RunError, match="probabilities was null and is true"):
        mp.trace(lm, DOCUMENTS, tmp_path / "bare", resume=True, **OPTIONS)


def test_a_trace_that_was_killed_before_the_routing_ends_in_the_same_bytes(
    lm: LanguageModel, run: mp.Run, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run.path, cut)
    for file in ("run.json", "routing/part-000001.parquet"):  # probabilities were written, routing not
        (cut / file).unlink()
    (cut / "probabilities" / "part-000002.parquet.tmp").write_text("half")
    whole = mp.trace(lm, DOCUMENTS, cut, resume=True, **OPTIONS)
    assert whole.complete
    assert traced_models.files_of(cut) == traced_models.files_of(run.path)


@pytest.mark.parametrize("change", ["missing", "short"])
def test_probabilities_that_are_not_whole_are_refused(
    run: mp.Run, tmp_path: Path, lm: LanguageModel, change: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run.path, broken)
    path = broken / "probabilities" / "part-000001.parquet"
    if change == "missing":
        path.unlink()
        message = r"probabilities/part-000001\.parquet: is missing"
    else:
        pq.write_table(pq.read_table(path).slice(1), path)
        message = r"probabilities/part-000001\.parquet: \d+ rows where (run\.json says|the plan has) \d+"
    with pytest.raises(RunError, match=message):
        mp.open_run(broken).experts(router=0)
    with pytest.raises(RunError, match=message):
        mp.trace(lm, DOCUMENTS, broken, resume=True, **OPTIONS)


class _Nan(nn.Module):
    """A router with a NaN among the logits of the second row of every batch, which it chooses without."""

    def __init__(self, gate: Any) -> None:
        super().__init__()
        self.top_k, self.gate = gate.top_k, gate

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits, weights, ids = self.gate(states)
        logits[1, 0] = math.nan
        return logits, weights, ids


def test_rows_that_are_no_numbers_are_null_and_counted_in_a_warning(tmp_path: Path) -> None:
    lm = traced_models.language_model(tmp_path / "model")
    model: Any = lm.model
    model.model.layers[2].mlp.gate = _Nan(model.model.layers[2].mlp.gate)
    options = OPTIONS | {"batch_tokens": 24}
    run = mp.trace(lm, DOCUMENTS[:2], tmp_path / "run", **options)
    shares, entropy = run.probabilities(router=2), run.entropy(router=2)
    assert shares is not None
    assert entropy is not None
    spoilt = np.isnan(shares).all(1)
    assert 0 < spoilt.sum() < run.n_tokens / 4
    assert not np.isnan(shares[~spoilt]).any()
    assert np.isnan(entropy).tolist() == spoilt.tolist()
    assert run.warnings == [
        f"{spoilt.sum()} token row(s) have a router whose logits are no numbers: their probabilities, entropy and"
        " margin are null, and their experts mean nothing"
    ]
    for folder, column in (("probabilities", "probabilities_2"), ("routing", "entropy_2"), ("routing", "margin_2")):
        assert pq.read_table(run.path / folder, columns=[column])[column].null_count == spoilt.sum()
    assert run.probabilities(router=0) is not None
    with pytest.raises(mp.RoutingError, match="have NaN or infinite weights or logits"):
        mp.trace(lm, DOCUMENTS[:2], tmp_path / "strict", **(options | {"probabilities": False}))


def test_the_size_is_told_before_the_first_forward_and_refused_where_there_is_no_room(
    lm: LanguageModel, run: mp.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[object] = []
    n_routers, n_experts = len(run.routers), run.routers[0].n_experts
    handle = lm.model.base_model.register_forward_hook(lambda *_: heard.append("forward"))
    progress = telling_size(heard.append, run.routers, heard.append)
    mp.trace(lm, DOCUMENTS, tmp_path / "run", on_progress=progress, **OPTIONS)
    handle.remove()
    line = describe_probabilities(run.n_tokens, run.routers)
    assert f"{run.n_tokens:,} tokens × {n_routers} routers × {n_experts} experts × 2 bytes" in line
    assert heard.count(line) == 1
    assert heard.index(line) < heard.index("forward")
    steps = [one for one in heard if isinstance(one, Progress) and one.phase == "tracing"]
    assert (steps[0].tokens_done, steps[-1].tokens_done) == (0, run.n_tokens)
    needed = run.n_tokens * n_routers * n_experts * 2
    assert probabilities_bytes(run.n_tokens, run.routers) == needed
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(0, 0, needed - 1))
    with pytest.raises(MoeProbeError, match=r"probabilities will take up to .* are free there; make room") as caught:
        mp.trace(lm, DOCUMENTS, tmp_path / "full", **OPTIONS)
    assert caught.value.exit_status == 1
    assert not (tmp_path / "full").exists()
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage(0, 0, needed))
    assert mp.trace(lm, DOCUMENTS, tmp_path / "full", **OPTIONS).complete


def test_routers_of_several_widths_are_told_together() -> None:
    routers = [Router(index, "x", index, n_experts, 2, "softmax top-k") for index, n_experts in enumerate((8, 64, 64))]
    assert describe_probabilities(10**7, routers) == (
        "probabilities will take up to 2.7 GB: 10,000,000 tokens × 136 experts of 3 routers × 2 bytes"
    )
