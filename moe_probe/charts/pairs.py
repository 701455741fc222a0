"""Which experts go together: within a token, and from one router to the next."""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
import polars as pl

from moe_probe.charts.labels import MINIMUM_EXPECTED
from moe_probe.charts.look import DIVERGING, colour_bar, downwards, dress, grid, integer_ticks, nothing

_LEVEL = 0.05
_FAINT = 0.35
_LEAST_REACH = 1.0
_MOST_REACH = 4.0
_TICKS = {-4: "1/16", -3: "1/8", -2: "1/4", -1: "1/2", 0: "1", 1: "2", 2: "4", 3: "8", 4: "16"}


def coactivation_heatmap(frame: pl.DataFrame, router: int) -> go.Figure:
    """Draw which experts of one router are chosen together more, or less, than chance would have it.

    Pairs whose q-value is not below .05 are faint, those with fewer than 5 expected are left out.

    Args:
        frame: from `tables.coactivation`.
        router: the router's index.
    """
    rows = frame.filter(pl.col("router") == router)
    if rows.is_empty() or rows["expected"].null_count() == len(rows):
        return nothing("Which experts are chosen together?")
    adjacent = rows["pairs"][0] == "adjacent"
    # Each pair has one row, and two cells.
    swapped = rows.with_columns(
        expert_a=pl.col("expert_b"), expert_b=pl.col("expert_a"), p_b_given_a=pl.col("p_a_given_b")
    )
    both = pl.concat([rows, swapped]).rename({"together": "seen", "p_b_given_a": "p"})
    size = int(rows["expert_b"].to_numpy().max()) + 1
    figure = _lift_heatmap(
        both,
        ("expert_a", "expert_b"),
        (size, size),
        "<b>experts %{customdata[0]:.0f} and %{customdata[1]:.0f}</b>",
    )
    dress(
        figure,
        f"Which experts of layer {rows['layer'][0]} are chosen together?",
        f"Lift. Baseline: 1, different experts drawn with the same loads. {_left_out(rows)}",
        f"n = {int(rows['n'][0]):,} tokens with two experts or more, without the first four of a window"
        + (", pairs of adjacent ranks only." if adjacent else "."),
        height=_height(size),
    )
    figure.update_xaxes(title="expert", showgrid=False, **integer_ticks(size))
    figure.update_yaxes(title="expert", showgrid=False, **downwards(integer_ticks(size), size))
    return figure


def transition_heatmap(frame: pl.DataFrame, router: int) -> go.Figure:
    """Draw where the tokens of each expert of one router go next, more or less than chance would have it.

    Cells whose q-value is not below .05 are faint, those with fewer than 5 expected are left out.

    Args:
        frame: from `tables.transitions`.
        router: the index of the router that the tokens come from.
    """
    rows = frame.filter(pl.col("router") == router)
    if rows.is_empty():
        return nothing("Where do the tokens of each expert go next?")
    shape = (int(rows["expert"].to_numpy().max()) + 1, int(rows["next_expert"].to_numpy().max()) + 1)
    figure = _lift_heatmap(
        rows.rename({"tokens": "seen"}),
        ("expert", "next_expert"),
        shape,
        "<b>from expert %{customdata[0]:.0f} to expert %{customdata[1]:.0f}</b>",
    )
    dress(
        figure,
        f"From layer {rows['layer'][0]} to layer {rows['next_layer'][0]}: where do the tokens of each expert go?",
        f"Lift of the first choice. Baseline: 1, independence. {_left_out(rows)}",
        f"n = {int(rows['n'][0]):,} tokens, without the first four of a window.",
        height=_height(shape[0]),
    )
    figure.update_xaxes(title=f"expert of layer {rows['next_layer'][0]}", showgrid=False, **integer_ticks(shape[1]))
    figure.update_yaxes(
        title=f"expert of layer {rows['layer'][0]}", showgrid=False, **downwards(integer_ticks(shape[0]), shape[0])
    )
    return figure


def _lift_heatmap(rows: pl.DataFrame, axes: tuple[str, str], shape: tuple[int, int], header: str) -> go.Figure:
    """Draw lift, the first axis downwards; cells that are not told from chance in a second, faint layer."""
    y, x = (rows[axis].to_numpy() for axis in axes)
    enough = ((rows["expected"] >= MINIMUM_EXPECTED) & rows["lift"].is_not_null()).fill_null(False).to_numpy()
    told = (rows["q_value"] < _LEVEL).fill_null(False).to_numpy()
    lift = rows["lift"].fill_null(math.nan).to_numpy()
    log_lift = np.log2(np.maximum(lift, 2.0**-_MOST_REACH))
    reach = float(np.clip(np.abs(log_lift[enough]).max(initial=0.0), _LEAST_REACH, _MOST_REACH))
    facts = (*axes, "lift", "ci_low", "ci_high", "seen", "expected", "p", "q_value")
    details = [grid(rows[fact].cast(pl.Float64).fill_null(math.nan).to_numpy(), y, x, shape) for fact in facts]
    figure = go.Figure()
    for shown, opacity in ((enough & ~told, _FAINT), (enough & told, 1.0)):
        figure.add_trace(
            go.Heatmap(
                z=grid(np.where(shown, log_lift, math.nan), y, x, shape),
                customdata=np.dstack(details),
                hovertemplate=header + "<br>lift %{customdata[2]:.2f} (%{customdata[3]:.2f} to %{customdata[4]:.2f})"
                "<br>%{customdata[5]:,.0f} tokens, expected %{customdata[6]:,.1f}"
                "<br>%{customdata[7]:.1%} of the first one's tokens<br>q = %{customdata[8]:.3f}<extra></extra>",
                hoverongaps=False,
                opacity=opacity,
                colorscale=DIVERGING,
                zmin=-reach,
                zmax=reach,
                xgap=1 if shape[1] <= 64 else 0,
                ygap=1 if shape[0] <= 64 else 0,
                showscale=opacity == 1.0,
                colorbar=_scale(reach),
            )
        )
    return figure


def _scale(reach: float) -> dict[str, object]:
    shown = [place for place in _TICKS if abs(place) <= reach]
    return colour_bar("lift", tickvals=shown, ticktext=[_TICKS[place] for place in shown])


def _left_out(rows: pl.DataFrame) -> str:
    untold = int((rows["q_value"].is_null() | (rows["q_value"] >= _LEVEL)).sum())
    return f"Faint or blank ({untold:,} of {len(rows):,}): not told from chance (q ≥ .05, or fewer than 5 expected)."


def _height(n_rows: int) -> int:
    return min(1000, 240 + 24 * n_rows)
