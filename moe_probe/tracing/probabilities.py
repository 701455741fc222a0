"""How much room the routers' whole distributions over experts take, said and asked for before anything is traced.

It does not know how they are recorded or written.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from moe_probe.errors import MoeProbeError
from moe_probe.models.fit import gigabytes
from moe_probe.schema import Router
from moe_probe.watching import OnProgress, Progress

BYTES_EACH = 2
"""A probability is a float16; compression takes off little of it (8 % were measured), so that it is not counted on."""


def probabilities_bytes(n_tokens: int, routers: Sequence[Router]) -> int:
    """Return how many bytes the probabilities of so many token rows take at most.

    Example:
        >>> probabilities_bytes(1_000, [Router(0, "layers.0.mlp", 0, 8, 2, "softmax top-k")] * 32)
        512000
    """
    return n_tokens * BYTES_EACH * sum(router.n_experts for router in routers)


def describe_probabilities(n_tokens: int, routers: Sequence[Router]) -> str:
    """Return one line that says how much room probabilities will take, and why.

    Example:
        >>> describe_probabilities(50_000, [Router(0, "layers.0.mlp", 0, 64, 8, "softmax top-k")] * 16)
        'probabilities will take up to 102.4 MB: 50,000 tokens × 16 routers × 64 experts × 2 bytes'
    """
    widths = sorted({router.n_experts for router in routers})
    per_token = f"{len(routers)} routers × {widths[0]} experts"
    if len(widths) > 1:
        total = sum(router.n_experts for router in routers)
        per_token = f"{total:,} experts of {len(routers)} routers"
    n_bytes = probabilities_bytes(n_tokens, routers)
    size = gigabytes(n_bytes) if n_bytes >= 1e9 else f"{max(n_bytes / 1e6, 0.1):,.1f} MB"
    return f"probabilities will take up to {size}: {n_tokens:,} tokens × {per_token} × {BYTES_EACH} bytes"


def check_room(folder: Path, n_tokens: int, routers: Sequence[Router]) -> None:
    """Refuse to begin what the disk has no room for.

    Raises:
        MoeProbeError: naming the folder, what is needed and what is free.
    """
    free = shutil.disk_usage(folder).free
    if probabilities_bytes(n_tokens, routers) > free:
        raise MoeProbeError(
            f"{folder}: {describe_probabilities(n_tokens, routers)}, and {gigabytes(free)} are free there; make room,"
            " choose another folder, use --max-tokens, or trace without --probabilities"
        )


def telling_size(on_progress: OnProgress | None, routers: Sequence[Router], tell: Callable[[str], None]) -> OnProgress:
    """Return what to give `trace` as `on_progress`, so that the size is told before the first forward.

    Args:
        on_progress: who else hears of every step.
        routers: those of the model.
        tell: is called once, with one line.
    """
    told: list[str] = []

    def hear(progress: Progress) -> None:
        if progress.phase == "tracing" and not told and progress.tokens_total is not None:
            told.append(describe_probabilities(progress.tokens_total - progress.tokens_before, routers))
            tell(told[0])
        if on_progress is not None:
            on_progress(progress)

    return hear
