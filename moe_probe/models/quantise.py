"""Load a checkpoint with its experts, attention and dense layers in 4 or 8 bits, one tensor at a time.

The loaders of transformers quantise `nn.Linear` alone and leave fused experts, nearly all of a Mixture of Experts, in
16 bits. Here the same loader is given a quantizer of our own under names of our own: nobody else's loading changes.
Routers, the head, embeddings and norms are never quantised. This module does not know which devices there are, nor how
much fits into them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightTransform,
)
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from moe_probe.errors import BadInputError, UnsupportedModelError
from moe_probe.models.packed_forward import EXPERTS_IMPLEMENTATION
from moe_probe.models.packing import BLOCK, Packed, PackedLinear, pack
from moe_probe.models.parts import find_parts

_FUSED_NAMES = ("gate_up_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Matrices:
    """The shape of a tensor that is to be quantised: how many matrices of how many rows and columns."""

    n_matrices: int
    rows: int
    columns: int


def quantisable(model: PreTrainedModel) -> dict[str, Matrices]:
    """Return the tensors that 4 and 8 bits apply to, by dotted name; weights may be on the meta device.

    Raises:
        UnsupportedModelError: if experts are held in a form that would silently stay in full precision.
    """
    parts = find_parts(model)
    found: dict[str, Matrices] = {}
    for module_name, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            full_name = f"{module_name}.{name}" if module_name else name
            part = parts.get(full_name, "head")  # a tied weight is listed under its other name
            if part == "experts" and tensor.dim() == 3:
                found[full_name] = _fused(module, full_name, tensor)
            elif type(module) is nn.Linear and name == "weight" and not _stays_precise(model, full_name, module, part):
                found[full_name] = Matrices(1, module.out_features, module.in_features)
    return found


def _fused(experts: nn.Module, name: str, tensor: Tensor) -> Matrices:
    if not hasattr(experts, "_apply_gate") or name.rpartition(".")[2] not in _FUSED_NAMES:
        raise UnsupportedModelError(
            f"{name}: experts held as {type(experts).__name__} cannot be quantised; "
            "load the model with quantization=None"
        )
    n_experts, first, second = tensor.shape
    return Matrices(n_experts, second, first) if experts.is_transposed else Matrices(n_experts, first, second)


def _stays_precise(model: PreTrainedModel, name: str, layer: nn.Linear, part: str) -> bool:
    """Say that a layer is never quantised: router, embedding, head, gate of a shared expert, or named by the model."""
    if part not in ("experts", "attention", "other"):
        return True
    config = model.config.get_text_config()
    n_experts = {getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")}
    precise = {*(model._keep_in_fp32_modules or []), *(model._keep_in_fp32_modules_strict or [])}
    return (part == "other" and layer.out_features in {1, *n_experts}) or not precise.isdisjoint(name.split("."))


def check_shapes(tensors: dict[str, Matrices], quantization: str) -> None:
    """Refuse tensors that cannot be cut into blocks.

    Raises:
        BadInputError: if a matrix for 4 bits is no whole number of blocks.
    """
    for name, matrices in tensors.items():
        if quantization == "4bit" and matrices.rows * matrices.columns % BLOCK:
            raise BadInputError(
                f"{name} is {matrices.rows} × {matrices.columns}: in 4 bits a matrix must hold a multiple of {BLOCK} "
                "weights; use quantization='8bit'"
            )


class PackedConfig(QuantizationConfigMixin):
    """What `from_pretrained(quantization_config=...)` takes to pack the weights in "4bit" or "8bit"."""

    def __init__(self, quantization: str) -> None:
        self.quantization = quantization
        self.quant_method = f"moe_probe_{quantization}"  # type: ignore[assignment]  # a registered name will do


class PackingQuantizer(HfQuantizer):
    """Packs tensors while transformers reads a checkpoint. One object a load."""

    def __init__(self, quantization_config: PackedConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.quantization = quantization_config.quantization
        self.tensors: dict[str, Matrices] = {}
        self.packed: dict[str, Packed] = {}

    @property
    def quantized_element_size(self) -> float:
        """Bytes a weight, for planning which layer goes to which GPU."""
        return 0.55 if self.quantization == "4bit" else 1.01

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **_: Any) -> bool:
        """Say that a tensor is to be packed."""
        return param_name in self.tensors

    def validate_environment(self, *_: Any, device_map: Any = None, **__: Any) -> None:
        """Refuse to leave packed weights on a disk, or to shuttle them between devices.

        Raises:
            BadInputError: if the map names a disk, or both the CPU and another device.
        """
        devices = {str(device) for device in device_map.values()} if isinstance(device_map, dict) else set()
        if "disk" in devices or (len(devices) > 1 and "cpu" in devices):
            raise BadInputError(
                f"device_map spreads the model over {', '.join(sorted(devices))}: a quantised model must lie on GPUs "
                "alone or on the CPU alone"
            )

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        self.tensors = quantisable(model)
        fused = False
        for name in self.tensors:
            module_name = name.rpartition(".")[0]
            module = model.get_submodule(module_name)
            if isinstance(module, nn.Linear):
                model.set_submodule(module_name, PackedLinear(module))
            else:
                fused = True
        if fused:
            model.set_experts_implementation(EXPERTS_IMPLEMENTATION)
        return model

    def update_weight_conversions(
        self, weight_conversions: list[WeightTransform], model: PreTrainedModel
    ) -> list[WeightTransform]:
        """Make converters that merge experts merge and pack them one by one."""
        return [_one_by_one(conversion, self) for conversion in weight_conversions]

    def get_quantize_ops(self) -> ConversionOps:
        """Return what packs a tensor that was read or merged whole."""
        return PackTensor(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        for name, packed in self.packed.items():
            module_name, tensor = name.rsplit(".", maxsplit=1)
            module = model.get_submodule(module_name)
            delattr(module, tensor)
            module.add_module("packed" if isinstance(module, PackedLinear) else tensor, packed)
        self.packed = {}
        return model

    def is_serializable(self) -> bool:
        """Say that a packed model is not meant to be saved: it is loaded from its checkpoint again."""
        return False

    @property
    def is_trainable(self) -> bool:
        """Say that a packed model is not meant to be trained."""
        return False


for _quantization in ("4bit", "8bit"):
    register_quantizer(f"moe_probe_{_quantization}")(PackingQuantizer)


class PackTensor(ConversionOps):
    """Packs one tensor of a checkpoint, expert by expert if it holds several."""

    def __init__(self, quantizer: PackingQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """Return the codes of each tensor by its name; the loader puts them where the tensor was."""
        model: PreTrainedModel = kwargs["model"]
        codes: dict[str, Any] = {}
        for name, value in input_dict.items():
            tensor: Any = value[0] if isinstance(value, list) else value
            matrices = self.quantizer.tensors[name]
            if not isinstance(tensor, nn.Module):  # else PackExperts has packed it while merging
                experts = model.get_submodule(name.rpartition(".")[0])
                stack = tensor if tensor.dim() == 3 else tensor.unsqueeze(0)
                each = (_oriented(experts, stack[index]) for index in range(matrices.n_matrices))
                tensor = pack(each, matrices.n_matrices, self.quantizer.quantization)
            self.quantizer.packed[name] = tensor
            codes[name] = tensor.codes
        return codes


class PackExperts(ConversionOps):
    """Does what a converter does, but for one expert at a time, and packs each before the next is touched."""

    def __init__(self, operations: list[ConversionOps], quantizer: PackingQuantizer) -> None:
        self.operations = operations
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """Return the packed experts under the name that the converter's last operation gives them."""
        name: str = kwargs["full_layer_name"]
        experts = kwargs["model"].get_submodule(name.rpartition(".")[0])
        n_experts = self.quantizer.tensors[name].n_matrices
        names: list[str] = []

        def merged() -> Iterator[Tensor]:
            for index in range(n_experts):
                values: dict[str, Any] = {}
                for source, tensors in input_dict.items():
                    values[source] = [tensors[index]]
                    tensors[index] = None  # free it as soon as it is merged
                for operation in self.operations:
                    values = operation.convert(values, source_patterns, target_patterns, **kwargs)
                ((target, tensor),) = values.items()
                names[:] = [target]
                yield _oriented(experts, tensor[0])

        packed = pack(merged(), n_experts, self.quantizer.quantization)
        return {names[0]: packed}


