"""From correlation to cause: does switching an expert off hurt the tokens that it is chosen for?

| module | what it knows |
|---|---|
| `measuring` | `effect` and `effect_map`: text and model in, sums out |
| `passes` | one forward under one intervention |
| `prefix` | running a model from one of its layers on |
| `batches` | the batches of a traced run, and whose label a change belongs to |
| `folder` | sums on disk; stopping and going on |
| `table` | the numbers, their intervals and controls |
| `by_token` | the change of each token, for showing it |
| `cost` | how long it will take |
| `texts` | the documents of a run, to measure on |
| `wording` | what may be said of an effect in a sentence |

Measuring needs torch; reading what was measured does not, so `measuring` is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_probe.effects.folder import EffectFolder, open_effects
from moe_probe.effects.table import EFFECT_COLUMNS, effect_table

if TYPE_CHECKING:
    from moe_probe.effects.measuring import effect, effect_map

__all__ = ["EFFECT_COLUMNS", "EffectFolder", "effect", "effect_map", "effect_table", "open_effects"]


def __getattr__(name: str) -> object:
    if name not in ("effect", "effect_map"):
        raise AttributeError(f"module 'moe_probe.effects' has no attribute {name!r}")
    from moe_probe.effects import measuring

    return getattr(measuring, name)
