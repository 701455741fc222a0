"""How long does a layer of experts take in 4 and 8 bits? Each way of ours against two rivals, by the number of tokens.

The rivals are the same experts unquantised under transformers' `grouped_mm`, and stock bitsandbytes: a `Linear4bit` for
each projection of each expert, in a loop over the experts that hold tokens. All take turns in one process, who goes
first changes from round to round, and each figure is the median of the ratios to the unquantised run beside it.
Claims: the way that is chosen is not much slower than the best of ours, and in 4 bits not slower than bitsandbytes.
Prints a table a shape, and exits with 1 where a claim does not hold. On a GPU the shapes are those of the real models
in bfloat16; on a CPU smaller ones in float32, and processor time.

    python benchmarks/quantised_forward.py [--rounds 5] [--threads 1] [--shape NAME] [--tokens 1,8,64,512,2048]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from transformers import MixtralConfig
from transformers.integrations.moe import grouped_mm_experts_forward
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from moe_probe.models.packed_forward import WAYS, choose_way
from moe_probe.models.packing import QUANTIZATIONS, pack

CHOICE_LIMIT = 1.25
STOCK_LIMIT = 1.10
BASE, STOCK = "unquantised, grouped_mm", "bitsandbytes, Linear4bit"


@dataclass(frozen=True)
class Shape:
    """A layer of experts: sizes as in the configuration of its model."""

    name: str
    hidden: int
    intermediate: int
    n_experts: int
    n_slots: int


ON_GPU = (Shape("Mixtral 8x7B", 4096, 14336, 8, 2), Shape("OLMoE", 2048, 1024, 64, 8))
ON_CPU = (
    Shape("tiny-mixtral", 128, 192, 8, 2),
    Shape("Mixtral, a quarter", 1024, 3584, 8, 2),
    Shape("OLMoE, a quarter", 512, 256, 64, 8),
)


class StockExperts(nn.Module):
    """The experts as bitsandbytes' own layers, run as transformers runs experts one after another."""

    def __init__(self, full: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.up, self.down = (
            nn.ModuleList(self._layer(weight, dtype) for weight in stack.detach())
            for stack in (full.gate_up_proj, full.down_proj)
        )
        self.act_fn = full.act_fn

    @staticmethod
    def _layer(weight: Tensor, dtype: torch.dtype) -> nn.Module:
        rows, columns = weight.shape
        layer = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=dtype, quant_type="nf4")
        layer.weight = bnb.nn.Params4bit(weight.clone(), requires_grad=False, quant_type="nf4")
        return layer.to(weight.device).eval()

    def forward(self, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """Return the experts' output (tokens, hidden)."""
        result = torch.zeros_like(hidden)
        for expert in torch.unique(ids).tolist():
            tokens, slots = torch.where(ids == expert)
            gate, up = self.up[expert](hidden[tokens]).chunk(2, dim=-1)
            output = self.down[expert](self.act_fn(gate) * up)
            result.index_add_(0, tokens, (output * weights[tokens, slots, None]).to(result.dtype))
        return result


def full_experts(shape: Shape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    config = MixtralConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_local_experts=shape.n_experts
    )
    with device:
        experts = MixtralExperts(config).to(dtype).requires_grad_(False)
    for parameter in experts.parameters():
        parameter.normal_(std=0.02, generator=torch.Generator(device).manual_seed(parameter.numel()))
    return experts


def packed_experts(full: nn.Module, quantization: str) -> nn.Module:
    """Return the experts as a load packs them."""
    with torch.device("meta"):
        experts = MixtralExperts(full.config)
    for name in ("gate_up_proj", "down_proj"):
        stack: Tensor = getattr(full, name)
        delattr(experts, name)
        experts.add_module(name, pack(iter(stack.detach()), len(stack), quantization))
    return experts


Call = Callable[[Tensor, Tensor, Tensor], Tensor]


def contestants(shape: Shape, device: torch.device, dtype: torch.dtype) -> dict[str, Call]:
    full = full_experts(shape, device, dtype)
    calls: dict[str, Call] = {
        BASE: lambda *inputs: grouped_mm_experts_forward(full, *inputs),
        STOCK: StockExperts(full, dtype),
    }
    for quantization in QUANTIZATIONS:
        experts = packed_experts(full, quantization)
        for way, call in WAYS.items():
            calls[f"{quantization}, {way}"] = lambda *inputs, call=call, experts=experts: call(experts, *inputs)
    return calls


def inputs_of(shape: Shape, n_tokens: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(n_tokens)
    hidden = torch.randn(n_tokens, shape.hidden, generator=generator, device=device).to(dtype)
    scores = torch.rand(n_tokens, shape.n_experts, generator=generator, device=device)
    weights, ids = scores.softmax(-1).topk(shape.n_slots, dim=-1)
    return hidden, ids, weights.to(dtype)


def seconds(call: Call, inputs: tuple[Tensor, Tensor, Tensor], repeats: int) -> float:
    on_gpu = inputs[0].device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        call(*inputs)
    if on_gpu:
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def is_sensible(way: str, shape: Shape, n_tokens: int) -> bool:
    """Say that a way is worth its time here: gathering copies an expert's codes for each assignment."""
    return "gathered" not in way or n_tokens * shape.n_slots <= 2 * shape.n_experts


def race(calls: dict[str, Call], inputs: tuple[Tensor, Tensor, Tensor], rounds: int) -> tuple[float, dict[str, float]]:
    """Return the median seconds of the base, and the median of each rival's time by that of a base run beside it."""
    once = {name: seconds(call, inputs, 1) for name, call in calls.items()}  # builds what is built once
    repeats = {name: max(1, min(200, int(0.02 / max(taken, 1e-6)))) for name, taken in once.items()}
    base: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in calls if name != BASE}
    for number in range(rounds):
        for name, each in ratios.items():
            pair = (BASE, name) if number % 2 else (name, BASE)
            taken = {which: seconds(calls[which], inputs, repeats[which]) for which in pair}
            base.append(taken[BASE])
            each.append(taken[name] / taken[BASE])
    return statistics.median(base), {name: statistics.median(each) for name, each in ratios.items()}


def choices(ratios: dict[str, float], way: str, n_tokens: int, shape: Shape) -> list[str]:
    """Return the claims that do not hold where `way` is chosen."""
    missed = []
    for quantization in QUANTIZATIONS:
        ours = {name: ratio for name, ratio in ratios.items() if name.startswith(quantization)}
        best = min(ours, key=lambda name: ours[name])
        excess = ours[f"{quantization}, {way}"] / ours[best]
        if excess > CHOICE_LIMIT:
            missed.append(f"{shape.name}, {n_tokens} tokens, {quantization}: {way} takes {excess:.2f} of {best}")
    against = ratios[f"4bit, {way}"] / ratios[STOCK]
    if against > STOCK_LIMIT:
        missed.append(f"{shape.name}, {n_tokens} tokens: 4 bits take {against:.2f} of stock bitsandbytes")
    return missed


def table(shape: Shape, options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> list[str]:
    """Print a shape's table; return the claims that were missed."""
    calls = contestants(shape, device, dtype)
    experts = packed_experts(full_experts(shape, device, dtype), "8bit")
    print(f"\n{shape.name}: {shape.n_slots} of {shape.n_experts}, {shape.hidden} × {shape.intermediate}")
    ours = [f"{quantization}, {way}" for quantization in QUANTIZATIONS for way in WAYS]
    print("| tokens | " + " | ".join([f"{BASE}, ms", STOCK, *ours, "chosen", "4 bits ÷ bitsandbytes"]) + " |")
    print("|---|" + "---|" * (len(ours) + 4))
    missed: list[str] = []
    for n_tokens in options.tokens:
        inputs = inputs_of(shape, n_tokens, device, dtype)
        running = {name: call for name, call in calls.items() if is_sensible(name, shape, n_tokens)}
        with torch.inference_mode():
            base, ratios = race(running, inputs, options.rounds)
        way = choose_way(experts, n_tokens * shape.n_slots, dtype, device)
        cells = [f"{ratios[name]:.2f}" if name in ratios else "" for name in (STOCK, *ours)]
        against = ratios[f"4bit, {way}"] / ratios[STOCK]
        print(f"| {n_tokens:,} | {1000 * base:.3g} | {' | '.join(cells)} | {way} | {against:.2f} |", flush=True)
        missed += choices(ratios, way, n_tokens, shape)
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shape", help="of those for this device, by name; all if left out")
    parser.add_argument(
        "--tokens", type=lambda text: [int(each) for each in text.split(",")], default=[1, 8, 64, 512, 2048]
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    shapes = ON_GPU if on_gpu else ON_CPU
    chosen = [shape for shape in shapes if options.shape in (None, shape.name)]
    if not chosen:
        parser.error(f"--shape {options.shape!r}: use one of {', '.join(shape.name for shape in shapes)}")
    where = torch.cuda.get_device_name() if on_gpu else f"the CPU, {options.threads} thread(s); not measured on a GPU"
    print(f"{dtype} on {where}; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"milliseconds of the first, then times as ratios to it; medians of {options.rounds} rounds")
    missed = [claim for shape in chosen for claim in table(shape, options, device, dtype)]
    for claim in missed:
        print(f"missed: {claim}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
