"""The same trace on a Ray cluster: a worker a GPU, or a share of the processors, each with the model in its memory.

| module | what it knows |
|---|---|
| `choosing` | which engine is meant, and whether it can be used with these arguments and this model |
| `connection` | to start Ray here, or to join a cluster that is there, quietly |
| `shares` | how many workers there are, and what each may take |
| `crew` | which worker makes which shard, and what becomes of a shard whose worker died |
| `worker` | what a worker does: load the model, make shards |
| `likeness` | what must be the same in a worker as in the process that asks |

Shards are made from the model, the recipe and their text alone (`tracing.shard`), and one process writes them
(`tracing.work`): a run's bytes do not depend on who made them. Nothing here knows how a shard is made or written.
"""

from moe_probe.cluster.choosing import choose_engine

__all__ = ["choose_engine"]
