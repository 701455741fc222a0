"""What the command line does to import a trace: one call, a progress bar, and what to know about the result.

It does not know formats.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from moe_probe.errors import MoeProbeError
from moe_probe.importers.importing import import_run
from moe_probe.progress import progress_bar
from moe_probe.schema import PLAN_FILE
from moe_probe.store import Run


def import_and_say(
    format: str,
    path: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    n_experts: int | None = None,
    n_slots: int | None = None,
    n_layers: int | None = None,
    tokenizer: str | None = None,
    labels: Sequence[str] = (),
    language: str | None = None,
    resume: bool = False,
) -> Run:
    """Import a trace and print each warning on standard error; see `import_run`.

    Raises:
        MoeProbeError: also if it was interrupted.
    """
    try:
        with progress_bar() as on_progress:
            run = import_run(
                format,
                path,
                out,
                model=model,
                n_experts=n_experts,
                n_slots=n_slots,
                n_layers=n_layers,
                tokenizer=tokenizer,
                labels=labels,
                language=language,
                resume=resume,
                on_progress=on_progress,
            )
    except KeyboardInterrupt as error:
        begun = (Path(out) / PLAN_FILE).exists()
        raise MoeProbeError(f"interrupted; import again{', with --resume' if begun else ''}") from error
    for warning in run.warnings:
        print(f"moe-probe: warning: {warning}", file=sys.stderr)
    return run
