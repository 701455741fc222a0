"""How many workers a cluster has room for, and what each may take of it. It does not know Ray."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe_probe.errors import BadInputError


@dataclass(frozen=True)
class Shares:
    """How many workers there are at most, and the processors and GPUs that each of them asks for."""

    n_workers: int
    cpus: float
    gpus: float


def share_out(
    resources: Mapping[str, float],
    n_shards: int,
    n_threads: int,
    *,
    gpus: float,
    workers: int | None,
) -> Shares:
    """Return the workers for so many shards.

    One processor stays free, for Ray and for the process that writes. A worker on a CPU asks for as many processors as
    it has threads, where there are so many; more workers than there is room for wait until there is.

    Args:
        resources: what the cluster has, as Ray names it: CPU, GPU.
        n_shards: how many are to be made.
        n_threads: that a worker computes with on a CPU.
        gpus: that a worker asks for; 0 for a CPU.
        workers: how many are wanted; None for as many as fit.

    Raises:
        BadInputError: the cluster has not the GPUs of one worker.

    Example:
        >>> share_out({"CPU": 64.0}, 100, 8, gpus=0, workers=None)
        Shares(n_workers=7, cpus=8, gpus=0)
        >>> share_out({"CPU": 64.0, "GPU": 8.0}, 100, 32, gpus=2, workers=None)
        Shares(n_workers=4, cpus=1, gpus=2)
        >>> share_out({"CPU": 2.0}, 3, 1, gpus=0, workers=2)
        Shares(n_workers=2, cpus=0.5, gpus=0)
    """
    total = resources.get("CPU", 0.0)
    free = max(total - 1, total / 2)
    if gpus:
        there = resources.get("GPU", 0.0)
        fit = int(there / gpus)
        if fit == 0:
            raise BadInputError(
                f"the cluster has {there:g} GPUs, and a worker asks for {gpus:g}; add one, give gpus_per_worker=, or "
                "load the model on the CPU"
            )
        wanted = 1
    else:
        fit, wanted = max(1, int(free / n_threads)), n_threads
    n_workers = min(workers or fit, n_shards)
    share = min(wanted, free / n_workers)
    return Shares(n_workers, int(share) if share >= 1 else int(share * 1000) / 1000, gpus)
