"""record(): the one way in, to routers that are found and to those that the caller names.

It does not know how either are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from torch import nn

from moe_probe.errors import BadInputError
from moe_probe.recording.handwritten import SiteRecording
from moe_probe.recording.recorder import Recording
from moe_probe.recording.sites import RouterSite


@overload
def record(
    model: nn.Module,
    *,
    routers: None = None,
    self_check: bool | None = None,
    entropy: bool = True,
    probabilities: bool = False,
) -> Recording: ...


@overload
def record(
    model: nn.Module, *, routers: Sequence[RouterSite], self_check: bool | None = None, entropy: bool = True
) -> SiteRecording: ...


def record(
    model: nn.Module,
    *,
    routers: Sequence[RouterSite] | None = None,
    self_check: bool | None = None,
    entropy: bool = True,
    probabilities: bool = False,
) -> Recording | SiteRecording:
    """Record the routing of a Mixture-of-Experts model: one of transformers, or any with `routers` that you name.

    Every forward of the model, or of its decoder, inside the `with` block is recorded; its outputs are bit for bit
    those without recording. Rows that a 2-D attention mask hides are dropped; without a mask all are kept. A forward
    opens new sequences, except one that continues a cache. Generation under `record` is right for greedy decoding and
    sampling; where rows of the cache are rearranged (beam search, assisted decoding) it raises: generate first, then
    record one forward over the result. An encoder and a decoder that both choose experts are streams of different
    tokens: record each on its own, as `record(model.encoder)`. A slot that executed no expert, for lack of capacity or
    because the router skipped, holds `schema.DROPPED` with weight 0.

    Hand-written routers (`routers`) are read by your own functions and believed: there is no self-check. The rows of a
    module's calls become sequences so, unless its site says how (`RouterSite.rows`): two leading dimensions are (batch,
    sequence); one is that of the model's tokens, flat, where these are (batch, sequence, …), else one sequence; of
    several calls in a forward, each is a step of every sequence where the sizes say so. Calls in one forward follow
    each other as positions. What allows two readings, or is not as many rows as the model has tokens, is refused. Each
    forward opens new sequences.

    Args:
        model: any model in which `find_routers` finds routers; with `routers` any module.
        routers: sites of hand-written routers, instead of those that are found.
        self_check: None replays a model's first forward, once for the model and its experts implementation; True
            does it again, and raises where it cannot; False never does.
        entropy: whether to record entropy and margin too; of hand-written routers where their logits are given.
        probabilities: whether to record every router's whole distribution over experts too, (tokens, experts) floats.
            A token whose logits are no numbers is then flagged by a row of NaN instead of being an error, as long as
            its weights are numbers.

    Raises:
        UnsupportedModelError: if its routers cannot be read exactly, are quantised, or are compiled already, or if no
            module is named as a site says.
        BadInputError: if the model is being recorded already, or probabilities are wanted without entropy, or of
            hand-written routers, which also have no self-check that could be forced.

    Example:
        >>> import torch
        >>> from transformers import MixtralConfig, MixtralForCausalLM
        >>> config = MixtralConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=2, vocab_size=8)
        >>> model = MixtralForCausalLM(config).eval()
        >>> with record(model) as recording, torch.inference_mode():
        ...     _ = model(torch.tensor([[1, 2, 3]]))
        >>> recording.routing().experts(1).shape, recording.self_check
        ((3, 2), 'passed')

        >>> gate = nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1))  # a mixture that every expert takes part in
        >>> site = RouterSite("1", read=lambda module, inputs, gates: gates, dense=True)
        >>> with record(gate, routers=[site]) as recording, torch.inference_mode():
        ...     _ = gate(torch.randn(2, 5, 4))
        >>> recording.routing().experts(0).shape, recording.self_check
        ((10, 3), 'not run: hand-written router')
    """
    if routers is None:
        return Recording(model, self_check=self_check, entropy=entropy, probabilities=probabilities)
    if self_check:
        raise BadInputError("self_check=True: what hand-written routers execute cannot be replayed; leave it out")
    if probabilities:
        raise BadInputError("probabilities=True: hand-written routers are recorded without; leave it out")
    return SiteRecording(model, routers, entropy=entropy)
