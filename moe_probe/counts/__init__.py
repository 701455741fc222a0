"""Counts of a run, as integer arrays; everything that is said about a run is said from them.

| module | what it knows |
|---|---|
| `by_label` | assignments by expert and label, over occurrences |
| `by_type` | labels and first choices of each token type |
| `batches` | routers in batches that fit into memory |
| `cache` | counts kept on disk, never used when stale |

Nothing here knows what a count means.
"""

from moe_probe.counts.by_label import (
    N_CLUSTERS,
    TOKEN_ROWS,
    LabelCounts,
    Scores,
    document_clusters,
    find_label,
    load_counts,
    load_scores,
)
from moe_probe.counts.by_type import TypeCounts, iter_expert_counts, load_type_counts

__all__ = [
    "N_CLUSTERS",
    "TOKEN_ROWS",
    "LabelCounts",
    "Scores",
    "TypeCounts",
    "document_clusters",
    "find_label",
    "iter_expert_counts",
    "load_counts",
    "load_scores",
    "load_type_counts",
]
