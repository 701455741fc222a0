"""Which engine makes a run's shards: this process, a Ray cluster, or one that the caller brings.

Whatever can be refused is refused here, before an input is read. It does not know Ray.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from moe_probe.errors import BadInputError, MoeProbeError

if TYPE_CHECKING:
    from moe_probe.models import LanguageModel
    from moe_probe.tracing.work import Engine

LOCAL, RAY = "local", "ray"
_CONNECT_SECONDS = 10


def choose_engine(
    engine: str | Engine,
    lm: LanguageModel,
    *,
    ray_address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
) -> Engine | None:
    """Return what makes the shards; None stands for this process.

    Args:
        engine: "local", "ray", or any function that makes the shards of a `Work`.
        lm: the model of this process.
        ray_address: of a cluster that is there: "auto" or "host:port", which this machine is part of. If None the
            environment's RAY_ADDRESS, and without one Ray is started on this machine for as long as the trace lasts.
        workers: how many processes hold the model; by default as many as the cluster has room for.
        gpus_per_worker: GPUs of each; by default as many as the model is on here. Below 1, workers share a GPU.

    Raises:
        BadInputError: the arguments do not go together, or a worker could not load this model as it is.
        MoeProbeError: Ray is not installed, or nothing answers at the address.
    """
    options = {"ray_address": ray_address, "workers": workers, "gpus_per_worker": gpus_per_worker}
    if engine != RAY:
        for name, value in options.items():
            if value is not None:
                raise BadInputError(f"{name}={value!r}: it needs engine={RAY!r}")
        if not isinstance(engine, str):
            return engine
        if engine == LOCAL:
            return None
        raise BadInputError(f"engine={engine!r}: use {LOCAL!r}, {RAY!r}, or a function that makes the shards of a Work")
    if find_spec("ray") is None:
        raise MoeProbeError(f"engine={RAY!r}: Ray is not installed; pip install 'moe-probe[cluster]'")
    _check_numbers(workers, gpus_per_worker, on_gpu=lm.device.type == "cuda")
    from moe_probe.cluster.crew import run_on_ray
    from moe_probe.cluster.likeness import check_as_loaded

    check_as_loaded(lm)
    address = ray_address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        check_reachable(address)
    return partial(run_on_ray, address=address, workers=workers, gpus_per_worker=gpus_per_worker)


def _check_numbers(workers: int | None, gpus_per_worker: float | None, *, on_gpu: bool) -> None:
    if workers is not None and workers < 1:
        raise BadInputError(f"workers={workers}: use 1 or more")
    if gpus_per_worker is None:
        return
    if gpus_per_worker <= 0 or (gpus_per_worker > 1 and gpus_per_worker != int(gpus_per_worker)):
        raise BadInputError(f"gpus_per_worker={gpus_per_worker}: use a whole number, or a share of one GPU such as 0.5")
    if not on_gpu:
        raise BadInputError(
            f"gpus_per_worker={gpus_per_worker}: the model is on no GPU here, and a run says on what kind of device it "
            "was made; load it on a GPU"
        )


def check_reachable(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself would go on trying for minutes.

    Raises:
        BadInputError: it is no address.
        MoeProbeError: nothing answers there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or int(port) > 65_535:
        raise BadInputError(
            f"ray_address={address!r}: use 'auto' or 'host:port', on a machine of the cluster (ray:// addresses are for"
            " machines outside of it)"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise MoeProbeError(
            f"ray_address={address!r}: no cluster answers there ({error}); is it running (ray status), and may this "
            "machine reach it?"
        ) from error
