"""Recording: which experts a model really executes, read while it runs.

| module | what it knows |
|---|---|
| `recorder` | `record`: hooks on, routing out, hooks off |
| `routers` | where a model chooses experts, and which models cannot be read |
| `forms` | the rule by which a choice is told, and the few exceptions |
| `scores` | entropy and margin, from logits that must explain the executed choice |
| `capture` | one forward: what was called, the one copy at its end, what cannot be true |
| `replay` | the self-check |
| `routing` | the value that comes out |
| `architectures`, `survey` | every architecture of transformers, tiny, and how exactly it is read: docs/models.md |

It needs torch and numpy (the last two also transformers), and knows neither texts nor files.
"""

from moe_probe.recording.recorder import Recording, record
from moe_probe.recording.routers import find_routers
from moe_probe.recording.routing import Routing

__all__ = ["Recording", "Routing", "find_routers", "record"]
