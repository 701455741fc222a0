"""A layer of packed experts gives the same numbers in each way, and decoding never makes the host wait for a GPU."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import tiny_models
import torch
from packed_oracle import oracle
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moe_probe.models import packed_forward, packing
from moe_probe.models.packed_forward import WAYS, choose_way, experts_at_once, packed_experts_forward
from moe_probe.models.packing import Int8Matrices, Nf4Matrices, pack

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BITS = ("8bit", "4bit")
NAMES = ("gate_up_proj", "down_proj")
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
"""Of the largest output: sums of at most 128 rounded terms, twice, and what 8 bits of a statistic may round."""


@functools.cache
def full_experts(architecture: str) -> torch.nn.Module:
    """The experts of a tiny model's last layer, whose weights bfloat16 holds exactly; biases too are random."""
    model = tiny_models.build(architecture, dtype=torch.bfloat16).float()
    found = [module for name, module in model.named_modules() if name.endswith("mlp.experts") or "block_sparse" in name]
    experts = next(module for module in reversed(found) if hasattr(module, "gate_up_proj"))
    for name in ("gate_up_proj_bias", "down_proj_bias"):
        if experts.has_bias:
            getattr(experts, name).data.normal_(std=0.5)
    return experts.requires_grad_(False)


@functools.cache
def packed_experts(architecture: str, quantization: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    full = full_experts(architecture)
    experts = copy.deepcopy(full).to(dtype)
    for name in NAMES:
        stack = getattr(full, name).detach()
        delattr(experts, name)
        matrices = (matrix.T if full.is_transposed else matrix for matrix in stack)
        experts.add_module(name, pack(matrices, len(stack), quantization))
    return experts


def inputs(n_experts: int, n_tokens: int, n_slots: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (tokens, 64), experts and weights (tokens, slots), of which some expert holds none."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n_tokens, 64, generator=generator)
    ids = torch.stack([torch.randperm(n_experts - 1, generator=generator)[:n_slots] for _ in range(n_tokens)])
    return hidden, ids, torch.rand(n_tokens, n_slots, generator=generator)


def assert_close(output: Tensor, expected: Tensor) -> None:
    limit = ROUNDING[output.dtype] * expected.abs().max().item()
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=limit)


# --- the same numbers in each way ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_each_way_computes_what_the_dequantised_weights_give_by_hand(architecture, quantization, way) -> None:
    experts = packed_experts(architecture, quantization)
    hidden, ids, weights = inputs(experts.num_experts, 9)
    output = WAYS[way](experts, hidden, ids, weights)
    assert output.dtype == torch.float32
    assert_close(output, oracle(architecture, full_experts(architecture), hidden, ids, weights, quantization))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_half_precision_is_off_by_its_rounding_alone(architecture, quantization, way, dtype) -> None:
    experts = packed_experts(architecture, quantization, dtype)
    hidden, ids, weights = inputs(experts.num_experts, 9)
    hidden, weights = hidden.to(dtype), weights.to(dtype)
    output = WAYS[way](experts, hidden, ids, weights)
    assert output.dtype == dtype
    assert_close(output, oracle(architecture, full_experts(architecture), hidden, ids, weights, quantization))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("n_at_once", [1, 3, 4])
def test_a_scratch_that_holds_few_experts_changes_nothing(quantization, way, n_at_once, monkeypatch) -> None:
    experts = packed_experts("gpt_oss", quantization)
    expert_bytes = 4 * sum(rows * columns for rows, columns in (getattr(experts, name).shape for name in NAMES))
    for module in (packing, packed_forward):
        monkeypatch.setattr(module, "scratch_bytes", lambda device: n_at_once * expert_bytes + 4)
    assert experts_at_once(experts, torch.float32, CPU) == n_at_once
    hidden, ids, weights = inputs(8, 9)
    ids[4, 1] = 8  # dropped
    output = WAYS[way](experts, hidden, ids, weights)
    assert_close(output, oracle("gpt_oss", full_experts("gpt_oss"), hidden, ids, weights, quantization))


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_oss"])
def test_rows_multiplied_by_the_fused_kernel_give_the_same(architecture, monkeypatch) -> None:
    experts = packed_experts(architecture, "4bit")
    monkeypatch.setattr(Nf4Matrices, "_has_fused_kernel", lambda self, hidden: True)
    monkeypatch.setattr(packing, "_BATCHED_BYTES", 0)
    hidden, ids, weights = inputs(8, 3)
    output = packed_forward.gathered(experts, hidden, ids, weights)
    assert_close(output, oracle(architecture, full_experts(architecture), hidden, ids, weights, "4bit"))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("shape", [(64, 192), (96, 32 * 2), (2, 32 * 3), (512, 160)])
def test_many_matrices_are_the_bits_of_each_alone(shape, quantization, dtype) -> None:
    packed = pack(torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)), 5, quantization)
    alone = torch.stack([packed.dequantise(matrix, dtype) for matrix in range(5)])
    assert torch.equal(packed.dequantise_many(slice(1, 4), dtype), alone[1:4])
    chosen = torch.tensor([4, 0, 4])
    assert torch.equal(packed.dequantise_many(chosen, dtype), alone[chosen])


