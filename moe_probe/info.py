"""What is in a run, printed for a person: corpus, model, precision, self-check, load of every layer.

It knows the manifest and the tables of load and balance, and no file.
"""

from __future__ import annotations

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from moe_probe.counts import wide_routers
from moe_probe.measures.verdicts import DEAD
from moe_probe.store import Run
from moe_probe.tables import balance, load_table
from moe_probe.tables.registry import tables_left_out

_NAMED_EXPERTS = 6


def describe(run: Run, console: Console | None = None) -> None:
    """Print a run's provenance, the balance of every router, and its experts that no token was sent to.

    Args:
        run: the run to describe.
        console: where to print; standard output if None.
    """
    console = console or Console(highlight=False)
    console.print(_provenance(run))
    console.print(_precision(run))
    console.print(_load(run))
    if run.counts_only:
        console.print(
            "[bold]counts only[/bold] no token was kept, so that what needs one cannot be told; left out of an export: "
            f"{', '.join(tables_left_out(run))}"
        )
    for warning in run.warnings:
        console.print(f"[bold]warning[/bold] {escape(warning)}")
    for router in wide_routers(run):
        console.print(
            f"[bold]warning[/bold] router {router.index} has {router.n_experts:,} experts: tables with a number for "
            "each expert and label, token or domain cannot be made of this run; load tells of 1,024 experts a router"
        )


def run_facts(run: Run) -> dict[str, str]:
    """Return what was traced, in words: model, corpus, routers, labels, self-check, and whether it is complete."""
    manifest = run.manifest
    model = manifest["model"]
    kinds = sorted({(router.n_experts, router.n_slots, router.kind) for router in run.routers})
    return {
        "model": f"{model['name']} ({model['quantization'] or '16 bits or more'})",
        "corpus": f"{run.n_tokens:,} tokens of {run.n_documents:,} documents",
        "routers": f"{len(run.routers)}: " + "; ".join(f"{k} of {e} experts, {kind}" for e, k, kind in kinds),
        "labels": ", ".join(f"{label.name} ({label.source})" for label in run.labels) or "none",
        **({"kept": "counts only, no tokens"} if run.counts_only else {}),
        "self-check": str(manifest["self_check"]),
        "complete": "yes" if run.complete else "no: go on with moe-probe trace … --resume",
    }


def _provenance(run: Run) -> Table:
    table = Table(title=escape(str(run.path)), title_justify="left", show_header=False, box=None)
    for name, value in run_facts(run).items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    return table


def _precision(run: Run) -> Table:
    table = Table(title="Precision", title_justify="left", box=None)
    for column in ("part", "dtype", "bits a parameter", "parameters", "bytes"):
        table.add_column(column, justify="left" if column in {"part", "dtype"} else "right")
    for row in run.manifest["precision"]:
        table.add_row(
            row["part"],
            row["dtype"],
            f"{row['bits_per_parameter']:.2f}",
            f"{row['parameters']:,}",
            f"{row['bytes']:,}",
        )
    return table


def _load(run: Run) -> Table:
    table = Table(
        title="Load by layer (all slots; the first tokens of each window left out)", title_justify="left", box=None
    )
    columns = (
        "layer",
        "router",
        "effective experts",
        "busiest over mean",
        "dead",
        "unseen",
        "dropped",
    )
    for column in columns:
        table.add_column(column, justify="right")
    rows = balance(run).to_dicts()
    if not rows:
        table.add_row("no tokens to count", *[""] * (len(columns) - 1))
    dead = _dead_experts(run)
    for row in rows:
        table.add_row(
            str(row["layer"]),
            str(row["router"]),
            _number(row["effective_experts"], "{:.2f}"),
            _number(row["max_violation"], "{:+.0%}"),
            "—" if row["dead"] is None else dead.get(row["router"], "0"),
            _number(row["unseen"], "{:,}"),
            _number(row["dropped"], "{:,}"),
        )
    return table


def _dead_experts(run: Run) -> dict[int, str]:
    """How many experts are dead, and which, for each router that has any: `2: 3, 17`."""
    dead = (
        load_table(run).filter(slot="any", verdict=DEAD).group_by("router", maintain_order=True).agg(pl.col("expert"))
    )
    texts = {}
    for router, experts in dead.iter_rows():
        named = ", ".join(str(expert) for expert in experts[:_NAMED_EXPERTS])
        texts[router] = f"{len(experts):,}: {named}{' …' if len(experts) > _NAMED_EXPERTS else ''}"
    return texts


def _number(value: float | None, form: str) -> str:
    return "—" if value is None else form.format(value)
