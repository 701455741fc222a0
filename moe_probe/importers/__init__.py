"""Foreign traces: what other tools say about routing becomes a run.

| format | what it is | weights |
|---|---|---|
| `jsonl` | one object a prompt (tokens, layers, experts, weights), or one a (token, layer) | if given |
| `vllm` | responses with `routed_experts`, as nested lists or as base64 `.npy` | no |
| `sglang` | responses with `meta_info.routed_experts`, or the recorder's `.pt` file | no |
| `olmoe` | lines with `input_ids` and `exp_ids` | no |
| `esft` | a text file a layer, a line a document | yes |

One module a format reads; every other step is the same for all: `checking` finds the traps, `cutting` says which shard
a document is in, `sharding` makes shards as documents come, `columns` their experts and weights, `rows` their tokens,
`behind` has them written meanwhile, `writing` writes what else a run is. JSON is read by the first that can: `alike`
and `numerals` read lines that differ in their numbers alone, `regular` and `packed` objects of regular lists or of
base64, `lines` all else. A trap is a sentence in the run's warnings, or an error. Nothing here runs a model.
"""

from moe_probe.importers.importing import FORMATS, import_run
from moe_probe.importers.recorded import write_run
from moe_probe.importers.saying import import_and_say

__all__ = ["FORMATS", "import_and_say", "import_run", "write_run"]
