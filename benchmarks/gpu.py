"""What a card does with the whole of Mixtral-8x7B: memory, the cost of recording, launches, distance from the roofline.

A random model of the full shape is built without a checkpoint: skeleton on `meta`, then each tensor made on the card,
packed and dropped. Claims, on a GPU:

- loading and running take at most 28 GB in 4 bits;
- recording costs at most 1 % of a prefill of 8 × 2,048 tokens and 3 % of decoding one token after another;
- what recording launches does not grow with the model's depth.

It also prints how many launches a forward takes, and what fraction of its own roofline it reaches: the time of its
multiplications at the rate of a large product here, or of reading its weights once at the rate of a large copy,
whichever is longer. All are forwards of the decoder, without the head. Without a GPU nothing is measured on one: the
same code runs at a toy shape on the CPU, and only what was planned is compared with what is held. 4 bits need
bitsandbytes, 8 do not.

    python benchmarks/gpu.py [--quantization 4bit] [--rounds 10] [--layers 32]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, MixtralConfig, PreTrainedModel

import moe_probe as mp
from moe_probe.models.fit import estimate
from moe_probe.models.packing import QUANTIZATIONS, check_available, pack
from moe_probe.models.precision import measure_precision
from moe_probe.models.quantise import PackedConfig, PackingQuantizer

MEMORY_LIMIT = 28e9
PREFILL_LIMIT, DECODE_LIMIT = 1.01, 1.03
STD = 0.02


@dataclass(frozen=True)
class Setting:
    """A model's shape, what is run on it, and the sizes at which the device's own rates are taken."""

    name: str
    sizes: dict[str, int]
    dtype: torch.dtype
    batch: int
    length: int
    prompt: int
    steps: int
    product: int
    copied_bytes: int


FULL = Setting(
    "Mixtral-8x7B",
    {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    *(torch.bfloat16, 8, 2048, 64, 32, 8192, 2**30),
)
TOY = Setting(
    "a toy",
    {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    *(torch.float32, 2, 32, 8, 4, 256, 2**22),
)


def skeleton(setting: Setting) -> PreTrainedModel:
    config = MixtralConfig(**setting.sizes)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=setting.dtype)
    return model.eval().requires_grad_(False)


def build(setting: Setting, quantization: str, device: torch.device) -> PreTrainedModel:
    """Return a random model as a load would hold it; at most one matrix is in full precision at a time."""
    model = skeleton(setting)
    quantizer = PackingQuantizer(PackedConfig(quantization))
    quantizer.preprocess_model(model)
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return STD * torch.randn(shape, generator=generator, device=device, dtype=setting.dtype)

    for name, matrices in quantizer.tensors.items():
        each = (drawn(matrices.rows, matrices.columns) for _ in range(matrices.n_matrices))
        quantizer.packed[name] = pack(each, matrices.n_matrices, quantization)
    quantizer.postprocess_model(model)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            shape = tuple(parameter.shape)
            value = drawn(*shape) if len(shape) > 1 else torch.ones(shape, device=device, dtype=setting.dtype)
            setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    rotary = model.base_model.rotary_emb  # its tables are computed, not read
    model.base_model.rotary_emb = type(rotary)(model.config).to(device)
    return model


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def medians(plain: Callable[[], float], recorded: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Return the median seconds of `plain`, and the median of the ratios of pairs; who goes first changes."""
    plain(), recorded()  # what is built once, and the self-check, are not part of the measure
    taken: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            first = plain()
            taken.append((first, recorded()))
        else:
            first = recorded()
            taken.append((plain(), first))
    return statistics.median(pair[0] for pair in taken), statistics.median(pair[1] / pair[0] for pair in taken)


