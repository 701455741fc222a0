"""Tidy tables of a run: load, balance, labels, specialisation.

| module | what it knows |
|---|---|
| `load` | load and balance of every router |
| `labels` | experts against labels, and the information between them |
| `rows` | how rows get their columns, types and nulls |
| `dictionary` | what every column means |

One row is one fact, and says of which slot and which tokens it is. A number that cannot be given is null, never nan,
and a table without tokens has no rows. Nothing is counted here and no measure computed: results get their names.
"""

from moe_probe.tables.dictionary import columns_table, table_schema
from moe_probe.tables.labels import label_table, specialisation
from moe_probe.tables.load import balance, load_table

__all__ = ["balance", "columns_table", "label_table", "load_table", "specialisation", "table_schema"]
