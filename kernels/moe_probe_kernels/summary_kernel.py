# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""The Triton kernel of `summary`: one launch for all layers; a program takes a block of one layer's tokens.

Experts lie in the columns of a tile, a group of experts in a power of two of them, so that columns may be empty.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from moe_probe_kernels.choosing import is_interpreted
from moe_probe_kernels.scoring import ACTIVATIONS, LOWEST, Scoring, Summary

_TILE = 1024
"""Elements of a program's tile: with 4 warps 8 a thread; with 4,096 it took a minute to compile, not 5 seconds."""

_INTERPRETED_TILE = 2**15
_NARROW: dict[torch.dtype | None, int] = {torch.float16: 1, torch.bfloat16: 2}
_WIDE = 3
"""Types as the kernel knows them: 0 says nothing of the type, and what is wide is not rounded."""

_NOT_A_NUMBER = tl.constexpr(0x7FC00000)
_LOWEST = tl.constexpr(LOWEST)
_BITS = tl.constexpr(1 / math.log(2))


@triton.jit
def _softplus(x):
    """ln(1 + eˣ), as exact where eˣ is small: the error of 1 + eˣ is the same above and below."""
    power = tl.exp(tl.where(x > 20, 0.0, x))
    more = 1.0 + power
    return tl.where(x > 20, x, tl.where(more == 1.0, power, tl.log(more) * (power / (more - 1.0))))


@triton.jit
def _activate_one(x, top, total, ACTIVATION: tl.constexpr):
    """Activated logits (rows, any), given the highest logit and the sum of exponentials of each row."""
    if ACTIVATION == 0:
        shifted = x - top[:, None]
        shifted = tl.where(shifted < _LOWEST, _LOWEST, shifted)  # not a maximum, which would lose a NaN
        activated = tl.exp(shifted) / total[:, None]
    elif ACTIVATION == 1:
        activated = 1.0 / (1.0 + tl.exp(-x))
    else:
        activated = tl.sqrt(_softplus(x))
    return activated


@triton.jit
def _activate(x, real, ACTIVATION: tl.constexpr):
    """Activated logits (rows, columns), their entropy in bits, and what `_activate_one` needs (rows,)."""
    if ACTIVATION == 0:
        top = tl.max(x, axis=1)
        shifted = x - top[:, None]
        shifted = tl.where(shifted < _LOWEST, _LOWEST, shifted)
        activated = tl.where(real, tl.exp(shifted), 0.0)
        total = tl.sum(activated, axis=1)
        entropy = tl.log(total) - tl.sum(tl.where(real, activated * shifted, 0.0), axis=1) / total
        activated = activated / total[:, None]
    else:
        top = tl.zeros((x.shape[0],), tl.float32)
        activated = tl.where(real, _activate_one(x, top, top, ACTIVATION), 0.0)
        total = tl.sum(activated, axis=1)
        terms = tl.where(activated > 0, activated * tl.log(activated), 0.0)
        entropy = tl.log(total) - tl.sum(terms, axis=1) / total
    return activated, entropy * _BITS, top, total


@triton.jit
def _rounded(x, TO: tl.constexpr):
    """As float16 (1) or bfloat16 (2) would hold it, in float32."""
    if TO == 1:
        x = x.to(tl.float16).to(tl.float32)
    elif TO == 2:
        # To the nearest, and of two the even one, by hand: Triton's interpreter cuts off.
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = tl.where(x != x, x, bits.to(tl.uint32).to(tl.float32, bitcast=True))
    return x


@triton.jit
def _selection(x, activated, ACTIVATION: tl.constexpr, OF_LOGITS: tl.constexpr, IN_TYPE: tl.constexpr):
    """Selection scores before a bias; `IN_TYPE` is the type that they are made in."""
    if IN_TYPE > 0 and ACTIVATION == 2:  # two operations, each of which rounds
        selection = _rounded(tl.sqrt(_rounded(_softplus(x), IN_TYPE)), IN_TYPE)
    elif IN_TYPE > 0:
        selection = _rounded(activated, IN_TYPE)
    elif OF_LOGITS:
        selection = x
    else:
        selection = activated
    return selection


