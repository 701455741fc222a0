"""Experts, attention and dense layers are really held in 4 and 8 bits, and compute what those bits say."""

from __future__ import annotations

import hashlib
import os
from itertools import pairwise
from pathlib import Path

import bitsandbytes as bnb
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_oracle import dequantised, oracle
from spawning import execute, warm_context
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

import moe_probe as mp
from moe_probe.models import LanguageModel
from moe_probe.models.packing import Int8Matrices, PackedLinear, pack, packed_bytes
from moe_probe.models.quantise import Matrices, check_shapes, quantisable

CPU = torch.device("cpu")
# NormalFloat-4, QLoRA appendix E, and the widest gap between two of its values.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
    *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
WIDEST = max(high - low for low, high in pairwise(NF4))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of every architecture in bfloat16."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_models.save(name, root / name) for name in tiny_models.ARCHITECTURES}


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]):
    """Load an architecture at a precision, once."""
    loaded: dict[tuple[str, str | None], LanguageModel] = {}

    def once(architecture: str, quantization: str | None) -> LanguageModel:
        key = (architecture, quantization)
        if key not in loaded:
            loaded[key] = mp.load(folders[architecture], quantization=quantization, dtype="float32", device_map="cpu")
        return loaded[key]

    return once


def experts_of(model: PreTrainedModel) -> list[tuple[str, torch.nn.Module]]:
    return [
        (name, module) for name, module in model.named_modules() if name.endswith("experts") and "shared" not in name
    ]


# --- one matrix, by hand -------------------------------------------------------------------------------------------


def test_four_bits_of_a_matrix_that_they_can_hold_exactly_are_exact() -> None:
    weight = torch.tensor([NF4 * 4, NF4[::-1] * 4])  # two blocks of 64, largest value 1
    packed = pack([weight], 1, "4bit")
    assert packed.codes[0].tolist()[:8] == [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]
    torch.testing.assert_close(packed.dequantise(0), weight, rtol=1e-5, atol=1e-6)


def test_eight_bits_are_the_nearest_127th_of_the_largest_weight_of_a_row() -> None:
    packed = pack([torch.tensor([[1.27, 0.014, -1.0], [0.0, 0.0, 0.0]])], 1, "8bit")
    assert packed.codes[0].tolist() == [[127, 1, -100], [0, 0, 0]]
    torch.testing.assert_close(packed.dequantise(0), torch.tensor([[1.27, 0.01, -1.0], [0.0, 0.0, 0.0]]))


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 6), columns=st.sampled_from([32, 64, 96, 160, 192]), seed=st.integers(0, 9), tall=st.booleans()
)
def test_four_bits_are_never_farther_off_than_half_the_widest_gap(
    rows: int, columns: int, seed: int, tall: bool
) -> None:
    rows = rows * 64 if tall or columns % 64 else rows
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    difference = (pack([weight], 1, "4bit").dequantise(0) - weight).abs().view(-1, 64)
    largest = weight.abs().view(-1, 64).amax(dim=1)
    # The largest weight of a block is itself in 8 bits, of the spread of all of them.
    slack = 0.02 * (largest.max() - largest.min()) + 1e-5
    assert (difference.amax(dim=1) <= (WIDEST / 2) * largest + slack).all()


