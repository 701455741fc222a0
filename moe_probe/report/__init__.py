"""The report: one HTML file that tells what a run shows, with its baselines, its intervals and its caveats.

| module | what it knows |
|---|---|
| `page` | a page of sections, tables and charts in one file that asks the network for nothing |
| `text` | the run's own text in the colours of its experts |
| `sections`, `labelled`, `effects`, `caveats` | what is said |
| `told` | the tables that it is said of |
| `words` | numbers in a sentence |

It begins with the text, as Mixtral's Fig. 8 does, and ends with what stands against it.
"""

from moe_probe.report.report import write_report

__all__ = ["write_report"]
