"""Reads what OLMoE's analysis scripts write: lines with `input_ids` [token] and `exp_ids` [token][slot][layer].

Experts are in the order of their logits. There are no weights and no text.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pyarrow as pa

from moe_probe.errors import BadInputError
from moe_probe.importers.nested import from_arrow
from moe_probe.importers.regular import is_whole
from moe_probe.importers.source import Source
from moe_probe.importers.trace import Trace

_LINES = {"input_ids": pa.list_(pa.int32()), "exp_ids": pa.list_(pa.list_(pa.list_(pa.int32())))}


def read(source: Source) -> Generator[Trace, None, None]:
    """Yield the documents of a file.

    Raises:
        BadInputError: if a line lacks one of the two fields.
    """
    found = source.lines().plain_objects(pa.schema(_LINES.items()), _are_plain)
    for number, (line, fields) in enumerate(found, 1):
        where = f"{source.path}, line {line}"
        for name, value in fields.items():
            if value is None:
                raise BadInputError(f"{where}: has no {name!r}; lines of OLMoE's scripts have input_ids and exp_ids")
        experts = from_arrow(fields["exp_ids"], 3, where).transpose(2, 1, 0)
        yield Trace(
            name=source.name(number),
            where=where,
            layers=tuple(range(len(experts))),
            experts=experts,
            token_ids=from_arrow(fields["input_ids"], 1, where),
        )


def _are_plain(fields: dict[str, Any]) -> bool:
    return is_whole(fields["input_ids"], 1) and is_whole(fields["exp_ids"], 3)
