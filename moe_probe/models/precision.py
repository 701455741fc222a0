"""The truth about a model's precision, part by part: the types, bits and bytes that its weights are really held in.

It looks at the tensors themselves, never at what was asked for. For a model on the meta device it tells what they would
take once quantised. It does not know devices, nor how a model is loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from moe_probe.models.packing import Int8Matrices, Nf4Matrices, packed_bytes
from moe_probe.models.parts import PARTS, find_parts
from moe_probe.models.quantise import Matrices

_PACKED_NAMES = {"4bit": Nf4Matrices.dtype_name, "8bit": Int8Matrices.dtype_name}


@dataclass(frozen=True)
class Holding:
    """One tensor of a model, or one set of packed matrices with their statistics."""

    name: str
    part: str
    dtype: str
    bytes: int
    parameters: int


@dataclass(frozen=True)
class PartPrecision:
    """How one part of a model is held.

    `dtype` is the type of most of its parameters: "nf4", "int8", "bfloat16", … ; "tied" where its weights are counted
    under another part; "none" where it has none. `bits_per_parameter` counts everything that the part needs,
    statistics of the quantisation included; 0 where there are no parameters. `parameters` are those of the unquantised
    model.
    """

    part: str
    dtype: str
    bits_per_parameter: float
    bytes: int
    parameters: int

    def as_dict(self) -> dict[str, str | int | float]:
        """Return the fields as plain values, for JSON."""
        return asdict(self)


def holdings(
    model: PreTrainedModel, plan: Mapping[str, Matrices] | None = None, quantization: str | None = None
) -> list[Holding]:
    """List what a model holds; tied weights once.

    Args:
        model: loaded, or on the meta device.
        plan: tensors to count as if they were quantised already.
        quantization: "8bit" or "4bit", what `plan` would be quantised to.
    """
    parts = find_parts(model)
    found: list[Holding] = []
    parameters = {id(parameter) for parameter in model.parameters()}
    for module_name, module in model.named_modules():
        prefix = f"{module_name}." if module_name else ""
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        tensors = [(f"{prefix}{name}", tensor) for name, tensor in tensors if f"{prefix}{name}" in parts]
        if isinstance(module, (Nf4Matrices, Int8Matrices)):
            size = sum(tensor.nbytes for _, tensor in tensors)
            part = parts[tensors[0][0]]
            found.append(Holding(module_name, part, module.dtype_name, size, module.n_parameters))
            continue
        for name, tensor in tensors:
            if plan is not None and quantization is not None and name in plan:
                shape = plan[name]
                size = packed_bytes(shape.n_matrices, shape.rows, shape.columns, quantization)
                found.append(Holding(name, parts[name], _PACKED_NAMES[quantization], size, tensor.numel()))
            else:
                found.append(_plain(name, parts[name], tensor, is_parameter=id(tensor) in parameters))
    return found


def _plain(name: str, part: str, tensor: Tensor, *, is_parameter: bool) -> Holding:
    """Return what one tensor of torch, or one that bitsandbytes quantised when the checkpoint was made, holds."""
    held: Any = tensor
    if type(tensor).__name__ == "Params4bit" and held.quant_state is not None:
        state = held.quant_state
        statistics = [state.absmax, state.code, *([state.offset, state.state2.absmax] if state.nested else [])]
        size = tensor.nbytes + sum(statistic.nbytes for statistic in statistics)
        return Holding(name, part, state.quant_type, size, prod(state.shape))
    if type(tensor).__name__ == "Int8Params" and held.SCB is not None:
        return Holding(name, part, "int8", tensor.nbytes + held.SCB.nbytes, tensor.numel())
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Holding(name, part, dtype, tensor.nbytes, tensor.numel() if is_parameter else 0)


def summarise(held: Iterable[Holding], *, tied_head: bool = False) -> tuple[PartPrecision, ...]:
    """Return one row a part, in the order of `PARTS`.

    Example:
        >>> rows = summarise([Holding("a", "experts", "nf4", 66, 128), Holding("b", "experts", "bfloat16", 4, 2)])
        >>> rows[0]
        PartPrecision(part='experts', dtype='nf4', bits_per_parameter=4.3076923076923075, bytes=70, parameters=130)
    """
    held = list(held)
    rows = []
    for part in PARTS:
        own = [holding for holding in held if holding.part == part]
        parameters = sum(holding.parameters for holding in own)
        size = sum(holding.bytes for holding in own)
        by_dtype: Counter[str] = Counter()
        for holding in own:
            by_dtype[holding.dtype] += holding.parameters
        nothing = "tied" if part == "head" and tied_head else "none"
        dtype = by_dtype.most_common(1)[0][0] if parameters else nothing
        rows.append(PartPrecision(part, dtype, 8 * size / parameters if parameters else 0.0, size, parameters))
    return tuple(rows)


def measure_precision(model: PreTrainedModel) -> tuple[PartPrecision, ...]:
    """Return how each part of a loaded model is held.

    Example:
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=8)
        >>> measure_precision(MixtralForCausalLM(config))[1]
        PartPrecision(part='router', dtype='float32', bits_per_parameter=32.0, bytes=2048, parameters=512)
    """
    return summarise(holdings(model), tied_head=has_tied_head(model))


def has_tied_head(model: PreTrainedModel) -> bool:
    """Say that the head multiplies by the embedding's own weights."""
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: nn.Module | None = model.get_input_embeddings()
    weights = [getattr(module, "weight", None) for module in (head, embedding)]
    return weights[0] is not None and weights[0] is weights[1]
