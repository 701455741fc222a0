"""Who else records routing: how fast, with how much memory, and whether the experts are those that were executed.

    pip install --target RIVALS --no-deps -r benchmarks/rivals-requirements.txt
    python benchmarks/rivals.py --target RIVALS [--rounds 5] [--copies 2] [--clock cpu|thread|wall]

The bundled model in float32, as plain transformers loads it, over the batches that a trace of the sample corpus makes:
length-bucketed, padded, at most 2,048 tokens. Speed is a median of ratios to a plain forward of the decoder (no head)
beside each run, who goes first changing. Peak memory is that of a process of its own above one that runs the plain
forward. Experts are compared, token by token, with a forward written out by hand (tests/hand_forward.py), on this model
and on a tiny DeepSeek-V3, where top-k of the logits is not what is executed. What is not installed is named and left
out. Exits with 1 where moe_probe records a wrong expert, or a rival that is right in both models is faster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import moe_probe as mp
import moe_probe_data

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import traced_models
from hand_forward import BLOCKS, hand_forward

Batch = dict[str, torch.Tensor]
PLAIN = "plain forward"
OURS = ("moe_probe.record", "moe_probe.trace, labels off", "moe_probe.trace, labels on")
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """One model in plain transformers and as moe_probe loads it, texts, and the batches that a trace makes of them."""

    path: Path
    model: Any
    lm: mp.LanguageModel
    documents: list[mp.Document]
    batches: list[Batch]
    folder: Path

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(int(mask_of(batch).sum()) for batch in self.batches)

    @property
    def layers(self) -> list[int]:
        """The layers that choose experts."""
        return [router.layer for router in mp.find_routers(self.model)]

    @property
    def n_slots(self) -> int:
        """Experts a token."""
        slots: int = self.model.config.num_experts_per_tok
        return slots

    def block(self, layer: int) -> Any:
        """Return the MoE block of a layer."""
        return getattr(self.model.base_model.layers[layer], BLOCKS[self.model.config.model_type][0])


@dataclass(frozen=True)
class Found:
    """What a rival says: the experts of each token (layers, tokens, slots), or how often each was chosen."""

    experts: np.ndarray | None = None
    counts: dict[int, np.ndarray] | None = None


Run = Callable[[list[Batch]], Found]


def mask_of(batch: Batch) -> torch.Tensor:
    """Return which tokens of a batch are no padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def without_padding(rows: torch.Tensor, batch: Batch) -> np.ndarray:
    """Return the rows, (batch × length, slots), of tokens."""
    return rows.reshape(-1, rows.shape[-1])[mask_of(batch).reshape(-1).bool()].numpy()


def joined(of_batches: list[list[np.ndarray]]) -> Found:
    """Put together what came for each batch, layer by layer."""
    return Found(np.stack([np.concatenate(of_layer) for of_layer in zip(*of_batches, strict=True)]))


# The rivals: each returns what is run over batches; what is made once is made before.


def plain_forward(setting: Setting) -> Run:
    def run(batches: list[Batch]) -> Found:
        for batch in batches:
            setting.model.base_model(**batch)
        return Found()

    return run


def router_logits(setting: Setting) -> Run:
    """Top-k of the logits that transformers gives with `output_router_logits=True`."""

    def run(batches: list[Batch]) -> Found:
        found = []
        for batch in batches:
            logits = setting.model.base_model(**batch, output_router_logits=True).router_logits
            found.append([without_padding(layer.topk(setting.n_slots).indices.cpu(), batch) for layer in logits])
        return joined(found)

    return run


def naive_hooks(setting: Setting) -> Run:
    """A hook on every router that takes top-k of its softmax to memory, as many scripts do."""

    def run(batches: list[Batch]) -> Found:
        found: list[list[np.ndarray]] = []
        batch: Batch = {}

        def hook(_: torch.nn.Module, args: object, output: Any) -> None:
            logits = output[0] if isinstance(output, tuple) else output
            chosen = logits.float().softmax(-1).topk(setting.n_slots).indices
            found[-1].append(without_padding(chosen.cpu(), batch))

        handles = [setting.block(layer).gate.register_forward_hook(hook) for layer in setting.layers]
        for batch in batches:
            found.append([])
            setting.model.base_model(**batch)
        for handle in handles:
            handle.remove()
        return joined(found)

    return run


