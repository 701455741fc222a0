"""Switch off experts, one at a time or together, and add up what that does to the surprisal of every token.

The text is traced first. Then, batch by batch, one plain forward is followed by a forward from the changed layer upward
for each intervention: whatever number of batches was measured, every expert was measured on the same tokens. It does
not know what the sums say (table.py).
"""

from __future__ import annotations

import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.corpus import Input
from moe_probe.counts import load_counts
from moe_probe.effects.batches import CARRIERS, Batches
from moe_probe.effects.folder import RUN, EffectFolder, Sums, begin_folder
from moe_probe.effects.passes import How, Pass, changed_pass, check_prefix, plain_pass
from moe_probe.effects.prefix import Kept, find_layers
from moe_probe.effects.table import effect_table
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.intervening.places import check_experts, find_place
from moe_probe.models import LanguageModel
from moe_probe.recording.routers import find_routers
from moe_probe.schema import Router
from moe_probe.store import Run
from moe_probe.store.clusters import N_CLUSTERS
from moe_probe.tracing import trace
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import check_head
from moe_probe.tracing.job import n_embeddings
from moe_probe.watching import Cancelled, OnProgress, Watch

PHASE = "switching experts off"


@dataclass(frozen=True)
class _Settings:
    """What decides the numbers, beside the model and the text."""

    label: str
    how: How
    seed: int
    batch_tokens: int


def effect(
    lm: LanguageModel,
    documents: Input | Iterable[Input],
    layer: int,
    experts: Sequence[int],
    *,
    label: str = "upos",
    carried_by: str = "routed",
    how: How = "ablate",
    language: str | None = None,
    context: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 2_048,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
    out: str | Path | None = None,
    resume: bool = False,
) -> pl.DataFrame:
    """Return what switching experts of a layer off does to the surprisal of each label's tokens, beside its controls.

    The experts are switched off together. Controls: every other expert of the layer by itself, of which those of half
    to twice the load are `matched`; and, where weights are set to zero, random assignments of the layer, of each slot
    as many. Rerouting has no random control: dropping is another thing than going to the next best expert.

    Args:
        lm: from `load`.
        documents: as for `trace`.
        layer: the transformer block; it must have one router.
        experts: the experts' indices.
        label: the label set that tokens are told apart by.
        carried_by: whose label counts: of the token "routed", or of the one "predicted".
        how: "ablate" sets weights to zero; "reroute" sends tokens to the next best expert.
        language: of documents that do not say theirs.
        context: tokens in a window.
        max_tokens: tokens of text to take.
        batch_tokens: tokens in a batch.
        seed: of the random control and of the order of batches.
        on_progress: called after each forward.
        cancel: once set, returns what is measured, or raises where that is nothing.
        out: a folder to keep the sums in, for `open_effects`; none are kept without it.
        resume: go on with what is in `out`.

    Returns:
        The columns of effect.csv, a row a label.

    Raises:
        BadInputError: an argument or input cannot be used.
        UnsupportedModelError: the model cannot be measured in this way.
    """
    site = find_place(lm.model, layer, None)
    router, chosen = site.router, check_experts(site, experts)
    others = [(expert,) for expert in range(router.n_experts) if expert not in chosen]
    settings = _Settings(label, how, seed, batch_tokens)
    with tempfile.TemporaryDirectory(prefix="moe-probe-") as scratch:
        folder = _measure(
            lm,
            documents,
            Path(scratch) if out is None else Path(out),
            settings,
            lambda run: _passes(run, router, [chosen], others, how),
            {"language": language, "context": context, "max_tokens": max_tokens},
            resume=resume,
            on_progress=on_progress,
            cancel=cancel or threading.Event(),
        )
        return effect_table(folder, carried_by=carried_by, only=[(router.index, chosen)])


