"""Load a Mixture-of-Experts language model in 16, 8 or 4 bits, with its tokenizer and the truth about its precision.

Loading goes tensor by tensor, and a model that cannot fit is refused before its weights are read. Which modules are
routers is not known here: a dense model loads as well.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import Mxfp4Config

from moe_probe.errors import BadInputError, ModelTooLargeError, MoeProbeError, UnsupportedModelError
from moe_probe.models.fit import DeviceMap, Need, Placement, estimate, is_on_gpu, place
from moe_probe.models.packing import QUANTIZATIONS, check_available
from moe_probe.models.precision import Holding, PartPrecision, measure_precision
from moe_probe.models.quantise import PackedConfig, check_shapes, quantisable
from moe_probe.models.sources import (
    BUNDLED,
    Source,
    checkpoint_bytes,
    digest_source,
    find_source,
    first_line,
    load_tokenizer,
)

if TYPE_CHECKING:
    import polars

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_MXFP4 = "mxfp4"
_FP8 = "fp8"  # transformers keeps it packed on GPUs alone
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Origin:
    """What `load` was called with, in plain values: it can be sent to another process, which then loads the same.

    `model` is a hub id, the name of the bundled model, or a folder from the root; `revision` the commit on the hub.
    """

    model: str
    quantization: str | None
    dtype: str | torch.dtype
    device_map: DeviceMap
    revision: str | None
    trust_remote_code: bool
    experts_implementation: str | None

    def load(self, device_map: DeviceMap) -> LanguageModel:
        """Load it again, onto these devices; fails as `load` does."""
        return load(
            self.model,
            quantization=self.quantization,
            dtype=self.dtype,
            device_map=device_map,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            experts_implementation=self.experts_implementation,
        )


@dataclass(frozen=True)
class LanguageModel:
    """A model ready to be traced, with what is known about it.

    `tokenizer` is None where the model came without one. `name` is what the user typed, `revision` the commit that it
    stood for on the hub, `context` the number of tokens that the model was made for, `parts` how each part is held,
    `origin` what `load` was called with, None where it was not called.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str | None
    quantization: str | None
    context: int
    parts: tuple[PartPrecision, ...]
    digest: str
    origin: Origin | None = None

    @property
    def precision(self) -> polars.DataFrame:
        """Return a row a part: part, dtype, bits_per_parameter, bytes, parameters."""
        import polars

        return polars.DataFrame(self.precision_rows())

    def precision_rows(self) -> list[dict[str, str | int | float]]:
        """Return the rows of `precision` as plain values."""
        return [part.as_dict() for part in self.parts]

    @property
    def device(self) -> torch.device:
        """Return the device that token ids belong on."""
        embedding: torch.nn.Module = self.model.get_input_embeddings()
        devices = [parameter.device for parameter in (*embedding.parameters(), *self.model.parameters())]
        return next(device for device in devices if device.type != "meta")  # offloaded weights are there

    def fingerprint(self) -> str:
        """Return a digest, in hexadecimal, that changes with anything that could change a routing decision."""
        text = self.model.config.get_text_config()
        settings = (self.digest, self.quantization, str(self.model.dtype), text._experts_implementation)
        return hashlib.sha256(repr(settings).encode()).hexdigest()


