"""What each Triton kernel gains over the torch reference beside it, on a GPU.

For shapes of known models it prints, for both ways: milliseconds (CUDA events, medians over rounds in which who goes
first changes), launches (as the profiler counts them), and the fraction of the memory bandwidth that a large copy
reaches here. Bytes are those that must be moved at least: inputs read once, outputs written once. Claim: no kernel is
slower than its reference; one that is should be deleted. Without a GPU nothing is measured, and that is said.

    python benchmarks/kernels.py [--rounds 20]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from moe_probe_kernels import Ring, Scoring, Tally, Way, pack, summarise, which

N_LABELS = 20
N_CLUSTERS = 64


@dataclass(frozen=True)
class Shape:
    """Layers, tokens, experts and slots of a forward, and how its routers score."""

    name: str
    n_layers: int
    n_tokens: int
    n_experts: int
    n_slots: int
    scoring: Scoring


SHAPES = (
    Shape("Mixtral 8x7B", 32, 16_384, 8, 2, Scoring()),
    Shape("OLMoE", 16, 16_384, 64, 8, Scoring()),
    Shape("DeepSeek-V3", 58, 4_096, 256, 8, Scoring("sigmoid", n_groups=8, n_kept_groups=4)),
)


@dataclass(frozen=True)
class Operation:
    """One operation on one shape: how it is called, and the bytes that it must move at least."""

    name: str
    call: Callable[[Way], object]
    n_bytes: int


def operations(shape: Shape) -> list[Operation]:
    generator = torch.Generator("cuda").manual_seed(0)
    size = (shape.n_layers, shape.n_tokens, shape.n_experts)
    logits = torch.randn(size, generator=generator, device="cuda").bfloat16()
    weights, ids = logits.float().softmax(-1).topk(shape.n_slots, dim=-1)
    biased = shape.scoring.activation == "sigmoid"
    bias = torch.randn(shape.n_layers, shape.n_experts, generator=generator, device="cuda") if biased else None
    keep = torch.rand(shape.n_tokens, generator=generator, device="cuda") < 0.9
    narrow = torch.uint8 if shape.n_experts < 256 else torch.int16
    ring = Ring(shape.n_layers, shape.n_slots, 2 * shape.n_tokens, "cuda", id_dtype=narrow)
    packed = pack(ids, weights, id_dtype=torch.int16)
    n_cells = N_CLUSTERS * N_LABELS
    tally = Tally(shape.n_layers, 2, n_cells, shape.n_experts, "cuda")
    cells = torch.randint(0, n_cells, (1, shape.n_tokens), generator=generator, device="cuda").int()
    n_assignments = ids.numel()
    scores_bytes = 2 * 4 * shape.n_layers * shape.n_tokens
    return [
        Operation(
            "summary",
            lambda way: summarise(logits, ids, shape.scoring, bias=bias, weights=weights, way=way),
            2 * logits.numel() + 12 * n_assignments + scores_bytes,
        ),
        Operation(
            "pack",
            lambda way: pack(ids, weights, id_dtype=torch.int16, way=way),
            (12 + 6) * n_assignments,
        ),
        Operation(
            "ring, padding dropped",
            lambda way: ring.append(ids, weights, keep, way=way),
            (12 + 2 + ring.ids.element_size()) * n_assignments,
        ),
        Operation(
            "tally",
            lambda way: tally.add(packed.ids, cells, way=way),
            # An addition reads and writes 8 bytes; how many stay in the cache is the device's affair.
            (2 + 16) * n_assignments,
        ),
    ]


def milliseconds(call: Callable[[], object]) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def launches(call: Callable[[], object]) -> int:
    """Return how many kernels, copies and fills the profiler saw on the device."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def copy_bandwidth(rounds: int) -> float:
    """Return the bytes a second, read and written, of a copy of 1 GiB."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    taken = statistics.median(milliseconds(lambda: target.copy_(source)) for _ in range(rounds))
    return 2 * source.numel() / (taken / 1e3)


def measure(operation: Operation, rounds: int, bandwidth: float) -> float:
    """Print what both ways cost, and return the kernel's time by the reference's."""
    ways: tuple[Way, Way] = ("triton", "torch")
    for way in ways:  # compiled and warm
        operation.call(way)
        operation.call(way)
    taken: dict[Way, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            taken[way].append(milliseconds(lambda way=way: operation.call(way)))  # type: ignore[misc]
    median = {way: statistics.median(each) for way, each in taken.items()}
    for way in ways:
        fraction = operation.n_bytes / (median[way] / 1e3) / bandwidth
        n_launches = launches(lambda way=way: operation.call(way))  # type: ignore[misc]
        print(
            f"  {operation.name:22s} {way:7s} {median[way]:9.3f} ms  {n_launches:4d} launches"
            f"  {fraction:6.1%} of the copy's bandwidth"
        )
    return median["triton"] / median["torch"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if which() != "triton":
        lacking = "Triton is not installed" if torch.cuda.is_available() else "torch sees no GPU here"
        print(f"not measured on a GPU: {lacking}; what runs here is the torch reference")
        return 0
    bandwidth = copy_bandwidth(options.rounds)
    print(f"{torch.cuda.get_device_name()}: a copy of 1 GiB moves {bandwidth / 1e12:.2f} TB/s, read and written")
    slower = []
    for shape in SHAPES:
        print(
            f"{shape.name}: {shape.n_layers} layers, {shape.n_tokens} tokens, {shape.n_experts} experts,"
            f" {shape.n_slots} slots"
        )
        for operation in operations(shape):
            ratio = measure(operation, options.rounds, bandwidth)
            print(f"  {operation.name:22s} kernel ÷ reference: {ratio:.3f}")
            if ratio >= 1:
                slower.append(f"{operation.name} on {shape.name}")
    for one in slower:
        print(f"MISSED: {one}: the reference is as fast; delete the kernel or say why not")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
