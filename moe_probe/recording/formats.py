"""In what formats checkpoints hold their experts, on what devices they run, and what recording makes of each.

The tables go into docs/models.md; tests/test_checkpoint_formats.py, tests/test_devices.py and, for compiled models,
tests/test_recording_errors.py go through their rows. The one trap that nothing else would notice is refused here:
experts that were never read from a packed checkpoint. How a model is loaded is not known here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from moe_probe.errors import UnsupportedModelError
from moe_probe.recording.routers import Site

_PACKED_ELSEWHERE = ("gptq", "awq", "auto-round")
"""Methods whose loaders pack modules of Linear alone. Fused experts are none, and stay as they were initialised."""


@dataclass(frozen=True)
class Row:
    """One format, or one way of running a model.

    `called` says whether the experts module is called as the rule says, `recorded` what recording does, `self_check`
    what it says, `how` in what way that was found out.
    """

    name: str
    held: str
    called: str
    recorded: str
    self_check: str
    how: str


UNKNOWN_FP8 = "not run: FP8Experts.gate_up_proj is quantised in a way that is not known here"
OFFLOADED = "not run: weights are offloaded"
_RAN = "run"
_STAND_IN = "stand-in"
_NO_GPU = f"{_STAND_IN}: the module with its arithmetic done in float32; its kernels need a GPU and were not run here"

FORMATS = (
    Row("float32, bfloat16, float16", "fused experts of that type", "yes", "exact", "passed", _RAN),
    Row('`moe_probe.load(quantization="8bit")`', "packed experts, router in full", "yes", "exact", "passed", _RAN),
    Row('`moe_probe.load(quantization="4bit")`', "packed experts, router in full", "yes", "exact", "passed", _RAN),
    Row(
        "bitsandbytes as transformers has it (`load_in_8bit`, `load_in_4bit`)",
        "experts stay in 16 or 32 bits; a router that is a Linear module is packed",
        "yes",
        "exact; refused where the router is packed",
        "passed",
        _RAN,
    ),
    Row("FP8 (fine-grained), no GPU", "dequantised by transformers", "yes", "exact", "passed", _RAN),
    Row("FP8 (fine-grained), GPU", "`FP8Experts`", "yes", "exact", UNKNOWN_FP8, _NO_GPU),
    Row("MXFP4 (GPT-OSS), `moe_probe.load`", "dequantised always", "yes", "exact", "passed", _RAN),
    Row(
        "MXFP4 (GPT-OSS), kernels of transformers",
        "`Mxfp4GptOssExperts`",
        "no: `forward_routed`",
        "refused: MXFP4 experts are called through forward_routed",
        "",
        f"{_STAND_IN}: the module alone; its kernels are a package that is not installed here",
    ),
    Row(
        "GPTQ, `moe_probe.load`",
        "experts packed one by one, which transformers does not read into fused ones",
        "",
        "refused: needs optimum and gptqmodel; with them: its experts are not in the checkpoint in a form",
        "",
        "run without the packages; by hand with gptqmodel 7.7.0 and optimum 2.3.0 on a CPU",
    ),
    Row(
        "AWQ, `moe_probe.load`",
        "as GPTQ",
        "",
        "refused: needs gptqmodel; with it: its experts are not in the checkpoint in a form",
        "",
        "run without the package; by hand with gptqmodel 7.7.0 on a CPU",
    ),
    Row(
        "GPTQ or AWQ, loaded by transformers itself",
        "attention packed; experts random, after a warning",
        "yes",
        "refused: its checkpoint is packed",
        "",
        f"{_STAND_IN}: a model with such a configuration; by hand with the packages: its experts were random",
    ),
    Row(
        "compressed-tensors (int8 a channel)",
        "experts packed one by one",
        "",
        "refused: needs compressed-tensors; with it: transformers itself fails to convert the experts",
        "",
        "run without the package; by hand with compressed-tensors 0.20.1 on a CPU, `dequantize` on and off",
    ),
)

DEVICES = (
    Row("experts `eager`, `batched_mm`, `grouped_mm`", "", "yes", "exact", "passed", _RAN),
    Row("accelerate, layers offloaded to memory", "weights come when a layer runs", "yes", "exact", OFFLOADED, _RAN),
    Row("accelerate, layers offloaded to the disk", "weights come when a layer runs", "yes", "exact", OFFLOADED, _RAN),
    Row(
        "several devices in one process",
        "a layer's routing crosses from the layer's own device",
        "yes",
        "exact",
        "passed",
        f"{_STAND_IN}: layers in two groups of dispatch hooks, both on the CPU; several GPUs were not run here",
    ),
    Row("torch.compile before recording", "", "no: hooks are left out", "refused: it is compiled already", "", _RAN),
    Row("torch.compile while recording", "hooks stay outside", "yes", "exact", "passed", _RAN),
    Row(
        "`use_kernels=True` where it replaces the block",
        "",
        "no",
        "refused after the first forward: yielded no rows",
        "",
        f"{_STAND_IN}: a block that goes around its experts",
    ),
    Row(
        "expert parallelism",
        "a process holds some experts",
        "yes, but sees its own alone",
        "refused: under expert parallelism a process sees its own experts' choices only",
        "",
        f"{_STAND_IN}: a module marked so",
    ),
)


def refuse_unread_experts(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse experts that are in full precision in a model whose checkpoint packs modules one by one.

    transformers keeps the experts of a layer in one parameter. A loader that packs Linear modules finds no place for
    packed experts, warns, and leaves random ones: what they execute could be recorded exactly, and means nothing.

    Raises:
        UnsupportedModelError: naming the router, the format and what to do.
    """
    method, quantization = _read_quantization(model)
    if method not in _PACKED_ELSEWHERE or any("expert" in text or "mlp" in text for text in _texts(quantization)):
        return
    for site in sites:
        held = [one for one in site.experts.parameters() if one.dim() == 3]
        if held and all(one.is_floating_point() and one.element_size() > 1 for one in held):
            raise UnsupportedModelError(
                f"{site.where}: its checkpoint is packed ({method}), but its experts are in {_name(held[0].dtype)}, as "
                "where transformers could not read them and left random ones; load the original, an FP8 or an MXFP4 "
                "checkpoint. Experts that were left out of the packing are to be named in modules_to_not_convert"
            )


