"""What must be the same in a worker as in the process that asks, or the run would say of itself what is not true.

It does not know Ray.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import nn

from moe_probe.errors import BadInputError
from moe_probe.models import LanguageModel
from moe_probe.tracing.shard import Recipe

_VALUES_A_TENSOR = 64
_THEIRS = ("accelerate", "transformers")  # hooks that loading itself puts there


@dataclass(frozen=True)
class Likeness:
    """What a shard's bytes follow from, of one process.

    `weights` holds a digest of a sample of each tensor, by its name; `labels` where each label comes from.
    """

    torch: str
    device: str
    fingerprint: str
    weights: Mapping[str, str]
    labels: Mapping[str, str]


def likeness(lm: LanguageModel, recipe: Recipe) -> Likeness:
    """Return what a worker is compared by."""
    labels = {name: labeller.label_set.source for name, labeller in recipe.open_labellers().items()}
    return Likeness(str(torch.__version__), lm.device.type, lm.fingerprint(), weight_samples(lm.model), labels)


def find_difference(here: Likeness, there: Likeness) -> str | None:
    """Return what is different in a worker, in words, or None."""
    for name in (field.name for field in fields(Likeness)):
        one, other = getattr(here, name), getattr(there, name)
        if isinstance(one, str):
            if one != other:
                return f"{name} {other} where this process has {one}"
            continue
        for key in sorted(one.keys() & other.keys()):
            if one[key] != other[key]:
                return f"{name} of {key}: {other[key]} where this process has {one[key]}"
    return None


def weight_samples(model: nn.Module) -> dict[str, str]:
    """Return a digest of up to 64 values of each parameter and buffer, evenly spread; of none that is offloaded.

    A model that was trained on, or had a layer replaced, has others.
    """
    samples = {}
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type == "meta":
            continue
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _VALUES_A_TENSOR)][:_VALUES_A_TENSOR].cpu().contiguous()
        samples[name] = hashlib.sha256(some.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
    return samples


def check_as_loaded(lm: LanguageModel) -> None:
    """Refuse a model that a worker, which loads it afresh, would not have.

    Raises:
        BadInputError: it did not come from `load`, or something hangs on it that changes what it executes.
    """
    if lm.origin is None:
        raise BadInputError(
            f"{lm.name}: a worker loads the model itself, and this one did not come from moe_probe.load; load it, or "
            "trace with engine='local'"
        )
    for name, module in lm.model.named_modules():
        hooks = itertools.chain(module._forward_pre_hooks.values(), module._forward_hooks.values())
        if any(not (getattr(hook, "__module__", None) or "").startswith(_THEIRS) for hook in hooks):
            raise BadInputError(
                f"{lm.name}: a hook is on {name or 'the model'}, which a worker, that loads the model itself, would not"
                " run; remove it (leave the with block of ablate, force, reroute or record), or trace with"
                " engine='local'"
            )
