"""What one run costs in surprisal beside another, label by label."""

from __future__ import annotations

import plotly.graph_objects as go
import polars as pl

from moe_probe.charts.agreement import interval_text, shortened
from moe_probe.charts.look import GREY, downwards, dress, escape, named_ticks, nothing, range_text
from moe_probe.palette import EXPERT_COLOURS

_MOST_LABELS = 40
_ALL = "all tokens"


def surprisal_points(frame: pl.DataFrame, label_set: str | None = None) -> go.Figure:
    """Draw by how many bits the second run foretells the same tokens worse, in all and by the values of a label set.

    Args:
        frame: from `tables.surprisal`.
        label_set: whose values stand below the total, the 40 commonest, commonest first; only the total if None.
    """
    which = "Does" if label_set is None else f"On which {escape(label_set)} does"
    title = f"{which} the second run foretell worse?"
    of_set = frame.clear() if label_set is None else frame.filter(pl.col("label_set") == label_set)
    values = of_set.sort("n", "label", descending=[True, False])
    rows = pl.concat([frame.filter(label_set="all"), values.head(_MOST_LABELS)])
    if rows.is_empty():
        return nothing(title)
    names = [
        _ALL if of == "all" else escape(shortened(label)) for of, label in rows.select("label_set", "label").rows()
    ]
    low, high, difference = rows["ci_low"], rows["ci_high"], rows["difference"]
    told = [
        f"<b>{name}</b><br>{row['surprisal_a']:.3f} → {row['surprisal_b']:.3f} bits<br>{row['difference']:+.4f}"
        f"{interval_text(row['ci_low'], row['ci_high'], '+.4f')}<br>n = {row['n']:,} tokens"
        for name, row in zip(names, rows.iter_rows(named=True), strict=True)
    ]
    figure = go.Figure(
        go.Scatter(
            x=difference.to_list(),
            y=list(range(len(names))),
            error_x={
                "type": "data",
                "symmetric": False,
                "array": (high - difference).fill_null(0).to_list(),
                "arrayminus": (difference - low).fill_null(0).to_list(),
                "thickness": 1.5,
                "width": 3,
            },
            mode="markers",
            marker={"color": EXPERT_COLOURS[2], "size": 9, "line": {"color": GREY, "width": 1}},
            customdata=told,
            hovertemplate="%{customdata}<extra></extra>",
            showlegend=False,
        )
    )
    dress(
        figure,
        title,
        "Surprisal of the second run less that of the first, token by token. Baseline: 0, no change; to the right,"
        " worse. Bars: 95 %.",
        f"n = {range_text(rows['n'])} tokens a point, without the first four of a window.",
        height=min(1000, 190 + 22 * len(names)),
    )
    figure.add_vline(x=0, line={"color": GREY, "width": 1.5, "dash": "dot"})
    figure.update_xaxes(title="bits a token")
    figure.update_yaxes(showgrid=False, **downwards(named_ticks(names), len(names)))
    return figure
