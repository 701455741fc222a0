"""A process that holds a model and traces in forked children, which whoever started it may kill at any moment.

Run as a script with a folder; then each line on standard input, `<run> [limit]`, starts a trace into that run, resuming
it where it is there. With `limit` the disk is full once so many tokens are done. It answers with the child's process
number, and when the child has ended with how.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from pathlib import Path

import torch
import traced_models

from moe_probe.corpus import Document
from moe_probe.errors import MoeProbeError
from moe_probe.models import LanguageModel
from moe_probe.tracing import Progress, trace

DOCUMENTS = [Document(f"d{n}", traced_models.text(20 + 13 * (n % 7), seed=n)) for n in range(60)]
OPTIONS = {"labels": ("shape",), "context": 64, "shard_rows": 500, "batch_tokens": 512}


def trace_into(lm: LanguageModel, run: Path, full_after: int | None) -> int:
    """Trace and return the exit status."""

    def fill_the_disk(progress: Progress) -> None:
        if full_after is not None and progress.phase == "tracing" and progress.tokens_done > full_after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    try:
        trace(lm, DOCUMENTS, run, resume=True, on_progress=fill_the_disk, **OPTIONS)
    except MoeProbeError as error:
        print(f"error {error}", flush=True)
        return error.exit_status
    return 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # no thread before the fork
    lm = traced_models.language_model(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        run, *limit = line.split()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = trace_into(lm, Path(run), int(limit[0]) if limit else None)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(f"child {child}", flush=True)
        _, ended = os.waitpid(child, 0)
        print(f"ended {os.waitstatus_to_exitcode(ended)}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
