"""Traces that hold counts only, killed by SIGKILL at the worst moments, each in a forked child that has the model.

Run as a script with a folder: makes the runs `whole`, `before`, `between` and `end`, and prints how each child ended.
`before` is killed while the counts of its third shard are being written, `between` when they are there and run.json
does not say so yet, `end` so of its last shard; `whole` is not disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import counted_documents
import torch
import traced_models

from moe_probe.models import LanguageModel
from moe_probe.store import counted, totals
from moe_probe.store.totals import Totals
from moe_probe.tracing import trace

NAMES = ("whole", "before", "between", "end")
AT = 3


def kill() -> None:
    """End this very process as no handler can prevent."""
    os.kill(os.getpid(), signal.SIGKILL)


def trace_into(lm: LanguageModel, run: Path) -> None:
    """Trace, and be killed where the run's name says so."""
    write = totals.write_totals

    def write_and_die(folder: Path, made: Totals) -> None:
        n_shards = len(json.loads((folder / "plan.json").read_text())["shards"])
        third = len(made.shards) == AT
        if third and run.name == "before":
            half = folder / f"{totals.TOTALS_FILE}.tmp"
            half.write_bytes(b"half a file")
            kill()
        write(folder, made)
        if (third and run.name == "between") or (len(made.shards) == n_shards and run.name == "end"):
            kill()

    counted.write_totals = write_and_die
    trace(lm, counted_documents.documents(), run, counts_only=True, **counted_documents.OPTIONS)


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # no thread before the fork
    lm = traced_models.language_model(folder / "model", "olmoe")
    for name in NAMES:
        child = os.fork()
        if child == 0:
            try:
                trace_into(lm, folder / name)
            finally:
                os._exit(0)
        _, ended = os.waitpid(child, 0)
        print(name, os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