@settings(max_examples=20, deadline=None)
@given(
    quantization=st.sampled_from(["8bit", "4bit"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    n_tokens=st.integers(0, 9),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_a_product_is_that_of_the_dequantised_matrix(
    quantization: str, dtype: torch.dtype, n_tokens: int, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(3, 64, 192, generator=generator)
    hidden = (4 * torch.randn(n_tokens, 192, generator=generator)).to(dtype)
    packed = pack(weights, 3, quantization)
    offset = torch.randn(64, generator=generator).to(dtype) if bias else None
    product = packed.multiply(hidden, 2, offset)
    expected = hidden.double() @ packed.dequantise(2).double().T + (0 if offset is None else offset.double())
    assert product.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.01  # of a sum of 192 terms, each rounded
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=tolerance * 200)


def test_eight_bits_do_not_overflow_in_float16() -> None:
    packed = pack([torch.ones(4, 4096)], 1, "8bit")
    assert packed.multiply(torch.full((1, 4096), 2.0, dtype=torch.float16), 0).tolist() == [[8192.0] * 4]


def test_a_token_does_not_depend_on_the_others_of_its_batch() -> None:
    packed = pack(torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)), 1, "8bit")
    token = torch.randn(1, 64, generator=torch.Generator().manual_seed(1))
    outlier = torch.full((1, 64), 1e4)
    torch.testing.assert_close(packed.multiply(torch.cat([token, outlier]), 0)[:1], packed.multiply(token, 0))


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_packed_matrices_take_the_bytes_that_are_planned_for_them(quantization: str) -> None:
    packed = pack(torch.randn(3, 128, 192), 3, quantization)
    assert sum(buffer.nbytes for buffer in packed.buffers()) == packed_bytes(3, 128, 192, quantization)
    # 3 × 128 × 192 weights: half a byte each, a byte a block of 64, then a float a 256 blocks and one a matrix.
    assert packed_bytes(3, 128, 192, "4bit") == 36_864 + 1_152 + 3 * 2 * 4 + 3 * 4
    assert packed_bytes(3, 128, 192, "8bit") == 73_728 + 3 * 128 * 4


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_casting_a_model_leaves_the_packed_weights_alone(quantization: str) -> None:
    packed = pack(torch.randn(2, 64, 64), 2, quantization)
    before = packed.dequantise(1)
    packed.to(torch.bfloat16)
    assert torch.equal(packed.dequantise(1), before)


# --- whole experts, against a hand-written oracle ------------------------------------------------------------------


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_quantised_experts_compute_what_bitsandbytes_weights_give_by_hand(architecture, quantization, load) -> None:
    full = dict(experts_of(load(architecture, None).model))
    quantised = experts_of(load(architecture, quantization).model)
    assert len(quantised) == len(full) > 0
    generator = torch.Generator().manual_seed(3)
    name, experts = quantised[-1]
    hidden = torch.randn(7, 64, generator=generator)
    ids = torch.stack([torch.randperm(experts.num_experts, generator=generator)[:2] for _ in range(7)])
    weights = torch.rand(7, 2, generator=generator)
    with torch.no_grad():
        output = experts(hidden, ids, weights)
        expected = oracle(architecture, full[name], hidden, ids, weights, quantization)
    # A mean over 8-bit statistics may round either way; four bits themselves are a hundred times coarser.
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_experts_shrink_and_everything_that_chooses_stays_as_in_the_checkpoint(architecture, quantization, load):
    full, quantised = load(architecture, None).model, load(architecture, quantization).model
    # Tiny matrices of 64 columns are the worst case: a 32-bit statistic a row of 64 codes is 6 % on top.
    full_experts = dict(experts_of(full))
    for name, experts in experts_of(quantised):
        size = sum(tensor.nbytes for tensor in (*experts.parameters(), *experts.buffers()))
        in_bfloat16 = sum(2 * tensor.numel() for tensor in full_experts[name].parameters())
        assert size / in_bfloat16 <= {"4bit": 0.30, "8bit": 0.55}[quantization]
    kept = dict(quantised.named_parameters()) | dict(quantised.named_buffers())
    precise = ("router.weight", "gate.weight", "correction_bias", "expert_gate.weight", "lm_head.weight", "norm.weight")
    names = [
        name
        for name, _ in (*full.named_parameters(), *full.named_buffers())
        if name.endswith(precise) or "embed_tokens" in name
    ]
    assert len(names) >= 6
    for name in names:
        original = full.get_parameter(name) if name in dict(full.named_parameters()) else full.get_buffer(name)
        assert torch.equal(kept[name], original), name
    layers = [module for module in quantised.modules() if type(module) is torch.nn.Linear]
    assert all(layer is quantised.lm_head or layer.out_features == 1 for layer in layers)


@pytest.mark.parametrize("quantization", [None, "8bit", "4bit"])
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_a_model_generates_and_its_experts_are_called_where_recording_listens(architecture, quantization, load) -> None:
    model = load(architecture, quantization).model
    seen: list[tuple[torch.Size, torch.Size, torch.Size]] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, args: seen.append(tuple(arg.shape for arg in args[:3])))
        for _, module in experts_of(model)
    ]
    try:
        prompt = torch.arange(3, 12)[None]
        tokens = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False)
    finally:
        for hook in hooks:
            hook.remove()
    assert tokens.shape[1] > 9
    n_slots = seen[0][1][1]
    assert seen[: len(hooks)] == [((9, 64), (9, n_slots), (9, n_slots))] * len(hooks)


# --- what is quantised, and what is refused ------------------------------------------------------------------------


def test_dense_layers_are_packed_with_their_biases(load) -> None:
    attention = load("qwen2_moe", "8bit").model.model.layers[0].self_attn
    original = load("qwen2_moe", None).model.model.layers[0].self_attn.q_proj
    assert isinstance(attention.q_proj, PackedLinear)
    assert isinstance(attention.q_proj.packed, Int8Matrices)
    hidden = torch.randn(2, 5, 64)
    weight = dequantised(original.weight, "8bit")
    expected = hidden @ weight.T + original.bias
    torch.testing.assert_close(attention.q_proj(hidden), expected, rtol=1e-4, atol=1e-4)
    assert "in_features=64" in repr(attention.q_proj)


