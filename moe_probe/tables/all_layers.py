"""How often two runs chose the same experts over all layers together: one number a decile or label, not one a layer.

A decision is one token in one router. All decisions of a document are one draw, so that layers that err together do not
narrow the interval. It holds the decisions of all routers at once: about 100 bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.measures.agreement import agreements
from moe_probe.tables.between import AGREEMENT_COLUMNS, ALL, as_columns, decile_groups, label_groups
from moe_probe.tables.columns import Column
from moe_probe.tables.paired import Pair
from moe_probe.tables.rows import stack_rows

_MEASURES = ("set_overlap", "first_choice", "exact_set")
_PER_LAYER = ("layer", "router", "margin_low", "margin_high")
_DEFINITIONS = {
    **{f"{name}_chance": f"Mean of the layers' own {name}_chance, weighted by their tokens." for name in _MEASURES},
    "decile": "Tenth of each router's tokens by the first run's margin, 1 the closest to a tie; all: every token.",
    "n": "Decisions compared: a token in a router is one.",
}

ALL_LAYERS_COLUMNS = (
    *(
        column._replace(definition=_DEFINITIONS.get(column.name, column.definition))
        for column in AGREEMENT_COLUMNS
        if column.name not in _PER_LAYER
    ),
    Column("routers", pl.Int64, "routers", "Routers whose decisions are in the row."),
)


def agreement_over_layers(pair: Pair, by_layer: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Return what `agreement_table` does, all routers together.

    Args:
        pair: two runs.
        by_layer: from `agreement_table` with the same `by`; chances are its.
        by: label sets that the runs were paired with.

    Returns:
        A row for all decisions, each decile and each value of each label.
    """
    routers = pair.run_a.routers
    if not routers:
        return stack_rows(ALL_LAYERS_COLUMNS, [])
    groups = _groups(pair, by)
    n_slots = max(router.n_slots for router in routers)
    chosen = [pair.experts(router) for router in routers]
    experts_a, experts_b = (np.concatenate([_widened(both[run], n_slots) for both in chosen]) for run in (0, 1))
    measured = agreements(
        experts_a,
        experts_b,
        np.tile(pair.clusters, len(routers)),
        [rows for _, rows in groups],
        n_experts=max(router.n_experts for router in routers),
        lenders=[place for place, (facts, _) in enumerate(groups) if facts["decile"] != ALL] or [0],
    )
    same = {"cluster_unit": pair.cluster_unit}
    rows = [
        facts | same | as_columns(found)
        for (facts, _), found in zip(groups, measured, strict=True)
        if found is not None
    ]
    if not rows:
        return stack_rows(ALL_LAYERS_COLUMNS, [])
    keys = ["label_set", "label", "decile"]
    chances = by_layer.group_by(keys).agg(
        ((pl.col(f"{name}_chance") * pl.col("n")).sum() / pl.col("n").sum()).alias(f"{name}_chance")
        for name in _MEASURES
    )
    counted = by_layer.group_by(keys).agg(routers=pl.len())
    pooled = pl.DataFrame(rows, infer_schema_length=None).drop(f"{name}_chance" for name in _MEASURES)
    joined = pooled.join(chances, on=keys, maintain_order="left").join(counted, on=keys, maintain_order="left")
    return stack_rows(ALL_LAYERS_COLUMNS, [joined])


def _groups(pair: Pair, by: Sequence[str]) -> list[tuple[dict[str, object], NDArray[np.intp]]]:
    """Return the decisions of each row: of router i, those from i times the tokens on."""
    n_tokens, n_routers = pair.tokens.height, len(pair.run_a.routers)
    everywhere: dict[str, object] = {"label_set": ALL, "label": ALL, "decile": ALL, "tokens": "all"}
    groups = [(everywhere, np.arange(n_tokens * n_routers))]
    in_deciles: dict[str, list[NDArray[np.intp]]] = {}
    for place, router in enumerate(pair.run_a.routers):
        for facts, rows in decile_groups(pair.margins(router)):
            in_deciles.setdefault(str(facts["decile"]), []).append(rows + place * n_tokens)
    groups += [
        (everywhere | {"decile": decile}, np.concatenate(in_deciles[decile])) for decile in sorted(in_deciles, key=int)
    ]
    starts = np.arange(n_routers)[:, None] * n_tokens
    groups += [
        (everywhere | facts, (starts + rows).ravel()) for label in by for facts, rows in label_groups(pair, label)
    ]
    return groups


def _widened(experts: NDArray[np.int32], n_slots: int) -> NDArray[np.int32]:
    """Return (tokens, n_slots), the slots that a router lacks as if they held none."""
    return np.pad(experts, ((0, 0), (0, n_slots - experts.shape[1])), constant_values=-1)
