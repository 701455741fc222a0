"""Matrices held in 4 or 8 bits, and a dense layer that multiplies by one.

4 bits: NormalFloat-4 in blocks of 64 with the absolute maxima themselves in 8 bits ("double quantisation", QLoRA,
arXiv 2305.14314), in the very bits that bitsandbytes writes; 4.13 bits a parameter. 8 bits: one absolute maximum a row,
the weights of LLM.int8() (arXiv 2208.07339); 8 bits and a 32-bit statistic a row. A product is that of the dequantised
weights, in the precision of the input: inputs are never quantised and no outlier is treated apart, so that a token's
result does not hang on which other tokens share its batch.

All experts of a layer share one tensor of codes and one of each statistic, instead of a module and five tensors an
expert. This module does not know how a checkpoint is read, which tensors of a model are to be packed, nor what an
expert does with its matrices (`packed_forward`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from moe_probe.errors import BadInputError

QUANTIZATIONS = ("8bit", "4bit")

BLOCK = 64
"""Weights that share one absolute maximum in 4 bits."""
_BATCHED_BYTES = 2**26
"""Chosen matrices larger than this together are not dequantised on a GPU: its fused kernel reads their codes."""
_ABSMAX_BLOCK = 256
_INT8_MAX = 127.0


@functools.cache
def _bitsandbytes() -> Any:
    """Return bitsandbytes.functional, imported without its note on a CPU kernel that is not used here."""

    def hide(record: logging.LogRecord) -> bool:
        return "gemm_4bit_forward" not in record.getMessage()

    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addFilter(hide)
    try:
        import bitsandbytes
    except ImportError as error:
        raise BadInputError(
            f"quantization='4bit' needs bitsandbytes, which cannot be imported ({error}); "
            "install it (pip install bitsandbytes) or use quantization='8bit'"
        ) from error
    finally:
        logger.removeFilter(hide)
    return bitsandbytes


def check_available(quantization: str) -> None:
    """Refuse a quantization whose library is missing.

    Raises:
        BadInputError: if 4 bits are asked for and bitsandbytes cannot be imported.
    """
    if quantization == "4bit":
        _bitsandbytes()


@functools.cache
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the 16 values of a 4-bit code and the 256 of an 8-bit absolute maximum, float32."""
    f = _bitsandbytes().functional
    return f.get_4bit_type("nf4", device=device), f.create_dynamic_map().to(device)


def scratch_bytes(device: torch.device) -> int:
    """Return how many bytes of weights several experts may take in full precision together: on a CPU what it caches."""
    return 2**22 if device.type == "cpu" else 2**29


