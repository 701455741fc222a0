from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe_kernels import pack


def _oracle(ids: np.ndarray, weights: np.ndarray, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sort each token's slots in plain Python: by weight, heaviest first, then by expert."""
    kept = range(ids.shape[1]) if keep is None else np.flatnonzero(keep)
    packed_ids = np.zeros((len(ids), ids.shape[2], len(kept)), dtype=np.int64)
    packed_weights = np.zeros(packed_ids.shape, dtype=np.float64)
    for layer in range(len(ids)):
        for place, token in enumerate(kept):
            pairs = zip(weights[layer, token].tolist(), ids[layer, token].tolist(), strict=True)
            for slot, (weight, expert) in enumerate(sorted(pairs, key=lambda pair: (-pair[0], pair[1]))):
                packed_ids[layer, slot, place], packed_weights[layer, slot, place] = expert, weight
    return packed_ids, packed_weights


@st.composite
def _routings(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Draw distinct experts and weights of many ties, in any precision, with or without padding."""
    n_layers, n_tokens = draw(st.integers(1, 4)), draw(st.integers(0, 12))
    n_experts = draw(st.integers(2, 256))
    n_slots = draw(st.integers(1, min(n_experts, draw(st.sampled_from([8, 40])))))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (n_layers, n_tokens, n_slots)
    ids = np.array([random.permutation(n_experts)[:n_slots] for _ in range(n_layers * n_tokens)], dtype=np.int64)
    levels = draw(st.sampled_from([2, 5, 10_000]))
    weights = torch.from_numpy(random.integers(0, levels, shape) / levels * random.choice([1.0, 2.5]))
    weights = weights.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])))
    keep = torch.from_numpy(random.random(n_tokens) < 0.7) if draw(st.booleans()) else None
    return torch.from_numpy(ids.reshape(shape)), weights, keep


@settings(max_examples=60, deadline=None)
@given(_routings())
def test_slots_are_sorted_as_plain_python_sorts_them(
    routing: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
) -> None:
    ids, weights, keep = routing
    packed = pack(ids, weights, keep, id_dtype=torch.int16)
    expected_ids, expected_weights = _oracle(
        ids.numpy(), weights.double().numpy(), None if keep is None else keep.numpy()
    )
    np.testing.assert_array_equal(packed.ids.numpy(), expected_ids)
    np.testing.assert_array_equal(packed.weights.numpy(), expected_weights.astype(np.float32))
    assert (packed.ids.dtype, packed.weights.dtype) == (torch.int16, torch.float32)
    assert packed.ids.is_contiguous()
    assert packed.weights.is_contiguous()


def test_slots_are_compared_before_they_are_rounded() -> None:
    ids = torch.tensor([[[0, 1]]])
    weights = torch.tensor([[[0.5, 0.5 + 1e-6]]])  # equal in float16
    packed = pack(ids, weights, weight_dtype=torch.float16)
    assert packed.ids.flatten().tolist() == [1, 0]
    assert packed.weights.flatten().tolist() == [0.5, 0.5]


def test_equal_weights_go_to_the_lower_expert_first() -> None:
    packed = pack(torch.tensor([[[7, 3, 5]]]), torch.tensor([[[0.25, 0.25, 0.5]]]))
    assert packed.ids.flatten().tolist() == [5, 3, 7]


def test_padding_rows_are_dropped_in_order() -> None:
    ids = torch.arange(5).reshape(1, 5, 1)
    packed = pack(ids, ids.float(), torch.tensor([False, True, True, False, True]))
    assert packed.ids.tolist() == [[[1, 2, 4]]]
    assert packed.weights.tolist() == [[[1.0, 2.0, 4.0]]]


@pytest.mark.parametrize("n_slots", [3, 20])
def test_slots_that_held_no_expert_come_last_with_weight_0(n_slots: int) -> None:
    ids = torch.full((1, 2, n_slots), -1)
    weights = torch.ones(1, 2, n_slots)
    ids[0, 0, :3] = torch.tensor([-1, 4, 2])
    weights[0, 0, :3] = torch.tensor([0.5, 0.0, -1.0])
    packed = pack(ids, weights, dropped=-1, id_dtype=torch.int16)
    assert packed.ids[0, :, 0].tolist() == [4, 2] + [-1] * (n_slots - 2)
    assert packed.weights[0, :, 0].tolist() == [0, -1] + [0] * (n_slots - 2)
    assert packed.ids[0, :, 1].tolist() == [-1] * n_slots
    assert not packed.weights[0, :, 1].any()


def test_what_comes_in_is_left_as_it_was() -> None:
    ids, weights = torch.tensor([[[4, 2]]]), torch.tensor([[[0.1, 0.9]]])
    pack(ids, weights)
    assert ids.tolist() == [[[4, 2]]]
    assert weights.tolist() == [[[torch.tensor(0.1).item(), torch.tensor(0.9).item()]]]


def test_shapes_that_do_not_agree_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ids \(1, 2, 3\) and weights \(1, 2, 2\) must both be"):
        pack(torch.zeros(1, 2, 3, dtype=torch.long), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"keep \(3,\) must be \(2,\)"):
        pack(torch.zeros(1, 2, 1, dtype=torch.long), torch.zeros(1, 2, 1), torch.ones(3, dtype=torch.bool))
