"""Pairs of experts as cells that a page can sort and select: within a token, and from one router to the next.

The pictures are those of `pairs`; here their experts are put in an order, of many only some are kept, and each cell
says what it is and can be clicked. It knows no page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import polars as pl
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from moe_probe.charts.agreement import interval_text
from moe_probe.charts.labels import MINIMUM_EXPECTED
from moe_probe.charts.look import add_cells, downwards, escape, named_ticks
from moe_probe.charts.pairs import coactivation_heatmap, transition_heatmap
from moe_probe.errors import BadInputError

ORDERS = ("index", "cluster")
"""How experts may be sorted: by their number, or so that those chosen together stand beside each other."""

MOST_EXPERTS = 64
"""Of more experts, those with most tokens are drawn, and those that the reader picked."""

_LEVEL = 0.05
_REACH = 4.0  # log2 of the lift beyond which a pair is as near, or as far, as any
_A, _B = ("expert_a", "p_b_given_a"), ("expert_b", "p_a_given_b")


def coactivation_cells(
    frame: pl.DataFrame, router: int, *, order: str = "index", focus: Sequence[int] = (), most: int = MOST_EXPERTS
) -> go.Figure:
    """Draw which experts of one router are chosen together, in an order, as cells that can be selected.

    A cell's `customdata` ends with the expert of its row and that of its column.

    Args:
        frame: from `tables.coactivation`.
        router: the router's index.
        order: "index", or "cluster": average linkage of the log of the lifts, pairs that are not told from chance
            counting as 1, with leaves in their best order.
        focus: experts that are drawn whatever their load.
        most: so many experts are drawn.

    Raises:
        BadInputError: `order` is neither.
    """
    if order not in ORDERS:
        raise BadInputError(f"order {order!r}: sort by one of {', '.join(ORDERS)}")
    rows = frame.filter(pl.col("router") == router)
    swapped = rows.rename({_A[0]: _B[0], _B[0]: _A[0], _A[1]: _B[1], _B[1]: _A[1]}).select(rows.columns)
    both = pl.concat([rows, swapped])
    experts = _busiest(both, "expert_a", "together", focus, most)
    here = both.filter(pl.col("expert_a").is_in(experts), pl.col("expert_b").is_in(experts))
    if order == "cluster":
        experts = _clustered(here, experts)
    place = {expert: index for index, expert in enumerate(experts)}
    # The picture takes each pair once, the expert that stands first in it before the other.
    moved = here.with_columns(pl.col("expert_a", "expert_b").replace_strict(place, return_dtype=pl.Int64))
    figure = coactivation_heatmap(moved.filter(pl.col("expert_a") < pl.col("expert_b")), router)
    if not figure.data:
        return figure
    names = [str(expert) for expert in experts]
    figure.update_xaxes(tickangle=0, **named_ticks(names))
    figure.update_yaxes(**downwards(named_ticks(names), len(names)))
    drawn = _drawn(here)
    told = [
        f"<b>experts {row['expert_a']} and {row['expert_b']}</b>{_said(row, 'together')}"
        f"<br>{_share(row['p_b_given_a'])} of expert {row['expert_a']}'s tokens, "
        f"{_share(row['p_a_given_b'])} of expert {row['expert_b']}'s"
        for row in drawn.iter_rows(named=True)
    ]
    _lay_cells(figure, drawn, ("expert_a", "expert_b"), (place, place), told)
    _say_left_out(figure, len(experts), both["expert_a"].n_unique())
    return figure


def transition_cells(
    frame: pl.DataFrame,
    router: int,
    *,
    focus: Sequence[int] = (),
    most: int = MOST_EXPERTS,
    names: Mapping[int, str] | None = None,
) -> go.Figure:
    """Draw where the tokens of each expert of one router go next, as cells that can be selected.

    A cell's `customdata` ends with the expert and the next one.

    Args:
        frame: from `tables.transitions`.
        router: the index of the router that the tokens come from.
        focus: experts that are drawn whatever their load.
        most: so many experts are drawn of either router.
        names: of the routers, by index; None = their layers, which do not tell two routers of one layer apart.
    """
    rows = frame.filter(pl.col("router") == router)
    axes = ("expert", "next_expert")
    kept = [_busiest(rows, axis, "tokens", focus, most) for axis in axes]
    here = rows.filter(*(pl.col(axis).is_in(experts) for axis, experts in zip(axes, kept, strict=True)))
    places = [{expert: index for index, expert in enumerate(experts)} for experts in kept]
    moved = here.with_columns(
        pl.col(axis).replace_strict(place, return_dtype=pl.Int64) for axis, place in zip(axes, places, strict=True)
    )
    figure = transition_heatmap(moved, router)
    if not figure.data:
        return figure
    experts = [[str(expert) for expert in one] for one in kept]
    figure.update_xaxes(tickangle=0, **named_ticks(experts[1]))
    figure.update_yaxes(**downwards(named_ticks(experts[0]), len(experts[0])))
    if names is not None:
        _name_routers(figure, *(escape(names[rows[column][0]].lower()) for column in ("router", "next_router")))
    drawn = _drawn(here)
    told = [
        f"<b>from expert {row['expert']} to expert {row['next_expert']}</b>{_said(row, 'tokens')}"
        f"<br>{_share(row['p'])} of expert {row['expert']}'s tokens"
        for row in drawn.iter_rows(named=True)
    ]
    _lay_cells(figure, drawn, axes, (places[0], places[1]), told)
    _say_left_out(figure, max(map(len, kept)), max(rows[axis].n_unique() for axis in axes))
    return figure


def _name_routers(figure: go.Figure, before: str, after: str) -> None:
    figure.update_layout(title_text=f"From {before} to {after}: where do the tokens of each expert go?")
    figure.update_xaxes(title_text=f"expert of {after}")
    figure.update_yaxes(title_text=f"expert of {before}")


def _busiest(rows: pl.DataFrame, axis: str, counted: str, focus: Sequence[int], most: int) -> list[int]:
    """Return the experts to draw, by their numbers."""
    totals = rows.group_by(axis).agg(pl.col(counted).sum())
    ranked = totals.sort(counted, axis, descending=[True, False])[axis].to_list()
    picked = [expert for expert in dict.fromkeys(focus) if expert in ranked]
    return sorted(list(dict.fromkeys([*picked, *ranked]))[:most])


def _clustered(rows: pl.DataFrame, experts: Sequence[int]) -> list[int]:
    """Return the experts so that those chosen together stand near each other; by number where no pair tells."""
    told = rows.filter(pl.col("q_value") < _LEVEL, pl.col("expected") >= MINIMUM_EXPECTED)
    if told.is_empty():
        return list(experts)
    place = {expert: index for index, expert in enumerate(experts)}
    distance = np.full((len(experts), len(experts)), _REACH)
    y, x = (told[axis].replace_strict(place, return_dtype=pl.Int64).to_numpy() for axis in ("expert_a", "expert_b"))
    distance[y, x] -= np.log2(np.clip(told["lift"].to_numpy(), 2.0**-_REACH, 2.0**_REACH))
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance), "average", optimal_ordering=True)
    return [experts[leaf] for leaf in leaves_list(tree)]


def _drawn(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("expected") >= MINIMUM_EXPECTED, pl.col("lift").is_not_null())


def _said(row: Mapping[str, float | None], counted: str) -> str:
    q = row["q_value"]
    verdict = "not tested" if q is None else f"q = {q:.3f}" + ("" if q < _LEVEL else ": not told from chance")
    return (
        f"<br>lift {row['lift']:.2f}{interval_text(row['ci_low'], row['ci_high'], '.2f')}, {verdict}"
        f"<br>{row[counted]:,} tokens, expected {row['expected']:,.1f}"
    )


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"


def _lay_cells(
    figure: go.Figure,
    drawn: pl.DataFrame,
    axes: tuple[str, str],
    places: tuple[Mapping[int, int], Mapping[int, int]],
    told: Sequence[str],
) -> None:
    """Lay a bar on each cell that is drawn: it speaks and can be clicked, and the colours below need say nothing."""
    figure.update_traces(customdata=None, hovertemplate=None, hoverinfo="skip")
    y, x = (
        drawn[axis].replace_strict(place, return_dtype=pl.Int64).to_numpy()
        for axis, place in zip(axes, places, strict=True)
    )
    said = np.full((len(places[0]), len(places[1]), 1), "", dtype=object)
    said[y, x, 0] = told
    speaking = go.Figure(go.Heatmap(customdata=said, hovertemplate="%{customdata[0]}<extra></extra>"))
    add_cells(speaking, x, y, drawn.select(axes).to_numpy())
    figure.add_traces(speaking.data[1:])
    figure.update_layout(barmode="overlay")


def _say_left_out(figure: go.Figure, drawn: int, there: int) -> None:
    if drawn < there:
        subtitle = figure.layout.title.subtitle
        subtitle.text += f" Drawn: {drawn} of {there} experts, those focused and those with most tokens."