def load(
    model: str | Path,
    *,
    quantization: str | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: DeviceMap = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    experts_implementation: str | None = None,
) -> LanguageModel:
    """Load a causal language model, ready to be traced.

    In 8 and 4 bits, experts, attention and dense layers are quantised; routers, the head, embeddings and norms never
    are. At most one layer is in full precision at a time while loading.

    Args:
        model: "tiny-mixtral" (comes with this package), a folder, or a hub id such as "mistralai/Mixtral-8x7B-v0.1".
        quantization: None, "8bit" or "4bit".
        dtype: what is computed in, and what is not quantised is held in: "auto" (bfloat16 on a GPU, float32 on a CPU),
            "float32", "bfloat16" or "float16".
        device_map: "auto" (the GPU with the most free memory, several GPUs if one is too small, the CPU if there is
            none), a device, or a map of module names to devices.
        revision: branch, tag or commit, for a hub id.
        trust_remote_code: run code that comes with the model. Off: such code could do anything.
        experts_implementation: how transformers computes the experts ("eager", "batched_mm", "grouped_mm"); its own
            choice if None. Quantised experts have one way only.

    Raises:
        BadInputError: an argument is wrong, or there is no such model.
        ModelTooLargeError: it does not fit; says what it needs, part by part, and what would fit.
        UnsupportedModelError: no causal language model, or experts that cannot be quantised.
        MoeProbeError: the hub cannot be reached, or the weights cannot be read.

    Example:
        >>> language_model = load("tiny-mixtral", quantization="4bit", device_map="cpu")
        >>> language_model.parts[0].dtype, language_model.parts[1].dtype, language_model.context
        ('nf4', 'float32', 1024)
    """
    _check_arguments(quantization, experts_implementation)
    source = find_source(model, revision)
    config = _read_config(source, trust_remote_code)
    compute_dtype = _choose_dtype(dtype, on_gpu=is_on_gpu(device_map))
    own = _own_quantization(config)
    if own is not None and quantization is not None:
        raise BadInputError(
            f"{source.name} is quantised already ({own}); leave quantization={quantization!r} out, or give the original"
        )
    dequantised = own == _MXFP4 or (own == _FP8 and not is_on_gpu(device_map))
    if own is None or dequantised:
        placement = _place(source, config, quantization, compute_dtype, device_map, trust_remote_code)
    else:  # what its own loader makes of it is not known here
        held = Holding("checkpoint", "other", str(own), checkpoint_bytes(source), 0)
        placement = place(source.name, Need(f"its own precision ({own})", (held,), 0), device_map, dict)
    options: dict[str, Any] = {"dtype": compute_dtype, "trust_remote_code": trust_remote_code}
    if quantization is not None:
        options["quantization_config"] = PackedConfig(quantization)
    elif own == _MXFP4:
        # Kernels for MXFP4 pass the experts module by, and with it whoever records there.
        options["quantization_config"] = Mxfp4Config(dequantize=True)
    if experts_implementation is not None:
        options["experts_implementation"] = experts_implementation
    loaded = _read_weights(source, placement, options, own)
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    return LanguageModel(
        model=loaded,
        tokenizer=tokenizer,
        name=source.name,
        revision=source.revision,
        quantization=quantization,
        context=_context(loaded, source),
        parts=measure_precision(loaded),
        digest=digest_source(source),
        origin=Origin(
            source.name if source.revision or source.name == BUNDLED else str(source.folder.absolute()),
            quantization,
            dtype,
            device_map,
            source.revision,
            trust_remote_code,
            experts_implementation,
        ),
    )


def _check_arguments(quantization: str | None, experts_implementation: str | None) -> None:
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise BadInputError(f"quantization={quantization!r}: use None (16 bits), '8bit' or '4bit'")
    if quantization is None:
        return
    check_available(quantization)
    if experts_implementation is not None:
        raise BadInputError(
            f"experts_implementation={experts_implementation!r}: quantised experts have one of their own; leave it out"
        )


def _choose_dtype(dtype: str | torch.dtype, *, on_gpu: bool) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if on_gpu else torch.float32
    chosen = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in _DTYPES.values():
        raise BadInputError(
            f"dtype={dtype!r}: use 'auto', {', '.join(map(repr, _DTYPES))}; for fewer bits quantization="
        )
    return chosen


def _read_config(source: Source, trust_remote_code: bool) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            source.location, trust_remote_code=trust_remote_code, **source.arguments
        )
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise BadInputError(
                f"{source.name} brings code of its own; if you have read it and trust it, pass trust_remote_code=True"
            ) from error
        raise UnsupportedModelError(f"{source.name}: {first_line(error)}") from error
    except OSError as error:
        raise BadInputError(f"{source.name}: its config.json cannot be read: {first_line(error)}") from error
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not remote and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{source.name}: transformers {transformers.__version__} has no causal language model of the type "
            f"{config.model_type!r}"
        )
    return config


def _own_quantization(config: PretrainedConfig) -> str | None:
    """Return how a checkpoint is quantised already, or None."""
    own = getattr(config, "quantization_config", None) or getattr(config.get_text_config(), "quantization_config", None)
    if own is None:
        return None
    method = own.get("quant_method") if isinstance(own, Mapping) else own.quant_method
    return str(getattr(method, "value", method))