@triton.jit
def _kept_groups(
    selection,
    executed,
    BLOCK: tl.constexpr,
    GROUP_COLUMNS: tl.constexpr,
    PLACE_COLUMNS: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
):
    """Which groups are kept, (rows, columns); `executed` says which columns were."""
    left = tl.reshape(selection, (BLOCK, GROUP_COLUMNS, PLACE_COLUMNS))
    place = tl.arange(0, PLACE_COLUMNS)[None, None, :]
    score = tl.zeros((BLOCK, GROUP_COLUMNS), tl.float32)
    for _ in tl.static_range(BEST):
        best = tl.max(left, axis=2)
        score += best
        first = tl.min(tl.where(left == best[:, :, None], place, PLACE_COLUMNS), axis=2)
        left = tl.where(place == first[:, :, None], float("-inf"), left)
    used = tl.max(tl.reshape(executed.to(tl.int32), (BLOCK, GROUP_COLUMNS, PLACE_COLUMNS)), axis=2)
    number = tl.arange(0, GROUP_COLUMNS)
    lower = number[None, None, :] < number[None, :, None]
    other, own = score[:, None, :], score[:, :, None]
    other_used, own_used = used[:, None, :], used[:, :, None]
    tie = (other == own) & ((other_used > own_used) | ((other_used == own_used) & lower))
    before = tl.sum(((other > own) | tie).to(tl.int32), axis=2)
    kept = tl.broadcast_to((before < KEPT)[:, :, None], (BLOCK, GROUP_COLUMNS, PLACE_COLUMNS))
    return tl.reshape(kept, (BLOCK, GROUP_COLUMNS * PLACE_COLUMNS))


