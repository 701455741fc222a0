"""A number for a document's name, the same in every run: what its cluster follows from.

It does not know what is counted by cluster.
"""

from __future__ import annotations

import hashlib

N_CLUSTERS = 64
FEWEST_DOCUMENTS = 5
"""With fewer, documents are too few to be clusters."""


def name_hash(name: str, block: int | None = None) -> int:
    """Return a number of 64 bits for a document's name, or for a block of it; the same in every run.

    Example:
        >>> name_hash("a.txt") % N_CLUSTERS, name_hash("a.txt", 3) % N_CLUSTERS
        (9, 12)
    """
    # No name holds a zero byte: a block is never taken for a document of another name.
    text = name if block is None else f"{name}\0{block}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
