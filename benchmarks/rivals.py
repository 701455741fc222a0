"""Who else records routing: how fast, with how much memory, and whether the experts are those that were executed.

    pip install --target RIVALS --no-deps -r benchmarks/rivals-requirements.txt
    python benchmarks/rivals.py --target RIVALS [--rounds 5] [--copies 2] [--clock cpu|thread|wall]

The bundled model in float32, as plain transformers loads it, over the batches that a trace of the sample corpus makes:
length-bucketed, padded, at most 2,048 tokens. Speed is a median of ratios to a plain forward of the decoder (no head)
beside each run, who goes first changing. Peak memory is that of a run in a process of its own, above a plain forward's
there. Experts are compared, token by token, with a forward written out by hand (tests/hand_forward.py), on this model
and on a tiny DeepSeek-V3, where top-k of the logits is not what is executed. What is not installed is named and left
out. Exits with 1 where moe_probe records a wrong expert, or a rival that is right in both models is faster.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rival_settings import Batch, Setting, deepseek, mask_of, mixtral, oracle
from rival_tools import OURS, PLAIN, RIVALS, Run, installed, open_rivals, plain_forward

import moe_probe as mp

MIB = 2**20


# Whether the experts are right.


def judge(setting: Setting, batches: list[Batch], truth: tuple[np.ndarray, np.ndarray], run: Run) -> tuple[float, str]:
    """Return the share of (layer, token) whose experts are right, or 0, and what to say of it."""
    try:
        found = run(batches)
    except Exception as error:
        return 0.0, f"fails: {first_line(error)}"
    experts, tied = truth
    if found.counts is not None:
        n_experts = mp.find_routers(setting.model)[0].n_experts
        expected = {
            layer: np.bincount(one.reshape(-1), minlength=n_experts)
            for layer, one in zip(setting.layers, experts, strict=True)
        }
        right = sum(
            layer in found.counts and np.array_equal(np.trim_zeros(found.counts[layer], "b"), np.trim_zeros(of, "b"))
            for layer, of in expected.items()
        )
        n_counted = sum(int(one.sum()) for one in found.counts.values())
        n_expected = sum(int(one.sum()) for one in expected.values())
        return 0.0, f"counts only, right in {right} of {len(expected)} layers; {n_counted:,} of {n_expected:,}"
    if found.experts is None:
        return 0.0, "—"
    given = found.experts
    if given.shape[1] < experts.shape[1]:  # without the special token at each window's start
        firsts = np.cumsum([0, *(int(n) for batch in batches for n in mask_of(batch).sum(1))])[:-1]
        experts, tied = np.delete(experts, firsts, axis=1), np.delete(tied, firsts, axis=1)
    if given.shape != experts.shape:
        return 0.0, f"no: {given.shape} where {experts.shape} were executed"
    same = (np.sort(given, axis=2) == np.sort(experts, axis=2)).all(axis=2) | tied
    return float(same.mean()), f"{same.mean():.1%}"


# How fast, and how large.


def speeds(
    setting: Setting, runs: dict[str, Run], rounds: int, clock: Callable[[], float]
) -> tuple[float, dict[str, float]]:
    """Return the median seconds of the plain forward, and for each rival the median of that by its own time."""

    def seconds(run: Run) -> float:
        begin = clock()
        run(setting.batches)
        return clock() - begin

    plain: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in runs if name != PLAIN}
    for number in range(rounds):
        for name in ratios:
            pair = [PLAIN, name] if number % 2 else [name, PLAIN]
            taken = {one: seconds(runs[one]) for one in pair}
            ratios[name].append(taken[PLAIN] / taken[name])
            plain.append(taken[PLAIN])
    return statistics.median(plain), {name: statistics.median(each) for name, each in ratios.items()}


def peak_above(name: str, options: argparse.Namespace) -> str:
    """Return the peak memory of a process that runs one rival above that of its plain forward."""
    command = [sys.executable, __file__, "--memory", name, "--copies", str(options.copies)]
    if options.target:
        command += ["--target", str(options.target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.stdout.split()[-1]} MiB" if done.returncode == 0 else "failed"


def measure_memory(name: str, options: argparse.Namespace) -> None:
    """Print how much higher, in MiB, the peak of memory is in a rival's run than in a plain forward before it."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        setting = mixtral(Path(folder), options.copies)
        plain, run = plain_forward(setting), RIVALS[name][1](setting)
        plain(setting.batches)
        before, after = peak_of(partial(plain, setting.batches)), peak_of(partial(run, setting.batches))
    print(f"{(after - before) / MIB:.0f}")