def write_tables() -> list[str]:
    """Return both tables as lines of Markdown."""
    return [
        "## Formats of checkpoints",
        "",
        "What holds for every one of them: what is recorded is what was executed, or recording is refused. *How* says "
        "whether that was seen by running it, or a stand-in.",
        "",
        *_table("format", "what becomes of the experts", FORMATS),
        "",
        "## Devices and ways to run",
        "",
        *_table("way", "what it does", DEVICES),
        "",
    ]


def _table(first: str, second: str, rows: Iterable[Row]) -> list[str]:
    return [
        f"| {first} | {second} | experts called | recorded | self-check | how |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.held} | {row.called} | {row.recorded} | {row.self_check} | {row.how} |"
            for row in rows
        ),
    ]


def _read_quantization(model: nn.Module) -> tuple[str | None, Mapping[str, Any]]:
    """Return the method by which a checkpoint is quantised, and all that its configuration says of it."""
    found = getattr(getattr(model, "config", None), "quantization_config", None)
    if found is None:
        return None, {}
    told: Mapping[str, Any] = found if isinstance(found, Mapping) else found.to_dict()
    method = told.get("quant_method")
    return str(getattr(method, "value", method)), told


def _texts(value: object) -> list[str]:
    """Return every piece of text in a configuration, keys included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    if isinstance(value, list | tuple | set):
        return [text for part in value for text in _texts(part)]
    return []


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
