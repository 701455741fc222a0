"""From correlation to cause: does switching an expert off hurt the tokens that it is chosen for?

| module | what it knows |
|---|---|
| `measuring` | `effect` and `effect_map`: text and model in, sums out |
| `passes` | one forward under one intervention |
| `prefix` | running a model from one of its layers on |
| `batches` | the batches of a traced run, and whose label a change belongs to |
| `folder` | sums on disk; stopping and going on |
| `table` | the numbers, their intervals and controls |
"""

from moe_probe.effects.folder import EffectFolder, open_effects
from moe_probe.effects.measuring import effect, effect_map
from moe_probe.effects.table import EFFECT_COLUMNS, effect_table

__all__ = ["EFFECT_COLUMNS", "EffectFolder", "effect", "effect_map", "effect_table", "open_effects"]
