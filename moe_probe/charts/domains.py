"""How experts share out the text of each domain, how far domains lie apart, and where neighbours share an expert."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl
from plotly.subplots import make_subplots

from moe_probe.charts.look import GREY, colour_bar, downwards, dress, escape, named_ticks, nothing, range_text
from moe_probe.charts.neighbours import CHANCES, MEASURES
from moe_probe.errors import BadInputError
from moe_probe.palette import EXPERT_COLOURS, INK, expert_colours

MOST_DOMAINS = 32
"""Of more domains, those with the most tokens are drawn."""

ALL = "all"
STANDS = 0.05
"""Pairs whose q-value lies below this are marked."""

_LEAST_SCALE = 0.02  # bits; a scale that ended lower would make much of nothing
_NAME_CHARACTERS = 22
_GROUP = 0.84  # of the room of a domain that its bars take
_PANEL = 190  # pixels
_SHARES = "How much of each domain does each expert take?"
_MATRIX = "Which domains go to other experts?"
_REPEATS = "In which domains do neighbouring tokens go to the same expert?"


def domain_shares(frame: pl.DataFrame, routers: Sequence[int], *, focus: Sequence[int] = ()) -> go.Figure:
    """Draw each expert's share of each domain, a panel a router, with intervals and the line of even use.

    As Figure 7 of Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088), with the bars of a domain side by side so
    that an expert keeps its colour. Of more than eight experts, those picked or else those used most are drawn. The
    `customdata` of a bar ends with router, expert and domain.

    Args:
        frame: from `tables.affinity` by domain.
        routers: whose panels, from top to bottom.
        focus: experts that the reader picked, where there are more than eight.
    """
    rows = frame.filter(pl.col("router").is_in(list(routers)), pl.col("domain") != ALL)
    rows = rows.filter(pl.col("token_share").is_not_null())
    if rows.is_empty():
        return nothing(_SHARES)
    sizes = rows.group_by("domain").agg(pl.col("n").max()).sort("n", "domain", descending=[True, False])
    domains = sizes["domain"].to_list()[:MOST_DOMAINS]
    shown = [router for router in dict.fromkeys(routers) if router in rows["router"]]
    layers = dict(rows.select("router", "layer").unique().iter_rows())
    titles = [f"layer {layers[router]}" for router in shown]
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.32 / (1 + len(shown)))
    kept = rows.filter(pl.col("domain").is_in(domains))
    left_out = False
    named: set[int] = set()
    for panel, router in enumerate(shown, 1):
        here = kept.filter(router=router)
        wears = _colours(frame.filter(router=router), focus)
        left_out |= len(wears) < here["expert"].n_unique()
        for place, (expert, colour) in enumerate(sorted(wears.items())):
            bars = _bars(here.filter(expert=expert), domains, colour, place, len(wears), expert not in named)
            figure.add_trace(bars, row=panel, col=1)
            named.add(expert)
        uniform = float(here["uniform"][0])
        figure.add_hline(y=uniform, line={"color": GREY, "width": 1.5, "dash": "dash"}, row=panel, col=1)
        figure.update_yaxes(title=titles[panel - 1], tickformat=".0%", rangemode="tozero", row=panel, col=1)
    n_experts = kept["expert"].n_unique()
    drawn = f" Drawn: {len(named)} of {n_experts} experts, those picked or used most." if left_out else ""
    fewer = f" The {len(domains)} largest of {len(sizes)} domains." if len(sizes) > len(domains) else ""
    dress(
        figure,
        _SHARES,
        "Share of the assignments in any slot, with its 95 % interval where there is more than one document. Baseline, "
        f"dashed: even use, 1/{n_experts}."
        f"{drawn}{fewer}",
        f"n = {range_text(kept['n'])} tokens a domain, without the first four of a window.",
        height=160 + _PANEL * len(shown) + (70 if len(shown) == 1 else 0),
    )
    legend = {"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0, "itemsizing": "constant"}
    figure.update_layout(legend=legend, bargap=0, barmode="overlay", margin={"t": 132})
    figure.update_xaxes(showgrid=False, tickangle=-30 if len(domains) > 7 else 0, **named_ticks(_short(domains)))
    return figure


def divergence_matrix(frame: pl.DataFrame, router: int) -> go.Figure:
    """Draw how far apart the loads of each two domains lie in one router: measured below the diagonal, chance above.

    A dot marks pairs that stand: q-value below 0.05, over documents. The colours of both halves are on one scale, so
    that a pair which is no farther apart than chance makes it looks the same on both sides.

    Args:
        frame: from `tables.divergence`.
        router: the router's index.
    """
    rows = frame.filter(pl.col("router") == router, pl.col("js_bits").is_not_null())
    if rows.is_empty():
        return nothing(_MATRIX)
    names = sorted({*rows["value"], *rows["other_value"]})
    place = {name: index for index, name in enumerate(names)}
    z = [[math.nan] * len(names) for _ in names]
    said = [[""] * len(names) for _ in names]
    for row in rows.iter_rows(named=True):
        one, other = place[row["value"]], place[row["other_value"]]  # the first is the earlier in the alphabet
        z[other][one], z[one][other] = row["js_bits"], row["null_mean_bits"]
        said[other][one] = said[one][other] = _pair_text(row)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            customdata=said,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            colorscale="Cividis",
            zmin=0,
            zmax=max(_LEAST_SCALE, *rows["js_bits"], *rows["null_mean_bits"]),
            xgap=1,
            ygap=1,
            colorbar=colour_bar("bits"),
        )
    )
    standing = rows.filter(_stands())
    figure.add_trace(
        go.Scatter(
            x=standing["value"].replace_strict(place, return_dtype=pl.Int64).to_list(),
            y=standing["other_value"].replace_strict(place, return_dtype=pl.Int64).to_list(),
            mode="markers",
            marker={"color": "#FFFFFF", "size": 9, "line": {"color": INK, "width": 2}},
            hoverinfo="skip",
            showlegend=False,
        )
    )
    of_documents = (rows["cluster_unit"] == "document").all()
    unit = "documents, or groups of them" if of_documents else "blocks of 256 tokens: of this text only"
    dress(
        figure,
        f"Which domains go to other experts in layer {rows['layer'][0]}?",
        "Jensen–Shannon divergence of two domains' loads, any slot: 0 bits the same, 1 no expert in common. Below the "
        "diagonal: measured. Baseline, above it: what chance gives, whole documents exchanging their domains.",
        f"Dots: {len(standing)} of {len(rows)} pairs stand (q < {STANDS:g}). n = {range_text(rows['n'])} assignments a "
        f"pair; the smaller domain of a pair has {range_text(rows['clusters'])} {unit}.",
        height=190 + 34 * len(names),
    )
    ticks = named_ticks(_short(names))
    figure.update_xaxes(showgrid=False, tickangle=-30 if len(names) > 4 else 0, **ticks)
    figure.update_yaxes(showgrid=False, **downwards(ticks, len(names)))
    return figure


def repetition_by_domain(frame: pl.DataFrame, router: int, *, measure: str = "first_choice") -> go.Figure:
    """Draw how often neighbours share an expert in each domain, with its interval, against the four chances.

    Table 5 of Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088), as a picture of one layer.

    Args:
        frame: from `tables.repetition`.
        router: the router's index.
        measure: "first_choice", or "either" for sets that meet.

    Raises:
        BadInputError: `measure` is neither.
    """
    if measure not in MEASURES:
        raise BadInputError(f"measure {measure!r}: draw one of {', '.join(MEASURES)}")
    ending, counted = MEASURES[measure]
    rows = frame.filter(pl.col("router") == router, pl.col(measure).is_not_null())
    if rows.is_empty():
        return nothing(_REPEATS)
    names = ["all documents" if name == ALL else name for name in rows["domain"]]
    places = list(range(len(names)))
    figure = go.Figure()
    for column, name, colour, _, symbol in CHANCES:
        figure.add_trace(
            go.Scatter(
                x=rows[f"{column}_{ending}"].to_list(),
                y=places,
                name=name,
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 10, "line": {"color": GREY, "width": 1}},
                customdata=[escape(name) for name in names],
                hovertemplate=f"<b>%{{customdata}}</b><br>{name}: %{{x:.1%}}<extra></extra>",
            )
        )
    figure.add_trace(_observed(rows, measure, ending, [escape(name) for name in names]))
    dress(
        figure,
        f"In which domains do neighbouring tokens go to the same expert in layer {rows['layer'][0]}?",
        f"Share of neighbours {counted}; bars: 95 %. Baselines: four chances. What exceeds them holds drift and "
        "attention: it is not syntax.",
        f"n = {range_text(rows['pairs'])} pairs of consecutive tokens a domain, without the first four of a window; "
        f"{range_text(rows['n_token_pairs'])} for the last chance, of tokens seen often.",
        height=230 + 30 * len(names),
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "reversed"}
    figure.update_layout(legend=legend, margin={"b": 90})
    figure.update_xaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(**downwards(named_ticks(_short(names)), len(names)))
    return figure


def _colours(rows: pl.DataFrame, focus: Sequence[int]) -> dict[int, str]:
    """The experts of a router that are drawn, with the colours that they wear on all pages."""
    whole = rows.filter(domain=ALL).sort("expert")
    loads = (whole["token_share"].fill_null(0) * 1_000_000).round().cast(pl.Int64).to_list()
    return expert_colours(loads, focus)


def _bars(rows: pl.DataFrame, domains: Sequence[str], colour: str, place: int, of: int, in_legend: bool) -> go.Bar:
    """One expert's bars, at its place among `of` in the group of each domain."""
    width = _GROUP / of
    at = {domain: index - _GROUP / 2 + width * (place + 0.5) for index, domain in enumerate(domains)}
    share = rows["token_share"]
    expert = rows["expert"][0]
    facts = zip(
        [escape(domain) for domain in rows["domain"]],
        rows["layer"],
        [_range(low, high) for low, high in rows.select("token_share_ci_low", "token_share_ci_high").iter_rows()],
        rows["n"],
        rows["router"],
        rows["expert"],
        rows["domain"],
        strict=True,
    )
    return go.Bar(
        x=[at[domain] for domain in rows["domain"]],
        y=share.to_list(),
        width=width,
        name=f"expert {expert}",
        legendgroup=str(expert),
        showlegend=in_legend,
        marker={"color": colour, "line": {"color": GREY, "width": 0.5}},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (rows["token_share_ci_high"] - share).fill_null(0).to_list(),
            "arrayminus": (share - rows["token_share_ci_low"]).fill_null(0).to_list(),
            "color": GREY,
            "thickness": 1,
            "width": 0,
        },
        customdata=list(facts),
        hovertemplate=f"<b>expert {expert}, layer %{{customdata[1]}}</b><br>%{{customdata[0]}}: %{{y:.1%}}"
        "%{customdata[2]}<br>n = %{customdata[3]:,} tokens<extra></extra>",
    )


