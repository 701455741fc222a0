"""The kernels are compiled for GPUs that need not be there: what does not compile would only show on one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_probe_kernels import Scoring
from moe_probe_kernels.choosing import has_triton, is_interpreted

pytestmark = [
    pytest.mark.skipif(not has_triton(), reason="Triton is not installed: there is none for this system"),
    pytest.mark.skipif(is_interpreted(), reason="TRITON_INTERPRET=1 puts the interpreter in the compiler's place"),
]

CAPABILITIES = (80, 90, 100)
"""A100, H100 and H200, B200."""


def _compile(kernel: Any, types: Mapping[str, str], constants: Mapping[str, int | bool], capability: int) -> str:
    """Return the assembly for a GPU, after a look at whether there is machine code too."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    assert list(signature) == kernel.arg_names
    source = ASTSource(fn=kernel, signature=signature, constexprs=dict(constants))
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000
    assembly: str = compiled.asm["ptx"]
    return assembly


@pytest.fixture(autouse=True)
def _compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def _flags(kernel: Any, constants: Mapping[str, int | bool], flags: Mapping[str, bool]) -> dict[str, int | bool]:
    """Return constants in the order of the kernel's arguments."""
    every = {**constants, **flags}
    return {name: every[name] for name in kernel.arg_names if name in every}


SCORINGS = {
    "groups": (32, 4, Scoring("sigmoid", n_groups=4, n_kept_groups=2), False),
    "skips, in its type": (17, 1, Scoring("sqrtsoftplus", skips=True, in_its_type=True), True),
    "drops, rounded": (8, 2, Scoring(rounded_to=torch.bfloat16), True),
}


@pytest.mark.parametrize(
    ("capability", "scoring"),
    [*((capability, "groups") for capability in CAPABILITIES), (90, "skips, in its type"), (90, "drops, rounded")],
)
def test_the_summary_compiles(capability: int, scoring: str) -> None:
    from moe_probe_kernels import summary_kernel

    kernel = summary_kernel.summary_kernel
    n_experts, n_slots, how, drops = SCORINGS[scoring]
    types = {
        "logits": "*bf16",
        "ids": "*i64",
        "bias": "*fp32",
        "weights": "*bf16",
        "keep": "*u8",
        "entropy_out": "*fp32",
        "margin_out": "*fp32",
        "share_error_out": "*i32",
        "histogram_out": "*i32",
        "n_tokens": "i32",
    }
    fixed = summary_kernel.constants(n_experts, n_slots, how, torch.bfloat16, torch.float32)
    constants = _flags(kernel, fixed, {"HAS_BIAS": True, "HAS_WEIGHTS": True, "HAS_KEEP": True, "DROPS": drops})
    assembly = _compile(kernel, types, constants, capability)
    assert f".target sm_{capability}" in assembly
    assert "red.global" in assembly or "atom.global" in assembly


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_ring_compiles(capability: int) -> None:
    from moe_probe_kernels import ring_kernel

    kernel = ring_kernel.ring_kernel
    types = {
        "ids": "*i64",
        "weights": "*fp32",
        "places": "*i64",
        "written": "*i64",
        "ring_ids": "*u8",
        "ring_weights": "*fp16",
        "n_tokens": "i32",
        "capacity": "i32",
        "dropped": "i32",
    }
    constants = _flags(kernel, ring_kernel.constants(8), {"HAS_PLACES": True, "DROPS": True})
    assert f".target sm_{capability}" in _compile(kernel, types, constants, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_tally_compiles_to_additions_of_64_bits(capability: int) -> None:
    from moe_probe_kernels import tally_kernel

    kernel = tally_kernel.tally_kernel
    types = {
        "ids": "*i16",
        "cells": "*i32",
        "counts": "*i64",
        "strays": "*i64",
        "n_tokens": "i32",
        "n_cells": "i32",
        "n_sets": "i32",
        "dropped": "i32",
    }
    constants = _flags(kernel, tally_kernel.constants(64, 8, 2), {"DROPS": True})
    assembly = _compile(kernel, types, constants, capability)
    assert f".target sm_{capability}" in assembly
    assert "add.u64" in assembly
