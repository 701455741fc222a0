"""The table of a model's precision is the truth, and a model that does not fit says so before it is read."""

from __future__ import annotations

from pathlib import Path

import bitsandbytes as bnb
import polars as pl
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, MixtralConfig

import moe_probe as mp
from moe_probe.models import fit, load
from moe_probe.models.fit import Need, Placement, estimate, gigabytes, place
from moe_probe.models.parts import PARTS, find_parts
from moe_probe.models.precision import Holding, holdings, measure_precision, summarise
from moe_probe.models.quantise import quantisable

GPU = torch.device("cuda", 0)


@pytest.fixture
def mixtral_8x7b(tmp_path: Path) -> Path:
    """The configuration of Mixtral-8x7B, with an empty file where 93 GB of weights would be."""
    MixtralConfig(architectures=["MixtralForCausalLM"]).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    return tmp_path


def need(weights: int, layer: int = 0, *names: str) -> Need:
    held = [Holding(name, "experts", "bfloat16", weights // max(1, len(names)), 1) for name in names or ("weights",)]
    return Need("16 bits", tuple(held), layer)


# --- the table -----------------------------------------------------------------------------------------------------


def test_a_table_has_the_parts_in_order_and_bits_with_their_overhead() -> None:
    rows = summarise(
        [
            Holding("a", "experts", "nf4", 66, 128),
            Holding("b", "experts", "bfloat16", 4, 2),
            Holding("c", "router", "float32", 40, 10),
        ],
        tied_head=True,
    )
    assert tuple(row.part for row in rows) == PARTS
    assert (rows[0].dtype, rows[0].bytes, rows[0].parameters, rows[0].bits_per_parameter) == (
        "nf4",
        70,
        130,
        8 * 70 / 130,
    )
    assert (rows[1].dtype, rows[1].bits_per_parameter) == ("float32", 32.0)
    assert (rows[4].dtype, rows[4].bytes, rows[4].parameters, rows[4].bits_per_parameter) == ("tied", 0, 0, 0.0)
    assert rows[5].dtype == "none"


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_parts_are_told_apart_in_every_architecture(architecture: str) -> None:
    parts = find_parts(tiny_models.build(architecture))
    shared = {name for name in parts if "shared_expert" in name}
    assert {name for name, part in parts.items() if part == "experts"} == {
        name for name in parts if ".experts." in name and name not in shared
    }
    routers = {name for name, part in parts.items() if part == "router"}
    assert routers == {
        name for name in parts if ".router." in name or ".mlp.gate." in name or "correction_bias" in name
    }
    assert routers
    assert {name for name, part in parts.items() if part == "attention"} == {
        name for name in parts if ".self_attn." in name
    }
    assert [name for name, part in parts.items() if part == "embedding"] == ["model.embed_tokens.weight"]
    assert [name for name, part in parts.items() if part == "head"] == ["lm_head.weight"]


@pytest.mark.parametrize(("quantization", "dtype"), [(None, "float32"), ("8bit", "int8"), ("4bit", "nf4")])
def test_the_bundled_model_tells_what_it_is_held_in(quantization: str | None, dtype: str) -> None:
    lm = mp.load("tiny-mixtral", quantization=quantization, device_map="cpu")
    assert lm.precision.columns == ["part", "dtype", "bits_per_parameter", "bytes", "parameters"]
    assert lm.precision.rows(named=True) == lm.precision_rows()
    rows = {row["part"]: row for row in lm.precision_rows()}
    assert list(rows) == list(PARTS)
    assert rows["experts"]["dtype"] == rows["attention"]["dtype"] == dtype
    assert {rows[part]["dtype"] for part in ("router", "embedding", "other")} == {"float32"}
    assert rows["head"]["dtype"] == "tied"
    # 6 layers of 8 experts of three 128 × 192 matrices; an embedding of 8192 × 128, counted once.
    assert rows["experts"]["parameters"] == 6 * 8 * 3 * 128 * 192
    assert rows["embedding"]["parameters"] == 8192 * 128
    assert rows["router"]["parameters"] == 6 * 8 * 128
    tensors = {id(tensor): tensor for tensor in (*lm.model.parameters(), *lm.model.buffers())}
    assert lm.precision["bytes"].sum() == sum(tensor.nbytes for tensor in tensors.values())
    assert rows["experts"]["bits_per_parameter"] == pytest.approx(
        {"nf4": 4.128, "int8": 8.222, "float32": 32}[dtype], abs=1e-3
    )


def test_what_is_foretold_on_the_meta_device_is_what_is_held_after_loading(tmp_path: Path) -> None:
    for architecture in ("gpt_oss", "deepseek_v3", "qwen2_moe"):
        folder = tiny_models.save(architecture, tmp_path / architecture)
        full = load(folder, dtype="bfloat16", device_map="cpu").model
        for quantization in ("8bit", "4bit"):
            lm = load(folder, quantization=quantization, dtype="bfloat16", device_map="cpu")
            assert summarise(holdings(full, quantisable(full), quantization)) == lm.parts


@pytest.mark.parametrize("bits", [4, 8])
def test_stock_loading_is_shown_to_leave_the_experts_in_full_precision(bits: int, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_use_double_quant=True)
    folder = tiny_models.save("mixtral", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, device_map={"": "cpu"})
    rows = {row.part: row for row in measure_precision(model)}
    assert rows["experts"].dtype in ("bfloat16", "float32")
    assert rows["attention"].dtype == {4: "fp4", 8: "int8"}[bits]
    assert rows["attention"].parameters == 3 * (64 * 64 * 2 + 64 * 32 * 2)
    layer = model.model.layers[0].self_attn.q_proj
    assert isinstance(layer, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt))
    assert 4 < rows["attention"].bits_per_parameter < 4 * bits


# --- what fits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quantization", "expected"), [(None, 93.4), ("8bit", 47.0), ("4bit", 24.5)], ids=["16 bits", "8 bits", "4 bits"]
)
def test_mixtral_8x7b_needs_what_is_known_of_it(quantization: str | None, expected: float) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MixtralConfig(), dtype=torch.bfloat16)
    wanted = estimate(model, quantization)
    assert wanted.weight_bytes / 1e9 == pytest.approx(expected, abs=0.05)
    assert sum(holding.parameters for holding in wanted.held) == 46_702_792_704
    assert wanted.layer_bytes / 1e9 == pytest.approx(2.9, abs=0.05)  # 8 experts of three 4096 × 14336 matrices, twice


