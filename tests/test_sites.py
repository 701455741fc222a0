"""Hand-written routers: where they are found, which rows they give, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import moe_probe as mp
from moe_probe.errors import BadInputError, MoeProbeError, RoutingError, UnsupportedModelError
from moe_probe.recording.sites import RouterSite

IDS = torch.tensor([[3, 1], [0, 2], [1, -1], [2, 3], [0, 1], [3, 2]])
WEIGHTS = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 9.0], [0.6, 0.4], [0.9, 0.1], [0.3, 0.7]])
SORTED_IDS = [[1, 3], [0, 2], [1, -1], [2, 3], [0, 1], [2, 3]]


class Said(nn.Module):
    """A router that chooses what its test says, whatever it is given."""

    def __init__(self, *said: Any) -> None:
        super().__init__()
        self.said = said
        self.calls = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.calls += 1
        return self.said[(self.calls - 1) % len(self.said)]


class Model(nn.Module):
    """Calls its routers, some of them several times, and returns its input."""

    def __init__(self, *gates: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"gate": gate}) for gate in gates)
        self.times = times

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None, past_key_values: Any = None) -> Any:
        for block in self.blocks:
            for _ in range(self.times):
                block["gate"](x)
        return x


def _output(module: Any, inputs: Any, output: Any) -> Any:
    return output


def _site(**arguments: Any) -> RouterSite:
    return RouterSite("blocks.*.gate", read=_output, **{"n_experts": 4, **arguments})


def _record(model: nn.Module, *sites: RouterSite, x: torch.Tensor, **arguments: Any) -> Any:
    with mp.record(model, routers=list(sites)) as recording:
        model(x, **arguments)
    return recording.routing()


TOKENS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("pattern", "named", "others"),
    [
        ("a.*.gate", ["a.0.gate", "a.left.gate"], ["a.gate", "a.0.1.gate", "a.0.gate.x", "b.0.gate"]),
        ("a.**.gate", ["a.gate", "a.0.gate", "a.0.1.gate"], ["gate", "a.0.gates", "b.a.gate"]),
        ("**.gate*", ["gate", "x.gates", "a.b.gate_up"], ["gate.x", "a.begate"]),
        ("a.g?te", ["a.g?te"], ["a.gate"]),
        ("", [""], ["a"]),
    ],
)
def test_a_star_stands_for_text_within_a_component_and_two_for_components(pattern, named, others):
    site = RouterSite(pattern, read=_output)
    assert all(map(site.matches, named))
    assert not any(map(site.matches, others))


def test_ids_and_weights_are_sorted_by_weight_and_a_dropped_slot_is_last_without_one():
    model = Model(Said((IDS.view(2, 3, 2), WEIGHTS.view(2, 3, 2))))
    routing = _record(model, _site(), x=TOKENS)
    assert routing.experts(0).tolist() == SORTED_IDS
    np.testing.assert_array_equal(routing.weights(0)[2], [1, 0])
    assert routing.weights(0)[0].tolist() == [0.75, 0.25]
    assert routing.sequence(0).tolist() == [0, 0, 0, 1, 1, 1]
    assert routing.position(0).tolist() == [0, 1, 2] * 2
    router = routing.routers[0]
    assert (router.name, router.layer, router.n_experts, router.n_slots) == ("blocks.0.gate", 0, 4, 2)
    assert router.kind == "hand-written"
    assert routing.entropy(0) is None


@pytest.mark.parametrize(
    ("rows", "x", "leading", "times", "sequences", "order"),
    [
        (None, TOKENS, (2, 3), 1, [0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
        (None, TOKENS, (6,), 1, [0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
        (None, torch.zeros(6, 8), (6,), 1, [0] * 6, [0, 1, 2, 3, 4, 5]),
        ("sequence batch", torch.zeros(3, 2, 8), (3, 2), 1, [0, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5]),
        ("sequence batch", torch.zeros(3, 2, 8), (6,), 1, [0, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5]),
        ("batch", torch.zeros(6, 8), (6,), 1, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]),
        ("sequence", TOKENS, (2, 3), 1, [0] * 6, [0, 1, 2, 3, 4, 5]),
        (None, torch.zeros(2, 3, 8), (2,), 3, [0, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5]),
        (None, torch.zeros(3, 2, 8), (2,), 3, [0, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5]),
        ("sequence", torch.zeros(6, 8), (2,), 3, [0] * 6, [0, 1, 2, 3, 4, 5]),
        (None, TOKENS, (2, 1), 3, [0, 0, 0, 1, 1, 1], [0, 2, 4, 1, 3, 5]),
    ],
)
def test_rows_become_sequences_as_the_shapes_or_the_site_say(rows, x, leading, times, sequences, order):
    parts = zip(IDS.chunk(times), WEIGHTS.chunk(times), strict=True)
    said = [(ids.reshape(*leading, 2), weights.reshape(*leading, 2)) for ids, weights in parts]
    routing = _record(Model(Said(*said), times=times), _site(rows=rows), x=x)
    assert routing.experts(0).tolist() == [SORTED_IDS[row] for row in order]
    assert routing.sequence(0).tolist() == sequences
    assert routing.position(0).tolist() == [sequences[:row].count(sequences[row]) for row in range(6)]


@pytest.mark.parametrize(
    ("x", "leading", "times", "rows", "message"),
    [
        (TOKENS, (3, 2), 1, None, r"6 rows, 3×2, in a forward of 2 × 3 tokens"),
        (torch.zeros(2, 5, 8), (6,), 1, None, r"cannot be cut into 'batch sequence': the model's tokens are 2 × 5"),
        (torch.zeros(6, 8), (3,), 2, None, r"called 2 times in one forward with rows 3 \+ 3, which may be steps"),
        (TOKENS, (1, 2, 3), 1, None, r"called 1 times in one forward with rows 1×2×3"),
        (
            TOKENS,
            (2, 3),
            2,
            None,
            r"12 rows, 2×3 \+ 2×3, in a forward of 2 × 3 tokens; does it leave tokens out, or run",
        ),
        (TOKENS, (2, 3), 1, "batch", r"rows \(2, 3\) in a call; rows='batch' means a single dimension"),
        (torch.zeros(6, 8), (6,), 1, "sequence batch", r"the model's tokens are unknown"),
    ],
)
def test_rows_that_can_be_read_in_two_ways_or_none_are_refused(x, leading, times, rows, message):
    said = (IDS[: int(np.prod(leading))].reshape(*leading, 2), WEIGHTS[: int(np.prod(leading))].reshape(*leading, 2))
    model = Model(Said(said), times=times)
    with mp.record(model, routers=[_site(rows=rows)]), pytest.raises(BadInputError, match=message):
        model(x)


def test_a_model_that_may_hold_time_first_has_to_say_so():
    model = Model(Said((IDS.view(2, 3, 2), WEIGHTS.view(2, 3, 2))))
    model.recurrent = nn.LSTM(4, 4)
    with mp.record(model, routers=[_site()]), pytest.raises(BadInputError, match="batch_first=False; say RouterSite"):
        model(TOKENS)
    assert _record(model, _site(rows="batch sequence"), x=TOKENS).sequence(0).tolist() == [0, 0, 0, 1, 1, 1]
    model.recurrent = nn.LSTM(4, 4, batch_first=True)
    assert _record(model, _site(), x=TOKENS).n_tokens == 6


def test_padding_is_left_out_and_each_forward_opens_new_sequences():
    model = Model(Said((IDS.view(2, 3, 2), WEIGHTS.view(2, 3, 2))))
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])
    with mp.record(model, routers=[_site()]) as recording:
        model(TOKENS, attention_mask=mask)
        model(TOKENS, mask)
    routing = recording.routing()
    assert routing.experts(0).tolist() == [SORTED_IDS[row] for row in (1, 2, 3, 4)] * 2
    assert routing.sequence(0).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert routing.position(0).tolist() == [0, 1, 0, 1] * 2
    with mp.record(model, routers=[_site()]), pytest.raises(RoutingError, match=r"\(2, 2\) does not cover 2 sequences"):
        model(TOKENS, attention_mask=mask[:, 1:])
    with mp.record(model, routers=[_site()]), pytest.raises(RoutingError, match="no tensor of shape"):
        model(TOKENS, attention_mask=mask[:, None])


def test_a_forward_that_goes_on_with_a_cache_is_refused():
    class Cache:
        def get_seq_length(self) -> int:
            return 3

    model = Model(Said((IDS.view(2, 3, 2), WEIGHTS.view(2, 3, 2))))
    with mp.record(model, routers=[_site()]), pytest.raises(RoutingError, match="3 positions in past_key_values"):
        model(TOKENS, past_key_values=Cache())


def test_gates_above_zero_are_executed_and_the_slots_are_those_of_the_token_with_most():
    gates = torch.tensor([[0.5, 0, 0.2, 0], [0, 0, 0, 0], [0.1, 0, 0.3, 0]])
    more = torch.tensor([[0.1, 0.2, 0.3, 0.0]] * 3)
    model = Model(Said(gates[None], more[None]))
    x = torch.zeros(1, 3, dtype=torch.long)
    with mp.record(model, routers=[_site(n_experts=None)]) as recording:
        model(x)
        assert recording.routing().experts(0).tolist() == [[0, 2], [-1, -1], [2, 0]]
        assert recording.routers[0].n_slots == 2
        model(x)
        assert recording.routing().experts(0).tolist() == [[0, 2, -1], [-1, -1, -1], [2, 0, -1]] + [[2, 1, 0]] * 3
    assert recording.routing().routers[0].n_experts == 4
    dense = _record(Model(Said(gates[None])), _site(dense=True, n_experts=None), x=x)
    assert dense.experts(0).tolist() == [[0, 2, 1, 3], [0, 1, 2, 3], [2, 0, 1, 3]]
    assert dense.weights(0)[1].tolist() == [0, 0, 0, 0]
    fixed = _record(Model(Said(gates[None])), _site(n_slots=3, n_experts=None), x=x)
    assert fixed.experts(0).shape == (3, 3)


def test_what_was_taken_is_forgotten_and_the_slots_stay():
    gates = [torch.tensor([[0.5, 0, 0.2, 0]]), torch.tensor([[0.5, 0, 0, 0]]), torch.tensor([[0.1, 0.2, 0.3, 0]])]
    model = Model(Said(*[one[None] for one in gates]))
    x = torch.zeros(1, 1, dtype=torch.long)
    with mp.record(model, routers=[_site(n_experts=None)]) as recording:
        model(x)
        assert recording.take().experts(0).tolist() == [[0, 2]]
        model(x)
        taken = recording.take()
        assert taken.experts(0).tolist() == [[0, -1]]
        assert taken.sequence(0).tolist() == [1]
        with pytest.raises(RoutingError, match="no forward was recorded"):
            recording.take()
        with pytest.raises(
            RoutingError, match=r"3 slots of 4 experts in this forward, and 2 of 4 before; give RouterSite"
        ):
            model(x)


def test_several_routers_of_one_module_have_names_of_their_own():
    ids, weights = IDS.view(2, 3, 2).clamp(min=0), WEIGHTS.view(2, 3, 2)
    ids[0, 2] = torch.tensor([1, 0])
    model = Model(Said([(ids, weights), (3 - ids, weights.clamp(max=1))]), Said((ids, weights)))
    sites = [_site(layer=7), RouterSite("blocks.1.gate", read=lambda *_: torch.eye(4)[IDS[:, 0]].view(2, 3, 4))]
    routing = _record(model, *sites, x=TOKENS)
    named = [(router.index, router.name, router.layer) for router in routing.routers]
    assert named == [
        (0, "blocks.0.gate:0", 7),
        (1, "blocks.0.gate:1", 7),
        (2, "blocks.1.gate:0", 7),
        (3, "blocks.1.gate:1", 1),
    ]
    assert routing.experts(1)[0].tolist() == [2, 0]
    assert routing.experts(3)[:, 0].tolist() == [3, 0, 1, 2, 0, 3]


def test_entropy_and_margin_are_known_where_logits_are_given():
    logits = torch.tensor([[1.0, 2.0, 0.0, -1.0]]).expand(6, 4).reshape(2, 3, 4)
    ids, weights = logits.topk(2).indices, logits.topk(2).values
    routing = _record(Model(Said((ids, weights, logits))), _site(n_experts=None), x=TOKENS)
    shares = np.exp([1, 2, 0, -1]) / np.exp([1, 2, 0, -1]).sum()
    np.testing.assert_allclose(routing.entropy(0), -(shares * np.log2(shares)).sum(), rtol=1e-6)
    np.testing.assert_allclose(routing.margin(0), 1, rtol=1e-6)
    with mp.record(model := Model(Said((ids, weights, logits))), routers=[_site()], entropy=False) as recording:
        model(TOKENS)
    assert recording.routing().entropy(0) is None


@pytest.mark.parametrize("dense", [False, True])
def test_what_a_router_writes_over_afterwards_was_recorded_as_it_was(dense):
    ids, weights = IDS.view(2, 3, 2).clone(), WEIGHTS.view(2, 3, 2).clone()
    gate = Said(weights if dense else (ids, weights))
    model = Model(gate)

    def write_over(*_: Any) -> None:
        ids.zero_()
        weights.zero_()

    with mp.record(model, routers=[_site(dense=dense, n_experts=None if dense else 4)]) as recording:
        gate.register_forward_hook(write_over)
        model(TOKENS)
    assert not weights.any()
    assert recording.routing().weights(0)[0].tolist() == [0.75, 0.25]
    assert recording.routing().experts(0)[0].tolist() == ([1, 0] if dense else [1, 3])


_IDS, _WEIGHTS = IDS.view(2, 3, 2), WEIGHTS.view(2, 3, 2)


@pytest.mark.parametrize(
    ("said", "arguments", "message"),
    [
        ((_WEIGHTS, _IDS), {}, r"blocks.0.gate \(Said\): ids of float32 \(2, 3, 2\); experts are whole numbers"),
        ((_IDS, _WEIGHTS * torch.nan), {}, "11 weights are NaN or infinite"),
        ((_IDS + 1, _WEIGHTS), {}, "expert index 4 is out of range: it has 4 experts"),
        ((_IDS - 1, _WEIGHTS), {}, "expert index -2 is out of range"),
        ((torch.ones_like(_IDS), _WEIGHTS), {}, "6 of 6 tokens hold the same expert twice"),
        ((_IDS, _WEIGHTS * 0), {}, "all weights of a call are zero"),
        ((_IDS, _WEIGHTS[..., :1]), {}, r"ids of int64 \(2, 3, 2\) and weights of float32 \(2, 3, 1\)"),
        ((_IDS, _WEIGHTS), {"n_slots": 3}, "read returned 2 slots, and n_slots=3"),
        ((_IDS, _WEIGHTS), {"n_experts": None}, r"is written nowhere; give RouterSite\(..., n_experts=\)"),
        ((_IDS, _WEIGHTS, torch.zeros(2, 3, 5)), {}, "logits of 5 experts, and n_experts=4"),
        (torch.tensor([[[0.5, -0.1]] * 3] * 2), {"n_experts": None}, "a gate of -0.1; gates are what"),
        (torch.ones(2, 3, 4), {"n_slots": 2}, "a token has 4 gates above 0, and n_slots=2"),
        (torch.ones(2, 3, 5), {}, "gates of 5 experts, and n_experts=4"),
        (torch.full((2, 3, 4), torch.inf), {}, "24 gates are NaN or infinite"),
        (torch.ones(2, 3, 4, dtype=torch.long), {}, "gates are floating numbers"),
        (torch.zeros(2, 3, 4), {}, "none of its 6 tokens executed an expert"),
        ("top-2", {}, r"read returned \(str\); it must return \(ids, weights\)"),
        ([], {}, "read returned an empty list"),
    ],
)
def test_what_no_router_can_have_chosen_is_refused_by_name(said, arguments, message):
    model = Model(Said(said))
    with pytest.raises(MoeProbeError, match=message):
        _record(model, _site(**arguments), x=TOKENS)
    assert not model._forward_hooks
    assert not model.blocks[0]["gate"]._forward_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_experts": 0}, "n_experts 0; give a number from 1 on"),
        ({"n_slots": True}, "n_slots True"),
        ({"layer": -1}, "layer -1; give a number from 0 on"),
        ({"rows": "time"}, "rows 'time'; choose one of 'batch sequence'"),
        ({"n_slots": 5}, "5 slots of 4 experts"),
        ({"read": 3}, "read is no function but int"),
    ],
)
def test_a_site_that_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises(BadInputError, match=message):
        RouterSite("x", **{"read": _output, "n_experts": 4, **arguments})


def test_recordings_that_cannot_be_are_refused():
    said = Said((_IDS, _WEIGHTS))
    model = Model(said, Said((_IDS.transpose(0, 1), _WEIGHTS.transpose(0, 1))))
    with pytest.raises(
        UnsupportedModelError, match=r"no module is named 'moe.gate'; it has, for example, blocks.0.gate"
    ):
        mp.record(model, routers=[RouterSite("moe.gate", read=_output)])
    with pytest.raises(BadInputError, match="give a list of RouterSite"):
        mp.record(model, routers=["blocks.0.gate"])
    with pytest.raises(BadInputError, match="cannot be replayed"):
        mp.record(model, routers=[_site()], self_check=True)
    with pytest.raises(BadInputError, match="are recorded without"):
        mp.record(model, routers=[_site()], probabilities=True)
    with pytest.raises(UnsupportedModelError, match="compiled already"):
        mp.record(torch.compile(model), routers=[_site()])
    both = _site(rows="batch sequence")
    with mp.record(model, routers=[both]) as recording:
        with pytest.raises(RoutingError, match="no forward was recorded"):
            _ = recording.routers
        with pytest.raises(BadInputError, match="being recorded already"), mp.record(model, routers=[both]):
            pass
        with pytest.raises(RoutingError, match=r"3 sequences of 2 rows in a forward, and blocks\.0"):
            model(TOKENS)
        with pytest.raises(RoutingError, match="outside a forward of the model"):
            said(TOKENS)
    model.blocks[1].pop("gate")
    model.blocks[1]["gate"] = Said((_IDS, _WEIGHTS))
    model.unused = nn.ModuleDict({"gate": Said((_IDS, _WEIGHTS))})
    sites = [_site(), RouterSite("unused.gate", read=_output, n_experts=4)]
    with mp.record(model, routers=sites), pytest.raises(RoutingError, match=r"unused.gate \(Said\): was not called"):
        model(TOKENS)


def test_an_interrupted_forward_leaves_no_rows_and_no_hooks():
    model = Model(Said((_IDS, _WEIGHTS)), Said((_IDS + 9, _WEIGHTS), (_IDS, _WEIGHTS)))
    with mp.record(model, routers=[_site()]) as recording:
        with pytest.raises(RoutingError, match="out of range"):
            model(TOKENS)
        model(TOKENS)
    routing = recording.routing()
    assert routing.n_tokens == 6
    assert routing.sequence(0).tolist() == [0, 0, 0, 1, 1, 1]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_gates_own_size_says_how_many_experts_there_are():
    class Gate(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return super().forward(x).topk(2)

    torch.manual_seed(0)
    model = nn.Sequential(Gate(8, 5))
    site = RouterSite("0", read=lambda module, inputs, output: (output.indices, output.values))
    routing = _record(model, site, x=torch.randn(2, 3, 8))
    assert routing.routers[0].n_experts == 5


def test_a_model_compiled_within_the_block_is_recorded():
    model = nn.Sequential(nn.Linear(8, 4), nn.Softmax(dim=-1))
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    with mp.record(model, routers=[RouterSite("1", read=_output, dense=True)]) as recording, torch.inference_mode():
        returned = torch.compile(model, backend="eager")(x)
    gates = np.zeros((6, 4), np.float32)
    np.put_along_axis(gates, recording.routing().experts(0).astype(int), recording.routing().weights(0), 1)
    np.testing.assert_array_equal(gates, returned.flatten(0, 1).numpy())