def peak_of(work: Callable[[], object]) -> int:
    """Return the most bytes that the process holds during some work, and not, as `getrusage` does, at any time before.

    Of Linux alone.
    """
    Path("/proc/self/clear_refs").write_text("5")
    work()
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def first_line(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])[:80]


def compare(options: argparse.Namespace, folder: Path) -> int:
    clock = {"cpu": time.process_time, "thread": time.thread_time, "wall": time.perf_counter}[options.clock]
    here, other = mixtral(folder / "mixtral", options.copies), deepseek(folder / "deepseek")
    runs = open_rivals(here)
    checked = [{name: value for name, value in here.batches[-1].items()}]
    truth = oracle(here, checked)
    verdicts = {name: judge(here, checked, truth, run) for name, run in runs.items() if name != PLAIN}
    other_truth = oracle(other, list(other.batches))
    elsewhere = {
        name: judge(other, list(other.batches), other_truth, run)
        for name, run in open_rivals(other).items()
        if name != PLAIN
    }
    print(f"{here.n_tokens:,} tokens in {len(here.batches)} batches; experts checked: {truth[0].shape[1]:,} tokens ×")
    print(f"{truth[0].shape[0]} layers, and {other_truth[0].shape[1]:,} × {other_truth[0].shape[0]} of DeepSeek-V3\n")
    for name, (_, said) in verdicts.items():
        print(f"{name}: {said}; {elsewhere[name][1]}", flush=True)
    timed = {name: run for name, run in runs.items() if name == PLAIN or not verdicts[name][1].startswith("fails")}
    plain_seconds, ratios = speeds(here, timed, options.rounds, clock)
    plain = here.n_tokens / plain_seconds
    memory = {name: peak_above(name, options) if options.with_memory else "—" for name in ratios}
    print(f"| by {options.clock} time | tokens/s | of the plain forward | memory above it | Mixtral | DeepSeek-V3 |")
    print("|---|---|---|---|---|---|")
    print(f"| {PLAIN} | {plain:,.0f} | 1 | | | |")
    for name, (_, said) in verdicts.items():
        speed = "— | — | —"
        if name in ratios:
            speed = f"{plain * ratios[name]:,.0f} | {ratios[name]:.3f} | {memory[name]}"
        print(f"| {name} | {speed} | {said} | {elsewhere[name][1]} |")
    right = {name for name in verdicts if verdicts[name][0] == elsewhere[name][0] == 1.0}
    faster = [name for name in right - set(OURS) if ratios.get(name, 0) > ratios[OURS[0]]]
    print(f"\nright in both: {', '.join(sorted(right))}; of these faster than {OURS[0]}: {', '.join(faster) or 'none'}")
    return 0 if set(OURS) <= right and not faster else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, help="where the rivals are installed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=2, help="of the sample corpus")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=("cpu", "thread", "wall"), default="cpu", help="of the process, or one thread"
    )
    parser.add_argument("--no-memory", dest="with_memory", action="store_false", help="leave out the processes for it")
    parser.add_argument("--memory", choices=list(RIVALS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.target:
        sys.path.append(str(options.target))
    if options.memory:
        measure_memory(options.memory, options)
        return 0
    for name, (module, _) in RIVALS.items():
        if module and name not in installed():
            print(
                f"not installed: {name} (pip install --target DIR --no-deps -r {Path(__file__).stem}-requirements.txt)"
            )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        return compare(options, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
