from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from torch import nn
from transformers import StaticCache

import moe_probe as mp
from moe_probe.recording.capture import _repeats, check_decisions
from moe_probe.recording.routers import find_sites

TOKENS = torch.randint(3, 512, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def _changed(change: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]], layer: int = 1) -> Any:
    """Return a Mixtral whose experts of one layer are called with changed ids and weights."""
    model = tiny_models.build("mixtral")

    def replace(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        states, ids, weights = args
        return (states, *change(ids.clone(), weights.clone()))

    model.model.layers[layer].mlp.experts.register_forward_pre_hook(replace)
    return model


def _fails(model: Any, message: str, **options: Any) -> None:
    """Check that a forward raises, that nothing of it is recorded, and that the hooks go."""
    before = _hooks(model)
    with mp.record(model, self_check=False) as recording, torch.inference_mode():
        with pytest.raises(mp.RoutingError, match=message):
            model(TOKENS, **options)
        with pytest.raises(mp.RoutingError, match="no forward was recorded"):
            recording.routing()
    assert _hooks(model) == before


def test_an_expert_that_does_not_exist_is_an_error() -> None:
    def beyond(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids[3, 0] = 8  # transformers' marker of another process' expert: it is skipped
        return ids, weights

    model = _changed(beyond)
    model.set_experts_implementation("eager")
    _fails(model, r"model.layers.1.mlp \(router 1, layer 1\): expert index 8 is out of range: it has 8 experts")


def test_the_same_expert_twice_in_a_token_is_an_error() -> None:
    def twice(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids[:4, 1] = ids[:4, 0]
        return ids, weights

    _fails(_changed(twice), r"layer 1\): 4 of 12 tokens hold the same expert twice")


def test_repeats_are_seen_among_many_slots_too() -> None:
    experts = np.arange(24).reshape(1, 12, 2)  # (routers, slots, tokens)
    assert not _repeats(experts).any()
    experts[0, 11, 1] = experts[0, 2, 1]
    assert _repeats(experts).tolist() == [[False, True]]


def test_a_layer_of_zeros_is_an_error() -> None:
    _fails(
        _changed(lambda ids, weights: (ids, torch.zeros_like(weights))),
        r"layer 1\): all weights of its 12 tokens are zero; nothing was executed",
    )


def test_a_weight_that_is_not_a_number_is_an_error() -> None:
    def spoil(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights[5, 1] = torch.nan
        weights[7, 0] = torch.inf
        return ids, weights

    _fails(_changed(spoil), r"layer 1\): 2 of 12 tokens have NaN or infinite weights or logits")


def test_logits_that_are_not_numbers_are_an_error() -> None:
    model = tiny_models.build("gpt_oss")
    model.model.layers[2].mlp.router.bias.data[3] = torch.nan
    _fails(model, r"layer 2\): 12 of 12 tokens have NaN or infinite weights or logits")


def test_logits_that_are_not_numbers_are_an_error_where_the_weights_are() -> None:
    sites = find_sites(tiny_models.build("mixtral"))[:1]
    experts, weights = np.array([[[0, 1], [2, 3]]]), np.full((1, 2, 2), 0.5, np.float32)
    entropy = np.array([[1.0, np.nan]], np.float32)
    check_decisions(sites, experts, weights, np.array([[0, 3]]), entropy[:, ::2])
    with pytest.raises(mp.RoutingError, match=r"layer 0\): 1 of 2 tokens have NaN or infinite weights or logits"):
        check_decisions(sites, experts, weights, np.array([[0, 3]]), entropy)


def test_padding_may_hold_anything() -> None:
    def spoil(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights[0] = torch.nan
        return ids, weights

    model = _changed(spoil, layer=2)
    mask = torch.ones_like(TOKENS)
    mask[0, 0] = 0
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS, attention_mask=mask)
    assert recording.routing().n_tokens == 11


def test_a_mask_of_four_dimensions_hides_the_padding_and_is_an_error() -> None:
    mask = torch.zeros(2, 1, 6, 6)
    _fails(tiny_models.build("mixtral"), "attention_mask has 4 dimensions: padding cannot be told", attention_mask=mask)
    masks = {"full_attention": mask, "sliding_attention": mask}
    _fails(tiny_models.build("gpt_oss"), "attention_mask has type dict: padding cannot be told", attention_mask=masks)


def test_a_mask_that_does_not_cover_the_rows_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    with torch.inference_mode():
        cache = model(TOKENS, use_cache=True).cache
    message = r"attention_mask \(2, 6\) does not cover the 6 positions in the cache and the 6 of this forward for a"
    _fails(model, message, attention_mask=torch.ones(2, 6), cache=cache)


def test_a_call_without_tokens_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model), pytest.raises(mp.RoutingError, match="called without input_ids or inputs_embeds of shape"):
        model.model(input_ids=torch.tensor([1, 2, 3]))


def test_experts_that_run_without_being_called_are_an_error() -> None:
    model = tiny_models.build("gpt_oss")
    block = model.model.layers[1].mlp
    # as use_kernels=True and MXFP4 do: the block's forward goes around the call of its experts
    block.forward = lambda states: (states, None)
    _fails(model, r"layer 1\): yielded no rows in a forward of 12 \(1 of 3 routers did so\).*use_kernels=True or MXFP4")


def test_a_block_that_runs_twice_in_a_forward_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    block = model.model.layers[0].mlp
    forward = block.forward
    block.forward = lambda states: forward(forward(states))
    _fails(model, r"layer 0\): yielded 24 rows in a forward of 2 × 6 = 12, as where a block runs twice")


def test_a_block_that_leaves_tokens_out_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    block = model.model.layers[0].mlp
    forward = block.forward
    block.forward = lambda states: torch.cat([forward(states[:, :3].contiguous()), states[:, 3:]], dim=1)
    _fails(model, r"layer 0\): yielded 6 rows in a forward of 2 × 6 = 12, as where a block runs twice or leaves")


def test_another_number_of_slots_than_stated_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    model.model.layers[0].mlp.gate.top_k = 3
    with mp.record(model, self_check=False), torch.inference_mode():
        model.model.layers[0].mlp.gate.top_k = 2
        with pytest.raises(mp.RoutingError, match=r"layer 0\): sent a token to 2 experts, not 3"):
            model(TOKENS)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe"])
def test_gradient_checkpointing_runs_blocks_again_and_is_an_error(architecture: str) -> None:
    model = tiny_models.build(architecture).train()
    model.activation_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with mp.record(model):
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
        with pytest.raises(mp.RoutingError, match=r"layer 2\): its experts ran outside a forward .*checkpointing"):
            loss.backward()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn])
def test_a_router_that_was_quantised_is_an_error(dtype: torch.dtype) -> None:
    model = tiny_models.build("mixtral")
    gate = model.model.layers[1].mlp.gate
    gate.register_buffer("lookup", torch.arange(8))  # a table of indices is not a quantised weight
    mp.record(model)
    gate.weight = nn.Parameter(gate.weight.data.to(dtype), requires_grad=False)
    name = str(dtype).removeprefix("torch.")
    message = rf"model.layers.1.mlp.gate.weight: the router is quantised \({name}\).*load it with moe_probe.load"
    with pytest.raises(mp.UnsupportedModelError, match=message):
        mp.record(model)


def test_a_model_is_recorded_once_at_a_time() -> None:
    model = tiny_models.build("mixtral")
    before = _hooks(model)
    with mp.record(model):
        for part in (model, model.model):
            with pytest.raises(mp.BadInputError, match="MixtralModel: it is being recorded already"), mp.record(part):
                pass
    assert _hooks(model) == before
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    assert recording.routing().n_tokens == 12


def test_hooks_go_and_earlier_rows_stay_when_the_block_ends_in_an_error() -> None:
    model = tiny_models.build("mixtral")
    before = _hooks(model)
    recording = mp.record(model)

    def record_and_fail() -> None:
        with recording, torch.inference_mode():
            model(TOKENS)
            raise KeyError

    with pytest.raises(KeyError):
        record_and_fail()
    assert _hooks(model) == before
    assert recording.routing().n_tokens == 12


def test_a_forward_that_fails_half_way_leaves_no_rows_and_the_next_is_whole() -> None:
    model = tiny_models.build("mixtral")
    block = model.model.layers[2].mlp
    with mp.record(model) as recording, torch.inference_mode():
        block.forward = lambda states: 1 / 0
        with pytest.raises(ZeroDivisionError):
            model(TOKENS)
        del block.forward
        model(TOKENS[:1])
    assert recording.routing().sequence(0).tolist() == [0] * 6


def test_a_recording_that_is_opened_inside_a_forward_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    recording = mp.record(model)
    model.model.register_forward_hook(lambda *_: None)
    handle = model.model.norm.register_forward_pre_hook(lambda *_: recording.__enter__() and None)
    with pytest.raises(mp.RoutingError, match="MixtralModel: a forward ended that recording did not see begin"):
        model(TOKENS)
    handle.remove()
    recording.__exit__(None, None, None)


def test_nothing_recorded_is_an_error_and_not_an_empty_table() -> None:
    with pytest.raises(mp.RoutingError, match="MixtralModel: no forward was recorded; call the model inside"):
        mp.record(tiny_models.build("mixtral")).routing()


def test_a_router_that_does_not_exist_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
    with pytest.raises(mp.BadInputError, match="router 3: the model has 3, 0 to 2"):
        recording.routing().experts(3)


def test_a_model_compiled_before_is_refused_or_found_out() -> None:
    model = tiny_models.build("mixtral")
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(mp.UnsupportedModelError, match="OptimizedModule: it is compiled already"):
        mp.record(compiled)
    with torch.inference_mode():
        compiled(TOKENS, use_cache=False)
        with mp.record(model) as recording:
            compiled(TOKENS, use_cache=False)
    with pytest.raises(mp.RoutingError, match=r"not through a torch\.compile made before"):
        recording.routing()
    model.model.layers[0].compile(backend="eager")
    with pytest.raises(mp.UnsupportedModelError, match="MixtralForCausalLM: it is compiled already"):
        mp.record(model)
    torch._dynamo.reset()


def test_a_model_compiled_while_it_is_recorded_is_recorded() -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS)
        compiled = torch.compile(model, backend="eager")
        compiled(TOKENS, use_cache=False)
    routing = recording.routing()
    assert routing.sequence(0).max() == 3
    np.testing.assert_array_equal(routing.experts(1)[:12], routing.experts(1)[12:])
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "do_sample": True}], ids=("beams", "sampled"))
def test_rows_that_beam_search_rearranges_are_an_error(options: dict[str, Any]) -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model), pytest.raises(mp.RoutingError, match="the cache was rearranged between two forwards"):
        model.generate(TOKENS, max_new_tokens=4, eos_token_id=None, **options)


