from __future__ import annotations

import polars as pl
import pytest

from moe_probe.charts.effects import effect_bars, effect_heatmap
from moe_probe.effects.table import EFFECT_COLUMNS, MORE_THAN_ANY
from moe_probe.measures.verdicts import NOT_SHOWN
from moe_probe.tables.columns import schema_of


def frame() -> pl.DataFrame:
    rows = [
        {
            "layer": 3,
            "router": 0,
            "experts": str(expert),
            "label_set": "upos",
            "label": label,
            "carried_by": "routed",
            "mean_bits": 0.5,
            "difference": value,
            "difference_ci_low": value - 0.1,
            "difference_ci_high": value + 0.1,
            "random_difference": 0.01,
            "over_random": value - 0.01,
            "over_random_ci_low": value - 0.2,
            "over_random_ci_high": value + 0.2,
            "verdict": MORE_THAN_ANY if value > 0.4 else NOT_SHOWN,
            "n": 10 + place,
        }
        for expert in (0, 1, 10)
        for place, (label, value) in enumerate((("VERB", 0.5), ("<b>NOUN</b>", -0.2)))
    ]
    schema = schema_of(EFFECT_COLUMNS)
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def test_bars_show_value_interval_and_control_and_fade_what_was_not_shown() -> None:
    figure = effect_bars(frame(), "10")
    bars, control = figure.data
    assert list(bars.y) == [0.5, -0.2]
    assert list(bars.error_y.array) == pytest.approx([0.1, 0.1])
    assert list(bars.marker.opacity) == [1.0, 0.3]
    assert list(control.y) == [0.01, 0.01]
    assert list(figure.layout.xaxis.ticktext) == ["VERB", "&lt;b&gt;NOUN&lt;/b&gt;"]
    assert "of the token routed; layer 3" in figure.layout.title.subtitle.text


def test_the_heatmap_puts_every_cell_at_its_expert_and_label_once() -> None:
    figure = effect_heatmap(frame(), 0)
    faint, strong = figure.data
    assert list(figure.layout.yaxis.ticktext) == ["0", "1", "10"]
    labels = list(figure.layout.xaxis.ticktext)
    assert strong.z[:, labels.index("VERB")].tolist() == pytest.approx([0.49] * 3)
    assert faint.z[:, labels.index("&lt;b&gt;NOUN&lt;/b&gt;")].tolist() == pytest.approx([-0.21] * 3)
    assert (pl.Series((faint.z == faint.z).ravel()) ^ pl.Series((strong.z == strong.z).ravel())).all()
    assert faint.opacity < strong.opacity == 1


def test_without_rows_the_pictures_say_so() -> None:
    empty = pl.DataFrame(schema=schema_of(EFFECT_COLUMNS))
    for figure in (effect_bars(empty, "0"), effect_heatmap(empty, 0)):
        assert "Not enough data" in figure.layout.title.subtitle.text
