"""Does a model fit? Its need is known from its configuration before a weight is read, the free memory from its devices.

A gigabyte is 10^9 bytes. The need is that of the weights plus one layer in full precision, which loading holds for a
moment; activations come on top and are not counted. This module does not read checkpoints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch
from transformers import PreTrainedModel

from moe_probe.errors import BadInputError, ModelTooLargeError
from moe_probe.models.precision import Holding, holdings, summarise
from moe_probe.models.quantise import quantisable

SPREADING = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of `device_map` that leave the choice of devices to the loader."""

DeviceMap = str | int | torch.device | Mapping[str, str | int | torch.device]

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Need:
    """What a model takes at one precision. `layer_bytes` is that of its largest layer before quantisation."""

    precision: str
    held: tuple[Holding, ...]
    layer_bytes: int

    @cached_property
    def weight_bytes(self) -> int:
        """The bytes of the loaded weights."""
        return sum(holding.bytes for holding in self.held)

    @property
    def peak_bytes(self) -> int:
        """The bytes that loading holds at most."""
        return self.weight_bytes + self.layer_bytes


@dataclass(frozen=True)
class Placement:
    """Where a model goes, as `from_pretrained` takes it."""

    device_map: str | dict[str, str | int | torch.device]
    max_memory: dict[int | str, int] | None = None


Alternatives = Callable[[], Mapping[str, Need]]
"""Tells, if asked, what a model would take otherwise, by the arguments to `load` that would do it."""


def gigabytes(size: float) -> str:
    """Return a size in 10^9 bytes, as text; sizes below 0.05 GB with more digits.

    Example:
        >>> gigabytes(93_405_585_408), gigabytes(1_234_000)
        ('93.4 GB', '0.0012 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e9:.2g} GB"


def estimate(model: PreTrainedModel, quantization: str | None) -> Need:
    """Return what a model takes.

    Args:
        model: on the meta device, in the type that it would compute in.
        quantization: None, "8bit" or "4bit".
    """
    plain = holdings(model)
    held = holdings(model, quantisable(model), quantization) if quantization else plain
    layers: Counter[str] = Counter()
    for holding in plain:
        layers[_layer_of(holding.name)] += holding.bytes
    bits = {"8bit": "8 bits", "4bit": "4 bits", None: f"{8 * model.dtype.itemsize} bits"}[quantization]
    return Need(bits, tuple(held), max(size for layer, size in layers.items() if layer) if any(layers) else 0)


def _layer_of(name: str) -> str:
    """Return the dotted path of a tensor up to its layer's number, or nothing."""
    path = name.split(".")
    number = next((index for index, piece in enumerate(path) if piece.isdigit()), None)
    return "" if number is None else ".".join(path[: number + 1])


def accelerators() -> list[torch.device]:
    """Return the GPUs of this machine."""
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device, within the limit of this process's container."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free: int = torch.cuda.mem_get_info(device)[0]
        return free + unused
    available: int = psutil.virtual_memory().available
    limit, used, statistics = (_CGROUP / f"memory.{name}" for name in ("max", "current", "stat"))
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdigit():
        fields = dict(line.split() for line in statistics.read_text().splitlines())
        # Pages of files that were read count as used, yet are given back when memory is short.
        held = int(used.read_text()) - int(fields.get("inactive_file", 0)) - int(fields.get("active_file", 0))
        available = min(available, int(limit.read_text()) - held)
    return available


def is_on_gpu(device_map: DeviceMap) -> bool:
    """Say that a device map puts at least part of a model on a GPU.

    Raises:
        BadInputError: if the map names a device that is not there.
    """
    if isinstance(device_map, str) and device_map in SPREADING:
        return bool(accelerators())
    values = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    return any(value != "disk" and _device(value).type != "cpu" for value in values)


def _device(value: str | int | torch.device) -> torch.device:
    try:
        device = torch.device("cuda", value) if isinstance(value, int) else torch.device(value)
    except RuntimeError as error:
        raise BadInputError(
            f"device_map={value!r} is no device; use 'auto', 'cpu', 'cuda:0', … or a map of module names to devices"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInputError(
            f"device_map={value!r}: this machine has {torch.cuda.device_count()} CUDA GPUs; use 'auto' or 'cpu'"
        )
    return device


def place(name: str, need: Need, device_map: DeviceMap, alternatives: Alternatives) -> Placement:
    """Choose the devices of a model, or say that it does not fit.

    "auto" takes the GPU with the most free memory if the model fits on it, else all GPUs, and the CPU only where there
    is no GPU: part of a model on the CPU beside GPUs must be asked for by a map.

    Args:
        name: what the user called the model.
        need: what it takes at the precision asked for.
        device_map: what the user asked for.
        alternatives: asked only if it does not fit.

    Raises:
        ModelTooLargeError: if it does not fit.
        BadInputError: if the map names a device that is not there.
    """
    if isinstance(device_map, str) and device_map in SPREADING:
        return _spread(name, need, device_map, alternatives)
    if not isinstance(device_map, Mapping):
        device = _device(device_map)
        _check(name, need, need.peak_bytes, free_bytes(device), str(device), alternatives)
        return Placement({"": device})
    devices = {key: value if value == "disk" else _device(value) for key, value in device_map.items()}
    shares: Counter[torch.device] = Counter()
    for holding in need.held:
        keys = [key for key in devices if not key or holding.name == key or holding.name.startswith(f"{key}.")]
        target = devices[max(keys, key=len)] if keys else "disk"
        if isinstance(target, torch.device):
            shares[target] += holding.bytes
    for device, share in shares.items():
        _check(name, need, share + need.layer_bytes, free_bytes(device), str(device), alternatives)
    return Placement(dict(device_map))


def _spread(name: str, need: Need, device_map: str, alternatives: Alternatives) -> Placement:
    gpus = accelerators()
    free = {gpu: free_bytes(gpu) for gpu in gpus}
    if not gpus:
        cpu = torch.device("cpu")
        _check(name, need, need.peak_bytes, free_bytes(cpu), "the CPU", alternatives)
        return Placement({"": cpu})
    roomiest = max(gpus, key=lambda gpu: free[gpu])
    if device_map == "auto" and need.peak_bytes <= free[roomiest]:
        return Placement({"": roomiest})
    where = str(gpus[0]) if len(gpus) == 1 else f"{len(gpus)} GPUs together"
    _check(name, need, need.peak_bytes, sum(free.values()), where, alternatives)
    return Placement(device_map, {gpu.index: int(0.95 * size) for gpu, size in free.items()})


def _check(name: str, need: Need, peak: int, free: int, where: str, alternatives: Alternatives) -> None:
    if peak <= free:
        return
    rows = [row for row in summarise(need.held) if row.bytes >= need.weight_bytes / 1000]
    parts = ", ".join(f"{row.part} {gigabytes(row.bytes)}" for row in rows)
    others = alternatives()
    fitting = [arguments for arguments, other in others.items() if other.peak_bytes <= free]
    needs = "; ".join(f"{arguments} needs {gigabytes(other.weight_bytes)}" for arguments, other in others.items())
    advice = f"use {fitting[0]}" if fitting else "no precision fits: use a larger device or a smaller model"
    raise ModelTooLargeError(
        f"{name} needs {gigabytes(need.weight_bytes)} in {need.precision} ({parts}) and {gigabytes(need.layer_bytes)} "
        f"more while loading, but {gigabytes(free)} are free on {where}{'; ' if needs else ''}{needs}; {advice}"
    )
