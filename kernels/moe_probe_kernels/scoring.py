"""How a router makes selection scores of its logits, and what a summary of them holds: the words of `summary`.

It does not compute anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from moe_probe_kernels.choosing import Way

LOWEST = -1e4
"""Bounds a logit's distance from the highest: keeps a masked one, −inf, from making 0·(−inf)."""


class Summary(NamedTuple):
    """What was found, and which way: `ran` is "triton" or "torch"."""

    entropy: torch.Tensor  # (layers, tokens) float32, bits
    margin: torch.Tensor  # (layers, tokens) float32
    share_error: torch.Tensor | None  # (layers,) float32; None where no weights were given
    histogram: torch.Tensor | None  # (layers, experts) int32, without the choice of none; None where not asked for
    ran: Way


Activation = Literal["softmax", "sigmoid", "sqrtsoftplus"]
ACTIVATIONS = ("softmax", "sigmoid", "sqrtsoftplus")


@dataclass(frozen=True)
class Scoring:
    """How a router makes selection scores of its logits.

    Attributes:
        activation: what is made of the logits; "sqrtsoftplus" is the root of ln(1 + eˣ).
        of_logits: whether top-k is taken of the logits, not of what was made of them.
        of_probabilities: whether probabilities come in the place of logits.
        n_groups: groups of consecutive experts, equally large; 1 for none.
        n_kept_groups: how many groups experts are chosen from.
        best_of_group: how many of a group's highest scores, added up, make its own.
        skips: whether there is one logit more than experts, the last: to go to none of them.
        in_its_type: whether selection scores are made in the logits' own type, and a bias of that type is added in it
            (but not where `skips`), else in float32.
        rounded_to: the type that selection scores are rounded to before the best are taken; None for none.
    """

    activation: Activation = "softmax"
    of_logits: bool = False
    of_probabilities: bool = False
    n_groups: int = 1
    n_kept_groups: int = 1
    best_of_group: int = 2
    skips: bool = False
    in_its_type: bool = False
    rounded_to: torch.dtype | None = None
