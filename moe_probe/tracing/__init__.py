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
| `pipeline` | shards, with the threads beside the model |
| `manifest` | what the run says of its making |

This is the only package that knows both the model's half of the library and the store's.
"""

from moe_probe.tracing.generating import generate_and_trace
from moe_probe.tracing.tracer import trace
from moe_probe.watching import Progress

__all__ = ["Progress", "generate_and_trace", "trace"]
