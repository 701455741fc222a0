"""Tracing: a model runs over documents, or over documents that it goes on with, and leaves a run on disk.

| module | what it knows |
|---|---|
| `tracer` | `trace`: the arguments, the order of the work |
| `generating` | `generate_and_trace`: the same, for documents that the model goes on with |
| `prompts`, `generator` | documents to prompts, prompts to what the model writes after them |
| `spelling`, `kept` | which characters a written token spells; what was written, kept on disk |
| `job` | what both have in common: from documents in the spool to the run |
| `reading`, `encoding`, `spool` | documents to token ids, once, kept on disk meanwhile |
| `batches`, `forward` | windows to batches, batches through the model |
| `rows` | token rows and labels |
| `shard` | one shard, from its text to its tables: the same whoever makes it |
| `counting`, `counted` | counts of assignments by label as the model goes, and a shard that is nothing else |
| `work` | the shards still to be made, and how they reach the disk |
| `pipeline` | makes them here, with threads beside the model |
| `probabilities` | how much room whole distributions over experts take |
| `manifest`, `profile` | what the run says of its making, and where the time went |

This is the only package that knows both the model's half of the library and the store's.
"""

from moe_probe.tracing.generating import generate_and_trace
from moe_probe.tracing.profile import BESIDE, Profile
from moe_probe.tracing.tracer import trace
from moe_probe.watching import Progress

__all__ = ["BESIDE", "Profile", "Progress", "generate_and_trace", "trace"]
