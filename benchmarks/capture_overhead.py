"""What recording costs: a plain forward against one with output_router_logits and one under `record`.

Then what a whole trace costs (corpus, batches, store; labels off) against bare forwards of the causal language model
over the same batches. Everything is paired in one process, after warm-up and self-check; ratios are medians over
rounds. The times of two equal forwards differ by several percent: beside each median stands the interval of 95 % that
the ratios give it, and a claim is missed where all of that lies above its limit. Prints a line a claim and exits with 1
where one is missed.

    python benchmarks/capture_overhead.py [--rounds 60] [--threads 1] [--batch 16] [--length 512] [--copies 3]
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import binom

import moe_probe as mp
import moe_probe_data

RECORD_LIMIT = 1.03
TRACE_LIMIT = 1.10


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    start = clock()
    call()
    return clock() - start


class Median(NamedTuple):
    """A median, and between what it lies in 95 of 100 samples of as many."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} (95 %: {self.low:.3f} to {self.high:.3f})"


def median(values: list[float]) -> Median:
    """Return the median with the interval that order statistics give it, whatever the distribution."""
    ordered = sorted(values)
    low = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return Median(statistics.median(ordered), ordered[low], ordered[-1 - low])


def compare(
    base: Callable[[], object], rivals: dict[str, Callable[[], object]], rounds: int, options: argparse.Namespace
) -> tuple[float, dict[str, Median]]:
    """Return the median seconds of `base`, and the median of each rival's time by that of a `base` run beside it.

    Who goes first changes from round to round, so that no one always finds the machine warm.
    """
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    base_seconds: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    for number in range(rounds):
        for name, rival in rivals.items():
            pair = [base, rival] if number % 2 else [rival, base]
            taken = {call: seconds(call, clock) for call in pair}
            base_seconds.append(taken[base])
            ratios[name].append(taken[rival] / taken[base])
    return statistics.median(base_seconds), {name: median(each) for name, each in ratios.items()}


def forward_overhead(lm: mp.LanguageModel, options: argparse.Namespace) -> Median:
    """Print and return how much longer a recorded forward of the decoder takes than a plain one.

    The decoder, not the whole model: a head of tens of thousands of words would hide what recording costs.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 8000, (options.batch, options.length), generator=generator).to(lm.device)
    mask = torch.ones_like(tokens)
    mask[::2, -options.length // 8 :] = 0  # some padding, as in any real batch
    decoder = lm.model.base_model

    def plain() -> None:
        decoder(tokens, attention_mask=mask, use_cache=False)

    def recorded(*, entropy: bool = True) -> None:
        with mp.record(lm.model, entropy=entropy) as recording:
            plain()
        recording.take()

    rivals = {
        "output_router_logits=True": lambda: decoder(
            tokens, attention_mask=mask, use_cache=False, output_router_logits=True
        ),
        "moe_probe, ids and weights": lambda: recorded(entropy=False),
        "moe_probe, entropy and margin too": recorded,
    }
    with torch.inference_mode():
        for call in (plain, *rivals.values()):
            call()
        plain_seconds, ratios = compare(plain, rivals, options.rounds, options)
    print(f"plain forward of {options.batch} × {options.length} tokens: {plain_seconds:.3f} s")
    for name, cost in ratios.items():
        print(f"  {name:36s} {cost}")
    return ratios["moe_probe, entropy and margin too"]


def trace_overhead(lm: mp.LanguageModel, options: argparse.Namespace) -> Median:
    """Print and return how much longer a trace takes than bare forwards with the head over the same batches."""
    sample = list(mp.read_documents([Path(moe_probe_data.__file__).parent / "sample"]))
    documents = [
        mp.Document(f"{number}/{document.name}", document.text)
        for number in range(options.copies)
        for document in sample
    ]
    batches: list[dict[str, torch.Tensor]] = []

    def keep(_: torch.nn.Module, args: object, inputs: dict[str, torch.Tensor]) -> None:
        batches.append(dict(inputs))

    with tempfile.TemporaryDirectory() as folder:
        runs = (Path(folder) / str(number) for number in itertools.count())

        def traced() -> None:
            mp.trace(lm, documents, next(runs), labels=())

        def bare() -> None:
            with torch.inference_mode():
                for batch in batches:
                    lm.model(**batch)

        handle = lm.model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
        traced()
        handle.remove()
        bare()
        bare_seconds, ratios = compare(bare, {"whole trace": traced}, max(1, options.rounds // 4), options)
    n_tokens = sum(batch["input_ids"].numel() for batch in batches)
    print(f"a trace of {len(documents)} documents, {n_tokens} tokens in {len(batches)} batches, labels off")
    print(f"bare forwards of the whole model: {bare_seconds:.3f} s")
    return ratios["whole trace"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of pairs; a quarter of them for the trace")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu", help="cpu: of the process; wall on a GPU")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--copies", type=int, default=3, help="of the sample corpus, in the trace")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lm = mp.load("tiny-mixtral")
    print(f"{lm.name} on {lm.device}, {options.threads} thread(s)")
    print(f"medians of ratios, {options.rounds} rounds of pairs, {options.clock} time")
    cost = forward_overhead(lm, options)
    print(f"record ÷ plain forward: {cost}, at most {RECORD_LIMIT}")
    trace_cost = trace_overhead(lm, options)
    print(f"trace ÷ bare forwards: {trace_cost}, at most {TRACE_LIMIT}")
    return 0 if cost.low <= RECORD_LIMIT and trace_cost.low <= TRACE_LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
