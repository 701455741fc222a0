"""Who else records routing, and moe_probe, each as a function that makes what is run over batches.

What is made once (a wrapper, a bridge) is made before. It does not know what is measured, nor what is right.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from rival_settings import Batch, Setting, load_plainly, mask_of, without_padding

import moe_probe as mp

PLAIN = "plain forward"
OURS = ("moe_probe.record", "moe_probe.trace, labels off", "moe_probe.trace, labels on")


@dataclass(frozen=True)
class Found:
    """What a rival says: the experts of each token (layers, tokens, slots), or how often each was chosen."""

    experts: np.ndarray | None = None
    counts: dict[int, np.ndarray] | None = None


Run = Callable[[list[Batch]], Found]


def joined(of_batches: list[list[np.ndarray]]) -> Found:
    """Put together what came for each batch, layer by layer."""
    return Found(np.stack([np.concatenate(of_layer) for of_layer in zip(*of_batches, strict=True)]))


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


def plumb_hooks(setting: Setting) -> Run:
    """plumb-moe's hooks and counter, in a window long enough for all tokens: counts.

    They are what its session attaches. The session itself fails to be imported, as do `plumb.Session` of its guide and
    its report: it needs a package `numa_topology` that it does not require, and that no index was seen to have.
    """
    from plumb.counter import ActivationCounter
    from plumb.hook import ProfilingHooks

    def run(batches: list[Batch]) -> Found:
        counter = ActivationCounter(window_size=10**9)
        hooks = ProfilingHooks(counter)
        hooks.attach(setting.model, top_k=setting.n_slots)
        for batch in batches:
            setting.model.base_model(**batch)
        hooks.detach()
        counts: dict[int, np.ndarray] = {}
        for (layer, expert), count in counter.snapshot().items():  # its report holds shares alone
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
    "plumb-moe 0.1": ("plumb", plumb_hooks),
    OURS[0]: (None, ours_in_memory),
    OURS[1]: (None, partial(ours_on_disk, labels=())),
    OURS[2]: (None, partial(ours_on_disk, labels=("upos", "shape", "domain"))),
}


def installed() -> dict[str, tuple[str | None, Callable[[Setting], Run]]]:
    return {name: rival for name, rival in RIVALS.items() if rival[0] is None or find_spec(rival[0]) is not None}


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
