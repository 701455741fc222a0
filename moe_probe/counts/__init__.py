"""Counts of a run, as integer arrays; everything that is said about a run is said from them.

| module | what it knows |
|---|---|
| `by_label` | assignments by expert and label, over occurrences |
| `cells` | assignments by expert in the rows of one label and cluster of a shard |
| `by_type` | labels and experts of each token type |
| `pairs` | experts that were chosen together, and one router after the other |
| `wide` | loads of routers with very many experts, and the refusal of other counts of them |
| `scores` | means of the routers' scores |
| `rows` | token rows of whole documents, for what needs their order |
| `selection` | which token rows are counted |
| `filters` | parts of a run: documents, a domain, a phase, positions |
| `clusters` | which of 64 clusters a token is in |
| `experts` | the experts of a shard, router by router |
| `batches` | routers in batches that fit into memory |
| `cache` | counts kept on disk, never used when stale |

Nothing here knows what a count means.
"""

from moe_probe.counts.by_label import LabelCounts, load_counts
from moe_probe.counts.by_type import TypeCounts, iter_expert_counts, load_type_counts
from moe_probe.counts.clusters import BLOCK_POSITIONS, document_clusters
from moe_probe.counts.pairs import PairCounts, iter_coactivation_counts, iter_transition_counts
from moe_probe.counts.rows import TokenRows, load_rows
from moe_probe.counts.scores import Scores, load_scores
from moe_probe.counts.selection import TOKEN_ROWS, find_label
from moe_probe.counts.wide import ExpertLoads, iter_expert_loads, refuse_wide, wide_routers
from moe_probe.store.clusters import FEWEST_DOCUMENTS, N_CLUSTERS

__all__ = [
    "BLOCK_POSITIONS",
    "FEWEST_DOCUMENTS",
    "N_CLUSTERS",
    "TOKEN_ROWS",
    "ExpertLoads",
    "LabelCounts",
    "PairCounts",
    "Scores",
    "TokenRows",
    "TypeCounts",
    "document_clusters",
    "find_label",
    "iter_coactivation_counts",
    "iter_expert_counts",
    "iter_expert_loads",
    "iter_transition_counts",
    "load_counts",
    "load_rows",
    "load_scores",
    "load_type_counts",
    "refuse_wide",
    "wide_routers",
]
