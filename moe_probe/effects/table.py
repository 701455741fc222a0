"""What switching experts off did, as a table: each label's change, its controls, and what may be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.counts.clusters import DOCUMENT
from moe_probe.effects.folder import EffectFolder
from moe_probe.errors import BadInputError
from moe_probe.measures.effect import Contrast, difference, label_clusters, mean_effect, over_any
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.verdicts import LEVEL, MINIMUM_CLUSTERS, NOT_ENOUGH, NOT_SHOWN, THIS_TEXT_ONLY
from moe_probe.tables.columns import LAYER, ROUTER, Column, schema_of

_SOURCE = "paired differences, clustered: Cochran 1977, Sampling Techniques, 6.3 and 9A.2"
MORE_THAN_ANY = "more than any other expert"
MORE_THAN_CONTROLS = "more than its controls"
LEAST_BITS = 0.01
"""A smaller difference is no effect to speak of, however sure."""

EFFECT_COLUMNS = (
    LAYER,
    ROUTER,
    Column("experts", pl.String, "indices", "The experts that were switched off, together; separated by blanks."),
    Column("label_set", pl.String, "name", "Which labels."),
    Column("label", pl.String, "name", "The label's value."),
    Column(
        "carried_by",
        pl.String,
        "routed, predicted",
        "Whose label it is: of the token that was routed, or of the one after it, whose surprisal changed.",
    ),
    Column("load_share", pl.Float64, "0 to 1", "The experts' share of the router's assignments."),
    Column("mean_bits", pl.Float64, "bits", "Mean change of surprisal over the label's tokens: off less on.", _SOURCE),
    Column("ci_low", pl.Float64, "bits", "Lower end of mean_bits at 95 %, a document being one draw."),
    Column("ci_high", pl.Float64, "bits", "Upper end of mean_bits at 95 %."),
    Column(
        "difference",
        pl.Float64,
        "bits",
        "mean_bits less the mean over all other labels' tokens. 0: no label in particular.",
    ),
    Column("difference_ci_low", pl.Float64, "bits", "Lower end of difference at 95 %."),
    Column("difference_ci_high", pl.Float64, "bits", "Upper end of difference at 95 %."),
    Column(
        "random_difference",
        pl.Float64,
        "bits",
        "difference of the random control: as many assignments of each slot dropped at random. Null where experts were "
        "rerouted.",
    ),
    Column("over_random", pl.Float64, "bits", "difference less random_difference, token by token."),
    Column("over_random_ci_low", pl.Float64, "bits", "Lower end of over_random at 95 %."),
    Column("over_random_ci_high", pl.Float64, "bits", "Upper end of over_random at 95 %."),
    Column(
        "matched_experts", pl.Int64, "experts", "Other experts of half to twice the load, each switched off by itself."
    ),
    Column(
        "over_matched",
        pl.Float64,
        "bits",
        "difference less the mean difference of the matched experts. Null where there are none.",
    ),
    Column("over_matched_ci_low", pl.Float64, "bits", "Lower end of over_matched at 95 %."),
    Column("over_matched_ci_high", pl.Float64, "bits", "Upper end of over_matched at 95 %."),
    Column(
        "over_any",
        pl.Float64,
        "bits",
        "The least lower end of difference less that of any one other expert. Above 0: more than any other expert.",
        "intersection-union test: Berger 1982",
    ),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        "Of over_random (over_matched where experts were rerouted), corrected for all rows of the same carried_by.",
        "Benjamini & Hochberg 1995",
    ),
    Column("geff", pl.Float64, "clusters", "Effective number of clusters of documents."),
    Column(
        "verdict",
        pl.String,
        "words",
        f"{MORE_THAN_ANY}, {MORE_THAN_CONTROLS}, {NOT_SHOWN}, {NOT_ENOUGH} or {THIS_TEXT_ONLY}.",
    ),
    Column("n", pl.Int64, "tokens", "Tokens with the label."),
)

Floats = NDArray[np.float64]


def effect_table(
    folder: EffectFolder, *, carried_by: str = "routed", only: Sequence[tuple[int, tuple[int, ...]]] | None = None
) -> pl.DataFrame:
    """Return what switching off each expert did to each label's tokens, with its controls.

    Args:
        folder: from `effect_map` or `open_effects`; it may be unfinished.
        carried_by: whose label counts: of the token "routed", or of the one "predicted".
        only: (router, experts) to give rows for; by default all that were asked for.

    Raises:
        BadInputError: `carried_by` is neither.
        RunError: nothing is measured yet.
    """
    carriers = folder.manifest["carriers"]
    if carried_by not in carriers:
        raise BadInputError(f"carried_by {carried_by!r}: choose one of {', '.join(carriers)}")
    carrier = carriers.index(carried_by)
    measured = folder.read()
    counts = measured.counts[carrier]  # (clusters, labels)
    passes = folder.manifest["passes"]
    targets = [
        index
        for index, one in enumerate(passes)
        if one["target"] and (only is None or (one["router"], tuple(one["experts"])) in only)
    ]
    frames = [_rows(folder, measured.sums[:, carrier], counts, index, carried_by) for index in targets]
    table = pl.concat(frames) if frames else pl.DataFrame()
    return _finish(table, folder.manifest["cluster_unit"] == DOCUMENT)


def _rows(folder: EffectFolder, sums: Floats, counts: NDArray[np.int64], index: int, carried_by: str) -> pl.DataFrame:
    manifest = folder.manifest
    passes, labels = manifest["passes"], manifest["labels"]
    one = passes[index]
    loads = np.array(manifest["loads"][str(one["router"])], dtype=np.float64)
    others = [place for place, other in enumerate(passes) if _is_other(one, other)]
    load = loads[one["experts"]].sum()
    matched = [place for place in others if 0.5 * load <= loads[passes[place]["experts"]].sum() <= 2 * load]
    mean, own = mean_effect(sums[index], counts), difference(sums[index], counts)
    columns: dict[str, Any] = {
        "layer": one["layer"],
        "router": one["router"],
        "experts": " ".join(map(str, one["experts"])),
        "label_set": manifest["settings"]["label"],
        "label": labels,
        "carried_by": carried_by,
        "load_share": load / max(loads.sum(), 1.0),
        "mean_bits": mean.value,
        "ci_low": mean.low,
        "ci_high": mean.high,
        "difference": own.value,
        "difference_ci_low": own.low,
        "difference_ci_high": own.high,
        "matched_experts": len(matched),
        "over_any": over_any(sums[index], sums[others], counts),
        "geff": label_clusters(counts),
        "n": counts.sum(axis=0),
    }
    controls = {}
    if index + 1 < len(passes) and passes[index + 1]["random"]:
        columns["random_difference"] = difference(sums[index + 1], counts).value
        controls["over_random"] = sums[index + 1]
    if matched:
        controls["over_matched"] = sums[matched].mean(axis=0)
    for name in ("over_random", "over_matched"):
        found = difference(sums[index] - controls[name], counts) if name in controls else None
        for column, values in zip((name, f"{name}_ci_low", f"{name}_ci_high"), _ends(found, len(labels)), strict=True):
            columns[column] = values
        # The stricter control there is decides; corrected once all rows are there.
        if found is not None and "q_value" not in columns:
            columns["q_value"] = found.p
    nothing = np.full(len(labels), np.nan)
    return pl.DataFrame({"random_difference": nothing, "q_value": nothing} | columns)


def _ends(found: Contrast | None, n_labels: int) -> tuple[Floats, Floats, Floats]:
    """A contrast's value and ends, nan where there is none."""
    nothing = np.full(n_labels, np.nan)
    return (nothing, nothing, nothing) if found is None else (found.value, found.low, found.high)


