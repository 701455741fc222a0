"""How often runs chose the same experts: by layer, margin, label and training step; and whose load moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray
from plotly.colors import sample_colorscale

from moe_probe.charts.look import (
    DIVERGING,
    GREY,
    colour_bar,
    downwards,
    dress,
    escape,
    grid,
    integer_ticks,
    named_ticks,
    nothing,
    of_slot,
    range_text,
)
from moe_probe.errors import BadInputError
from moe_probe.palette import EXPERT_COLOURS

MEASURES = {"set_overlap": "experts in common", "first_choice": "same first choice", "exact_set": "same set of experts"}
"""What may be drawn, and what it is called."""

_COLOURS = (2, 7, 3)  # of EXPERT_COLOURS: those that stand out from white and from black alike
_MARKS = ("circle", "square", "diamond")
_DEPTH = [
    [place, f"rgb{tuple(bytes.fromhex(EXPERT_COLOURS[index][1:]))}"] for place, index in ((0, 2), (0.5, 5), (1, 7))
]
"""From the first layer to the last."""

_LABEL_CHARACTERS = 22
_WITHOUT = "without the first four of a window"
_MOST_LABELS = 40
_MOST_BARS = 8  # of intervals, beside each other; of more lines they are told where one points


def agreement_lines(frame: pl.DataFrame) -> go.Figure:
    """Draw how often two runs chose the same experts, layer by layer, with intervals, each above its chance.

    Args:
        frame: from `tables.agreement`; only its rows over all tokens are drawn.
    """
    title = "How often do both runs choose the same experts?"
    rows = _over_all(frame).filter(pl.col("decile") == "all").sort("router")
    if rows.is_empty():
        return nothing(title)
    ranked = rows.with_columns(rank=pl.int_range(pl.len()).over("layer"))
    several = ranked["rank"].n_unique() > 1
    figure = go.Figure()
    for index, (measure, name) in enumerate(MEASURES.items()):
        for (rank,), line in ranked.partition_by("rank", as_dict=True, maintain_order=True).items():
            of = f", router {int(rank) + 1} of its layer" if several else ""
            for trace in _lines(line, measure, name + of, index):
                figure.add_trace(trace)
    dress(
        figure,
        title,
        "Baseline, dotted: what random pairs of tokens of the two runs would share. Bars: 95 % intervals.",
        f"n = {range_text(rows['n'])} tokens a layer, {_WITHOUT}.",
        height=400,
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(legend=legend, hovermode="x unified", margin={"b": 80})
    figure.update_xaxes(title="layer", showgrid=False, **integer_ticks(int(rows["layer"].to_numpy().max()) + 1))
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure


def agreement_deciles(frame: pl.DataFrame, *, measure: str = "set_overlap") -> go.Figure:
    """Draw agreement by layer and by tenths of the first run's margin, so that near-ties are seen to flip first.

    Args:
        frame: from `tables.agreement`.
        measure: "set_overlap", "exact_set" or "first_choice"; the margin, of the last chosen expert over the first
            unchosen one, foretells the first two and not the last.

    Raises:
        BadInputError: `measure` is none of those.
    """
    title = "Do close decisions flip first?"
    rows = _over_all(frame).filter(pl.col("decile") != "all").with_columns(pl.col("decile").cast(pl.Int64))
    names = [str(decile) for decile in range(1, 11)]
    x = (rows["decile"] - 1).to_numpy()
    figure = _heatmap(rows, x, names, measure, title, "decile ")
    if not rows.is_empty():
        figure.update_xaxes(title="tenth of the tokens by the first run's margin: 1 the closest to a tie", tickangle=0)
    return figure


def agreement_labels(frame: pl.DataFrame, label_set: str, *, measure: str = "set_overlap") -> go.Figure:
    """Draw agreement by layer and by the values of a label set, the 40 commonest, commonest first.

    Args:
        frame: from `tables.agreement` with `by`.
        label_set: which.
        measure: "set_overlap", "exact_set" or "first_choice".

    Raises:
        BadInputError: `measure` is none of those.
    """
    rows = frame.filter(pl.col("label_set") == label_set)
    totals = rows.group_by("label").agg(pl.col("n").max()).sort("n", "label", descending=[True, False])
    labels = totals["label"].head(_MOST_LABELS).to_list()
    rows = rows.filter(pl.col("label").is_in(labels))
    x = rows["label"].replace_strict(labels, range(len(labels)), return_dtype=pl.Int64).to_numpy()
    names = [escape(shortened(label)) for label in labels]
    title = f"On which {escape(label_set)} do both runs choose the same experts?"
    return _heatmap(rows, x, names, measure, title)


def saturation_lines(frame: pl.DataFrame, *, measure: str = "set_overlap") -> go.Figure:
    """Draw how often checkpoints chose the experts of the reference, along the training, a line a layer, above chance.

    Along the steps of training where the table knows all of them, else along the order of the runs.

    Args:
        frame: from `tables.between.saturation`.
        measure: "set_overlap", "exact_set" or "first_choice".

    Raises:
        BadInputError: `measure` is none of those.
    """
    _refuse_measure(measure)
    title = "How early does each layer settle on its experts?"
    if frame.is_empty():
        return nothing(title)
    along = "checkpoint" if frame["step"].null_count() else "step"
    y, names = _routers(frame)
    colours = sample_colorscale(_DEPTH, [place / max(len(names) - 1, 1) for place in range(len(names))])
    figure = go.Figure(_chance_band(frame, along, measure))
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        line = frame.filter(pl.Series(y == place)).sort(along)
        low, high = line[f"{measure}_ci_low"], line[f"{measure}_ci_high"]
        told = [
            f"{interval_text(*ends, '.1%')}, chance {chance:.1%}"
            for ends, chance in zip(zip(low, high, strict=True), line[f"{measure}_chance"], strict=True)
        ]
        figure.add_scatter(
            x=line[along].to_list(),
            y=line[measure].to_list(),
            error_y=_bars(line, measure) if len(names) <= _MOST_BARS else None,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"symbol": _MARKS[place % len(_MARKS)], "size": 7},
            customdata=told,
            hovertemplate="%{y:.1%}%{customdata}",
        )
    bars = " Bars: 95 % intervals." if len(names) <= _MOST_BARS else ""
    dress(
        figure,
        title,
        f"Share of {MEASURES[measure]} with the reference. Baseline, grey: random pairs of tokens, least to most of the"
        f" layers.{bars}",
        f"n = {range_text(frame['n'])} tokens a point, {_WITHOUT}.",
        height=440,
    )
    # A filled band turns the legend round by default.
    figure.update_layout(hovermode="x unified", legend={"traceorder": "normal"})
    figure.update_xaxes(title="training step" if along == "step" else "checkpoint, in the order given", showgrid=False)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure


def load_difference_heatmap(frame: pl.DataFrame, *, slot: str = "any") -> go.Figure:
    """Draw by how much each expert's share of the load moved from one run to the other, in even shares.

    Args:
        frame: from `tables.load_difference`.
        slot: "any" or "0".
    """
    title = "Whose load moved?"
    rows = of_slot(frame, slot)
    if rows.is_empty():
        return nothing(title)
    y, names = _routers(rows)
    x = rows["expert"].to_numpy()
    shape = (len(names), int(x.max()) + 1)
    moved = (rows["difference"] / rows["uniform"]).to_numpy()
    reach = max(float(np.abs(moved).max()), 0.05)  # below a twentieth of an even share nothing is worth a colour
    facts = ("expert", "share_a", "share_b", "difference")
    details = [grid(rows[fact].cast(pl.Float64).fill_null(math.nan).to_numpy(), y, x, shape) for fact in facts]
    told = [
        f"{interval_text(low, high, '+.2%')}{_q(q)}" for low, high, q in rows["ci_low", "ci_high", "q_value"].rows()
    ]
    texts = [_texts([names[place] for place in y], y, x, shape), _texts(told, y, x, shape)]
    figure = go.Figure(
        go.Heatmap(
            z=grid(moved, y, x, shape),
            customdata=np.dstack([*details, *texts]),
            hovertemplate="<b>%{customdata[4]}, expert %{customdata[0]:.0f}</b><br>%{customdata[1]:.2%} →"
            " %{customdata[2]:.2%} of the load<br>%{customdata[3]:+.2%}%{customdata[5]}<extra></extra>",
            hoverongaps=False,
            colorscale=DIVERGING,
            zmin=-reach,
            zmax=reach,
            xgap=1 if shape[1] <= 64 else 0,
            ygap=1 if shape[0] <= 64 else 0,
            colorbar=colour_bar("difference, in even shares"),
        )
    )
    sure = int((rows["q_value"] < 0.05).sum())
    which = "any slot" if slot == "any" else "first choice" if slot == "0" else f"slot {slot}"
    dress(
        figure,
        title,
        f"Share of the second run less that of the first, over 1/E. Baseline: 0. q < .05 in {sure:,} of {len(rows):,}.",
        f"n = {range_text(rows['n'])} tokens, {which}, {_WITHOUT}.",
        height=min(900, 190 + 22 * shape[0]),
    )
    figure.update_xaxes(title="expert", showgrid=False, **integer_ticks(shape[1]))
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(names), len(names)))
    return figure


def _over_all(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("label_set") == "all")


def _lines(line: pl.DataFrame, measure: str, name: str, index: int) -> list[go.Scatter]:
    colour = EXPERT_COLOURS[_COLOURS[index]]
    layers = line["layer"].to_list()
    low, high = line[f"{measure}_ci_low"], line[f"{measure}_ci_high"]
    return [
        go.Scatter(
            x=layers,
            y=line[f"{measure}_chance"].to_list(),
            name=f"{name}: chance",
            mode="lines+markers" if len(layers) == 1 else "lines",
            line={"color": colour, "width": 1.5, "dash": "dot"},
            marker={"symbol": "line-ew-open", "size": 14},
            hovertemplate="%{y:.1%}",
            showlegend=False,
        ),
        go.Scatter(
            x=layers,
            y=line[measure].to_list(),
            error_y=_bars(line, measure),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"symbol": _MARKS[index], "size": 8, "line": {"color": GREY, "width": 1}},
            customdata=[interval_text(*ends, ".1%") for ends in zip(low, high, strict=True)],
            hovertemplate="%{y:.1%}%{customdata}",
        ),
    ]


def _bars(line: pl.DataFrame, measure: str) -> dict[str, object]:
    """Return the intervals of a line; none where one is not known."""
    low, high = line[f"{measure}_ci_low"], line[f"{measure}_ci_high"]
    return {
        "type": "data",
        "symmetric": False,
        "array": (high - line[measure]).fill_null(0).to_list(),
        "arrayminus": (line[measure] - low).fill_null(0).to_list(),
        "thickness": 1.5,
        "width": 3,
    }


def _chance_band(frame: pl.DataFrame, along: str, measure: str) -> list[go.Scatter]:
    """Return the least and the greatest chance of all layers, and what lies between."""
    chance = pl.col(f"{measure}_chance")
    ends = frame.group_by(along).agg(low=chance.min(), high=chance.max()).sort(along)
    look = {"x": ends[along].to_list(), "mode": "lines", "line": {"color": GREY, "width": 1, "dash": "dot"}}
    return [
        go.Scatter(**look, y=ends["low"].to_list(), showlegend=False, hoverinfo="skip"),
        go.Scatter(
            **look,
            y=ends["high"].to_list(),
            name="chance",
            fill="tonexty",
            fillcolor="rgba(118,118,118,0.25)",
            hoverinfo="skip",
        ),
    ]


def _refuse_measure(measure: str) -> None:
    if measure not in MEASURES:
        raise BadInputError(f"measure {measure!r}: draw one of {', '.join(MEASURES)}")


def _heatmap(
    rows: pl.DataFrame, x: NDArray[np.int64], columns: Sequence[str], measure: str, title: str, prefix: str = ""
) -> go.Figure:
    """Draw one measure, a row a router; `x` says which of the `columns` each row of the table is."""
    _refuse_measure(measure)
    if rows.is_empty():
        return nothing(title)
    y, names = _routers(rows)
    shape = (len(names), len(columns))
    values = rows[measure].to_numpy()
    chance, counts = rows[f"{measure}_chance"].to_numpy(), rows["n"].cast(pl.Float64).to_numpy()
    ends = rows[f"{measure}_ci_low", f"{measure}_ci_high"].rows()
    cells = [f"{names[row]}, {prefix}{columns[column]}" for row, column in zip(y, x, strict=True)]
    texts = [_texts(cells, y, x, shape), _texts([interval_text(low, high, ".1%") for low, high in ends], y, x, shape)]
    figure = go.Figure(
        go.Heatmap(
            z=grid(values, y, x, shape),
            customdata=np.dstack([grid(chance, y, x, shape), grid(counts, y, x, shape), *texts]),
            hovertemplate="<b>%{customdata[2]}</b><br>%{z:.1%}%{customdata[3]}"
            "<br>by chance %{customdata[0]:.1%}<br>n = %{customdata[1]:,.0f} tokens<extra></extra>",
            hoverongaps=False,
            colorscale="Cividis",
            zmin=min(float(values.min()), 0.9),
            zmax=1,
            xgap=1,
            ygap=1 if shape[0] <= 64 else 0,
            colorbar=colour_bar(MEASURES[measure], tickformat=".0%"),
        )
    )
    dress(
        figure,
        title,
        f"Share of {MEASURES[measure]}. Baseline: random pairs of tokens, {chance.min():.0%} to {chance.max():.0%}.",
        f"n = {range_text(rows['n'])} tokens a cell, {_WITHOUT}.",
        height=min(900, 210 + 22 * shape[0]),
    )
    figure.update_xaxes(showgrid=False, tickangle=-45 if len(columns) > 4 else 0, **named_ticks(columns))
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(names), len(names)))
    return figure


def _routers(rows: pl.DataFrame) -> tuple[NDArray[np.int64], list[str]]:
    """Return each row's place on the axis of routers, and the names there."""
    routers = rows.select("router", "layer").unique().sort("router")
    ranked = routers.with_columns(rank=pl.int_range(1, pl.len() + 1).over("layer"), of=pl.len().over("layer"))
    names = [
        f"layer {layer}" + (f" · {rank}" if of > 1 else "") for layer, rank, of in ranked["layer", "rank", "of"].rows()
    ]
    y = rows["router"].replace_strict(routers["router"], range(len(names)), return_dtype=pl.Int64).to_numpy()
    return y, names


def shortened(label: str) -> str:
    """Return a label that fits below an axis."""
    return label if len(label) <= _LABEL_CHARACTERS else label[: _LABEL_CHARACTERS - 1] + "…"


def interval_text(low: float | None, high: float | None, form: str) -> str:
    """Return an interval to be written behind its number; nothing where there is none."""
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"


def _q(q: float | None) -> str:
    return "" if q is None else f"<br>q = {q:.3f}"


def _texts(
    said: Sequence[str], y: NDArray[np.int64], x: NDArray[np.int64], shape: tuple[int, int]
) -> NDArray[np.object_]:
    """Return texts at their places of a (rows, columns) array, empty elsewhere."""
    placed = np.full(shape, "", dtype=object)
    placed[y, x] = said
    return placed
