"""Which ways tokens take through the layers: how they stream from expert to expert, and the most frequent paths.

First choices only. Experts of different layers have nothing to do with each other, even where they wear one colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from moe_probe.charts.agreement import interval_text
from moe_probe.charts.look import GREY, downwards, dress, escape, named_ticks, nothing
from moe_probe.errors import BadInputError
from moe_probe.palette import CONTEXT, EXPERT_COLOURS, INK, expert_colours

MOST_STEPS = 7
"""Of more steps between layers no line can be followed."""

RANKS = ("count", "lift")
"""What paths may be ranked by."""

_LEVEL = 0.05
_OTHERS = -1
_FLOW = "How do tokens stream through the layers?"
_FULL, _FAINT = 0.6, 0.16


def path_flow(
    frame: pl.DataFrame, routers: Sequence[int], *, focus: Sequence[int] = (), names: Mapping[int, str] | None = None
) -> go.Figure:
    """Draw how tokens go from first choice to first choice through a few routers.

    Full colour: more tokens than by chance, with a q-value below .05, and of the focused experts where there are some.
    Of more than eight experts those picked, or else those used most, have a place of their own.

    Args:
        frame: from `tables.transitions`.
        routers: indices of routers that follow each other, two to eight.
        focus: experts that the reader picked.
        names: of the routers, by index; None = their layers, which do not tell two routers of one layer apart.

    Raises:
        BadInputError: there are fewer than two routers or more than eight.
    """
    if not 1 < len(routers) <= MOST_STEPS + 1:
        raise BadInputError(f"{len(routers)} routers: draw the flow through 2 to {MOST_STEPS + 1}")
    rows = frame.filter(pl.col("router").is_in(list(routers[:-1])), pl.col("next_router").is_in(list(routers)))
    rows = rows.filter(pl.col("tokens") > 0)
    if rows.is_empty():
        return nothing(_FLOW)
    loads = {router: _loads(rows, router) for router in routers}
    own = {router: _own_places(load, focus) for router, load in loads.items()}
    colours = {router: expert_colours(load, focus) for router, load in loads.items()}
    nodes = {
        (router, expert): place
        for place, (router, expert) in enumerate(
            (router, expert) for router in routers for expert in (*own[router], _OTHERS)
        )
    }
    links = _links(rows, own, focus)
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node=_nodes(nodes, loads, own, colours),
            link={
                "source": [nodes[link["router"], link["expert"]] for link in links],
                "target": [nodes[link["next_router"], link["next_expert"]] for link in links],
                "value": [link["tokens"] for link in links],
                "color": [_link_colour(link, colours) for link in links],
                "customdata": [_link_text(link) for link in links],
                "hovertemplate": "%{customdata}<extra></extra>",
            },
            textfont={"size": 13, "shadow": "none"},
        )
    )
    grouped = any(len(places) < sum(load > 0 for load in loads[router]) for router, places in own.items())
    dress(
        figure,
        _FLOW,
        "Width: tokens. Baseline: independent layers; full colour: more than that (q < .05), in the colour of the "
        "expert they come from. Faint: not told from chance, fewer, or not focused."
        + (" Drawn together: all but the eight experts focused or used most." if grouped else ""),
        f"n = {int(rows['n'].to_numpy().max()):,} tokens a step, first choice, without the first four of a window.",
        height=min(900, 220 + 42 * max(len(places) for places in own.values())),
    )
    figure.update_layout(margin={"b": 28, "t": 134, "l": 4, "r": 4})
    layers = dict(rows.select("router", "layer").iter_rows()) | dict(
        rows.select("next_router", "next_layer").iter_rows()
    )
    for place, router in enumerate(routers):
        figure.add_annotation(
            text=f"layer {layers.get(router, '?')}" if names is None else escape(names[router].lower()),
            x=place / (len(routers) - 1),
            y=1,
            xref="paper",
            yref="paper",
            xanchor="left" if place == 0 else "right" if place == len(routers) - 1 else "center",
            yanchor="bottom",
            yshift=8,
            showarrow=False,
        )
    return figure


def top_paths(
    frame: pl.DataFrame,
    routers: Mapping[int, str],
    *,
    by: str = "count",
    most: int = 12,
    focus: Sequence[int] = (),
) -> go.Figure:
    """Draw the most frequent paths, or those of the highest lift: their experts, and how much they stand out.

    The `customdata` of a cell or a point ends with a router and its expert: of a point, those where the path begins.

    Args:
        frame: from `tables.paths`.
        routers: index and name of each router on the path, in order.
        by: "count" or "lift".
        most: so many paths are drawn.
        focus: experts that the reader picked; they wear the colours where there are more than eight.

    Raises:
        BadInputError: `by` is neither, or the paths are of more or fewer routers.
    """
    if by not in RANKS:
        raise BadInputError(f"by {by!r}: rank by one of {', '.join(RANKS)}")
    title = "Which paths do most tokens take?" if by == "count" else "Which paths are taken more than by chance?"
    rows = frame.filter(pl.col(f"rank_by_{by}").is_not_null()).sort(f"rank_by_{by}").head(most)
    if rows.is_empty():
        return nothing(title)
    ways = [[int(expert) for expert in path.split(">")] for path in rows["path"]]
    if {len(way) for way in ways} != {len(routers)}:
        raise BadInputError(f"{len(routers)} routers: the paths of this table go through {len(ways[0])}")
    figure = make_subplots(cols=2, shared_yaxes=True, column_widths=[0.62, 0.38], horizontal_spacing=0.04)
    figure.add_trace(_steps(ways, routers, focus), row=1, col=1)
    for trace in _standing(rows, ways, next(iter(routers)), by):
        figure.add_trace(trace, row=1, col=2)
    dress(
        figure,
        title,
        "Numbers are experts. Right: "
        + ("share of the tokens; " if by == "count" else "lift; ")
        + "bars: 95 %. Baseline: independent layers with the same loads"
        + (", the grey mark." if by == "count" else ", lift 1, which over many layers every path exceeds."),
        f"n = {int(rows['n'][0]):,} tokens, first choices, without the first four of a window.",
        height=190 + 27 * len(ways),
    )
    _path_axes(figure, list(routers.values()), rows, by)
    return figure


def _loads(rows: pl.DataFrame, router: int) -> list[int]:
    """Return the tokens of each expert of a router, (experts,)."""
    leaving = rows.filter(pl.col("router") == router).select("expert", "tokens")
    arriving = rows.filter(pl.col("next_router") == router).select(expert="next_expert", tokens="tokens")
    totals = dict((leaving if len(leaving) else arriving).group_by("expert").agg(pl.col("tokens").sum()).iter_rows())
    highest = max([*totals, *arriving["expert"]])
    return [int(totals.get(expert, 0)) for expert in range(highest + 1)]


def _own_places(loads: Sequence[int], focus: Sequence[int]) -> list[int]:
    """Return the experts of a router that are drawn for themselves: those picked and those used most."""
    used = sorted(range(len(loads)), key=lambda expert: (-loads[expert], expert))
    picked = [expert for expert in focus if expert < len(loads)]
    return sorted(list(dict.fromkeys([*picked, *used]))[: len(EXPERT_COLOURS)])


def _links(rows: pl.DataFrame, own: Mapping[int, Sequence[int]], focus: Sequence[int]) -> list[dict[str, Any]]:
    """Return a link for each pair of places, those without a place of their own together and never full."""
    parts = []
    for (router, following), step in rows.partition_by("router", "next_router", as_dict=True).items():
        both = pl.col("expert").is_in(own[router]) & pl.col("next_expert").is_in(own[following])
        told = (pl.col("q_value") < _LEVEL) & (pl.col("lift") > 1)
        picked = (pl.col("expert").is_in(list(focus)) | pl.col("next_expert").is_in(list(focus))) if focus else True
        parts.append(
            step.with_columns(
                full=(both & told & picked).fill_null(False),
                expert=_or_others("expert", own[router]),
                next_expert=_or_others("next_expert", own[following]),
            )
        )
    places = ["router", "layer", "expert", "next_router", "next_layer", "next_expert"]
    only = pl.len() == 1
    return (
        pl.concat(parts)
        .group_by(places)
        .agg(
            pl.col("tokens", "expected").sum(),
            *(pl.when(only).then(pl.col(name).first()).alias(name) for name in ("lift", "ci_low", "ci_high", "full")),
        )
        .sort(places)
        .to_dicts()
    )


def _or_others(column: str, own: Sequence[int]) -> pl.Expr:
    return pl.when(pl.col(column).is_in(own)).then(column).otherwise(pl.lit(_OTHERS))


def _nodes(
    nodes: Mapping[tuple[int, int], int],
    loads: Mapping[int, Sequence[int]],
    own: Mapping[int, Sequence[int]],
    colours: Mapping[int, Mapping[int, str]],
) -> dict[str, object]:
    """Return the places of a flow: a column a router, experts from the top in their order, the others below."""
    x, y = [], []
    for column, (router, experts) in enumerate(own.items()):
        heights = [loads[router][expert] for expert in experts]
        heights.append(sum(loads[router]) - sum(heights))
        total, above = max(sum(heights), 1), 0.0
        for height in heights:
            y.append(min(max((above + height / 2) / total, 0.001), 0.999))
            x.append(min(max(column / (len(own) - 1), 0.001), 0.999))
            above += height
    return {
        "label": ["others" if expert == _OTHERS else str(expert) for _, expert in nodes],
        "color": [colours[router].get(expert, CONTEXT) for router, expert in nodes],
        "x": x,
        "y": y,
        "pad": 10,
        "thickness": 16,
        "line": {"color": GREY, "width": 0.5},
        "customdata": [_place_text(expert) for _, expert in nodes],
        "hovertemplate": "%{customdata}: %{value:,.0f} tokens<extra></extra>",
    }


def _link_colour(link: Mapping[str, Any], colours: Mapping[int, Mapping[int, str]]) -> str:
    if not link["full"]:
        return f"rgba(128,128,128,{_FAINT})"
    red, green, blue = bytes.fromhex(colours[link["router"]].get(link["expert"], CONTEXT)[1:])
    return f"rgba({red},{green},{blue},{_FULL})"


def _link_text(link: Mapping[str, Any]) -> str:
    lift, low, high = (link[name] for name in ("lift", "ci_low", "ci_high"))
    said = "" if lift is None else f"<br>lift {lift:.2f}" + interval_text(low, high, ".2f")
    return (
        f"<b>layer {link['layer']}, {_place_text(link['expert'])} → layer {link['next_layer']}, "
        f"{_place_text(link['next_expert'])}</b><br>{link['tokens']:,} tokens, expected {link['expected']:,.1f}{said}"
    )


def _place_text(expert: int) -> str:
    return "other experts" if expert == _OTHERS else f"expert {expert}"


def _steps(ways: Sequence[Sequence[int]], routers: Mapping[int, str], focus: Sequence[int]) -> go.Bar:
    """A cell for each step of each path, in its expert's colour."""
    every = [expert for way in ways for expert in way]
    colours = expert_colours([every.count(expert) for expert in range(max(every) + 1)], focus)
    cells = [
        (row, column, router, expert)
        for row, way in enumerate(ways)
        for column, (router, expert) in enumerate(zip(routers, way, strict=True))
    ]
    names = list(routers.values())
    return go.Bar(
        x=[column for _, column, _, _ in cells],
        y=[0.8] * len(cells),
        base=[row - 0.4 for row, _, _, _ in cells],
        width=0.94,
        marker={"color": [colours.get(expert, CONTEXT) for *_, expert in cells], "line": {"width": 0}},
        text=[str(expert) for *_, expert in cells],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        textfont={"color": INK, "size": 13},
        customdata=[
            (f"<b>path {row + 1}</b><br>{escape(names[column])}: expert {expert}", router, expert)
            for row, column, router, expert in cells
        ],
        hovertemplate="%{customdata[0]}<extra></extra>",
        showlegend=False,
    )


