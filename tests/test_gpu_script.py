"""The script that waits for a card works: it runs at a toy shape on the CPU, and says that it was not on a GPU."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

import moe_probe as mp
from moe_probe.models.fit import Need
from moe_probe.models.precision import Holding, measure_precision

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks/gpu.py"
    specification = importlib.util.spec_from_file_location("gpu_script", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_it_runs_on_a_cpu_and_says_so(gpu, quantization, capsys) -> None:
    assert gpu.main(["--quantization", quantization, "--rounds", "1", "--layers", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("not measured on a GPU")
    assert re.fullmatch(r"held ([\d,]+) bytes, planned \1 \(equal: holds\)", lines[2])
    figures = [line for line in lines if "÷ plain" in line or line.startswith("recording adds")]
    assert len(figures) == 3
    assert all(line.endswith("no claim on a CPU)") for line in figures)
    assert any(re.match(r"of the roofline: prefill \d+\.\d%, decoding \d+\.\d%", line) for line in lines)


def test_a_plan_that_is_wrong_fails_on_a_cpu_too(gpu, monkeypatch, capsys) -> None:
    wrong = Need("4 bits", (Holding("a", "experts", "nf4", 7, 7),), 0)
    monkeypatch.setattr(gpu, "estimate", lambda *_: wrong)
    assert gpu.main(["--rounds", "1", "--layers", "2"]) == 1
    assert re.search(r"^MISSED: held [\d,]+ bytes, planned 7$", capsys.readouterr().out, re.MULTILINE)


def test_a_figure_beyond_its_limit_is_a_miss_where_it_was_measured(gpu, capsys) -> None:
    report = gpu.Report(on_gpu=True)
    report.claim("recorded ÷ plain prefill: 1.2", False, "at most 1.01")
    report.claim("recorded ÷ plain decoding: 1.0", True, "at most 1.03")
    assert report.missed == ["recorded ÷ plain prefill: 1.2"]
    assert capsys.readouterr().out.splitlines() == [
        "recorded ÷ plain prefill: 1.2 (at most 1.01: MISSED)",
        "recorded ÷ plain decoding: 1.0 (at most 1.03: holds)",
    ]


def test_a_depth_that_cannot_be_halved_is_refused(gpu, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--layers", "1"])
    assert stopped.value.code == 2
    assert "--layers 1: give 2 to 4" in capsys.readouterr().err


def test_the_random_model_is_what_a_load_would_hold(gpu) -> None:
    model = gpu.build(gpu.TOY, "4bit", CPU)
    assert all(tensor.device == CPU for tensor in (*model.parameters(), *model.buffers()))
    dtypes = {part.part: part.dtype for part in measure_precision(model)}
    assert (dtypes["experts"], dtypes["attention"], dtypes["router"]) == ("nf4", "nf4", "float32")
    first, second = (model.model.layers[0].mlp.experts.down_proj.dequantise(expert) for expert in (0, 1))
    assert 0.8 * gpu.STD < first.std() < 1.2 * gpu.STD
    assert not torch.equal(first, second)
    positions = model.model.rotary_emb.inv_freq  # 1,000,000^(-2i / 16), or whatever base the configuration names
    base = model.config.rope_parameters["rope_theta"]
    torch.testing.assert_close(positions, base ** (-torch.arange(0, 16, 2) / 16))
    with mp.record(model, self_check=True) as recording, torch.inference_mode():
        model(torch.arange(3, 40)[None])
    assert recording.self_check == "passed"
    # A random router knows no favourites: no expert of the first layer is left out by 37 tokens with 2 slots.
    assert len(set(recording.routing().experts(0).flatten().tolist())) == 8


def test_the_floors_are_those_of_a_hand_count(gpu) -> None:
    setting = replace(gpu.TOY, batch=2, length=32)
    model = gpu.build(setting, "8bit", CPU)
    # A layer: 8 experts of 3 × 64 × 128, a router of 8 × 64, attention of 64 × (64 + 32 + 32 + 64), 2 norms; one more.
    experts, router, attention, norms = 4 * 8 * 3 * 64 * 128, 4 * 8 * 64, 4 * 64 * 192, 9 * 64
    active = experts / 4 + router + attention + norms
    scores = 4 * 2 * 2 * 64 * (32 * 32 / 2) * 2  # layers, batch, scores and sums, hidden, pairs seen, 2 a product
    prefill, step = gpu.floors(model, setting, gpu.Rates(flops=1.0, bandwidth=1e30))
    assert prefill == pytest.approx(2 * 64 * active + scores)
    assert step == pytest.approx(2 * active)
    # Bytes: a code a weight, 4 a row of experts (256 + 64 rows) and of attention (192 rows), else 4 a weight.
    expert_bytes, rest = experts + 4 * 8 * 320 * 4, attention + 4 * 192 * 4 + 4 * (router + norms)
    tables = sum(buffer.nbytes for buffer in model.model.rotary_emb.buffers())
    prefill, step = gpu.floors(model, setting, gpu.Rates(flops=1e30, bandwidth=1.0))
    assert prefill == pytest.approx(expert_bytes + rest + tables)
    assert step == pytest.approx(expert_bytes / 4 + rest + tables)