def olmoe_script(setting: Setting) -> Run:
    """As OLMoE's analysis: window by window through the whole model, softmax, top-k, a JSON line a document."""

    def run(batches: list[Batch]) -> Found:
        with (setting.folder / "olmoe.jsonl").open("w") as file:
            for batch in batches:
                for ids, mask in zip(batch["input_ids"], mask_of(batch), strict=True):
                    window = ids[mask.bool()][None]
                    logits = setting.model(window, output_router_logits=True).router_logits
                    chosen = [layer.softmax(-1).topk(setting.n_slots).indices for layer in logits]
                    line = {"input_ids": window[0].tolist(), "exp_ids": torch.stack(chosen, 2).tolist()}
                    file.write(json.dumps(line) + "\n")
        with (setting.folder / "olmoe.jsonl").open() as file:
            lines = [json.loads(line)["exp_ids"] for line in file]  # (tokens, slots, layers)
        return Found(np.concatenate([np.array(line) for line in lines]).transpose(2, 0, 1))

    return run


def nnsight_trace(setting: Setting) -> Run:
    """nnsight, asked for what the experts are called with."""
    import nnsight

    net = nnsight.NNsight(setting.model.base_model)
    layers = setting.layers

    def run(batches: list[Batch]) -> Found:
        found = []
        for batch in batches:
            with net.trace(**batch):
                saved = list().save()  # nnsight's own
                for layer in layers:
                    saved.append(net.layers[layer].mlp.experts.inputs[0][1])
            found.append([without_padding(chosen, batch) for chosen in saved])
        return joined(found)

    return run


def transformer_lens(setting: Setting) -> Run:
    """TransformerLens' bridge, asked for `hook_expert_indices`. It wraps the model's modules, so it gets its own."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        str(setting.path), hf_model=load_plainly(setting.path), tokenizer=setting.lm.tokenizer
    )
    names = [f"blocks.{layer}.mlp.gate.hook_expert_indices" for layer in setting.layers]
    if not set(names) <= set(bridge.hook_dict):
        raise LookupError("its bridge has no hook_expert_indices")

    def run(batches: list[Batch]) -> Found:
        found = []
        for batch in batches:
            mask = batch.get("attention_mask")
            options = {} if mask is None else {"attention_mask": mask}
            _, cache = bridge.run_with_cache(batch["input_ids"], names_filter=names, **options)
            found.append([without_padding(cache[name], batch) for name in names])
        return joined(found)

    return run


def moewatch_audit(setting: Setting) -> Run:
    """An audit of every forward: counts."""
    import moewatch

    def run(batches: list[Batch]) -> Found:
        kept = max(len(batches), 1)
        config = moewatch.WatchConfig(sample_every=1, window_steps=kept, ring_buffer_capacity=kept, output="silent")
        report = moewatch.audit(setting.model, batches, steps=kept, config=config, verbose=False)
        counts = {}
        for name in report.layer_names():
            layer = int(name.split("layers.")[1].split(".")[0])
            counts[layer] = report.layer_stats(name).expert_counts.numpy()
        return Found(counts=counts)

    return run


def plumb_session(setting: Setting) -> Run:
    """plumb-moe's session: counts, in a window long enough for all tokens."""
    from plumb.session import Session  # the import that its own guide gives does not work

    def run(batches: list[Batch]) -> Found:
        session = Session(setting.model, "model", top_k=setting.n_slots, window_size=10**9)
        with session:
            for batch in batches:
                setting.model.base_model(**batch)
        counts: dict[int, np.ndarray] = {}
        for (layer, expert), count in session._counter.snapshot().items():  # its report holds shares alone
            counts.setdefault(layer, np.zeros(1_024, np.int64))[expert] = count
        return Found(counts=counts)

    return run


def ours_in_memory(setting: Setting) -> Run:
    def run(batches: list[Batch]) -> Found:
        with mp.record(setting.model) as recording:
            for batch in batches:
                setting.model.base_model(**batch)
        routing = recording.routing()
        return Found(np.stack([routing.experts(index) for index in range(len(routing.routers))]))

    return run


def ours_on_disk(setting: Setting, labels: tuple[str, ...]) -> Run:
    """A whole trace, from text to a run on disk, its labels included; then the windows of the batches looked up."""
    numbers = itertools.count()

    def run(batches: list[Batch]) -> Found:
        run = mp.trace(
            setting.lm, setting.documents, setting.folder / f"run{next(numbers)}-{len(labels)}", labels=labels
        )
        return Found() if batches is setting.batches else Found(look_up(run, batches))

    return run