class Nf4Matrices(nn.Module):
    """Matrices of one shape in NormalFloat-4, filled one by one with `put`."""

    dtype_name = "nf4"
    codes: Tensor  # (matrices, rows * columns / 2) uint8, two codes a byte
    absmax: Tensor  # (matrices, blocks) uint8
    absmax_scale: Tensor  # (matrices, blocks / 256) float32
    absmax_offset: Tensor  # (matrices,) float32

    def __init__(self, n_matrices: int, rows: int, columns: int, device: torch.device) -> None:
        super().__init__()
        self.shape = (rows, columns)
        self.n_parameters = n_matrices * rows * columns
        n_blocks = rows * columns // BLOCK
        n_scales = -(-n_blocks // _ABSMAX_BLOCK)
        empty = functools.partial(torch.empty, device=device)
        self.register_buffer("codes", empty((n_matrices, rows * columns // 2), dtype=torch.uint8))
        self.register_buffer("absmax", empty((n_matrices, n_blocks), dtype=torch.uint8))
        self.register_buffer("absmax_scale", empty((n_matrices, n_scales), dtype=torch.float32))
        self.register_buffer("absmax_offset", empty((n_matrices,), dtype=torch.float32))

    def put(self, matrix: int, weight: Tensor) -> None:
        """Quantise `weight` (rows, columns) into place `matrix`."""
        codes, state = _bitsandbytes().functional.quantize_4bit(
            weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4"
        )
        self.codes[matrix] = codes.view(-1)
        self.absmax[matrix] = state.absmax
        self.absmax_scale[matrix] = state.state2.absmax
        self.absmax_offset[matrix] = state.offset

    def multiply(self, hidden: Tensor, matrix: int, bias: Tensor | None = None) -> Tensor:
        """Return `hidden` (..., columns) times the transpose of a matrix, plus `bias` (rows,): (..., rows)."""
        if not self._has_fused_kernel(hidden):
            return functional.linear(hidden, self.dequantise(matrix, hidden.dtype), bias)
        state = self._state(matrix, self.shape, hidden.dtype)
        product: Tensor = _bitsandbytes().matmul_4bit(
            hidden, self.codes[matrix].view(-1, 1), quant_state=state, bias=bias
        )
        return product

    def dequantise(self, matrix: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (rows, columns) that `multiply` stands for."""
        # Blocks run on from row to row. The CPU kernel believes that a row ends with a block and gives wrong numbers
        # where it does not (bitsandbytes 0.50), so it is shown rows of one block each.
        blocks = (self.shape[0] * self.shape[1] // BLOCK, BLOCK)
        weight: Tensor = _bitsandbytes().functional.dequantize_4bit(
            self.codes[matrix].view(-1, 1), self._state(matrix, blocks, dtype)
        )
        return weight.view(self.shape)

    def dequantise_many(self, matrices: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrices (n, rows, columns) of a slice or of indices (n,); the host does not wait for a GPU."""
        codes, absmax = self.codes[matrices], self._absmaxima(matrices)
        state = self._plain_state(absmax.view(-1), (absmax.numel(), BLOCK), dtype)
        weight: Tensor = _bitsandbytes().functional.dequantize_4bit(codes.view(-1, 1), state)
        return weight.view(-1, *self.shape)

    def multiply_each(self, hidden: Tensor, matrices: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return each row of `hidden` (n, columns) times the transpose of its own matrix: (n, rows).

        The host does not wait for a GPU, and what is launched there follows from the shapes alone.

        Args:
            hidden: (n, columns).
            matrices: (n,), the index of each row's matrix, on the same device.
            bias: (n, rows), added to the products.
        """
        if not self._has_fused_kernel(hidden) or hidden.nbytes * self.shape[0] <= _BATCHED_BYTES:
            return _multiply_each(self, hidden, matrices, bias)
        codes, absmax = self.codes[matrices], self._absmaxima(matrices)
        products = [
            _bitsandbytes().matmul_4bit(
                hidden[row : row + 1],
                codes[row].view(-1, 1),
                quant_state=self._plain_state(absmax[row], self.shape, hidden.dtype),
                bias=None if bias is None else bias[row],
            )
            for row in range(len(hidden))
        ]
        return torch.cat(products)

    def _has_fused_kernel(self, hidden: Tensor) -> bool:
        return hidden.device.type == "cuda" and self.shape[1] % BLOCK == 0

    def _absmaxima(self, matrices: Tensor | slice) -> Tensor:
        """Return the absolute maxima (n, blocks), float32, out of their own 8 bits."""
        absmax, scale = self.absmax[matrices], self.absmax_scale[matrices]
        scales = scale.repeat_interleave(_ABSMAX_BLOCK, dim=1)[:, : absmax.shape[1]]
        values = _tables(absmax.device)[1]
        return values[absmax.int()] * scales + self.absmax_offset[matrices].unsqueeze(1)

    def _plain_state(self, absmax: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Any:
        return _bitsandbytes().functional.QuantState(
            absmax=absmax,
            shape=torch.Size(shape),
            code=_tables(absmax.device)[0],
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )

    def _state(self, matrix: int, shape: tuple[int, int], dtype: torch.dtype) -> Any:
        f = _bitsandbytes().functional
        codes, absmaxima = _tables(self.codes.device)
        outer = f.QuantState(
            absmax=self.absmax_scale[matrix], blocksize=_ABSMAX_BLOCK, code=absmaxima, dtype=torch.float32
        )
        return f.QuantState(
            absmax=self.absmax[matrix],
            shape=torch.Size(shape),
            code=codes,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
            offset=self.absmax_offset[matrix],
            state2=outer,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        moved: nn.Module = super()._apply(_moves_only(fn), recurse)  # type: ignore[no-untyped-call]
        return moved


class Int8Matrices(nn.Module):
    """Matrices of one shape in 8 bits, filled one by one with `put`."""

    dtype_name = "int8"
    codes: Tensor  # (matrices, rows, columns) int8
    absmax: Tensor  # (matrices, rows) float32

    def __init__(self, n_matrices: int, rows: int, columns: int, device: torch.device) -> None:
        super().__init__()
        self.shape = (rows, columns)
        self.n_parameters = n_matrices * rows * columns
        self.register_buffer("codes", torch.empty((n_matrices, rows, columns), dtype=torch.int8, device=device))
        self.register_buffer("absmax", torch.empty((n_matrices, rows), dtype=torch.float32, device=device))

    def put(self, matrix: int, weight: Tensor) -> None:
        """Quantise `weight` (rows, columns) into place `matrix`."""
        absmax = weight.abs().amax(dim=1).float()
        # A row of zeros has no scale; any does, its codes are zero.
        scale = _INT8_MAX / absmax.clamp(min=1e-30)
        self.codes[matrix] = torch.mul(weight, scale.unsqueeze(1)).round_().to(torch.int8)
        self.absmax[matrix] = absmax

    def multiply(self, hidden: Tensor, matrix: int, bias: Tensor | None = None) -> Tensor:
        """Return `hidden` (..., columns) times the transpose of a matrix, plus `bias` (rows,): (..., rows)."""
        if hidden.dtype == torch.float16:  # sums of whole codes would run over its largest value, 65504
            return functional.linear(hidden, self.dequantise(matrix, hidden.dtype), bias)
        # Codes up to 127 are exact in bfloat16 and float32, and scaling the product is cheaper than the weights.
        product = functional.linear(hidden, self.codes[matrix].to(hidden.dtype))
        product = product * (self.absmax[matrix] / _INT8_MAX)
        return (product if bias is None else product + bias).to(hidden.dtype)

    def dequantise(self, matrix: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrix (rows, columns) that `multiply` stands for."""
        return torch.mul(self.codes[matrix], (self.absmax[matrix] / _INT8_MAX).unsqueeze(1)).to(dtype)

    def dequantise_many(self, matrices: Tensor | slice, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the matrices (n, rows, columns) of a slice or of indices (n,); the host does not wait for a GPU."""
        return torch.mul(self.codes[matrices], (self.absmax[matrices] / _INT8_MAX).unsqueeze(2)).to(dtype)

    def multiply_each(self, hidden: Tensor, matrices: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return each row of `hidden` (n, columns) times the transpose of its own matrix; see `Nf4Matrices`."""
        return _multiply_each(self, hidden, matrices, bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        moved: nn.Module = super()._apply(_moves_only(fn), recurse)  # type: ignore[no-untyped-call]
        return moved


Packed = Nf4Matrices | Int8Matrices


def _multiply_each(packed: Packed, hidden: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """Dequantise the matrices of some rows at a time and multiply them in one batch."""
    rows, columns = packed.shape
    n_at_once = max(1, scratch_bytes(hidden.device) // (rows * columns * hidden.element_size()))
    products = [
        torch.bmm(packed.dequantise_many(matrices[some], hidden.dtype), hidden[some].unsqueeze(2)).squeeze(2)
        for some in (slice(start, start + n_at_once) for start in range(0, len(hidden), n_at_once))
    ]
    product = products[0] if len(products) == 1 else torch.cat(products)
    return product if bias is None else product + bias


def _moves_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Keep of `model.to(...)` the move and not the cast: rounded statistics would be other weights."""
    return lambda tensor: tensor.to(fn(tensor).device)


def pack(matrices: Iterable[Tensor], n_matrices: int, quantization: str) -> Packed:
    """Quantise matrices (rows, columns) of one shape, each asked for only when the one before is done.

    Example:
        >>> packed = pack([torch.eye(2), 2 * torch.eye(2)], 2, "8bit")
        >>> packed.multiply(torch.tensor([[1.0, 3.0]]), 1)
        tensor([[2., 6.]])
    """
    kind = Nf4Matrices if quantization == "4bit" else Int8Matrices
    packed: Packed | None = None
    for index, weight in enumerate(matrices):
        if packed is None:
            packed = kind(n_matrices, weight.shape[0], weight.shape[1], weight.device)
        packed.put(index, weight)
        del weight
    assert packed is not None, "no matrix to pack"
    return packed


def packed_bytes(n_matrices: int, rows: int, columns: int, quantization: str) -> int:
    """Return what matrices take with their statistics once packed.

    Example:
        >>> round(8 * packed_bytes(8, 28672, 4096, "4bit") / (8 * 28672 * 4096), 3)  # bits a parameter
        4.127
    """
    kind = Nf4Matrices if quantization == "4bit" else Int8Matrices
    return sum(buffer.nbytes for buffer in kind(n_matrices, rows, columns, torch.device("meta")).buffers())


class PackedLinear(nn.Module):
    """A dense layer on a packed matrix. `weight` is there while a checkpoint is read; then `packed` takes its place."""

    packed: Packed

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output for `hidden` (..., in_features): (..., out_features)."""
        return self.packed.multiply(hidden, 0, self.bias)

    def extra_repr(self) -> str:
        """Describe the layer in a printed model."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
