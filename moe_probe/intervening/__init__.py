"""Change which experts a model executes, for as long as a `with` block is open.

| module | what it does |
|---|---|
| `weights` | `ablate`: an expert's weight to zero; `force`: an expert into the last slot |
| `selection` | `reroute`: an expert can no longer be chosen, the next one takes its place |
| `places` | which router is meant; what cannot be intervened in, and why |

Interventions stack, on one layer or several, and may be closed in any order; when the last is closed the model computes
bit for bit what it did before. They read and write where `recording` reads, so that a recording inside the block holds
what was then executed. Nothing here knows texts, losses or files.
"""

from moe_probe.intervening.selection import reroute
from moe_probe.intervening.weights import ablate, force

__all__ = ["ablate", "force", "reroute"]