def _place(
    source: Source,
    config: PretrainedConfig,
    quantization: str | None,
    dtype: torch.dtype,
    device_map: DeviceMap,
    trust_remote_code: bool,
) -> Placement:
    """Choose the devices; refuse what does not fit or cannot be quantised before its weights are read."""

    def skeleton(dtype: torch.dtype) -> PreTrainedModel:
        with torch.device("meta"), _no_noise():
            built: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                copy.deepcopy(config), dtype=dtype, trust_remote_code=trust_remote_code
            )
        return built

    model = skeleton(dtype)
    if quantization is not None:
        check_shapes(quantisable(model), quantization)
    need = estimate(model, quantization)

    def alternatives() -> dict[str, Need]:
        others: dict[str, Need] = {}
        if quantization is None and dtype == torch.float32:
            others["dtype='bfloat16'"] = estimate(skeleton(torch.bfloat16), None)
        for smaller in QUANTIZATIONS[QUANTIZATIONS.index(quantization) + 1 if quantization else 0 :]:
            try:
                others[f"quantization={smaller!r}"] = estimate(model, smaller)
            except UnsupportedModelError:  # its experts cannot be quantised, so this is no way out
                break
        return others

    return place(source.name, need, device_map, alternatives)


def _read_weights(source: Source, placement: Placement, options: dict[str, Any], own: str | None) -> PreTrainedModel:
    """Read the weights; a weight that is missing or of another shape would be random, so it is an error.

    `own` is how the checkpoint is quantised already.
    """
    try:
        with _one_tensor_at_a_time(), _no_noise():
            read: Any = AutoModelForCausalLM.from_pretrained(
                source.location,
                device_map=placement.device_map,
                max_memory=placement.max_memory,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **source.arguments,
                **options,
            )
    except SafetensorError as error:
        raise BadInputError(f"{source.name}: its weights are damaged ({error}); fetch them again") from error
    except torch.OutOfMemoryError as error:
        raise ModelTooLargeError(
            f"{source.name}: the GPU ran out of memory while loading ({first_line(error)}); use a smaller quantization="
        ) from error
    except OSError as error:
        raise MoeProbeError(f"{source.name}: its weights cannot be read: {first_line(error)}") from error
    except (ImportError, RuntimeError) as error:
        if own is None:
            raise
        raise UnsupportedModelError(
            f"{source.name} is quantised already ({own}), and transformers {transformers.__version__} cannot load it "
            f"here: {first_line(error)}; give the original"
        ) from error
    model: PreTrainedModel = read[0]
    report: dict[str, Any] = read[1]
    unread = {name for name in report["missing_keys"] if ".experts." in name}
    if own is not None and unread:
        raise UnsupportedModelError(
            f"{source.name}: its experts are not in the checkpoint in a form ({own}) that transformers "
            f"{transformers.__version__} reads: {_some(unread)} missing, and would be random; give the original, an "
            "FP8 or an MXFP4 checkpoint"
        )
    if report["missing_keys"]:
        raise BadInputError(
            f"{source.name}: {_some(report['missing_keys'])} not in the checkpoint; is it a {type(model).__name__}?"
        )
    if report["mismatched_keys"]:
        name, there, wanted = sorted(report["mismatched_keys"])[0]
        raise BadInputError(
            f"{source.name}: {name} is {tuple(there)} in the checkpoint, but config.json asks for {tuple(wanted)}"
        )
    if report["unexpected_keys"]:
        warnings.warn(f"{source.name}: {_some(report['unexpected_keys'])} in the checkpoint but not used", stacklevel=3)
    return model


def _some(names: set[str]) -> str:
    first = ", ".join(sorted(names)[:3])
    return f"{first} is" if len(names) == 1 else f"{len(names)} tensors ({first}{', …' if len(names) > 3 else ''}) are"


def _context(model: PreTrainedModel, source: Source) -> int:
    """Return the number of tokens that a model was made for."""
    config = model.config.get_text_config()
    lengths = [getattr(config, name, None) for name in _CONTEXT_NAMES]
    context = next((length for length in lengths if isinstance(length, int)), None)
    if context is None:
        raise UnsupportedModelError(
            f"{source.name}: config.json names no context length; add max_position_embeddings, the number of tokens "
            "that the model was trained for"
        )
    return context


@contextmanager
def _one_tensor_at_a_time() -> Iterator[None]:
    """Keep transformers from reading ahead with threads, which can hold every tensor of a checkpoint twice."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _no_noise() -> Iterator[None]:
    """Hide the report on missing weights, which `_read_weights` raises, and progress bars where nobody watches."""

    def hide(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(hide)
    shown = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.removeFilter(hide)
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
