"""The domains whose documents a table also tells by themselves. It does not know what is told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from moe_probe.tables.columns import Column

if TYPE_CHECKING:
    from moe_probe.store import Run

ALL_DOMAINS = "all"
MOST_DOMAINS = 32
"""Of more domains than this, those with the most tokens have rows of their own."""

LABELS_OF_DOCUMENTS = ("domain", "language")
"""Label sets that have one value a document, so that there is nothing to tell within a domain."""

DOMAIN = Column(
    "domain",
    pl.String,
    "all, or a domain",
    f"The documents counted: all, or those of one domain (the {MOST_DOMAINS} with the most tokens).",
)


def find_domains(run: Run, label: str | None = None) -> list[str]:
    """Return the domains that get rows of their own beside those over all documents, the largest first.

    Args:
        run: an open run.
        label: the label set that is told of; within a domain there is nothing to tell of domains.

    Returns:
        Nothing where the documents have fewer than two domains.
    """
    if label in LABELS_OF_DOCUMENTS:
        return []
    tokens = run.documents().drop_nulls("domain").group_by("domain").agg(pl.col("tokens").sum())
    names: list[str] = tokens.sort("tokens", "domain", descending=[True, False])["domain"].to_list()
    return names[:MOST_DOMAINS] if len(names) > 1 else []
