"""`moe-probe info`, `export`, `report`, `compare` and `saturation`: what runs show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import moe_probe as mp
from moe_probe.cli.options import RunFolder


def info(run: RunFolder) -> None:
    """Print what is in a run: corpus, precision, self-check, load of every layer."""
    from moe_probe.info import describe

    describe(mp.open_run(run))


def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="Folder to write the tables to.")],
    tokens: Annotated[bool, typer.Option("--tokens", help="Write the token-to-expert table too.")] = False,
    format_: Annotated[Literal["csv", "parquet"], typer.Option("--format", help="Format of the tables.")] = "csv",
) -> None:
    """Write all tables of a run, with a dictionary of their columns."""
    from moe_probe.tables.registry import tables_left_out

    opened = mp.open_run(run)
    for path in mp.export_csv(opened, out, tokens=tokens, format=format_):
        print(path)
    if left_out := tables_left_out(opened):
        print(f"moe-probe: left out, for the run holds counts only: {', '.join(left_out)}", file=sys.stderr)


def report(
    run: RunFolder,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")],
    effects: Annotated[
        Path | None, typer.Option(help="A folder that `moe-probe ablate` wrote, to tell of too.")
    ] = None,
) -> None:
    """Write what a run shows as one HTML file that needs no network."""
    measured = None if effects is None else mp.open_effects(effects)
    print(mp.write_report(mp.open_run(run), out, effects=measured))


def compare(
    run_a: Annotated[Path, typer.Argument(help="The folder of a run, the reference.")],
    run_b: Annotated[Path, typer.Argument(help="The folder of another run over the same text.")],
    out: Annotated[Path, typer.Option(help="Folder to write the tables and the page to.")],
) -> None:
    """Compare two runs over the same text: agreement by layer, margin and label, and what it costs."""
    first, second = mp.open_run(run_a), mp.open_run(run_b)
    for warning in mp.comparison_warnings(first, second):
        print(f"moe-probe: warning: {warning}", file=sys.stderr)
    for path in mp.compare_runs(first, second, out):
        print(path)


def saturation(
    runs: Annotated[list[Path], typer.Argument(help="Runs of earlier checkpoints over the same text.")],
    reference: Annotated[Path, typer.Option(help="The run of the last checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder to write saturation.csv and saturation.html to.")],
) -> None:
    """Tell how early in its training each layer's routing was what it is at the end."""
    for path in mp.write_saturation([mp.open_run(run) for run in runs], mp.open_run(reference), out):
        print(path)