def test_a_model_that_does_not_fit_says_what_it_needs_and_what_would_fit(mixtral_8x7b, monkeypatch) -> None:
    monkeypatch.setattr(fit, "accelerators", lambda: [GPU])
    monkeypatch.setattr(fit, "free_bytes", lambda device: 30_000_000_000)
    with pytest.raises(mp.ModelTooLargeError) as raised:
        load(mixtral_8x7b)
    message = str(raised.value).removeprefix(str(mixtral_8x7b))
    assert message == (
        " needs 93.4 GB in 16 bits (experts 90.2 GB, attention 2.7 GB, embedding 0.3 GB, head 0.3 GB) and 2.9 GB more "
        "while loading, but 30.0 GB are free on cuda:0; quantization='8bit' needs 47.0 GB; quantization='4bit' needs "
        "24.5 GB; use quantization='4bit'"
    )


def test_on_a_cpu_half_precision_is_a_way_out_as_well(mixtral_8x7b, monkeypatch) -> None:
    monkeypatch.setattr(fit, "accelerators", list)
    monkeypatch.setattr(fit, "free_bytes", lambda device: 100_000_000_000)
    with pytest.raises(mp.ModelTooLargeError, match=r"186\.8 GB in 32 bits .* the CPU; .* use dtype='bfloat16'$"):
        load(mixtral_8x7b)
    monkeypatch.setattr(fit, "free_bytes", lambda device: 16_000_000_000)
    with pytest.raises(mp.ModelTooLargeError, match=r"needs 25\.0 GB in 4 bits .*no precision fits"):
        load(mixtral_8x7b, quantization="4bit")


def test_the_roomiest_gpu_takes_a_model_that_fits_on_one(monkeypatch) -> None:
    gpus = [torch.device("cuda", index) for index in range(3)]
    monkeypatch.setattr(fit, "accelerators", lambda: gpus)
    monkeypatch.setattr(fit, "free_bytes", lambda device: [40, 80, 60][device.index])
    assert place("m", need(70, 5), "auto", dict) == Placement({"": gpus[1]})
    # Too large for one: spread, each GPU to 95 % of what is free.
    assert place("m", need(150, 5), "auto", dict) == Placement("auto", {0: 38, 1: 76, 2: 57})
    assert place("m", need(70, 5), "balanced", dict) == Placement("balanced", {0: 38, 1: 76, 2: 57})
    with pytest.raises(mp.ModelTooLargeError, match="free on 3 GPUs together"):
        place("m", need(180, 5), "auto", dict)


def test_a_map_is_checked_device_by_device(monkeypatch) -> None:
    monkeypatch.setattr(fit, "free_bytes", lambda device: 50)
    wanted = need(90, 0, "model.layers.0.a", "model.layers.1.a", "model.layers.10.a")
    spread = {"model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.10": "disk"}
    assert place("m", wanted, spread, dict) == Placement(spread)
    with pytest.raises(mp.ModelTooLargeError, match="free on cpu"):
        place("m", wanted, {"": "cpu", "model.layers.1": "disk"}, dict)
    assert place("m", need(40), torch.device("cpu"), dict) == Placement({"": torch.device("cpu")})


@pytest.mark.parametrize("device_map", ["cuda:99", 99, {"model": "cuda:99"}, "gpu", {"": "nowhere"}])
def test_a_device_that_is_not_there_is_named(device_map) -> None:
    with pytest.raises(
        mp.BadInputError, match=r"device_map='?(cuda:99|99|gpu|nowhere)'?( is no device|: this machine)"
    ):
        load("tiny-mixtral", device_map=device_map)


@pytest.mark.parametrize(
    ("device_map", "named"),
    [({"": "cpu", "lm_head": "disk"}, "cpu, disk"), ({"model": 0, "lm_head": "cpu"}, "0, cpu")],
)
def test_a_quantised_model_is_not_shuttled_between_devices(device_map, named, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(fit, "free_bytes", lambda device: 10**12)
    with pytest.raises(mp.BadInputError, match=rf"spreads the model over {named}: .* GPUs alone or on the CPU alone"):
        load("tiny-mixtral", quantization="8bit", device_map=device_map)


def test_the_memory_of_a_container_counts_and_the_files_it_read_do_not(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fit, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("5000\n")
    (tmp_path / "memory.stat").write_text("anon 2000\ninactive_file 2000\nactive_file 1000\n")
    assert fit.free_bytes(torch.device("cpu")) == 7000
    (tmp_path / "memory.max").write_text("max\n")
    assert fit.free_bytes(torch.device("cpu")) > 10**6


def test_sizes_are_decimal_gigabytes() -> None:
    assert [gigabytes(size) for size in (93_405_585_408, 50_000_000, 1_200_000)] == ["93.4 GB", "0.1 GB", "0.0012 GB"]


def test_the_table_is_a_polars_frame() -> None:
    assert isinstance(mp.load("tiny-mixtral", device_map="cpu").precision, pl.DataFrame)
