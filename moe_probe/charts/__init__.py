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

from moe_probe.charts.depth import depth_lines
from moe_probe.charts.labels import MINIMUM_EXPECTED, label_heatmap
from moe_probe.charts.load import load_heatmap, load_histogram
from moe_probe.charts.look import escape

__all__ = ["MINIMUM_EXPECTED", "depth_lines", "escape", "label_heatmap", "load_heatmap", "load_histogram"]
