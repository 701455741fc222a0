"""How rows get their columns, in order, with their types, and null for what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import LabelCounts
from moe_probe.tables.columns import Column, schema_of

ANY_SLOT = "any"
FIRST_CHOICE = "0"


def router_rows(
    router: schema.Router,
    slot: str,
    tokens: str,
    columns: Mapping[str, NDArray[np.generic]],
    same: Mapping[str, object],
) -> pl.DataFrame:
    """Rows of one router: `columns` differ from row to row, `same` do not."""
    constants = {"layer": router.layer, "router": router.index, "slot": slot, "tokens": tokens, **same}
    frame = pl.DataFrame({name: values for name, values in columns.items()}) if columns else pl.DataFrame({"": [0]})
    return frame.with_columns(**{name: pl.lit(value) for name, value in constants.items()})


def stack_rows(table: Sequence[Column], frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The columns of a table in their order and types; null for what was not given."""
    columns = schema_of(table)
    rows = pl.concat(frames, how="diagonal_relaxed") if frames else pl.DataFrame()
    ordered = rows.select(
        (pl.col(column) if column in rows.columns else pl.lit(None)).cast(dtype).alias(column)
        for column, dtype in columns.items()
    )
    return (ordered if frames else pl.DataFrame(schema=columns)).with_columns(
        pl.col(column).fill_nan(None) for column, dtype in columns.items() if dtype == pl.Float64
    )


def tagged(counts: LabelCounts) -> NDArray[np.bool_]:
    """Return which labels are a value, (labels,): `untagged` is none."""
    return np.array([label != schema.UNTAGGED for label in counts.labels], dtype=np.bool_)