def effect_map(
    lm: LanguageModel,
    documents: Input | Iterable[Input],
    out: str | Path,
    *,
    label: str = "upos",
    layers: Sequence[int] | None = None,
    how: How = "ablate",
    language: str | None = None,
    context: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 2_048,
    budget_seconds: float | None = None,
    seed: int = 0,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> EffectFolder:
    """Switch off every expert of every layer by itself, and keep what that does to each label's tokens.

    Batches come in a random order and each is measured for all experts, so that stopping early (`cancel`,
    `budget_seconds`, Ctrl-C) leaves a sample of the text and not of the experts. `effect_table` makes the numbers.

    Args:
        lm: from `load`.
        documents: as for `trace`.
        out: a folder, new or with `resume` one with the same arguments.
        label: the label set that tokens are told apart by.
        layers: transformer blocks; all that have a router if None.
        how: "ablate" sets weights to zero; "reroute" sends tokens to the next best expert.
        language: of documents that do not say theirs.
        context: tokens in a window.
        max_tokens: tokens of text to take.
        batch_tokens: tokens in a batch.
        budget_seconds: begin no batch after so long.
        seed: of the random controls and of the order of batches.
        resume: go on with what is there.
        on_progress: called after each forward.
        cancel: once set, stops after the batch in hand.

    Raises:
        BadInputError: an argument or input cannot be used.
        RunError: the folder holds something else.
        UnsupportedModelError: the model cannot be measured in this way.
    """
    routers = find_routers(lm.model)
    wanted = sorted({router.layer for router in routers} if layers is None else set(layers))
    missing = set(wanted) - {router.layer for router in routers}
    if missing:
        raise BadInputError(f"layer {min(missing)}: it has no router")

    def passes(run: Run) -> list[Pass]:
        return [
            one
            for router in routers
            if router.layer in wanted
            for one in _passes(run, router, [(expert,) for expert in range(router.n_experts)], [], how)
        ]

    return _measure(
        lm,
        documents,
        Path(out),
        _Settings(label, how, seed, batch_tokens),
        passes,
        {"language": language, "context": context, "max_tokens": max_tokens},
        resume=resume,
        budget_seconds=budget_seconds,
        on_progress=on_progress,
        cancel=cancel or threading.Event(),
    )


def _measure(
    lm: LanguageModel,
    documents: Input | Iterable[Input],
    out: Path,
    settings: _Settings,
    passes_of: Callable[[Run], list[Pass]],
    options: dict[str, Any],
    *,
    on_progress: OnProgress | None,
    cancel: threading.Event,
    resume: bool = False,
    budget_seconds: float | None = None,
) -> EffectFolder:
    check_head(lm)
    out.mkdir(parents=True, exist_ok=True)
    label = [settings.label] if settings.label != "phase" else []
    run = trace(
        lm, documents, out / RUN, labels=label, resume=resume, on_progress=on_progress, cancel=cancel, **options
    )
    if not run.complete:
        raise MoeProbeError("cancelled while the text was being traced; nothing is measured yet, resume goes on")
    prefix = Encoder(lm.tokenizer, lm.name, n_embeddings(lm)).prefix
    batches = Batches(run, prefix, settings.label, batch_tokens=settings.batch_tokens, seed=settings.seed)
    passes = passes_of(run)
    folder = begin_folder(out, _manifest(lm, run, batches, passes, settings), resume=resume)
    watch = Watch(on_progress, cancel)
    until = None if budget_seconds is None else time.monotonic() + budget_seconds
    _run_batches(lm, batches, passes, settings, folder, watch, until)
    return folder


def _run_batches(
    lm: LanguageModel,
    batches: Batches,
    passes: Sequence[Pass],
    settings: _Settings,
    folder: EffectFolder,
    watch: Watch,
    until: float | None,
) -> None:
    layers = find_layers(lm.model, find_routers(lm.model))
    done = set(folder.done)
    sizes = [len(batches.batch(index).rows) for index in range(len(batches))]
    before = sum(sizes[index] for index in done) * len(passes)
    watch.begin(PHASE, before, sum(sizes) * len(passes))
    checked = False
    for index in range(len(batches)):
        if index in done or (until is not None and time.monotonic() > until and folder.done):
            continue
        batch, kept = batches.batch(index), Kept()
        carried = batches.carried(batch)
        plain = plain_pass(lm, batch, layers, kept)
        if not checked:
            check_prefix(lm, batch, layers, kept, plain, sorted({one.layer for one in passes}))
            checked = True
        known = ~np.isnan(plain)
        sums: list[NDArray[np.float64]] = []
        try:
            for one in passes:
                seed = (settings.seed, index, zlib.crc32(one.name.encode()))
                bits = changed_pass(lm, batch, layers, kept, one, how=settings.how, seed=seed)
                change = np.where(known, bits - plain, 0.0).astype(np.float64)
                sums.append(carried.add_up(change, len(batches.labels)))
                watch.step(before + len(sums) * sizes[index])
        except Cancelled:
            # A batch is whole or not there at all.
            if len(sums) < len(passes):
                return
        folder.write(index, Sums(np.stack(sums), carried.count(len(batches.labels))))
        before += len(passes) * sizes[index]


def _passes(
    run: Run, router: Router, targets: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]], how: How
) -> list[Pass]:
    """Return the passes of one router: targets, each followed by its random control if it has one, then others."""
    shares = []  # (slots, experts): of each slot's tokens, the share that went to each expert
    for slot in range(router.n_slots):
        counts = load_counts(run, "phase", slot, "all")
        shares.append(counts[router.index].sum(axis=1) / max(counts.n, 1))
    passes = []
    for experts in targets:
        dropped = tuple(float(of_slot[list(experts)].sum()) for of_slot in shares)
        passes.append(Pass(router.index, router.layer, experts, target=True))
        if how == "ablate":
            passes.append(Pass(router.index, router.layer, experts, random=True, slot_shares=dropped))
    return passes + [Pass(router.index, router.layer, experts) for experts in others]


def _manifest(
    lm: LanguageModel, run: Run, batches: Batches, passes: Sequence[Pass], settings: _Settings
) -> dict[str, Any]:
    loads = load_counts(run, "phase", "any", "all")
    return {
        "effects_version": 2,
        "model": run.manifest["model"],
        "made_from": lm.fingerprint(),
        "tokens": batches.n_tokens,
        "settings": asdict(settings),
        "cluster_unit": batches.unit,
        "labels": batches.labels,
        "carriers": list(CARRIERS),
        "passes": [asdict(one) for one in passes],
        "loads": {str(router.index): loads[router.index].sum(axis=1).tolist() for router in run.routers},
        "batches": len(batches),
        "shape": [len(passes), len(CARRIERS), N_CLUSTERS, len(batches.labels)],
    }
