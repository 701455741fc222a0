"""Measures over depth: one line a measure, with its interval."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
import polars as pl

from moe_probe.charts.look import GREY, dress, escape, integer_ticks, nothing, range_text, rows_text
from moe_probe.errors import BadInputError
from moe_probe.palette import EXPERT_COLOURS
from moe_probe.tables.domains import ALL_DOMAINS

_LINE_COLOURS = (2, 7, 3, 5)  # those that stand out from white and from black alike
_MARKS = ("circle", "square", "diamond", "triangle-up")
_DEPTH = {
    "mean_token_entropy_bits": ("entropy of a token", "bits", "log2 E, a router that cannot decide"),
    "load_entropy_bits": ("entropy of the load", "bits", "log2 E, even use"),
    "normalised_load_entropy": ("evenness of the load", "share of log2 E", "1, even use"),
    "effective_experts": ("number of effective experts", "experts", "E, even use"),
    "max_violation": ("excess of the busiest expert", "times the mean load", "0, even use"),
    "coefficient_of_variation": ("spread of the loads", "times the mean load", "0, even use"),
    "gini": ("Gini coefficient of the loads", "0 to 1", "0, even use"),
    "mean_margin": ("margin to the next expert", "selection score", "0, a tie"),
    "type_level_bits": ("information, each token type counting once", "bits", "0, chance"),
    "held_out_bits": ("information on unseen token types", "bits", "0, nothing foretold"),
    "mutual_information_bits": ("information by occurrence, uncorrected", "bits", "what chance gives (null_mean_bits)"),
    "null_mean_bits": ("information by occurrence that chance gives", "bits", "0"),
    "above_null_bits": ("information by occurrence above chance", "bits", "0, independence"),
    "without_punct_bits": ("information without punctuation, each token type counting once", "bits", "0, chance"),
    "given_token_bits": ("information once the token is known", "bits", "0, only words are known"),
    "normalised": ("share of the label that is known, each token type counting once", "share", "0, chance"),
    "cramers_v": ("Cramér's V by occurrence", "0 to 1", "0, independence"),
    "mean_share": ("faithfulness of a token to its expert", "share of its tokens", "what the load gives"),
    "null_mean_share": ("faithfulness that the load gives", "share of its tokens", "1/E, even load"),
    "published_share": ("faithfulness, rare tokens too (as published)", "share of its tokens", "what the load gives"),
    "published_null_share": ("what the load gives with rare tokens too", "share of its tokens", "1/E, even load"),
    "excess": ("faithfulness of a token above chance", "share above chance", "0, chance"),
    "context_independence": ("context independence", "share of the choice", "0, a token says nothing"),
}
"""What each measure is called, its unit, and its baseline."""

_INTERVALS = {
    "type_level_bits": ("type_ci_low", "type_ci_high"),
    "held_out_bits": ("held_out_ci_low", "held_out_ci_high"),
    "above_null_bits": ("above_null_ci_low", "above_null_ci_high"),
    "without_punct_bits": ("without_punct_ci_low", "without_punct_ci_high"),
    "given_token_bits": ("given_token_ci_low", "given_token_ci_high"),
    "excess": ("excess_ci_low", "excess_ci_high"),
    "context_independence": ("context_independence_ci_low", "context_independence_ci_high"),
}


def depth_lines(
    frame: pl.DataFrame, columns: Sequence[str], *, title: str | None = None, domain: str = ALL_DOMAINS
) -> go.Figure:
    """Draw measures over depth, one line a measure (and a router, where layers have two), with intervals if known.

    Args:
        frame: from `tables.balance`, `tables.specialisation` or `tables.vocabulary_summary`, whose rows of single
            experts are not drawn.
        columns: up to four of its measures, of one unit.
        domain: whose rows are drawn, where the table tells of domains; by default those over all documents.
        title: the question that they answer; by default one made of their names.

    Raises:
        BadInputError: more than four measures, one that cannot be drawn over depth, or of different units.
    """
    unknown = [column for column in columns if column not in _DEPTH or column not in frame.columns]
    if unknown or not 1 <= len(columns) <= len(_MARKS):
        raise BadInputError(f"columns {list(columns)}: draw one to four of {', '.join(_depth_columns(frame))}")
    units = {_DEPTH[column][1] for column in columns}
    if len(units) > 1:
        raise BadInputError(f"columns {list(columns)}: they have the units {', '.join(sorted(units))}; draw one unit")
    title = title or _question(frame, columns, domain)
    if "domain" in frame.columns:
        frame = frame.filter(pl.col("domain") == domain)
    if "expert" in frame.columns:
        frame = frame.filter(pl.col("expert").is_null())
    known = frame.filter(pl.any_horizontal(pl.col(column).is_not_null() for column in columns))
    if known.is_empty():
        return nothing(title)
    ranked = known.sort("router").with_columns(rank=pl.int_range(pl.len()).over("layer"))
    figure = go.Figure()
    several = ranked["rank"].n_unique() > 1
    for index, column in enumerate(columns):
        for (rank,), line in ranked.partition_by("rank", as_dict=True, maintain_order=True).items():
            name = _DEPTH[column][0] + (f", router {int(rank) + 1} of its layer" if several else "")
            for trace in _depth_traces(line, column, name, index, int(rank)):
                figure.add_trace(trace)
    unit = units.pop()
    note = " Bands: 95 % intervals." if any(column in _INTERVALS for column in columns) else ""
    _draw_ceiling(figure, known, columns)
    dress(
        figure,
        title,
        f"Baseline: {'; '.join(dict.fromkeys(_DEPTH[column][2] for column in columns))}.{note}",
        f"n = {range_text(known['n'])}: {rows_text(known)}.",
        height=380,
    )
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0}
    figure.update_layout(showlegend=len(columns) > 1 or several, legend=legend, hovermode="x unified", margin={"b": 80})
    figure.update_xaxes(title="layer", showgrid=False, **integer_ticks(int(known["layer"].to_numpy().max()) + 1))
    figure.update_yaxes(title=unit, rangemode="tozero", zeroline=True)
    return figure


def _question(frame: pl.DataFrame, columns: Sequence[str], domain: str) -> str:
    names = [_DEPTH[column][0] for column in columns]
    if "label_set" in frame.columns and not frame.is_empty():
        within = "" if domain == ALL_DOMAINS else f" within {escape(domain)}"
        return f"How much does the first choice tell about {escape(frame['label_set'][0])}{within}, layer by layer?"
    if len(columns) > 2:
        return "How does the routing change with depth?"
    return f"How {'does' if len(columns) == 1 else 'do'} the {' and the '.join(names)} change with depth?"


def _depth_columns(frame: pl.DataFrame) -> list[str]:
    return [column for column in frame.columns if column in _DEPTH]


def _depth_traces(line: pl.DataFrame, column: str, name: str, index: int, rank: int) -> list[go.Scatter]:
    colour = EXPERT_COLOURS[_LINE_COLOURS[index]]
    layers = line["layer"].to_list()
    traces = []
    bounds = _INTERVALS.get(column)
    if bounds and set(bounds) <= set(line.columns):
        # Drawn there and back, a closed shape; layers without an interval are a gap.
        held = line.filter(pl.col(bounds[0]).is_not_null())
        around = held["layer"].to_list()
        traces.append(
            go.Scatter(
                x=around + around[::-1],
                y=held[bounds[1]].to_list() + held[bounds[0]].to_list()[::-1],
                fill="toself",
                fillcolor=f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.25)",
                mode="lines",
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    traces.append(
        go.Scatter(
            x=layers,
            y=line[column].to_list(),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": "solid" if rank == 0 else "dot"},
            marker={"symbol": _MARKS[index], "size": 8, "line": {"color": GREY, "width": 1}},
            hovertemplate="%{y:.3f}",
        )
    )
    return traces


def _draw_ceiling(figure: go.Figure, known: pl.DataFrame, columns: Sequence[str]) -> None:
    """Draw the line of even use for measures that have their baseline at the top."""
    if not {"load_entropy_bits", "mean_token_entropy_bits", "effective_experts"} & set(columns):
        return
    even = known.filter(pl.col("normalised_load_entropy") > 0)
    if even.is_empty():
        return
    most_bits = float((even["load_entropy_bits"] / even["normalised_load_entropy"]).to_numpy().max())  # log2 E
    in_experts = "effective_experts" in columns
    figure.add_hline(
        y=2**most_bits if in_experts else most_bits,
        line={"color": GREY, "width": 1.5, "dash": "dash"},
        annotation={"text": f"{'E' if in_experts else 'log2 E'}", "font": {"size": 11}},
        annotation_position="bottom right",
    )