def look_up(run: mp.Run, batches: list[Batch]) -> np.ndarray:
    """Return the experts of the windows of some batches, a first special token left out, (layers, tokens, slots)."""
    tokens = run.tokens(["document", "token_id", "window_position"])
    starts = [*np.flatnonzero(tokens["window_position"] == 1).tolist(), tokens.height]
    ids = tokens["token_id"].to_numpy()
    windows = {tuple(ids[a:b].tolist()): slice(a, b) for a, b in itertools.pairwise(starts)}
    experts = np.stack([run.experts(router=index) for index in range(len(run.routers))])
    found = []
    for batch in batches:
        for line, mask in zip(batch["input_ids"], mask_of(batch), strict=True):
            found.append(experts[:, windows[tuple(line[mask.bool()].tolist()[1:])]])
    return np.concatenate(found, axis=1)


RIVALS: dict[str, tuple[str | None, Callable[[Setting], Run]]] = {
    PLAIN: (None, plain_forward),
    "output_router_logits, topk": (None, router_logits),
    "a hook a router, .cpu()": (None, naive_hooks),
    "OLMoE's script": (None, olmoe_script),
    "nnsight 0.8": ("nnsight", nnsight_trace),
    "TransformerLens 4": ("transformer_lens", transformer_lens),
    "moewatch 0.1": ("moewatch", moewatch_audit),
    "plumb-moe 0.1": ("plumb", plumb_session),
    OURS[0]: (None, ours_in_memory),
    OURS[1]: (None, partial(ours_on_disk, labels=())),
    OURS[2]: (None, partial(ours_on_disk, labels=("upos", "shape", "domain"))),
}


def load_plainly(path: Path) -> Any:
    """Return a model in float32 as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def open_setting(path: Path, documents: list[mp.Document], folder: Path) -> Setting:
    lm = mp.load(path, dtype="float32", device_map="cpu")
    batches: list[Batch] = []

    def keep(_: torch.nn.Module, args: object, inputs: dict[str, Any]) -> None:
        names = ("input_ids", "attention_mask", "position_ids", "use_cache")
        batches.append({name: inputs[name] for name in names if inputs.get(name) is not None})

    handle = lm.model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    mp.trace(lm, documents, folder / "first", labels=())
    handle.remove()
    return Setting(path, load_plainly(path), lm, documents, batches, folder)


def mixtral(folder: Path, copies: int) -> Setting:
    sample = list(mp.read_documents([moe_probe_data.SAMPLE], language="en"))
    documents = [
        mp.Document(f"{number}/{one.name}", one.text, domain=one.domain, language=one.language)
        for number in range(copies)
        for one in sample
    ]
    return open_setting(moe_probe_data.MODEL, documents, folder)


def deepseek(folder: Path) -> Setting:
    texts = [mp.Document(f"d{number}", traced_models.text(20 + 5 * number, seed=number)) for number in range(6)]
    return open_setting(traced_models.save(folder / "model", "deepseek_v3"), texts, folder)


# Whether the experts are right.


def oracle(setting: Setting, batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Return by hand the experts, (layers, tokens, slots), and which may be one or another: a tie, (layers, tokens)."""
    experts, tied = [], []
    for batch in batches:
        for line, mask in zip(batch["input_ids"], mask_of(batch), strict=True):
            ids = line[mask.bool()][None]
            decided = hand_forward(setting.model, lambda ids=ids: setting.model(ids), outputs=False)
            experts.append(np.stack([one.experts for one in decided]))
            tied.append(np.stack([one.tied for one in decided]))
    return np.concatenate(experts, axis=1), np.concatenate(tied, axis=1)


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
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        setting = mixtral(Path(folder), options.copies)
        plain_forward(setting)(setting.batches)
        run = RIVALS[name][1](setting)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run(setting.batches)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{(after - before) * 1024 / MIB:.0f}")


def open_rivals(setting: Setting) -> dict[str, Run]:
    runs = {}
    for name, (_, open_rival) in installed().items():
        try:
            runs[name] = open_rival(setting)
        except Exception as error:
            runs[name] = partial(_fail, error)
    return runs


def _fail(error: Exception, batches: list[Batch]) -> Found:
    raise error


def first_line(error: Exception) -> str:
    return " ".join([type(error).__name__, *str(error).splitlines()[:1]])[:80]


def installed() -> dict[str, tuple[str | None, Callable[[Setting], Run]]]:
    return {name: rival for name, rival in RIVALS.items() if rival[0] is None or find_spec(rival[0]) is not None}


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
