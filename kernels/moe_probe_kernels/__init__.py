"""Array kernels on the way from a model's routers to a recording, each with a torch reference beside it.

| module | what it does |
|---|---|
| `pack` | sorts each token's slots by weight, and narrows them |
| `ring` | the same into a persistent buffer on the device |
| `summary` | entropy, margin and executed experts of all layers from their logits |
| `scoring` | how routers score: what `summary` is told, and what it returns |
| `tally` | counts of expert by cell, added up on the device |
| `choosing` | whether the Triton kernel runs, or the reference |

`ring_kernel`, `summary_kernel` and `tally_kernel` hold the Triton kernels, and are loaded when one first runs;
`summary_reference` is the longest of the references. They know tensors only: no model, no run, nothing of moe_probe.
"""

from moe_probe_kernels.choosing import Way, which
from moe_probe_kernels.pack import Packed, pack
from moe_probe_kernels.ring import Ring
from moe_probe_kernels.scoring import Scoring, Summary
from moe_probe_kernels.summary import summarise
from moe_probe_kernels.tally import Tally

__all__ = ["Packed", "Ring", "Scoring", "Summary", "Tally", "Way", "pack", "summarise", "which"]
