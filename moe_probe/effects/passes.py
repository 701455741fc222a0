"""One forward for each intervention: which are made, and what each does to the surprisal of a batch's tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from moe_probe.effects.prefix import Kept
from moe_probe.errors import UnsupportedModelError
from moe_probe.intervening import ablate, reroute
from moe_probe.intervening.places import find_place
from moe_probe.intervening.weights import changed_call
from moe_probe.models import LanguageModel
from moe_probe.tracing.batches import Batch
from moe_probe.tracing.forward import decode, surprisal_bits

How = Literal["ablate", "reroute"]
_SAME_BITS = 1e-3


@dataclass(frozen=True)
class Pass:
    """One intervention: experts of a router switched off, or as many random assignments dropped instead (`random`).

    `target` says that its effect is asked for; others are there to compare with. `slot_shares` is, for a random
    control, the share of each slot's assignments that are dropped.
    """

    router: int
    layer: int
    experts: tuple[int, ...]
    target: bool = False
    random: bool = False
    slot_shares: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """The same for the same pass, for files and seeds."""
        return f"{self.router}:{','.join(map(str, self.experts))}{':random' if self.random else ''}"


def plain_pass(lm: LanguageModel, batch: Batch, layers: nn.ModuleList, kept: Kept) -> NDArray[np.float32]:
    """Return the surprisal of a batch's tokens, (kept,), in bits, and keep what the layers gave."""
    with torch.inference_mode(), kept.keeping(layers):
        return surprisal_bits(lm, decode(lm, batch), batch)


def changed_pass(
    lm: LanguageModel, batch: Batch, layers: nn.ModuleList, kept: Kept, one: Pass, *, how: How, seed: Sequence[int]
) -> NDArray[np.float32]:
    """Return the surprisal of a batch's tokens under an intervention, (kept,), in bits.

    Args:
        lm: the model.
        batch: as in the plain pass.
        layers: the model's.
        kept: what the layers gave in the plain pass.
        one: the intervention.
        how: what is done to experts that are switched off.
        seed: of a random control.
    """
    with torch.inference_mode(), kept.from_layer(layers, one.layer), _intervention(lm.model, one, how, seed):
        return surprisal_bits(lm, decode(lm, batch), batch)


def check_prefix(
    lm: LanguageModel, batch: Batch, layers: nn.ModuleList, kept: Kept, bits: NDArray[np.float32], firsts: Sequence[int]
) -> None:
    """See that running on from each layer gives what the whole model gave.

    Raises:
        UnsupportedModelError: if it does not.
    """
    for first in firsts:
        with torch.inference_mode(), kept.from_layer(layers, first):
            again = surprisal_bits(lm, decode(lm, batch), batch)
        if not np.allclose(again, bits, atol=_SAME_BITS, rtol=0, equal_nan=True):
            raise UnsupportedModelError(
                f"{lm.name}: running on from layer {first} does not give what the whole model gave, since it hands "
                "more than hidden states from layer to layer; effects cannot be measured so"
            )


@contextmanager
def _intervention(model: nn.Module, one: Pass, how: How, seed: Sequence[int]) -> Iterator[None]:
    if one.random:
        with _random_drops(model, one, seed):
            yield
    elif how == "ablate":
        with ablate(model, router=one.router, experts=one.experts):
            yield
    else:
        with reroute(model, router=one.router, experts=one.experts):
            yield


@contextmanager
def _random_drops(model: nn.Module, one: Pass, seed: Sequence[int]) -> Iterator[None]:
    """Set the weights of random assignments to zero, of each slot as large a share as the experts had of it."""
    rng = np.random.default_rng(list(seed))
    shares = torch.tensor(one.slot_shares)

    def change(ids: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        drawn: Any = torch.from_numpy(rng.random(tuple(weights.shape), dtype=np.float32)).to(weights.device)
        slot = weights.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        return ids, weights.masked_fill(drawn < shares.to(weights.device)[slot], 0)

    with changed_call(find_place(model, None, one.router), change):
        yield