class Runs:
    """The forwards that are measured, on one model."""

    def __init__(self, model: PreTrainedModel, setting: Setting, device: torch.device) -> None:
        self.model, self.setting, self.device = model, setting, device
        generator = torch.Generator(device).manual_seed(1)
        self.ids = torch.randint(
            3, setting.sizes["vocab_size"], (setting.batch, setting.length), generator=generator, device=device
        )

    def forward(self) -> None:
        """Run the prefill."""
        self.model.base_model(self.ids, use_cache=False)

    def prefill(self, *, recorded: bool) -> float:
        """Return the seconds of a prefill, what was recorded brought to the host."""
        with mp.record(self.model) if recorded else nullcontext() as recording:

            def run() -> None:
                self.forward()
                if recording is not None:
                    recording.take()

            return seconds(run, self.device)

    def decode(self, *, recorded: bool) -> float:
        """Return the seconds of some steps of one sequence after its prompt, what was recorded brought to the host."""
        with mp.record(self.model) if recorded else nullcontext() as recording, self.step() as step:

            def run() -> None:
                for _ in range(self.setting.steps):
                    step()
                if recording is not None:
                    recording.take()

            return seconds(run, self.device)

    @contextmanager
    def step(self) -> Iterator[Callable[[], object]]:
        """Yield a call that decodes one more token of a sequence whose prompt is cached."""
        cache = DynamicCache()
        decoder = self.model.base_model
        decoder(self.ids[:1, : self.setting.prompt], cache=cache, use_cache=True)
        yield lambda: decoder(self.ids[:1, :1], cache=cache, use_cache=True)

    def launches(self, *, recorded: bool) -> int:
        """Return what a step of decoding launches on a GPU; on a CPU how many operators it calls."""
        on_gpu = self.device.type == "cuda"
        activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
        with mp.record(self.model) if recorded else nullcontext(), self.step() as step:
            step()
            synchronise(self.device)
            with torch.profiler.profile(activities=[activity]) as profiler:
                step()
                synchronise(self.device)
        kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
        return sum(event.device_type == kind for event in profiler.events())


@dataclass(frozen=True)
class Rates:
    """What the device reaches by itself: multiplications and additions a second, bytes read and written a second."""

    flops: float
    bandwidth: float


