"""The routing of a shard is what its documents say, place by place."""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.errors import RoutingError
from moe_probe.importers.columns import RoutingColumns
from moe_probe.importers.kept import Form, Kept
from moe_probe.schema import Router, expert_bits, routing_columns


def kept(experts, weights=None, name="x", texts=()):
    """Return a document of experts (layers, slots, tokens)."""
    n_tokens = experts.shape[2]
    numbers, flags = np.arange(n_tokens, dtype=np.int32), np.arange(n_tokens) % 3 == 0
    layers = tuple(range(len(experts)))
    half = None if weights is None else weights.astype(np.float16)
    texts = list(texts)
    return Kept(name, None, layers, (), experts, half, numbers, numbers + 1, numbers + 2, flags, ~flags, texts, texts)


def routers(n_layers, n_slots, n_experts):
    return [Router(index, f"layers.{index}", index, n_experts, n_slots, "imported") for index in range(n_layers)]


def form_of(routers, places, weighted):
    return Form(tuple(places), routers[0].n_slots, expert_bits(routers[0].n_experts), weighted)


def drawn(seed, layers, slots, tokens, experts, kind):
    draw = np.random.default_rng(seed)
    return draw.integers(-1, experts, (layers, slots, tokens)).astype(kind), draw.random((layers, slots, tokens))


def routing_table(documents, routers, places, weighted):
    columns = RoutingColumns(form_of(routers, places, weighted), sum(one.n_tokens for one in documents))
    for one in documents:
        columns.add(one)
    return columns.to_table()


@pytest.mark.parametrize(("n_experts", "kind"), [(3, "uint8"), (255, "uint8"), (256, "uint16"), (70_000, "uint32")])
@pytest.mark.parametrize("places", [(0, 1, 2), (0, 2), (2,)])
@pytest.mark.parametrize("weighted", [True, False])
def test_each_column_is_a_slot_of_a_router_over_all_documents(n_experts, kind, places, weighted):
    parts = [drawn(seed, 3, slots, 5 + seed, n_experts, np.int32) for seed, slots in enumerate((2, 1, 2))]
    documents = [kept(experts, weights if weighted else None) for experts, weights in parts]
    of_run = routers(len(places), 2, n_experts)
    table = routing_table(documents, of_run, places, weighted)
    assert table.column_names == routing_columns(of_run, [False] * len(places), [weighted] * len(places))
    for index, place in enumerate(places):
        for slot in range(2):
            told = [
                int(e[place, slot, row]) if slot < e.shape[1] else -1 for e, _ in parts for row in range(e.shape[2])
            ]
            column = table[f"expert_{index}_{slot}"]
            assert str(column.type) == kind
            assert column.to_pylist() == [None if expert == -1 else expert for expert in told]
            if weighted:
                heavy = [w[place, slot, row] if slot < w.shape[1] else 0 for _, w in parts for row in range(w.shape[2])]
                assert table[f"weight_{index}_{slot}"].to_pylist() == np.array(heavy, np.float16).tolist()


def test_narrow_and_wide_documents_lie_in_one_column():
    narrow, wide = np.array([[[3, -1, 126]]], np.int8), np.array([[[254, -1]]], np.int16)
    table = routing_table([kept(narrow), kept(wide)], routers(1, 1, 255), (0,), weighted=False)
    assert table["expert_0_0"].to_pylist() == [3, None, 126, 254, None]


def test_columns_that_were_cleared_hold_the_next_rows_alone():
    first, second, third = (drawn(seed, 2, slots, 9 - seed, 8, np.int8) for seed, slots in enumerate((3, 2, 3)))
    columns = RoutingColumns(Form((0, 1), 3, 8, True), 9)
    for experts, weights in (first, second, (abs(third[0]), third[1])):
        columns.clear()
        columns.add(kept(experts, weights))
        table = columns.to_table()
        assert table.equals(routing_table([kept(experts, weights)], routers(2, 3, 8), (0, 1), weighted=True))
        chosen = experts.shape[1] == 3 and experts.min() >= 0
        assert (table["expert_0_0"].null_count + table["expert_0_2"].null_count == 0) == chosen
        assert table["expert_1_1"].to_pylist() == [None if expert == -1 else expert for expert in experts[1, 1]]


@pytest.mark.parametrize("expert", [-2, 255, 256, 300])
def test_an_expert_that_a_column_cannot_hold_is_refused(expert):
    experts = np.array([[[3, expert, -1]]], np.int32)
    with pytest.raises(RoutingError, match=f"x: expert {expert} in 8 bits"):
        routing_table([kept(experts)], routers(1, 1, 8), (0,), weighted=False)


def test_a_shard_without_a_gap_has_no_nulls():
    experts = np.zeros((1, 1, 9), np.int8)
    table = routing_table([kept(experts)], routers(1, 1, 8), (0,), weighted=False)
    assert (table["expert_0_0"].null_count, table["expert_0_0"].to_pylist()) == (0, [0] * 9)
