"""Count a run by token type: how often each vocabulary entry had each label, and went to each expert first.

Type-level measures let every type count once, so that they need these counts and not those by occurrence. Memory is
bounded: routers are counted in batches, shard by shard. It does not know what the counts mean (measures/).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.batches import in_batches
from moe_probe.counts.by_label import find_label
from moe_probe.measures.specialisation import count_pairs

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard

_BATCH_BYTES = 256 * 2**20


@dataclass(frozen=True, eq=False)
class TypeCounts:
    """The token types of a run, and their labels.

    Rows are types, in the order of their token ids: `token_ids` (types,), `tokens` the tokenizer's pieces,
    `label_counts` (types, labels) int64. Counted were word-initial tokens that have a label at all, but for the first
    four positions of each window.
    """

    label_set: schema.LabelSet
    token_ids: NDArray[np.int64]
    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    label_counts: NDArray[np.int64]


def load_type_counts(run: Run, label: str = "upos") -> TypeCounts:
    """Count how often each token type had each label, over word-initial tokens.

    Args:
        run: an open run.
        label: one of the run's label sets.

    Raises:
        BadInputError: the run has no such label.
    """
    label_set = find_label(run, label)
    frames = [
        _kept_rows(shard, label_set).group_by("token_id", "token", "label").len("count") for shard in run.iter_shards()
    ]
    if not frames:
        return TypeCounts(label_set, np.zeros(0, np.int64), (), (), np.zeros((0, 0), np.int64))
    counted = pl.concat(frames).group_by("token_id", "label").agg(pl.col("token").min(), pl.col("count").sum())
    types = counted.group_by("token_id").agg(pl.col("token").min()).sort("token_id")
    labels = counted["label"].unique().sort().to_list()
    token_ids = types["token_id"].to_numpy().astype(np.int64)
    rows = np.searchsorted(token_ids, counted["token_id"].to_numpy())
    columns = np.searchsorted(np.array(labels, dtype=np.str_), counted["label"].to_numpy().astype(np.str_))
    label_counts = np.zeros((token_ids.size, len(labels)), dtype=np.int64)
    label_counts[rows, columns] = counted["count"].to_numpy()
    return TypeCounts(label_set, token_ids, tuple(types["token"].to_list()), tuple(labels), label_counts)


def iter_expert_counts(run: Run, types: TypeCounts) -> Iterator[tuple[schema.Router, NDArray[np.int64]]]:
    """Yield each router with how often each type went to each expert as its first choice, (types, experts).

    Args:
        run: the run that `types` was counted from.
        types: decides which rows are counted.
    """
    n_types = len(types.token_ids)
    for batch in in_batches(run.routers, lambda router: n_types * router.n_experts * 8, _BATCH_BYTES):
        totals = [np.zeros((len(types.token_ids), router.n_experts), dtype=np.int64) for router in batch]
        for shard in run.iter_shards():
            kept = _kept_rows(shard, types.label_set)
            rows = np.searchsorted(types.token_ids, kept["token_id"].to_numpy())
            frame = shard.routing([schema.expert_column(router.index, 0) for router in batch])[kept["row"].to_numpy()]
            for router, total in zip(batch, totals, strict=True):
                experts = frame[schema.expert_column(router.index, 0)].cast(pl.Int64).fill_null(schema.DROPPED)
                total += count_pairs(rows, experts.to_numpy(), (total.shape[0], total.shape[1]))
        yield from zip(batch, totals, strict=True)


def _kept_rows(shard: Shard, label_set: schema.LabelSet) -> pl.DataFrame:
    """The row numbers, token ids, pieces and labels (as `label`) of the rows that are counted."""
    columns = dict.fromkeys(["window_position", "word_initial", "token_id", "token", label_set.name])
    frame = shard.tokens(list(columns)).with_row_index("row").with_columns(label=pl.col(label_set.name).cast(pl.String))
    starts_word = ~pl.col("label").is_in(schema.NOT_WORDS) if label_set.word_level else pl.col("word_initial")
    return frame.filter(
        starts_word & (pl.col("label") != schema.UNTAGGED) & (pl.col("window_position") >= schema.SINK_POSITIONS)
    ).select("row", "token_id", "token", "label")