def _is_other(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a pass is of other experts of the same router, and no random control."""
    same_router = bool(other["router"] == one["router"])
    return same_router and not other["random"] and not set(other["experts"]) & set(one["experts"])


def _finish(rows: pl.DataFrame, of_documents: bool) -> pl.DataFrame:
    schema = schema_of(EFFECT_COLUMNS)
    if rows.is_empty():
        return pl.DataFrame(schema=schema)
    rows = rows.with_columns(q_value=pl.Series(q_values(rows["q_value"].to_numpy())))
    enough = (pl.col("geff") >= MINIMUM_CLUSTERS) & pl.col("q_value").is_not_nan()
    over_matched = pl.col("over_matched").is_nan() | (pl.col("over_matched_ci_low") > 0)
    specific = (
        (pl.col("q_value") < LEVEL)
        & (pl.col("over_random").is_nan() | (pl.col("over_random_ci_low") > 0))
        & (pl.col("difference_ci_low") > 0)
        & (pl.col("difference") >= LEAST_BITS)
        & over_matched
    )
    verdict = (
        pl.when(~enough)
        .then(pl.lit(NOT_ENOUGH))
        .when(~specific)
        .then(pl.lit(NOT_SHOWN))
        .when(pl.lit(not of_documents))
        .then(pl.lit(THIS_TEXT_ONLY))
        .when(pl.col("over_any").is_not_nan() & (pl.col("over_any") > 0))
        .then(pl.lit(MORE_THAN_ANY))
        .otherwise(pl.lit(MORE_THAN_CONTROLS))
    )
    ordered = rows.with_columns(verdict=verdict).select(pl.col(name).cast(kind) for name, kind in schema.items())
    return ordered.with_columns(pl.col(name).fill_nan(None) for name, kind in schema.items() if kind == pl.Float64)
