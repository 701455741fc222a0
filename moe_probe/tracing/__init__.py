"""Tracing: a model runs over documents and leaves a run on disk.

| module | what it knows |
|---|---|
| `tracer` | `trace`: the arguments, the order of the work |
| `reading`, `encoding`, `spool` | documents to token ids, once, kept on disk meanwhile |
| `batches`, `forward` | windows to batches, batches through the model |
| `rows` | token rows and labels |
| `pipeline` | shards, with the threads beside the model |
| `manifest` | what the run says of its making |

This is the only package that knows both the model's half of the library and the store's.
"""

from moe_probe.tracing.tracer import trace
from moe_probe.watching import Progress

__all__ = ["Progress", "trace"]