def _observed(rows: pl.DataFrame, measure: str, ending: str, names: Sequence[str]) -> go.Scatter:
    value, low, high = rows[measure], rows[f"{ending}_ci_low"], rows[f"{ending}_ci_high"]
    said = [_range(*ends) for ends in zip(low, high, strict=True)]
    return go.Scatter(
        x=value.to_list(),
        y=list(range(len(rows))),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (high - value).fill_null(0).to_list(),
            "arrayminus": (value - low).fill_null(0).to_list(),
            "thickness": 2,
            "width": 5,
        },
        name="observed",
        mode="markers",
        marker={"color": EXPERT_COLOURS[2], "symbol": "circle", "size": 12, "line": {"color": GREY, "width": 1}},
        customdata=list(zip(names, said, rows["pairs"], strict=True)),
        hovertemplate="<b>%{customdata[0]}</b><br>observed: %{x:.1%}%{customdata[1]}"
        "<br>n = %{customdata[2]:,} pairs<extra></extra>",
    )


def _stands() -> pl.Expr:
    return (pl.col("q_value") < STANDS) & (pl.col("cluster_unit") == "document")


def _pair_text(row: dict[str, object]) -> str:
    """What the pointer says of a pair, on either side of the diagonal."""
    ends = ""
    if row["excess_ci_low"] is not None:
        ends = f" ({row['excess_ci_low']:.3f} to {row['excess_ci_high']:.3f})"
    q_value = "" if row["q_value"] is None else f"<br>q = {row['q_value']:.3f}"
    return (
        f"<b>{escape(str(row['value']))} and {escape(str(row['other_value']))}</b>"
        f"<br>{row['js_bits']:.3f} bits; chance: {row['null_mean_bits']:.3f}"
        f"<br>excess {row['excess_bits']:.3f}{ends}{q_value}"
        f"<br>n = {row['n']:,} assignments; draws of the smaller: {row['clusters']}"
    )


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" ({low:.1%} to {high:.1%})"


def _short(names: Sequence[str]) -> list[str]:
    short = [name if len(name) <= _NAME_CHARACTERS else name[: _NAME_CHARACTERS - 1] + "…" for name in names]
    return [escape(name) for name in short]
