"""Join a Ray cluster, or start Ray on this machine for a while; nothing of Ray's own is printed.

It does not know what the cluster is for.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray._private.worker as ray_worker

from moe_probe.errors import BadInputError, MoeProbeError

_HERE = "local"
# Ray asks its makers' server, and tells it what was used, unless it is told not to.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be connected to a cluster while the block runs.

    A connection that the process had before is used, and left open. Ray that was started for the block ends with it,
    a cluster that was there stays.

    Args:
        address: as Ray takes it; None for the connection that is there, or else for Ray on this machine alone.

    Raises:
        BadInputError: the process is connected to another cluster.
        MoeProbeError: the cluster does not answer, or has another version of Ray or Python.
    """
    if ray.is_initialized():
        _check_same(address)
        yield
        return
    here = address in (None, _HERE)
    options: dict[str, Any] = {"include_dashboard": False} if here else {}
    with _quietly():
        try:
            ray.init(
                address=_HERE if here else address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **options,
            )
        except (ConnectionError, OSError, RuntimeError, TimeoutError, ValueError, AssertionError) as error:
            said = " ".join(str(error).split())
            where = "Ray cannot be started on this machine" if here else f"ray_address={address!r}: cannot be joined"
            raise MoeProbeError(f"{where}: {said or type(error).__name__}") from error
    try:
        with _unprinted():
            yield
    finally:
        ray.shutdown()


@contextmanager
def _unprinted() -> Iterator[None]:
    """Keep what Ray says of workers that died off standard output, where it prints it whatever `log_to_driver` is."""
    name = "print_to_stdstream"
    printing = getattr(ray_worker, name, None)
    if printing is None:  # another version, which prints in another way
        yield
        return
    setattr(ray_worker, name, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(ray_worker, name, printing)


def _check_same(address: str | None) -> None:
    there = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", there):
        raise BadInputError(
            f"ray_address={address!r}: this process is connected to the cluster {there} already; leave the address out,"
            " or call ray.shutdown() first"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """Set what Ray reads while it starts, and hide what it warns of."""
    missing = {name: value for name, value in _QUIET.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