def test_a_router_that_is_a_linear_layer_is_not_quantised() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = torch.nn.Linear(64, 8, bias=False)
            self.wg = torch.nn.Linear(64, 8, bias=False)  # named like nothing, but with an output an expert
            self.experts = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(8))

    model = tiny_models.build("mixtral")
    model.model.layers[0].mlp = Block()
    found = [name for name in quantisable(model) if "layers.0.mlp" in name]
    assert found == [f"model.layers.0.mlp.experts.{expert}.weight" for expert in range(8)]


def test_experts_in_a_form_that_would_stay_in_full_precision_are_refused() -> None:
    class OtherExperts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(8, 64, 64))

    model = tiny_models.build("mixtral")
    model.model.layers[1].mlp.experts = OtherExperts()
    with pytest.raises(
        mp.UnsupportedModelError, match=r"layers\.1\.mlp\.experts\.weight: experts held as OtherExperts"
    ):
        quantisable(model)


def test_a_matrix_that_cannot_be_cut_into_blocks_is_named() -> None:
    with pytest.raises(mp.BadInputError, match=r"a\.b is 3 × 32: in 4 bits .* multiple of 64 weights; use .*8bit"):
        check_shapes({"a.b": Matrices(8, 3, 32)}, "4bit")
    check_shapes({"a.b": Matrices(8, 3, 32), "a.c": Matrices(8, 2, 32)}, "8bit")


def test_other_peoples_loading_is_left_as_it_was(folders) -> None:
    ours = {name: kind for name, kind in AUTO_QUANTIZER_MAPPING.items() if not name.startswith("moe_probe")}
    assert {ours["bitsandbytes_4bit"].__name__, ours["bitsandbytes_8bit"].__name__} == {
        "Bnb4BitHfQuantizer",
        "Bnb8BitHfQuantizer",
    }
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForCausalLM.from_pretrained(folders["mixtral"], quantization_config=config, device_map={"": "cpu"})
    assert isinstance(model.model.layers[0].self_attn.q_proj, bnb.nn.Linear4bit)
    assert isinstance(model.model.layers[0].mlp.experts.gate_up_proj, torch.nn.Parameter)
    assert (
        model.config._experts_implementation
        != mp.load(folders["mixtral"], quantization="4bit", device_map="cpu").model.config._experts_implementation
    )


def test_a_packed_model_cannot_be_saved_as_if_it_were_whole(load, tmp_path) -> None:
    with pytest.raises(ValueError, match="not serializable"):
        load("mixtral", "8bit").model.save_pretrained(tmp_path)


def test_eight_bits_need_no_bitsandbytes_and_four_bits_say_so(folders, tmp_path, monkeypatch) -> None:
    code = (
        "import sys\n"
        "assert 'bitsandbytes' not in sys.modules\n"
        "sys.modules['bitsandbytes'] = None\n"
        "import moe_probe as mp\n"
        "print(mp.load(folder, quantization='8bit', device_map='cpu').parts[0].dtype)\n"
        "try: mp.load('tiny-mixtral', quantization='4bit')\n"
        "except mp.BadInputError as error: print(error)\n"
    )
    names = {"folder": str(folders["mixtral"])}
    child = warm_context(monkeypatch).Process(target=execute, args=(code, names, dict(os.environ), tmp_path))
    child.start()
    child.join()
    printed, complained = ((tmp_path / name).read_text() for name in ("out", "err"))
    assert child.exitcode == 0, complained
    assert printed.startswith("int8\nquantization='4bit' needs bitsandbytes")
    assert "pip install bitsandbytes" in printed
    assert complained == ""


def test_merging_expert_by_expert_gives_the_bits_of_merging_all(folders, load, monkeypatch) -> None:
    def digest(model: PreTrainedModel) -> str:
        found = hashlib.sha256()
        for name, buffer in model.named_buffers():
            found.update(name.encode() + buffer.numpy().tobytes())
        return found.hexdigest()

    one_by_one = {name: digest(load(name, "4bit").model) for name in ("mixtral", "deepseek_v3", "granitemoe")}
    monkeypatch.setattr(
        "moe_probe.models.quantise.PackingQuantizer.update_weight_conversions",
        lambda self, conversions, model: conversions,
    )
    for name, expected in one_by_one.items():
        assert digest(mp.load(folders[name], quantization="4bit", dtype="float32", device_map="cpu").model) == expected