def _standing(rows: pl.DataFrame, ways: Sequence[Sequence[int]], router: int, by: str) -> list[go.Scatter]:
    """The share or the lift of each path with its interval, and the baseline of the share."""
    value, ends = ("share", ("share_ci_low", "share_ci_high")) if by == "count" else ("lift", ("ci_low", "ci_high"))
    low, high = (rows[end] for end in ends)
    y = list(range(len(rows)))
    observed = go.Scatter(
        x=rows[value].to_list(),
        y=y,
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (high - rows[value]).fill_null(0).to_list(),
            "arrayminus": (rows[value] - low).fill_null(0).to_list(),
            "thickness": 1.5,
            "width": 3,
        },
        mode="markers",
        marker={"color": EXPERT_COLOURS[2], "size": 9, "line": {"color": GREY, "width": 1}},
        customdata=[
            (_path_text(row), router, way[0]) for row, way in zip(rows.iter_rows(named=True), ways, strict=True)
        ],
        hovertemplate="%{customdata[0]}<extra></extra>",
        showlegend=False,
    )
    if by == "lift":
        return [observed]
    chance = go.Scatter(
        x=(rows["expected_if_independent"] / rows["n"]).to_list(),
        y=y,
        mode="markers",
        marker={"symbol": "line-ns-open", "color": GREY, "size": 13, "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=False,
    )
    return [chance, observed]


def _path_text(row: Mapping[str, Any]) -> str:
    share = interval_text(row["share_ci_low"], row["share_ci_high"], ".2%")
    lift = interval_text(row["ci_low"], row["ci_high"], ",.2f")
    return (
        f"<b>{escape(str(row['path']).replace('>', ' → '))}</b><br>{row['tokens']:,} tokens, "
        f"expected {row['expected_if_independent']:,.1f}<br>{row['share']:.2%}{share}<br>lift {row['lift']:,.2f}{lift}"
        f"<br>{escape(str(row['example']))}"
    )


def _path_axes(figure: go.Figure, names: Sequence[str], rows: pl.DataFrame, by: str) -> None:
    ranks = [str(rank) for rank in rows[f"rank_by_{by}"]]
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(ranks), len(ranks)))
    figure.update_yaxes(title="rank", col=1)
    figure.update_xaxes(showgrid=False, tickangle=0, **named_ticks([escape(name) for name in names]), col=1)
    if by == "count":
        figure.update_xaxes(title="share of tokens", tickformat=".2~p", rangemode="tozero", col=2)
    else:
        figure.update_xaxes(title="lift", type="log", dtick=1, col=2)
        figure.add_vline(x=1, line={"color": GREY, "width": 1.5, "dash": "dot"}, row=1, col=2)