# --- a token and the others of its batch ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantization", BITS)
@pytest.mark.parametrize("value", [1e4, float("inf"), float("nan")])
def test_a_token_does_not_depend_on_the_others_of_its_batch(quantization, way, value) -> None:
    experts = packed_experts("mixtral", quantization)
    hidden, ids, weights = inputs(8, 40)
    ids[1:] = ids[:1]  # all share the first one's experts
    hidden[1:] = value
    together = WAYS[way](experts, hidden, ids, weights)[:1]
    alone = packed_forward.one_by_one(experts, hidden[:1], ids[:1], weights[:1])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quantization", BITS)
def test_slots_beyond_the_last_expert_add_nothing(quantization, way) -> None:
    experts = packed_experts("mixtral", quantization)
    hidden, _, _ = inputs(8, 3)
    hidden[1] = float("inf")  # all of its slots are dropped
    halves = torch.full((3, 2), 0.5)
    output = WAYS[way](experts, hidden, torch.tensor([[3, 8], [8, 9], [8, 7]]), halves)
    alone = packed_forward.one_by_one(experts, hidden[[0, 2]], torch.tensor([[3], [7]]), halves[:2, :1])
    assert output[1].tolist() == [0.0] * 64
    torch.testing.assert_close(output[[0, 2]], alone, rtol=1e-5, atol=1e-5)


def test_no_tokens_give_no_rows() -> None:
    output = packed_experts_forward(packed_experts("mixtral", "8bit"), *inputs(8, 3)[:1], *(torch.empty(0, 2),) * 2)
    assert output.shape == (3, 64)
    empty = torch.empty(0, 64)
    assert packed_experts_forward(
        packed_experts("mixtral", "8bit"), empty, empty[:, :2].long(), empty[:, :2]
    ).shape == (
        0,
        64,
    )


@pytest.mark.parametrize("quantization", BITS)
def test_experts_without_tokens_are_left_alone(quantization, monkeypatch) -> None:
    experts = packed_experts("mixtral", quantization)
    touched: list[int] = []
    kind = type(experts.down_proj)
    multiply = kind.multiply
    monkeypatch.setattr(
        kind, "multiply", lambda self, h, index, bias: touched.append(index) or multiply(self, h, index, bias)
    )
    packed_forward.one_by_one(experts, torch.randn(3, 64), torch.tensor([[6, 1], [1, 4], [6, 1]]), torch.rand(3, 2))
    assert sorted(touched) == [1, 1, 4, 4, 6, 6]


# --- the host does not wait ----------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Counts operations and notes copies between devices.

    On the meta device tensors have shapes and no values: whatever would make the host read one raises.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.n_operations = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.n_operations += 1
        if len({each.device.type for each in (*args, result) if isinstance(each, Tensor)}) > 1:
            self.copies.append(str(operation))
        return result


