"""Tidy tables of a run, or of two: what every number of moe_probe is told in.

| module | what it knows |
|---|---|
| `load`, `imbalance` | how the work is spread over experts |
| `labels`, `information`, `distances` | experts against labels, the information between them, domains against domains |
| `names`, `candidates`, `snippets` | one honest line for each expert, and where it is seen in the text |
| `neighbours`, `places`, `depths` | repetition, position in the document, transitions and paths |
| `pairs`, `words`, `tasks` | co-activation, vocabulary, affinity |
| `paired`, `between`, `all_layers`, `surprisal` | two runs over the same tokens |
| `domains` | which domains a run's numbers are also given within |
| `rows`, `columns`, `registry` | how rows get their columns, what a column is, every table of a run |

One row is one fact, and says of which slot and which tokens it is. A number that cannot be given is null, never nan,
and a table without tokens has no rows. Nothing is counted here and no measure computed: results get their names.
"""

from moe_probe.tables.between import (
    AGREEMENT_COLUMNS,
    LOAD_DIFFERENCE_COLUMNS,
    SATURATION_COLUMNS,
    agreement,
    load_difference,
    saturation,
)
from moe_probe.tables.columns import Column, columns_table, schema_of
from moe_probe.tables.depths import PATH_COLUMNS, TRANSITION_COLUMNS, paths, transitions
from moe_probe.tables.distances import DIVERGENCE_COLUMNS, divergence
from moe_probe.tables.imbalance import BALANCE_COLUMNS, balance
from moe_probe.tables.information import SPECIALISATION_COLUMNS, specialisation
from moe_probe.tables.labels import LABEL_COLUMNS, label_table
from moe_probe.tables.load import LOAD_COLUMNS, load_table
from moe_probe.tables.names import EXPERT_COLUMNS, expert_names
from moe_probe.tables.neighbours import REPETITION_COLUMNS, repetition
from moe_probe.tables.paired import comparison_warnings
from moe_probe.tables.pairs import COACTIVATION_COLUMNS, coactivation
from moe_probe.tables.places import POSITION_COLUMNS, position
from moe_probe.tables.registry import Table, label_file, tables_of
from moe_probe.tables.surprisal import SURPRISAL_COLUMNS, surprisal_difference
from moe_probe.tables.tasks import AFFINITY_COLUMNS, affinity
from moe_probe.tables.words import (
    VOCABULARY_COLUMNS,
    VOCABULARY_SUMMARY_COLUMNS,
    vocabulary,
    vocabulary_summary,
)

__all__ = [
    "AFFINITY_COLUMNS",
    "AGREEMENT_COLUMNS",
    "BALANCE_COLUMNS",
    "COACTIVATION_COLUMNS",
    "DIVERGENCE_COLUMNS",
    "EXPERT_COLUMNS",
    "LABEL_COLUMNS",
    "LOAD_COLUMNS",
    "LOAD_DIFFERENCE_COLUMNS",
    "PATH_COLUMNS",
    "POSITION_COLUMNS",
    "REPETITION_COLUMNS",
    "SATURATION_COLUMNS",
    "SPECIALISATION_COLUMNS",
    "SURPRISAL_COLUMNS",
    "TRANSITION_COLUMNS",
    "VOCABULARY_COLUMNS",
    "VOCABULARY_SUMMARY_COLUMNS",
    "Column",
    "Table",
    "affinity",
    "agreement",
    "balance",
    "coactivation",
    "columns_table",
    "comparison_warnings",
    "divergence",
    "expert_names",
    "label_file",
    "label_table",
    "load_difference",
    "load_table",
    "paths",
    "position",
    "repetition",
    "saturation",
    "schema_of",
    "specialisation",
    "surprisal_difference",
    "tables_of",
    "transitions",
    "vocabulary",
    "vocabulary_summary",
]