@triton.jit
def summary_kernel(
    logits,
    ids,
    bias,
    weights,
    keep,
    entropy_out,
    margin_out,
    share_error_out,
    histogram_out,
    n_tokens,
    EXPERTS: tl.constexpr,
    SLOTS: tl.constexpr,
    SLOT_COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_COLUMNS: tl.constexpr,
    PLACE_COLUMNS: tl.constexpr,
    KEPT: tl.constexpr,
    BEST: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OF_LOGITS: tl.constexpr,
    OF_PROBABILITIES: tl.constexpr,
    SKIPS: tl.constexpr,
    IN_TYPE: tl.constexpr,
    SUM_IN_TYPE: tl.constexpr,
    ROUNDED_TO: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_KEEP: tl.constexpr,
    DROPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """See `summary.summarise`; optional tensors are any pointer where their flag is not set."""
    PLACES: tl.constexpr = EXPERTS // GROUPS
    layer = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < n_tokens
    token = layer * n_tokens + row
    column = tl.arange(0, GROUP_COLUMNS * PLACE_COLUMNS)
    real = ((column // PLACE_COLUMNS < GROUPS) & (column % PLACE_COLUMNS < PLACES))[None, :]
    expert = (column // PLACE_COLUMNS * PLACES + column % PLACE_COLUMNS)[None, :]
    lowest = float("-inf")

    x = tl.load(logits + token[:, None] * EXPERTS + expert, mask=inside[:, None] & real, other=0.0).to(tl.float32)
    if OF_PROBABILITIES:
        x = tl.log(x)
    x = tl.where(real, x, lowest)
    activated, entropy, top, total = _activate(x, real, ACTIVATION)
    tl.store(entropy_out + token, entropy, mask=inside)

    selection = _selection(x, activated, ACTIVATION, OF_LOGITS, IN_TYPE)
    if HAS_BIAS:
        more = tl.load(bias + layer * EXPERTS + expert, mask=real, other=0.0)
        selection = _rounded(selection + more.to(tl.float32), SUM_IN_TYPE)
    selection = _rounded(selection, ROUNDED_TO)
    unknown = tl.max(((selection != selection) & real).to(tl.int32), axis=1) > 0
    selection = tl.where(real, selection, lowest)

    counted = inside
    if HAS_KEEP:
        counted = inside & (tl.load(keep + row, mask=inside, other=0) != 0)
    slot = tl.arange(0, SLOT_COLUMNS)[None, :]
    filled = inside[:, None] & (slot < SLOTS)
    given = tl.load(ids + token[:, None] * SLOTS + slot, mask=filled, other=-1).to(tl.int32)
    COUNTED: tl.constexpr = EXPERTS - 1 if SKIPS else EXPERTS
    exists = filled & counted[:, None] & (given >= 0) & (given < COUNTED)
    tl.atomic_add(histogram_out + layer * COUNTED + given, 1, mask=exists, sem="relaxed")

    # Which columns were executed: a loop, not unrolled, over what one instruction a column finds.
    executed = (column[None, :] < 0) & inside[:, None]
    highest = tl.full((BLOCK,), -1, tl.int32)
    for number in range(SLOTS):
        nearest = tl.load(ids + token * SLOTS + number, mask=inside, other=-1).to(tl.int32)
        nearest = tl.minimum(nearest, EXPERTS - 1)
        if SKIPS:
            nearest = tl.where(nearest < 0, EXPERTS - 1, nearest)
        elif not DROPS:
            nearest = tl.maximum(nearest, 0)
        executed = executed | ((expert == nearest[:, None]) & real)
        highest = tl.maximum(highest, nearest)

    if GROUPS > 1:
        kept = _kept_groups(selection, executed, BLOCK, GROUP_COLUMNS, PLACE_COLUMNS, KEPT, BEST)
        selection = tl.where(kept, selection, lowest)
    if DROPS and not SKIPS:
        best = tl.max(selection, axis=1)
        first = tl.min(tl.where((selection == best[:, None]) & real, expert, EXPERTS), axis=1)
        highest = tl.where(highest < 0, first, highest)
        executed = executed | ((expert == highest[:, None]) & real)
    chosen = tl.min(tl.where(executed, selection, float("inf")), axis=1)
    passed_over = tl.max(tl.where(executed, lowest, selection), axis=1)
    margin = tl.where(unknown, float("nan"), chosen - passed_over)
    tl.store(margin_out + token, margin, mask=inside)

    if HAS_WEIGHTS:
        nearest = tl.minimum(given, EXPERTS - 1)
        if SKIPS:
            nearest = tl.where(nearest < 0, EXPERTS - 1, nearest)
        elif DROPS:
            nearest = tl.where(nearest < 0, highest[:, None], nearest)
        else:
            nearest = tl.maximum(nearest, 0)
        share = tl.load(logits + token[:, None] * EXPERTS + nearest, mask=filled, other=0.0).to(tl.float32)
        if OF_PROBABILITIES:
            share = tl.log(share)
        share = tl.where(filled, _activate_one(share, top, total, ACTIVATION), 0.0)
        weight = tl.load(weights + token[:, None] * SLOTS + slot, mask=filled, other=0.0).to(tl.float32)
        share = share / tl.sum(share, axis=1)[:, None]
        error = tl.abs(weight / tl.sum(weight, axis=1)[:, None] - share)
        # As integers the bits of what is not negative are in the order of the numbers, and NaN is the highest.
        bits = tl.where(error != error, _NOT_A_NUMBER, error.to(tl.int32, bitcast=True))
        bits = tl.where(counted[:, None] & filled & (share == share), bits, 0)
        tl.atomic_max(share_error_out + layer, tl.max(tl.max(bits, axis=1), axis=0), sem="relaxed")


def constants(
    n_experts: int, n_slots: int, scoring: Scoring, dtype: torch.dtype, bias_dtype: torch.dtype | None
) -> dict[str, int | bool]:
    """Return what the kernel is compiled for, but for the flags of optional tensors."""
    in_type = _NARROW.get(dtype, _WIDE) if scoring.in_its_type else 0
    groups = triton.next_power_of_2(scoring.n_groups)
    places = triton.next_power_of_2(n_experts // scoring.n_groups)
    tile = _INTERPRETED_TILE if is_interpreted() else _TILE  # the interpreter pays by the program
    return {
        "EXPERTS": n_experts,
        "SLOTS": n_slots,
        "SLOT_COLUMNS": triton.next_power_of_2(n_slots),
        "GROUPS": scoring.n_groups,
        "GROUP_COLUMNS": groups,
        "PLACE_COLUMNS": places,
        "KEPT": scoring.n_kept_groups,
        "BEST": min(scoring.best_of_group, n_experts // scoring.n_groups),
        "ACTIVATION": ACTIVATIONS.index(scoring.activation),
        "OF_LOGITS": scoring.of_logits,
        "OF_PROBABILITIES": scoring.of_probabilities,
        "SKIPS": scoring.skips,
        "IN_TYPE": in_type,
        "SUM_IN_TYPE": 0 if scoring.skips or bias_dtype != dtype else in_type,
        "ROUNDED_TO": _NARROW.get(scoring.rounded_to, 0),
        "BLOCK": min(128, max(4, tile // (groups * places))),
    }


def launch(
    logits: torch.Tensor,
    ids: torch.Tensor,
    scoring: Scoring,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    keep: torch.Tensor | None,
    drops: bool,
) -> Summary:
    """Run the kernel; shapes were checked."""
    n_layers, n_tokens, n_experts = logits.shape
    entropy = torch.empty((n_layers, n_tokens), dtype=torch.float32, device=logits.device)
    margin = torch.empty_like(entropy)
    error_bits = torch.zeros(n_layers, dtype=torch.int32, device=logits.device)
    histogram = torch.zeros((n_layers, n_experts - scoring.skips), dtype=torch.int32, device=logits.device)
    share_error = None if weights is None else error_bits.view(torch.float32)
    if n_tokens and n_layers:
        fixed = constants(n_experts, ids.shape[2], scoring, logits.dtype, None if bias is None else bias.dtype)
        with torch.cuda.device_of(logits):  # Triton launches where torch is, which may be another GPU
            summary_kernel[(triton.cdiv(n_tokens, fixed["BLOCK"]), n_layers)](
                logits.contiguous(),
                ids.contiguous(),
                histogram if bias is None else bias.contiguous(),
                histogram if weights is None else weights.contiguous(),
                histogram if keep is None else keep.contiguous().view(torch.uint8),
                entropy,
                margin,
                error_bits,
                histogram,
                n_tokens,
                HAS_BIAS=bias is not None,
                HAS_WEIGHTS=weights is not None,
                HAS_KEEP=keep is not None,
                DROPS=drops,
                **fixed,
            )
    return Summary(entropy, margin, share_error, histogram, "triton")
