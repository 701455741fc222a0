"""Tidy tables of a run: what every number of moe_probe is told in.

| module | what it knows |
|---|---|
| `load`, `imbalance` | how the work is spread over experts |
| `labels`, `information` | experts against labels, and the information between them |
| `rows` | how rows get their columns, types and nulls |
| `columns` | what a column is; those that tables share |
| `registry` | every table of a run, and its file |

One row is one fact, and says of which slot and which tokens it is. A number that cannot be given is null, never nan,
and a table without tokens has no rows. Nothing is counted here and no measure computed: results get their names.
"""

from moe_probe.tables.columns import Column, columns_table, schema_of
from moe_probe.tables.imbalance import BALANCE_COLUMNS, balance
from moe_probe.tables.information import SPECIALISATION_COLUMNS, specialisation
from moe_probe.tables.labels import LABEL_COLUMNS, label_table
from moe_probe.tables.load import LOAD_COLUMNS, load_table
from moe_probe.tables.registry import Table, label_file, tables_of

__all__ = [
    "BALANCE_COLUMNS",
    "LABEL_COLUMNS",
    "LOAD_COLUMNS",
    "SPECIALISATION_COLUMNS",
    "Column",
    "Table",
    "balance",
    "columns_table",
    "label_file",
    "label_table",
    "load_table",
    "schema_of",
    "specialisation",
    "tables_of",
]
