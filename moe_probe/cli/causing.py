"""`moe-probe ablate`: what the text costs without an expert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

import moe_probe as mp
from moe_probe.cli.options import (
    Context,
    DeviceMap,
    Dtype,
    Inputs,
    Language,
    MaxTokens,
    Model,
    Quantization,
    Revision,
    numbers_in,
)
from moe_probe.errors import BadInputError


def ablate(
    model: Model,
    inputs: Inputs,
    out: Annotated[Path, typer.Option(help="Folder to write effect.csv to; what was measured is kept there too.")],
    layer: Annotated[int | None, typer.Option(min=0, help="The layer; with --map all layers if not given.")] = None,
    experts: Annotated[str | None, typer.Option(help="Experts to switch off together, for example 3 or 0,2.")] = None,
    map_: Annotated[bool, typer.Option("--map", help="Switch off every expert by itself.")] = False,
    label: Annotated[str, typer.Option(help="The label that tokens are told apart by.")] = "upos",
    how: Annotated[
        Literal["ablate", "reroute"], typer.Option(help="Set weights to zero, or let the next best expert step in.")
    ] = "ablate",
    quantization: Quantization = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = "auto",
    revision: Revision = None,
    language: Language = None,
    context: Context = None,
    max_tokens: MaxTokens = None,
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens in a batch, padding included.")] = 2_048,
    budget_seconds: Annotated[
        float | None, typer.Option(min=0, help="With --map: begin no batch after so long.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random control and of the order of the batches.")] = 0,
    resume: Annotated[bool, typer.Option(help="Go on with what was measured before.")] = False,
) -> None:
    """Switch experts off and measure, label by label, what that does to the surprisal of every token."""
    chosen = numbers_in(experts) if experts is not None else None
    if map_ == (chosen is not None) or (chosen is not None and layer is None):
        raise BadInputError("ablate: give --layer and --experts, or --map (with or without --layer)")
    language_model = mp.load(model, quantization=quantization, dtype=dtype, device_map=device_map, revision=revision)
    from moe_probe.export import export_effects
    from moe_probe.progress import progress_bar

    with progress_bar() as on_progress:
        if chosen is None:
            mp.effect_map(
                language_model,
                inputs,
                out,
                label=label,
                layers=None if layer is None else [layer],
                how=how,
                language=language,
                context=context,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                budget_seconds=budget_seconds,
                seed=seed,
                resume=resume,
                on_progress=on_progress,
            )
        else:
            mp.effect(
                language_model,
                inputs,
                cast(int, layer),
                chosen,
                label=label,
                how=how,
                language=language,
                context=context,
                max_tokens=max_tokens,
                batch_tokens=batch_tokens,
                seed=seed,
                resume=resume,
                out=out,
                on_progress=on_progress,
            )
    for path in export_effects(mp.open_effects(out), out):
        print(path)
