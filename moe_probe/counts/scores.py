"""Means of what the routers' scores say, token by token. It does not know what a score means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from moe_probe import schema
from moe_probe.counts.cache import Kept, remembered
from moe_probe.counts.selection import cache_file, source

if TYPE_CHECKING:
    from moe_probe.store import Run, Shard


@dataclass(frozen=True)
class Scores:
    """Means, over tokens, of what one router's scores say; None where no score is known."""

    mean_token_entropy_bits: float | None
    mean_margin: float | None


def load_scores(run: Run, *, sinks: bool = False) -> list[Scores]:
    """Return each router's mean entropy of a token, in bits, and mean margin, over all tokens.

    Rows without a number (no scores, or logits that were no numbers) are left out of the mean.

    Args:
        run: an open run.
        sinks: take in the first four positions of each window.
    """
    columns = [
        column
        for router, known in zip(run.routers, run.with_scores, strict=True)
        if known
        for column in (schema.entropy_column(router.index), schema.margin_column(router.index))
    ]
    total = np.zeros((2, len(columns)))
    for shard in run.iter_shards():
        path = cache_file(run, f"part-{shard.number:06d}-scores{'-sinks' if sinks else ''}")
        what = source(run, [shard.number], ["scores", sinks, columns])
        total += remembered(path, what, partial(_add_up, shard, columns, sinks)).arrays["sums"]
    means = {
        column: float(value) / float(count) if count else None
        for column, value, count in zip(columns, *total, strict=True)
    }
    return [
        Scores(means.get(schema.entropy_column(router.index)), means.get(schema.margin_column(router.index)))
        for router in run.routers
    ]


def _add_up(shard: Shard, columns: Sequence[str], sinks: bool) -> Kept:
    """Sum and count of the numbers in each column."""
    kept = shard.tokens(["window_position"])["window_position"].to_numpy() >= (0 if sinks else schema.SINK_POSITIONS)
    total = np.zeros((2, len(columns)))
    for index, column in enumerate(columns):
        values = shard.routing([column])[column].to_numpy()[kept].astype(np.float64)  # null becomes nan
        known = np.isfinite(values)
        total[:, index] = values[known].sum(), known.sum()
    return Kept({}, {"sums": total})
