"""Gives a run that was written by hand the surprisal of its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import polars as pl

from moe_probe import schema
from moe_probe.store import Run, open_run


def with_surprisal(run: Run, bits: Sequence[float]) -> Run:
    """Write a surprisal for each token of a run, in its order, and open it again; nan becomes null."""
    start = 0
    for shard in run.iter_shards():
        path = run.path / schema.tokens_file(shard.number)
        own = np.asarray(bits, np.float32)[start : start + shard.rows]
        column = pl.Series(schema.SURPRISAL_COLUMN, own).fill_nan(None)
        pl.read_parquet(path).with_columns(column).write_parquet(path)
        start += shard.rows
    manifest = run.manifest | {"settings": run.manifest.get("settings", {}) | {"surprisal": True}}
    (run.path / schema.MANIFEST_FILE).write_text(json.dumps(manifest))
    return open_run(run.path)
