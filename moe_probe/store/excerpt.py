"""A part of one document's routing, read without the rest: some routers of all its tokens, or all routers of some.

It knows a run's files as `run` does, and nothing of who asks.
"""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from moe_probe.errors import BadInputError
from moe_probe.schema import entropy_column, routing_columns, routing_file
from moe_probe.store.columns import expert_columns, weight_columns
from moe_probe.store.document import DocumentRouting
from moe_probe.store.part import read_rows, stacked
from moe_probe.store.run import Run


def read_routing(
    run: Run,
    document: int | str,
    *,
    routers: Collection[int] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> DocumentRouting:
    """Return a document's routing in part; its `tokens` are left out, and so are margins where routers are named.

    Args:
        run: an open run.
        document: by number or name.
        routers: the indices of those to read; None = all of them.
        start: the first token.
        stop: the token before which to stop; None = the document's end.

    Raises:
        BadInputError: if the run has no such document or router, or the document no such tokens.

    Example:
        >>> import moe_probe as mp
        >>> run = mp.open_run("runs/first")                                              # doctest: +SKIP
        >>> read_routing(run, 0, routers=[3]).experts(router=3)                          # doctest: +SKIP
    """
    row = run._find(document)
    stop = row["tokens"] if stop is None else stop
    if not 0 <= start <= stop <= row["tokens"]:
        raise BadInputError(
            f"document {row['name']!r}: tokens {start} to {stop} are not within its {row['tokens']:,} tokens"
        )
    columns = _columns(run, routers)
    parts = []
    before = 0
    for number, first, count in run._parts(row):
        begin, end = max(start - before, 0), min(stop - before, count)
        if begin < end:
            parts.append(read_rows(run.path / routing_file(number), columns, first + begin, end - begin))
        before += count
    schema = {name: kind for name, kind in run._routing_schema().items() if name in columns}
    return DocumentRouting(row["document"], row["name"], tuple(run.routers), pl.DataFrame(), stacked(parts, schema))


def _columns(run: Run, routers: Collection[int] | None) -> list[str]:
    if routers is None:
        return routing_columns(run.routers, run.with_scores, run.with_weights)
    columns = []
    for index in routers:
        if not 0 <= index < len(run.routers):
            raise BadInputError(f"router {index}: the run has {len(run.routers)}, from 0")
        router = run.routers[index]
        columns += expert_columns(router)
        columns += weight_columns(router) if run.with_weights[index] else []
        columns += [entropy_column(index)] if run.with_scores[index] else []
    return columns
