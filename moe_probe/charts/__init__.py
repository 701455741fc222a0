"""One picture, one pure function: a tidy table in, a plotly figure out.

| module | what it draws |
|---|---|
| `load` | the load of all experts, and of one layer's |
| `depth` | measures over depth |
| `labels` | experts against labels |
| `domains` | domains: shares, divergence, repetition in each |
| `experts` | one expert: what it is chosen for, its load over layers |
| `neighbours` | repetition against its chances |
| `pairs`, `pair_cells` | experts chosen together; steps from layer to layer |
| `paths` | first choices over depth |
| `agreement`, `surprisal` | two runs |
| `effects` | what switching an expert off does |
| `look` | what they share |

Each title asks what the picture answers; each subtitle gives the baseline and how much was counted. Backgrounds are
transparent and colours of text and lines come from the template, so that a page in light or dark lays its own over
them. Text from a run is escaped: plotly takes `<b>`, `<a>` and `$` for markup. Nothing here knows runs, files or pages.
"""

from moe_probe.charts.agreement import (
    agreement_deciles,
    agreement_labels,
    agreement_lines,
    load_difference_heatmap,
    saturation_lines,
)
from moe_probe.charts.depth import depth_lines
from moe_probe.charts.domains import divergence_matrix, domain_shares, repetition_by_domain
from moe_probe.charts.effects import effect_bars, effect_heatmap
from moe_probe.charts.experts import expert_load, expert_mix
from moe_probe.charts.labels import MINIMUM_EXPECTED, label_heatmap
from moe_probe.charts.load import load_heatmap, load_histogram
from moe_probe.charts.look import escape
from moe_probe.charts.neighbours import repetition_lines
from moe_probe.charts.pair_cells import coactivation_cells, transition_cells
from moe_probe.charts.pairs import coactivation_heatmap, transition_heatmap
from moe_probe.charts.paths import path_flow, top_paths
from moe_probe.charts.surprisal import surprisal_points

__all__ = [
    "MINIMUM_EXPECTED",
    "agreement_deciles",
    "agreement_labels",
    "agreement_lines",
    "coactivation_cells",
    "coactivation_heatmap",
    "depth_lines",
    "divergence_matrix",
    "domain_shares",
    "effect_bars",
    "effect_heatmap",
    "escape",
    "expert_load",
    "expert_mix",
    "label_heatmap",
    "load_difference_heatmap",
    "load_heatmap",
    "load_histogram",
    "path_flow",
    "repetition_by_domain",
    "repetition_lines",
    "saturation_lines",
    "surprisal_points",
    "top_paths",
    "transition_cells",
    "transition_heatmap",
]