def test_tokens_that_assisted_decoding_takes_back_are_an_error() -> None:
    model, assistant = tiny_models.build("mixtral"), tiny_models.build("mixtral", seed=1)
    with mp.record(model), pytest.raises(mp.RoutingError, match=r"holds other keys\).*generate without recording"):
        model.generate(TOKENS[:1], max_new_tokens=8, do_sample=False, eos_token_id=None, assistant_model=assistant)


def test_a_cache_whose_batch_was_cut_is_an_error() -> None:
    model = tiny_models.build("mixtral")
    with mp.record(model), torch.inference_mode():
        cache = model(TOKENS, use_cache=True).cache
        cache.batch_select_indices(torch.tensor([1]))
        with pytest.raises(mp.RoutingError, match=r"\(a batch of 2 became one of 1\), as beam search"):
            model(TOKENS[:1, :1], cache=cache)


def test_tokens_that_are_taken_back_from_a_static_cache_are_an_error() -> None:
    model = tiny_models.build("mixtral")
    cache = StaticCache(config=model.config, max_cache_len=16)
    with mp.record(model) as recording, torch.inference_mode():
        model(TOKENS, cache=cache)
        cache.crop(-2)
        with pytest.raises(mp.RoutingError, match=r"\(positions 6 to 4\), as beam search and assisted decoding do"):
            model(TOKENS[:, :1], cache=cache)
    assert recording.routing().n_tokens == 12