def _oriented(experts: nn.Module, weight: Tensor) -> Tensor:
    """Return a matrix as (outputs, inputs), whichever way its module keeps it."""
    return weight.T if getattr(experts, "is_transposed", False) else weight


def _one_by_one(conversion: WeightTransform, quantizer: PackingQuantizer) -> WeightTransform:
    if not isinstance(conversion, WeightConverter) or not _is_merge_of_experts(conversion, quantizer):
        return conversion
    return conversion.copy(
        conversion._original_source_patterns,
        conversion._original_target_patterns,
        operations=[PackExperts(conversion.operations, quantizer)],
    )


def _is_merge_of_experts(converter: WeightConverter, quantizer: PackingQuantizer) -> bool:
    """Say that a converter treats each expert alone, so that doing them one by one gives the same."""
    merge, *rest = converter.operations
    alone = all(
        (isinstance(operation, Concatenate) and operation.dim > 0)
        or (isinstance(operation, Transpose) and min(operation.dim0, operation.dim1) > 0)
        for operation in rest
    )
    target = converter._original_target_patterns[0]
    return (
        isinstance(merge, MergeModulelist)
        and merge.dim == 0
        and alone
        and len(converter._original_target_patterns) == 1
        and any(name.endswith(target) for name in quantizer.tensors)
    )
