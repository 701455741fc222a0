"""Cases that every way of every kernel must get right, each against plain Python in float64.

TRITON_INTERPRET=1 python kernel_cases.py      runs all of them interpreted, on the CPU, and prints what went wrong
"""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.nn import functional

from moe_probe_kernels import Ring, Scoring, Tally, Way, pack, summarise
from moe_probe_kernels.scoring import ACTIVATIONS, Activation

Case = Callable[[str, Way], None]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _distinct(random: np.random.Generator, n_layers: int, n_tokens: int, n_experts: int, n_slots: int) -> torch.Tensor:
    """Draw executed experts, (layers, tokens, slots)."""
    ids = [random.choice(n_experts, n_slots, replace=False) for _ in range(n_layers * n_tokens)]
    return torch.from_numpy(np.array(ids, dtype=np.int64).reshape(n_layers, n_tokens, n_slots))


# Summary


def score_token(
    logits: list[float], ids: list[int], scoring: Scoring, bias: list[float] | None
) -> tuple[float, float, list[float]]:
    """Return entropy in bits, margin, and activated logits of one token, by the definitions."""
    experts = range(len(logits))
    if scoring.of_probabilities:
        logits = [math.log(logit) if logit > 0 else -math.inf for logit in logits]
    if any(math.isnan(logit) for logit in logits):
        return math.nan, math.nan, [math.nan] * len(logits)
    if scoring.activation == "softmax":
        powers = [math.exp(logit - max(logits)) for logit in logits]
        activated = [power / sum(powers) for power in powers]
    elif scoring.activation == "sigmoid":
        activated = [1 / (1 + math.exp(-logit)) for logit in logits]
    else:
        activated = [math.sqrt(math.log1p(math.exp(logit)) if logit < 500 else logit) for logit in logits]
    shares = [one / sum(activated) for one in activated]
    entropy = -sum(share * math.log2(share) for share in shares if share > 0)
    selection = list(logits if scoring.of_logits else activated)
    if bias is not None:
        selection = [one + more for one, more in zip(selection, bias, strict=True)]
    if scoring.n_groups > 1:
        size = len(logits) // scoring.n_groups
        groups = range(scoring.n_groups)
        best = {
            group: sum(sorted(selection[group * size : (group + 1) * size])[-scoring.best_of_group :])
            for group in groups
        }
        used = {group: any(expert // size == group for expert in ids) for group in groups}
        kept = sorted(groups, key=lambda group: (-best[group], not used[group], group))[: scoring.n_kept_groups]
        selection = [selection[expert] if expert // size in kept else -math.inf for expert in experts]
    ids = [len(logits) - 1 if scoring.skips and expert < 0 else expert for expert in ids]
    executed = {expert for expert in ids if expert >= 0} or {max(experts, key=lambda expert: selection[expert])}
    passed_over = max((selection[expert] for expert in experts if expert not in executed), default=-math.inf)
    return entropy, min(selection[expert] for expert in executed) - passed_over, activated


def _summary(
    device: str,
    way: Way,
    *,
    n_experts: int,
    n_slots: int,
    dtype: torch.dtype = torch.float32,
    scoring: Scoring | None = None,
    n_tokens: int = 17,
    biased: bool = False,
    padded: bool = False,
    drops: bool = False,
    spoil: Callable[[torch.Tensor], torch.Tensor] | None = None,
    seed: int = 0,
) -> None:
    scoring = scoring or Scoring()
    random = np.random.default_rng(seed)
    n_layers = 3
    logits = torch.from_numpy(random.normal(0, 3, (n_layers, n_tokens, n_experts)))
    logits = (logits.softmax(-1) if scoring.of_probabilities else logits).to(dtype)
    if spoil is not None:
        logits = spoil(logits)
    ids = _distinct(random, n_layers, n_tokens, n_experts, n_slots)
    bias = torch.from_numpy(random.normal(0, 0.2, (n_layers, n_experts))).float() if biased else None
    weights = torch.from_numpy(random.random((n_layers, n_tokens, n_slots)) + 0.1).to(dtype)
    keep = torch.from_numpy(random.random(n_tokens) < 0.6) if padded else None
    if drops:
        ids[torch.from_numpy(random.random(tuple(ids.shape)) < 0.4)] = -1
    if scoring.skips:
        ids[ids == n_experts - 1] = -1  # the last logit is none of an expert's
    on = partial(torch.Tensor.to, device=device)
    found = summarise(
        on(logits),
        on(ids),
        scoring,
        bias=None if bias is None else on(bias),
        weights=None if drops else on(weights),
        keep=None if keep is None else on(keep),
        drops=drops,
        way=way,
    )
    assert found.ran == way
    expected = np.zeros((2, n_layers, n_tokens))
    error = np.zeros(n_layers)
    histogram = np.zeros((n_layers, n_experts), dtype=np.int64)
    for layer in range(n_layers):
        for token in range(n_tokens):
            experts = ids[layer, token].tolist()
            entropy, margin, activated = score_token(
                logits[layer, token].double().tolist(), experts, scoring, None if bias is None else bias[layer].tolist()
            )
            expected[:, layer, token] = entropy, margin
            if keep is None or keep[token]:
                for expert in experts:
                    histogram[layer, expert] += expert >= 0
                given = weights[layer, token].double().numpy()
                shares = np.array(
                    [activated[expert] for expert in experts]
                )  # −1 is the last, which the choice of none is
                if np.isnan(shares).any():
                    continue
                error[layer] = np.maximum(error[layer], np.abs(given / given.sum() - shares / shares.sum()).max())
    np.testing.assert_allclose(found.entropy.cpu().numpy(), expected[0], atol=3e-5, rtol=1e-5)
    np.testing.assert_allclose(found.margin.cpu().numpy(), expected[1], atol=5e-6, rtol=1e-5)
    np.testing.assert_array_equal(found.histogram.cpu().numpy(), histogram[:, : n_experts - scoring.skips])
    if drops:
        assert found.share_error is None
    else:
        assert found.share_error is not None
        np.testing.assert_allclose(found.share_error.cpu().numpy(), error, atol=1e-5)


def _masked(logits: torch.Tensor) -> torch.Tensor:
    """Hide some experts, as a model does with −inf, and make some logits far apart."""
    logits[0, 3, 1] = -math.inf
    logits[1, :, 0] = -math.inf
    logits[2, 5] *= 40
    return logits


def _far(logits: torch.Tensor) -> torch.Tensor:
    """Logits from −60 to 60, so that 1 + eˣ loses eˣ, or x alone is left."""
    return logits * 20


def _without_numbers(logits: torch.Tensor) -> torch.Tensor:
    logits[0, 0, 0] = math.nan
    logits[1, 7, -1] = math.nan
    logits[2, 11] = math.nan
    return logits


def _infinite(device: str, way: Way) -> None:
    logits = torch.tensor([[[math.inf, 0, 0, 1], [-math.inf] * 4, [1.0, 0, 0, 0]]]).to(device)
    found = summarise(logits, torch.tensor([[[0], [0], [0]]]).to(device), Scoring(), way=way)
    assert found.entropy.isnan().tolist() == [[True, True, False]]
    assert found.margin.isnan().tolist() == [[True, True, False]]


def _own_type(device: str, way: Way, *, activation: Activation, dtype: torch.dtype, wide_bias: bool) -> None:
    """Selection scores made in the logits' type, operation by operation, as torch makes them."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 40, 16, generator=generator).to(dtype)
    bias = (torch.randn(2, 16, generator=generator) * 0.1).to(torch.float32 if wide_bias else dtype)
    made = {"softmax": lambda: logits.softmax(-1), "sigmoid": lambda: logits.sigmoid()}.get(
        activation, lambda: functional.softplus(logits).sqrt()
    )()
    best = (made + bias.unsqueeze(1)).float().sort(dim=-1, descending=True)
    scoring = Scoring(activation, in_its_type=True)
    tensors = [one.to(device) for one in (logits, best.indices[..., :4].contiguous(), bias)]
    found = summarise(tensors[0], tensors[1], scoring, bias=tensors[2], way=way)
    expected = best.values[..., 3] - best.values[..., 4]
    # A last bit of the score's own type, where a GPU rounds an exponential otherwise.
    margin = found.margin.cpu()
    torch.testing.assert_close(margin, expected, atol=0.004 if dtype == torch.float16 else 0.02, rtol=0)
    assert (margin == expected).float().mean() > 0.9


def _rounded_scores(device: str, way: Way) -> None:
    """Two scores are one in bfloat16: nothing was passed over, but by another choice something was."""
    logits = torch.tensor([[[1.0, 1.001, 0.0]]]).to(device)
    ids = torch.tensor([[[0]]]).to(device)
    rounded = Scoring("sigmoid", of_logits=True, rounded_to=torch.bfloat16)
    assert summarise(logits, ids, rounded, way=way).margin.item() == 0
    exact = summarise(logits, ids, Scoring("sigmoid", of_logits=True), way=way).margin.item()
    assert abs(exact + 0.001) < 1e-6


def _tied_groups(device: str, way: Way) -> None:
    """Three groups are equally high: kept are the one that was used, and of the others the lower."""
    scoring = Scoring("sigmoid", n_groups=4, n_kept_groups=2, best_of_group=2)
    logits = torch.tensor([[[0.0, -1, 1, -1, 1, -1, 1, -1]]]).to(device)
    bias = torch.zeros(1, 8).to(device)
    found = summarise(logits, torch.tensor([[[7, 6]]]).to(device), scoring, bias=bias, way=way)
    low, high = 1 / (1 + math.e), 1 / (1 + math.exp(-1))  # groups 1 and 3 are kept, and 6 and 7 of group 3 were chosen
    np.testing.assert_allclose(found.margin.cpu().numpy(), [[low - high]], atol=1e-6)
    found = summarise(logits, torch.tensor([[[2, 4]]]).to(device), scoring, bias=bias, way=way)  # both kept are used
    np.testing.assert_allclose(found.margin.cpu().numpy(), [[high - low]], atol=1e-6)


def _tied_groups_and_an_empty_slot(device: str, way: Way) -> None:
    """All groups are equally high, and an empty slot is in none of them, not in the first."""
    scoring = Scoring("sigmoid", n_groups=4)
    logits, ids = torch.tensor([[[-1.0, 1] * 4]]).to(device), torch.tensor([[[7, -1]]]).to(device)
    found = summarise(logits, ids, scoring, drops=True, way=way)
    low, high = 1 / (1 + math.e), 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(found.margin.cpu().numpy(), [[high - low]], atol=1e-6)


def _out_of_range(device: str, way: Way) -> None:
    ids = torch.tensor([[[9, 1], [-3, 2], [0, 2]]]).to(device)
    found = summarise(torch.zeros(1, 3, 3).to(device), ids, Scoring(), way=way)
    assert found.histogram.tolist() == [[1, 1, 2]]
    assert found.margin.tolist() == [[0, 0, 0]]


def _padding_without_numbers(device: str, way: Way) -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 1] = math.nan
    ids, weights = torch.tensor([[[0, 1]] * 3]), torch.full((1, 3, 2), 0.5)
    keep = torch.tensor([True, False, True])
    tensors = [one.to(device) for one in (logits, ids, weights, keep)]
    found = summarise(tensors[0], tensors[1], Scoring(), weights=tensors[2], keep=tensors[3], way=way)
    assert found.share_error is not None
    assert found.share_error.tolist() == [0]
    assert found.histogram.tolist() == [[2, 2, 0, 0]]
    tensors[0][0, 1] = 0
    tensors[2][0, 1, 0] = math.nan
    found = summarise(tensors[0], tensors[1], Scoring(), weights=tensors[2], way=way)
    assert found.share_error is not None
    assert found.share_error.isnan().tolist() == [True]


# Pack and ring


def sort_token(ids: list[int], weights: list[float], dropped: int | None) -> list[tuple[int, float]]:
    """Return expert and weight of each slot of one token, in order, in plain Python."""
    held = [pair for pair in zip(ids, weights, strict=True) if pair[0] != dropped]
    held.sort(key=lambda pair: (not math.isnan(pair[1]), 0 if math.isnan(pair[1]) else -pair[1], pair[0]))
    return held + [(dropped if dropped is not None else 0, 0.0)] * (len(ids) - len(held))


def _routed(
    random: np.random.Generator, n_experts: int, n_slots: int, dtype: torch.dtype, dropped: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw ids and weights of many ties, with some that are no number, and which tokens are kept."""
    n_tokens = int(random.integers(1, 30))
    ids = _distinct(random, 2, n_tokens, n_experts, n_slots)
    weights = torch.from_numpy(random.choice([0.0, 0.25, 0.5, 0.5 + 2**-10, 1.5, math.nan], tuple(ids.shape))).to(dtype)
    if dropped is not None:
        ids[torch.from_numpy(random.random(tuple(ids.shape)) < 0.3)] = dropped
    return ids, weights, torch.from_numpy(random.random(n_tokens) < 0.7)


def _ring(
    device: str,
    way: Way,
    *,
    n_experts: int,
    n_slots: int,
    dtype: torch.dtype,
    id_dtype: torch.dtype,
    weight_dtype: torch.dtype = torch.float16,
    padded: bool = True,
    dropped: int | None = None,
) -> None:
    """Append until there is more than the ring holds, taking each part; compare with plain lists."""
    random = np.random.default_rng(n_experts * 100 + n_slots)
    ring = Ring(2, n_slots, 31, device, id_dtype=id_dtype, weight_dtype=weight_dtype)
    total = 0
    while total <= ring.capacity:
        ids, weights, keep = _routed(random, n_experts, n_slots, dtype, dropped)
        expected: list[list[list[tuple[int, float]]]] = [
            [
                sort_token(ids[layer, token].tolist(), weights[layer, token].double().tolist(), dropped)
                for token in range(ids.shape[1])
                if not padded or keep[token]
            ]
            for layer in range(2)
        ]
        given = keep.to(device) if padded else None
        assert ring.append(ids.to(device), weights.to(device), given, dropped=dropped, way=way) == way
        taken = ring.take()
        assert taken.ran == way
        total += len(expected[0])
        assert ring.written.tolist() == [total]
        assert (taken.ids.dtype, taken.weights.dtype) == (id_dtype, weight_dtype)
        assert taken.ids.shape == (2, n_slots, len(expected[0]))
        wanted = torch.tensor(expected, dtype=torch.float64).view(2, len(expected[0]), n_slots, 2)
        torch.testing.assert_close(
            taken.ids.cpu().to(torch.int64).transpose(1, 2), wanted[..., 0].to(id_dtype).to(torch.int64)
        )
        torch.testing.assert_close(
            taken.weights.cpu().transpose(1, 2), wanted[..., 1].to(weight_dtype), rtol=0, atol=0, equal_nan=True
        )


def _rounding(device: str, way: Way) -> None:
    """Slots are compared before they are rounded, by the ring and by `pack`."""
    ids, weights = torch.tensor([[[0, 1]]]).to(device), torch.tensor([[[0.5, 0.5 + 1e-6]]]).to(device)
    ring = Ring(1, 2, 4, device)
    ring.append(ids, weights, way=way)
    packed = pack(ids, weights, weight_dtype=torch.float16, id_dtype=torch.uint16, way=way)
    assert packed.ran == way
    for one in (ring.take(), packed):
        assert one.ids.to(torch.int64).flatten().tolist() == [1, 0]
        assert one.weights.flatten().tolist() == [0.5, 0.5]
    double = torch.tensor([[[0.5, 0.5 + 1e-12]]], dtype=torch.float64).to(device)  # equal in float32
    assert pack(ids, double, way=way).ids.flatten().tolist() == [1, 0]


def _packed(device: str, way: Way) -> None:
    """`pack` by a mask, for empty slots, and where nothing is kept."""
    ids = torch.tensor([[[4, -1, 2], [7, 3, 5], [0, 1, 2]]]).to(device)
    weights = torch.tensor([[[-1.0, 9.0, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0]]]).to(device)
    keep = torch.tensor([True, True, False]).to(device)
    packed = pack(ids, weights, keep, id_dtype=torch.int16, dropped=-1, way=way)
    assert packed.ids.tolist() == [[[2, 5], [4, 3], [-1, 7]]]
    assert packed.weights.tolist() == [[[0, 0.5], [-1, 0.25], [0, 0.25]]]
    assert pack(ids, weights, ~(keep | True), way=way).ids.shape == (1, 3, 0)
    assert pack(ids[:, :0], weights[:, :0], way=way).ids.shape == (1, 3, 0)


# Tally


def _tally(
    device: str,
    way: Way,
    *,
    n_experts: int,
    n_slots: int,
    n_planes: int,
    dtype: torch.dtype,
    n_sets: int,
    dropped: int | None = None,
) -> None:
    random = np.random.default_rng(n_experts + n_slots)
    n_layers, n_cells = 2, 11
    tally = Tally(n_layers, n_planes, n_cells, n_experts, device)
    expected = np.zeros((n_layers, n_planes, n_cells, n_experts), dtype=np.int64)
    strays = np.zeros(n_layers, dtype=np.int64)
    for n_tokens in (1, 40, 0, 300):
        ids = _distinct(random, n_layers, n_tokens, n_experts, n_slots).transpose(1, 2).to(dtype).contiguous()
        cells = torch.from_numpy(random.integers(-1, n_cells + 2, (n_sets, n_tokens)).astype(np.int32))
        if dropped is not None and n_tokens:
            ids[torch.from_numpy(random.random(tuple(ids.shape)) < 0.2)] = dropped
            ids[0, 0, 0] = n_experts + 1
        for layer, slot, token in np.ndindex(*ids.shape):
            expert = int(ids[layer, slot, token])
            placed = [cell for cell in cells[:, token].tolist() if 0 <= cell < n_cells]
            if 0 <= expert < n_experts and expert != dropped:
                for cell in placed:
                    expected[layer, min(slot, n_planes - 1), cell, expert] += 1
            elif expert != dropped and placed:
                strays[layer] += 1
        assert tally.add(ids.to(device), cells.to(device), dropped=dropped, way=way) == way
    np.testing.assert_array_equal(tally.counts.cpu().numpy(), expected)
    np.testing.assert_array_equal(tally.strays.cpu().numpy(), strays)


def _beyond_32_bits(device: str, way: Way) -> None:
    tally = Tally(1, 1, 1, 2, device)
    tally.counts += 2**31 - 1
    tally.add(
        torch.zeros(1, 1, 3, dtype=torch.int16).to(device), torch.zeros(1, 3, dtype=torch.int32).to(device), way=way
    )
    assert tally.counts.flatten().tolist() == [2**31 + 2, 2**31 - 1]


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for n_experts, n_slots in ((2, 1), (8, 2), (60, 4), (64, 8), (128, 6), (256, 8)):
        for dtype in DTYPES:
            name = f"summary {n_experts}/{n_slots} {str(dtype)[6:]}"
            padded = dtype != torch.float16
            cases[name] = partial(_summary, n_experts=n_experts, n_slots=n_slots, dtype=dtype, padded=padded)
    scorings = {
        "of logits": (16, 4, Scoring(of_logits=True), {}),
        "of probabilities": (16, 4, Scoring(of_probabilities=True), {}),
        "sigmoid of logits": (16, 1, Scoring("sigmoid", of_logits=True), {}),
        "softmax with bias": (64, 6, Scoring(), {"biased": True}),
        "sigmoid with bias": (64, 6, Scoring("sigmoid"), {"biased": True}),
        "groups by two": (256, 8, Scoring("sigmoid", n_groups=8, n_kept_groups=4), {"biased": True}),
        "groups by one": (160, 6, Scoring(n_groups=8, n_kept_groups=3, best_of_group=1), {"padded": True}),
        "groups of three": (6, 2, Scoring("sigmoid", n_groups=2, best_of_group=5), {"biased": True}),
        "root of softplus": (32, 4, Scoring("sqrtsoftplus"), {"biased": True, "padded": True}),
        "root of softplus, far": (8, 2, Scoring("sqrtsoftplus"), {"spoil": _far}),
        "skips": (17, 2, Scoring(skips=True), {"biased": True}),
        "drops": (12, 2, Scoring(), {"drops": True, "padded": True}),
        "drops with groups": (12, 2, Scoring(n_groups=3, n_kept_groups=2), {"drops": True}),
        "masked": (8, 2, Scoring(), {"spoil": _masked}),
        "masked sigmoid": (8, 2, Scoring("sigmoid"), {"spoil": _masked}),
        "without numbers": (8, 2, Scoring(), {"spoil": _without_numbers}),
        "without numbers of logits": (8, 2, Scoring(of_logits=True), {"spoil": _without_numbers}),
        "without numbers sigmoid": (8, 8, Scoring("sigmoid", of_logits=True), {"spoil": _without_numbers}),
        "one token": (8, 2, Scoring(), {"n_tokens": 1}),
        "no token": (8, 2, Scoring(), {"n_tokens": 0}),
    }
    for name, (n_experts, n_slots, scoring, more) in scorings.items():
        cases[f"summary {name}"] = partial(_summary, n_experts=n_experts, n_slots=n_slots, scoring=scoring, **more)
    cases |= {"summary infinite": _infinite, "summary tied groups": _tied_groups}
    cases |= {"summary out of range": _out_of_range, "summary padding without numbers": _padding_without_numbers}
    cases["summary rounded scores"] = _rounded_scores
    cases["summary tied groups and an empty slot"] = _tied_groups_and_an_empty_slot
    for activation in ACTIVATIONS:
        for dtype in DTYPES[1:]:
            for wide in (True, False):
                name = f"summary in its type {activation} {str(dtype)[6:]} {'wide' if wide else 'narrow'} bias"
                cases[name] = partial(_own_type, activation=activation, dtype=dtype, wide_bias=wide)
    for n_experts, n_slots, dtype, id_dtype in (
        (2, 1, torch.float32, torch.uint8),
        (8, 2, torch.bfloat16, torch.uint8),
        (64, 8, torch.float16, torch.uint8),
        (256, 8, torch.float32, torch.uint16),
        (70_000, 3, torch.float32, torch.uint32),
        (40_000, 5, torch.float64, torch.uint16),
    ):
        one = partial(_ring, n_experts=n_experts, n_slots=n_slots, dtype=dtype, id_dtype=id_dtype)
        cases[f"ring {n_experts}/{n_slots}"] = one
        cases[f"ring {n_experts}/{n_slots} unpadded"] = partial(one, padded=False)
    cases["ring drops"] = partial(one, n_experts=9, id_dtype=torch.int16, weight_dtype=torch.float32, dropped=-1)
    cases["ring many slots"] = partial(one, n_experts=30, n_slots=22, id_dtype=torch.int32)
    cases |= {"pack rounding": _rounding, "pack masked": _packed}
    for n_experts, n_slots, n_planes, dtype, n_sets, dropped in (
        (2, 1, 1, torch.uint8, 1, None),
        (8, 2, 2, torch.uint8, 2, 255),
        (9, 3, 2, torch.uint8, 1, 5),
        (60, 4, 4, torch.int16, 3, -1),
        (256, 8, 2, torch.int32, 1, -1),
        (256, 8, 1, torch.int64, 2, None),
    ):
        cases[f"tally {n_experts}/{n_slots}/{n_planes}"] = partial(
            _tally, n_experts=n_experts, n_slots=n_slots, n_planes=n_planes, dtype=dtype, n_sets=n_sets, dropped=dropped
        )
    cases["tally beyond 32 bits"] = _beyond_32_bits
    return cases


CASES = _cases()


def main() -> None:
    """Run all cases by the kernels, and print what was wrong with each, as JSON."""
    np.seterr(all="ignore")  # the interpreter is made of numpy, and rows beyond the last hold anything
    said: dict[str, str | None] = {}
    for name, case in CASES.items():
        try:
            case("cpu", "triton")
            said[name] = None
        except Exception:
            said[name] = traceback.format_exc()
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
