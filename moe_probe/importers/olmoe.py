"""Reads what OLMoE's analysis scripts write: lines with `input_ids` [token] and `exp_ids` [token][slot][layer].

Experts are in the order of their logits. There are no weights and no text.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from moe_probe.errors import BadInputError
from moe_probe.importers.nested import from_arrow
from moe_probe.importers.source import Source
from moe_probe.importers.trace import Trace

_LINES = {"input_ids": pa.list_(pa.int32()), "exp_ids": pa.list_(pa.list_(pa.list_(pa.int32())))}


def read(source: Source) -> Iterator[Trace]:
    """Yield the documents of a file.

    Raises:
        BadInputError: if a line lacks one of the two fields.
    """
    number = 0
    for chunk, table in source.lines().tables(pa.schema(_LINES.items())):
        for row, (line, _) in enumerate(chunk.lines()):
            number += 1
            where = f"{source.path}, line {line}"
            cells = {name: table.column(name)[row] for name in _LINES}
            for name, cell in cells.items():
                if not cell.is_valid:
                    raise BadInputError(
                        f"{where}: has no {name!r}; lines of OLMoE's scripts have input_ids and exp_ids"
                    )
            experts = from_arrow(cells["exp_ids"].values, 3, where).transpose(2, 1, 0)
            yield Trace(
                name=source.name(number),
                where=where,
                layers=tuple(range(len(experts))),
                experts=experts,
                token_ids=from_arrow(cells["input_ids"].values, 1, where),
            )
