"""Routers in batches that fit into memory. It does not know what is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from moe_probe.schema import Router


def in_batches(routers: Sequence[Router], bytes_of: Callable[[Router], int], most_bytes: int) -> Iterator[list[Router]]:
    """Yield routers, in order, in batches of at most `most_bytes`; at least one router a batch.

    Example:
        >>> routers = [Router(index, "", index, 8, 2, "") for index in range(3)]
        >>> [[router.index for router in batch] for batch in in_batches(routers, lambda router: 4, 9)]
        [[0, 1], [2]]
    """
    batch: list[Router] = []
    held = 0
    for router in routers:
        size = bytes_of(router)
        if batch and held + size > most_bytes:
            yield batch
            batch, held = [], 0
        batch.append(router)
        held += size
    if batch:
        yield batch
