"""`moe-probe trace`, `label` and `import`: what makes a run, or adds to one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

import moe_probe as mp
from moe_probe.cli.options import (
    Context,
    DeviceMap,
    Dtype,
    Inputs,
    Labels,
    Language,
    MaxTokens,
    Model,
    NewRun,
    Quantization,
    Revision,
    RunFolder,
    Tagger,
    names_in,
    say_done,
)
from moe_probe.errors import BadInputError


def trace(
    model: Model,
    inputs: Inputs,
    out: NewRun,
    quantization: Quantization = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = "auto",
    revision: Revision = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run model code that comes with the checkpoint.")] = False,
    labels: Labels = "upos,shape,domain",
    language: Language = None,
    tagger: Tagger = None,
    max_tokens: MaxTokens = None,
    batch_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens in a batch, padding included.")] = None,
    context: Context = None,
    stride: Annotated[int, typer.Option(min=0, help="Tokens by which windows of a long document overlap.")] = 0,
    special: Annotated[bool, typer.Option(help="Record the special tokens too.")] = False,
    surprisal: Annotated[bool, typer.Option(help="Record each token's surprisal.")] = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Record every router's whole distribution: 2 bytes a token and expert."),
    ] = False,
    counts_only: Annotated[
        bool, typer.Option("--counts-only", help="Keep counts by expert and label, and nothing of a token.")
    ] = False,
    resume: Annotated[bool, typer.Option(help="Go on with a run that was interrupted.")] = False,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Who makes the shards: this process, or a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="With --engine ray: host:port of a cluster that is there; else Ray is started.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: how many processes load the model.")
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Say at the end where the time went.")] = False,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Take the texts for prompts: write so many tokens after each, trace both.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="With --generate: put prompts into the chat template.")] = False,
    sample: Annotated[bool, typer.Option("--sample", help="With --generate: sample, not the likeliest.")] = False,
    beams: Annotated[int | None, typer.Option(min=1, help="With --generate: beams of the search.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --generate: of the sampling.")] = None,
) -> None:
    """Run a model over texts and record which experts every token was sent to."""
    if generate is None and (chat or sample or beams is not None or seed is not None):
        raise BadInputError("--chat, --sample, --beams and --seed say how to generate; give --generate N too")
    if generate is not None and (max_tokens is not None or stride):
        raise BadInputError("--generate takes prompts whole, in one window; leave out --max-tokens and --stride")
    if generate is not None and (engine != "local" or ray_address is not None or workers is not None):
        raise BadInputError("--generate writes in this process; leave out --engine, --ray-address and --workers")
    if generate is not None and counts_only:
        raise BadInputError("--generate keeps every token that it writes; leave out --counts-only")
    language_model = mp.load(
        model,
        quantization=quantization,
        dtype=dtype,
        device_map=device_map,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    from moe_probe.progress import progress_bar

    profiles: list[mp.Profile] = []
    on_profile = profiles.append if profile else None
    with progress_bar() as on_progress:
        if probabilities:
            on_progress = _telling_size(on_progress, language_model)
        if generate is not None:
            run = mp.generate_and_trace(
                language_model,
                inputs,
                out,
                max_new_tokens=generate,
                chat=chat,
                generation={"do_sample": sample, "num_beams": beams or 1, "seed": seed or 0},
                labels=names_in(labels),
                language=language,
                tagger=tagger,
                batch_tokens=batch_tokens,
                context=context,
                special=special,
                surprisal=surprisal,
                probabilities=probabilities,
                resume=resume,
                on_progress=on_progress,
                on_profile=on_profile,
            )
        else:
            run = mp.trace(
                language_model,
                inputs,
                out,
                labels=names_in(labels),
                language=language,
                tagger=tagger,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                context=context,
                stride=stride,
                special=special,
                surprisal=surprisal,
                probabilities=probabilities,
                counts_only=counts_only,
                engine=engine,
                ray_address=ray_address,
                workers=workers,
                resume=resume,
                on_progress=on_progress,
                on_profile=on_profile,
            )
    say_done(run)
    for found in profiles:
        _print_profile(found)


def _telling_size(on_progress: Callable[..., None] | None, language_model: mp.LanguageModel) -> Callable[..., None]:
    """Say before the first forward how much room probabilities take."""
    from moe_probe.tracing.probabilities import telling_size

    routers = mp.find_routers(language_model.model)
    return telling_size(on_progress, routers, lambda line: print(f"moe-probe: {line}", file=sys.stderr))


def _print_profile(profile: mp.Profile) -> None:
    from rich.console import Console

    from moe_probe.progress import profile_table
    from moe_probe.tracing import BESIDE

    Console(stderr=True).print(profile_table(profile, BESIDE))


def label(
    run: RunFolder,
    with_: Annotated[str, typer.Option("--with", help="Labels to add or replace, separated by commas.")],
    tagger: Tagger = None,
    language: Language = None,
) -> None:
    """Add labels to a run, or replace them, without tracing again."""
    from moe_probe.progress import progress_bar
    from moe_probe.relabelling import relabel

    with progress_bar() as on_progress:
        labelled = relabel(run, names_in(with_), tagger=tagger, language=language, on_progress=on_progress)
    print(f"{run}: labels {', '.join(label_set.name for label_set in labelled.labels)}")


def import_(
    format_: Annotated[
        Literal["jsonl", "vllm", "sglang", "olmoe", "esft"],
        typer.Argument(metavar="FORMAT", help="jsonl, vllm, sglang, olmoe or esft."),
    ],
    path: Annotated[Path, typer.Argument(help="The file, or for esft the folder, that another tool wrote.")],
    out: NewRun,
    model: Annotated[str | None, typer.Option(help="Its name, or its folder, whose config.json gives sizes.")] = None,
    n_experts: Annotated[int | None, typer.Option(min=1, help="Experts a layer, where the file does not say.")] = None,
    n_slots: Annotated[int | None, typer.Option(min=1, help="Experts a token, where the file does not say.")] = None,
    n_layers: Annotated[int | None, typer.Option(min=1, help="Layers, where the file does not say.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A folder or a hub id, to make text of token ids.")] = None,
    labels: Annotated[str, typer.Option(help="Labels to give every token, separated by commas; they need text.")] = "",
    language: Language = None,
    resume: Annotated[bool, typer.Option(help="Import again where one was interrupted as it ended.")] = False,
) -> None:
    """Make a run of what another tool recorded: vLLM, SGLang, OLMoE's scripts, ESFT, or JSON lines."""
    from moe_probe.importers import import_and_say

    run = import_and_say(
        format_,
        path,
        out,
        model=model,
        n_experts=n_experts,
        n_slots=n_slots,
        n_layers=n_layers,
        tokenizer=tokenizer,
        labels=names_in(labels),
        language=language,
        resume=resume,
    )
    say_done(run)
