"""The run on disk: `open_run` reads one, `RunWriter` writes one.

| module | what it knows |
|---|---|
| `plan` | how a corpus is cut into windows and shards |
| `shards` | the rows of a shard, in the types they have on disk |
| `parquet` | the tables of a shard as Parquet files, and what a shard says of itself |
| `files` | reading with clear errors, writing without halves |
| `writer` | the order in which a run is written, and the lock |
| `counted`, `totals` | the same for a run that holds counts only: writing it, and its one file of counts |
| `clusters` | the number that a document's cluster follows from |
| `run`, `part`, `document` | reading: whole, by shard, by document |
| `columns` | routing columns as arrays |
| `columnar`, `chunks`, `packing`, `thrift` | routing files as our own encoder writes them |
| `packed` | columns of experts straight from the pages that `chunks` wrote |
| `views` | SQL |

Nothing here knows torch.
"""

from moe_probe.store.document import DocumentRouting
from moe_probe.store.part import Shard
from moe_probe.store.run import Run, open_run
from moe_probe.store.writer import RunWriter, ShardFacts

__all__ = ["DocumentRouting", "Run", "RunWriter", "Shard", "ShardFacts", "open_run"]
