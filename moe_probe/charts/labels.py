"""Which labels each expert takes more, or less, than its share of."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from moe_probe.charts.look import (
    DIVERGING,
    MOST_EXPERTS,
    add_cells,
    colour_bar,
    downwards,
    dress,
    escape,
    grid,
    named_ticks,
    nothing,
    of_slot,
    rows_text,
)
from moe_probe.errors import BadInputError
from moe_probe.measures.verdicts import SPECIALISED

MINIMUM_EXPECTED = 5.0
"""Cells with a smaller expected count are not drawn: their lift is noise."""

_LABEL_CHARACTERS = 22
_FAINT = 0.3
_VALUES = {
    "lift": (
        "lift",
        "Which labels does each expert of layer {layer} take more than its share of?",
        "Baseline: lift 1, independence.",
    ),
    "p_label_given_expert": (
        "share of the expert's assignments",
        "Which labels is each expert of layer {layer} used on?",
        "Rows sum to 1. Baseline: the same row for all experts.",
    ),
    "p_expert_given_label": (
        "share of the label's assignments",
        "Where does layer {layer} send the tokens of each label?",
        "Columns sum to 1. Baseline: the same column for all labels.",
    ),
    "assignments": (
        "assignments",
        "How often does each expert of layer {layer} get each label?",
        "Baseline: the expected count, shown at the pointer.",
    ),
}
"""What the colour may show: its name, what the picture then answers, and its baseline."""

_FACTS = ("expert", "lift", "assignments", "expected", "p_label_given_expert", "p_expert_given_label", "n")


def label_heatmap(
    frame: pl.DataFrame,
    router: int,
    *,
    slot: str = "any",
    value: str = "lift",
    minimum_expected: float = MINIMUM_EXPECTED,
    sort_experts: bool = True,
    selectable: bool = False,
    domain: str = "all",
    most: int = MOST_EXPERTS,
    focus: Sequence[int] = (),
) -> go.Figure:
    """Draw which labels each expert of one router takes more, or less, than its share.

    Labels are sorted by how common they are. Experts are sorted by the label that they take most above its share, so
    that specialists form a diagonal. Where the colour shows lift, cells whose verdict is not `specialised` are faint.

    Args:
        frame: from `tables.label_table`.
        router: the router's index.
        slot: "any" or "0".
        value: what the colour shows: "lift" (diverging around 1, on a log scale), "p_label_given_expert",
            "p_expert_given_label" or "assignments".
        minimum_expected: cells with a smaller expected count are left blank.
        sort_experts: False keeps the experts in the order of their index.
        selectable: let a page select cells; `customdata` then ends with expert and label. Left out above 20,000 cells.
        domain: "all", or one of the table's domains.
        most: so many experts are drawn: those picked, then those with a specialised cell, then those used most.
        focus: experts that the reader picked; they are drawn whatever their load.

    Raises:
        BadInputError: `value` is none of those.
    """
    if value not in _VALUES:
        raise BadInputError(f"value {value!r}: draw one of {', '.join(_VALUES)}")
    every = of_slot(frame, slot).filter(pl.col("router") == router, pl.col("domain") == domain)
    rows = _kept(every, most, focus)
    _, question, baseline = _VALUES[value]
    if rows.is_empty() or rows["expected"].null_count() == len(rows):
        return nothing(question.format(layer=rows["layer"][0] if len(rows) else "?"))
    enough = pl.col("lift").is_not_null() & (pl.col("expected") >= minimum_expected)
    drawn = rows.with_columns(drawn=enough if value == "lift" else pl.col(value).is_not_null())
    totals = rows.group_by("label").agg(pl.col("assignments").sum())
    labels = totals.sort("assignments", "label", descending=[True, False])["label"].to_list()
    experts = _expert_order(drawn, labels, sort_experts)
    x = drawn["label"].replace_strict({label: index for index, label in enumerate(labels)}).to_numpy()
    y = drawn["expert"].replace_strict({expert: index for index, expert in enumerate(experts)}).to_numpy()
    figure = go.Figure(_cells(drawn, value, y, x, labels, len(experts)))
    if selectable:
        held = drawn["lift"].is_not_null().to_numpy()
        add_cells(figure, x[held], y[held], drawn.select("expert", "label").to_numpy()[held])
    baseline += _left_out(len(experts), every["expert"].n_unique())
    if value == "lift":
        _fade(figure, drawn, y, x)
        baseline += _cells_text(drawn, minimum_expected)
    dress(
        figure,
        question.format(layer=rows["layer"][0]),
        baseline,
        f"n = {int(rows['n'][0]):,} assignments: {rows_text(rows)}{'' if domain == 'all' else f', {escape(domain)}'}.",
        height=min(1200, 240 + 24 * len(experts)),
    )
    _label_axes(figure, labels, experts)
    return figure


def _kept(rows: pl.DataFrame, most: int, focus: Sequence[int]) -> pl.DataFrame:
    """The rows of the experts to draw."""
    if rows["expert"].n_unique() <= most:
        return rows
    specialised = (pl.col("verdict") == SPECIALISED).any().alias("specialised")
    totals = rows.group_by("expert").agg(pl.col("assignments").sum(), specialised)
    picked = pl.col("expert").is_in(list(focus))
    ranked = totals.sort(picked, "specialised", "assignments", -pl.col("expert"), descending=True)
    return rows.filter(pl.col("expert").is_in(ranked["expert"].head(most).to_list()))


def _left_out(drawn: int, there: int) -> str:
    if drawn == there:
        return ""
    return f" Drawn: {drawn:,} of {there:,} experts, those picked, those specialised and those used most."


def _cells(
    drawn: pl.DataFrame,
    value: str,
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    labels: Sequence[str],
    n_experts: int,
) -> go.Heatmap:
    shape = (n_experts, len(labels))
    details = [grid(drawn[fact].cast(pl.Float64).fill_null(math.nan).to_numpy(), y, x, shape) for fact in _FACTS]
    texts = [np.array([[escape(label) for label in labels]] * n_experts, dtype=object)]
    for said in (_interval_texts(drawn), drawn["verdict"].to_list()):
        placed = np.full(shape, "", dtype=object)
        placed[y, x] = said
        texts.append(placed)
    return go.Heatmap(
        z=_label_colours(drawn, value, y, x, shape),
        customdata=np.dstack([*details, *texts]),
        hovertemplate="<b>expert %{customdata[0]:.0f}, %{customdata[7]}</b>"
        "<br>lift %{customdata[1]:.2f}%{customdata[8]}: %{customdata[9]}"
        "<br>%{customdata[2]:,.0f} assignments, expected %{customdata[3]:,.1f}"
        "<br>%{customdata[4]:.1%} of the expert's, %{customdata[5]:.1%} of the label's"
        "<br>n = %{customdata[6]:,.0f}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1 if n_experts <= 64 else 0,
        **_label_scale(drawn, value),
    )


def _interval_texts(rows: pl.DataFrame) -> list[str]:
    """` (2.70–3.60)` for each row, or nothing where there is no interval."""
    ends = zip(rows["ci_low"], rows["ci_high"], strict=True)
    return ["" if low is None else f" ({low:.2f}–{high:.2f})" for low, high in ends]


def _fade(figure: go.Figure, drawn: pl.DataFrame, y: NDArray[np.int64], x: NDArray[np.int64]) -> None:
    """Make a heatmap faint, but for the specialised cells, which are drawn on it once more."""
    heatmap = figure.data[0]
    shown = np.full(heatmap.z.shape, np.nan)
    specialised = (drawn["verdict"] == SPECIALISED).to_numpy()
    shown[y[specialised], x[specialised]] = heatmap.z[y[specialised], x[specialised]]
    scale = {name: heatmap[name] for name in ("colorscale", "zmid", "zmin", "zmax", "colorbar", "xgap", "ygap")}
    # The colour bar is the full-coloured trace's: that of a faint one would be faint itself.
    figure.add_trace(go.Heatmap(z=shown, hoverinfo="skip", hoverongaps=False, **scale))
    heatmap.update(opacity=_FAINT, showscale=False)


def _cells_text(drawn: pl.DataFrame, minimum_expected: float) -> str:
    shown = drawn.filter("drawn")
    faint = shown.filter(pl.col("verdict") != SPECIALISED).height
    return (
        f" Faint ({faint:,} of {len(drawn):,} cells): not shown to be specialised."
        f" Blank ({len(drawn) - len(shown):,}): fewer than {minimum_expected:g} expected."
    )


def _expert_order(drawn: pl.DataFrame, labels: Sequence[str], by_pattern: bool) -> list[int]:
    experts = drawn["expert"].unique().sort().to_list()
    if not by_pattern:
        return experts
    place = {label: index for index, label in enumerate(labels)}
    best: dict[int, tuple[int, float]] = {}
    for row in (
        drawn.filter("drawn", pl.col("lift").is_not_null())
        .sort("lift", descending=True, maintain_order=True)
        .iter_rows(named=True)
    ):
        best.setdefault(row["expert"], (place[row["label"]], -row["lift"]))
    return sorted(experts, key=lambda expert: (*best.get(expert, (len(labels), 0.0)), expert))


def _label_colours(
    drawn: pl.DataFrame, value: str, y: NDArray[np.int64], x: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.float64]:
    shown = pl.when("drawn").then(pl.col(value).cast(pl.Float64))
    if value == "lift":
        # Nothing where something was expected is as far from 1 as the scale goes.
        shown = pl.when("drawn").then(pl.col("lift").clip(2.0**-10).log(2))
    return grid(drawn.select(shown.alias("shown"))["shown"].fill_null(math.nan).to_numpy(), y, x, shape)


def _label_scale(drawn: pl.DataFrame, value: str) -> dict[str, object]:
    name = _VALUES[value][0]
    if value != "lift":
        return {"colorscale": "Cividis", "zmin": 0, "colorbar": colour_bar(name)}
    seen = drawn.filter(pl.col("drawn") & (pl.col("lift") > 0))["lift"].log(2).abs().max()
    reach = min(3, max(1, math.ceil(float(seen or 0))))  # type: ignore[arg-type]
    ticks = range(-reach, reach + 1)
    texts = [f"{2**tick}×" if tick >= 0 else f"1/{2**-tick}" for tick in ticks]
    bar = colour_bar(name, tickvals=list(ticks), ticktext=texts)
    return {"colorscale": DIVERGING, "zmid": 0, "zmin": -reach, "zmax": reach, "colorbar": bar}


def _label_axes(figure: go.Figure, labels: Sequence[str], experts: Sequence[int]) -> None:
    short = [label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…" for label in labels]
    figure.update_xaxes(
        showgrid=False, tickangle=-45 if len(short) > 4 else 0, **named_ticks([escape(label) for label in short])
    )
    names = [str(expert) for expert in experts]
    figure.update_yaxes(title="expert", showgrid=False, **downwards(named_ticks(names), len(names)))
