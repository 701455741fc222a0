"""Recording: which experts a model really executes, read while it runs.

| module | what it knows |
|---|---|
| `opening` | `record`: the one way in |
| `recorder` | routers that are found: hooks on, routing out, hooks off |
| `handwritten` | routers that the caller names: the same |
| `routers` | where a model chooses experts, and which models cannot be read |
| `sites` | where a hand-written router is read, and what may be read there |
| `arranging` | which sequence and position a hand-written router's row is |
| `streams` | one recording at a time |
| `forms` | the rule by which a choice is told, and the few exceptions |
| `scores` | entropy, margin and probabilities, from logits that must explain the executed choice |
| `capture` | one forward: what was called, the one copy at its end, what cannot be true |
| `replay` | the self-check |
| `routing` | the value that comes out |
| `formats` | formats of checkpoints, devices, and experts that were never read |
| `architectures`, `survey` | every architecture of transformers, tiny, and how exactly it is read: docs/models.md |

It needs torch and numpy (the last two also transformers), and knows neither texts nor files.
"""

from moe_probe.recording.handwritten import SiteRecording
from moe_probe.recording.opening import record
from moe_probe.recording.recorder import Recording
from moe_probe.recording.routers import find_routers
from moe_probe.recording.routing import Routing
from moe_probe.recording.sites import RouterSite

__all__ = ["Recording", "RouterSite", "Routing", "SiteRecording", "find_routers", "record"]