def run_without_values(way: str, quantization: str, n_tokens: int) -> Watch:
    """Run a way on shapes alone, twice: the first call builds tables."""
    original = packed_experts("gpt_oss", quantization, torch.bfloat16)
    kind = Nf4Matrices if quantization == "4bit" else Int8Matrices
    meta = torch.device("meta")
    experts = copy.copy(original)
    experts._modules = {name: kind(8, *getattr(original, name).shape, meta) for name in NAMES}
    experts._parameters = {
        name: torch.nn.Parameter(bias.to(meta), requires_grad=False) for name, bias in original._parameters.items()
    }
    hidden = torch.empty(n_tokens, 64, dtype=torch.bfloat16, device=meta)
    ids = torch.empty(n_tokens, 2, dtype=torch.int64, device=meta)
    packing._tables.cache_clear()
    try:
        for _ in range(2):
            with Watch() as watch:
                output = WAYS[way](experts, hidden, ids, hidden[:, :2])
    finally:
        packing._tables.cache_clear()
    assert output.device == meta
    assert output.shape == (n_tokens, 64)
    return watch


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("quantization", BITS)
def test_decoding_never_makes_the_host_wait(quantization, fused, monkeypatch) -> None:
    monkeypatch.setattr(Nf4Matrices, "_has_fused_kernel", lambda self, hidden: fused)
    monkeypatch.setattr(packing, "_BATCHED_BYTES", 0)
    watch = run_without_values("gathered", quantization, 2)
    assert watch.copies == []
    # In one batch whatever the number of tokens; the fused kernel is launched an assignment.
    growth = run_without_values("gathered", quantization, 4).n_operations - watch.n_operations
    assert growth > 0 if fused and quantization == "4bit" else growth == 0


@pytest.mark.parametrize("quantization", BITS)
def test_a_layer_that_fits_into_the_scratch_never_makes_the_host_wait(quantization) -> None:
    assert run_without_values("grouped", quantization, 64).copies == []


def test_what_does_make_the_host_wait_is_seen(monkeypatch) -> None:
    with pytest.raises(NotImplementedError, match="meta"):
        run_without_values("one_by_one", "4bit", 64)
    monkeypatch.setattr(packed_forward, "scratch_bytes", lambda device: 1)
    with pytest.raises(NotImplementedError, match="meta"):
        run_without_values("grouped", "4bit", 64)
    with Watch() as watch:
        torch.zeros(2).to("meta")
    assert watch.copies == ["aten._to_copy.default"]


# --- which way -----------------------------------------------------------------------------------------------------


def test_the_way_goes_by_assignments_an_expert(monkeypatch) -> None:
    experts = packed_experts("mixtral", "4bit")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    on_gpu = functools.partial(choose_way, experts, dtype=torch.bfloat16, device=CUDA)
    assert [on_gpu(n) for n in (1, 8, 9, 8 * 64 - 1, 8 * 64, 10**6)] == [
        *("gathered", "gathered", "one_by_one", "one_by_one", "grouped", "grouped")
    ]
    assert choose_way(experts, 10**6, torch.float32, CUDA) == "one_by_one"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert on_gpu(10**6) == "one_by_one"
    on_cpu = functools.partial(choose_way, experts, dtype=torch.float32, device=CPU)
    assert [on_cpu(n) for n in (1, 7, 8, 10**6)] == ["one_by_one", "one_by_one", "grouped", "grouped"]


@pytest.mark.parametrize(("device", "at_once"), [(CPU, 8), (CUDA, 2)])
def test_experts_too_large_for_the_scratch_are_taken_one_by_one(device, at_once, monkeypatch) -> None:
    experts = packed_experts("mixtral", "4bit")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    expert_bytes = 2 * (256 * 64 + 64 * 128)  # in bfloat16
    for n_bytes, way in ((at_once * expert_bytes, "grouped"), (at_once * expert_bytes - 1, "one_by_one")):
        monkeypatch.setattr(packed_forward, "scratch_bytes", lambda _, n_bytes=n_bytes: n_bytes)
        assert choose_way(experts, 10**6, torch.bfloat16, device) == way


def test_the_scratch_of_a_cpu_is_what_it_caches() -> None:
    assert packing.scratch_bytes(CPU) == 2**22 < packing.scratch_bytes(CUDA)


def test_rows_that_no_grouped_product_takes_are_taken_one_by_one() -> None:
    experts = copy.copy(packed_experts("mixtral", "8bit"))
    experts._modules = dict(experts._modules)
    experts._modules["down_proj"] = pack(torch.randn(8, 64, 62), 8, "8bit")  # 248 bytes a row, not a multiple of 16
    assert choose_way(experts, 10**6, torch.float32, CPU) == "one_by_one"


@pytest.mark.parametrize("chosen", WAYS)
def test_the_way_that_is_chosen_is_the_way_that_runs(chosen, monkeypatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(packed_forward, "choose_way", lambda *_: chosen)
    for way, call in WAYS.items():
        monkeypatch.setitem(WAYS, way, lambda *args, way=way, call=call: ran.append(way) or call(*args))
    packed_experts_forward(packed_experts("mixtral", "8bit"), *inputs(8, 2))
    assert ran == [chosen]