def measure_rates(setting: Setting, device: torch.device, rounds: int) -> Rates:
    square = torch.randn(setting.product, setting.product, device=device).to(setting.dtype)
    source = torch.ones(setting.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def median(call: Callable[[], object]) -> float:
        call()
        return statistics.median(seconds(call, device) for _ in range(rounds))

    product = median(lambda: square @ square)
    copied = median(lambda: target.copy_(source))
    return Rates(2 * setting.product**3 / product, 2 * setting.copied_bytes / copied)


def floors(model: PreTrainedModel, setting: Setting, rates: Rates) -> tuple[float, float]:
    """Return the seconds that a prefill and a step of decoding take at least on this device."""
    parts = {part.part: part for part in measure_precision(model)}
    share = setting.sizes["num_experts_per_tok"] / setting.sizes["num_local_experts"]
    dense = [parts[name] for name in ("router", "attention", "other")]
    n_active = share * parts["experts"].parameters + sum(part.parameters for part in dense)
    n_tokens = setting.batch * setting.length
    # Scores and their sums, each 2 × hidden a pair of tokens, of which the mask leaves half.
    attention = 2 * n_tokens * setting.length * setting.sizes["hidden_size"] * setting.sizes["num_hidden_layers"]
    dense_bytes = sum(part.bytes for part in dense)
    read = parts["experts"].bytes + dense_bytes
    prefill = max((2 * n_tokens * n_active + attention) / rates.flops, read / rates.bandwidth)
    step = max(2 * n_active / rates.flops, (share * parts["experts"].bytes + dense_bytes) / rates.bandwidth)
    return prefill, step


class Report:
    """Prints figures; those with a limit are claims where they were measured on a GPU."""

    def __init__(self, *, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.missed: list[str] = []

    def line(self, text: str) -> None:
        """Print a figure."""
        print(text, flush=True)

    def claim(self, text: str, holds: bool, limit: str, *, everywhere: bool = False) -> None:
        """Print a figure with its limit."""
        counts = self.on_gpu or everywhere
        verdict = ("holds" if holds else "MISSED") if counts else "no claim on a CPU"
        self.line(f"{text} ({limit}: {verdict})")
        if counts and not holds:
            self.missed.append(text)


def recorded_launches(runs: Runs, report: Report) -> None:
    """Print launches at the whole depth and at half of it."""
    layers = runs.model.base_model.layers
    what = "launches" if report.on_gpu else "operators on the CPU"
    added: list[int] = []
    for depth in (len(layers), len(layers) // 2):
        runs.model.base_model.layers = layers[:depth]
        runs.model.config.num_hidden_layers = depth
        plain, recorded = runs.launches(recorded=False), runs.launches(recorded=True)
        added.append(recorded - plain)
        report.line(f"a step of decoding at {depth} layers: {plain:,} {what}, recorded {recorded:,}")
    runs.model.base_model.layers = layers
    runs.model.config.num_hidden_layers = len(layers)
    report.claim(f"recording adds {added[0]} and {added[1]} {what}", added[0] == added[1], "the same at any depth")


def measure(setting: Setting, options: argparse.Namespace, device: torch.device) -> list[str]:
    """Print everything; return the claims that were missed."""
    report = Report(on_gpu=device.type == "cuda")
    planned = estimate(skeleton(setting), options.quantization).weight_bytes
    start = time.perf_counter()
    model = build(setting, options.quantization, device)
    synchronise(device)
    held = sum(part.bytes for part in measure_precision(model))
    report.line(f"{setting.name}, random, built in {time.perf_counter() - start:.0f} s")
    report.claim(f"held {held:,} bytes, planned {planned:,}", held == planned, "equal", everywhere=True)
    if report.on_gpu:
        report.line(f"peak while building: {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB")
    runs = Runs(model, setting, device)
    with torch.inference_mode():
        n_tokens = setting.batch * setting.length
        prefill, ratio = medians(
            lambda: runs.prefill(recorded=False), lambda: runs.prefill(recorded=True), options.rounds
        )
        report.line(f"prefill of {setting.batch} × {setting.length:,} tokens: {n_tokens / prefill:,.0f} tokens/s")
        report.claim(f"recorded ÷ plain prefill: {ratio:.4f}", ratio <= PREFILL_LIMIT, f"at most {PREFILL_LIMIT}")
        steps, ratio = medians(lambda: runs.decode(recorded=False), lambda: runs.decode(recorded=True), options.rounds)
        step = steps / setting.steps
        report.line(f"decoding one sequence: {1 / step:,.1f} tokens/s")
        report.claim(f"recorded ÷ plain decoding: {ratio:.4f}", ratio <= DECODE_LIMIT, f"at most {DECODE_LIMIT}")
        recorded_launches(runs, report)
        if report.on_gpu:
            peak = torch.cuda.max_memory_allocated(device)
            limit = f"at most {MEMORY_LIMIT / 1e9:.0f} GB in 4 bits"
            report.claim(
                f"peak memory: {peak / 1e9:.2f} GB", options.quantization != "4bit" or peak <= MEMORY_LIMIT, limit
            )
        rates = measure_rates(setting, device, options.rounds)
        report.line(f"this device: {rates.flops / 1e12:.3g} TFLOP/s, {rates.bandwidth / 1e12:.3g} TB/s")
        prefill_floor, step_floor = floors(model, setting, rates)
        report.line(f"of the roofline: prefill {prefill_floor / prefill:.1%}, decoding {step_floor / step:.1%}")
    return report.missed


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="4bit")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--layers", type=int, help="fewer than the model has, for a smaller card; at least 2")
    options = parser.parse_args(arguments)
    check_available(options.quantization)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    setting = FULL if on_gpu else TOY
    if options.layers is not None:
        if not 2 <= options.layers <= setting.sizes["num_hidden_layers"]:
            parser.error(f"--layers {options.layers}: give 2 to {setting.sizes['num_hidden_layers']}")
        setting = replace(setting, sizes={**setting.sizes, "num_hidden_layers": options.layers})
    if on_gpu:
        gc.collect()
        torch.cuda.reset_peak_memory_stats(device)
        print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {options.quantization}")
    else:
        print("not measured on a GPU: torch sees none here; the same code at a toy shape on the CPU")
    missed = measure(setting, options, device)
    for claim in missed:
        print(f"MISSED: {claim}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
