"""Parts of a run: some documents, a domain, a phase, a stretch of positions, and the shards that hold them.

It does not know what is counted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.errors import BadInputError

if TYPE_CHECKING:
    from moe_probe.store import Run
    from moe_probe.store.part import Texts

PHASES = ("prompt", "generated", schema.SPECIAL)


@dataclass(frozen=True, eq=False)
class Filter:
    """What is asked of a token's row; None asks nothing.

    `documents` holds numbers, sorted; `positions` are a first one and the one after the last (None: to the end).
    """

    documents: NDArray[np.int64] | None = None
    phase: str | None = None
    positions: tuple[int, int | None] | None = None

    @property
    def name(self) -> str:
        """The same for the same filter, and fit for a file; empty where nothing is asked."""
        if self.documents is None and self.phase is None and self.positions is None:
            return ""
        digest = hashlib.blake2b(json.dumps([self.phase, self.positions]).encode(), digest_size=12)
        digest.update(b"all" if self.documents is None else self.documents.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def columns(self) -> list[str]:
        """The columns of the tokens that `keeps` looks at, beside "phase"."""
        asked = {"document": self.documents, "position": self.positions}
        return [column for column, value in asked.items() if value is not None]

    def keeps(self, n_rows: int, columns: Mapping[str, NDArray[Any]], phases: Texts | None) -> NDArray[np.bool_]:
        """Return which rows are in it, (rows,).

        Args:
            n_rows: how many rows there are.
            columns: (rows,) of the tokens, by name.
            phases: those of the tokens, if one is asked for.
        """
        kept = np.ones(n_rows, dtype=np.bool_)
        if self.documents is not None:
            kept &= np.isin(columns["document"], self.documents)
        if self.phase is not None and phases is not None:
            kept &= phases.are([self.phase])
        if self.positions is not None:
            first, stop = self.positions
            positions = columns["position"]
            kept &= positions >= first
            if stop is not None:
                kept &= positions < stop
        return kept

    def shards(self, run: Run) -> list[int]:
        """Return the shards of a run in which such rows may be."""
        if self.documents is None:
            return run.shards
        documents = run.documents().filter((pl.col("tokens") > 0) & pl.col("first_shard").is_not_null())
        documents = documents.sort("document")
        first = documents["first_shard"].to_numpy().astype(np.int64)
        # Documents lie one behind the other: one ends before the next begins, or in the shard where that begins.
        at_start = (documents["first_row"].to_numpy() == 0).astype(np.int64)
        last = np.append(np.maximum(first[1:] - at_start[1:], first[:-1]), max(run.shards, default=0))[: len(first)]
        chosen = np.isin(documents["document"].to_numpy(), self.documents)
        edges = np.zeros(max([*run.shards, *first.tolist(), 0]) + 2, dtype=np.int64)
        np.add.at(edges, first[chosen], 1)
        np.add.at(edges, np.maximum(last, first)[chosen] + 1, -1)
        held = np.cumsum(edges) > 0
        return [shard for shard in run.shards if held[shard]]

    def n_documents(self, run: Run) -> int:
        """Return how many documents with tokens are in it, at most."""
        documents = run.documents().filter(pl.col("tokens") > 0)["document"].to_numpy()
        return len(documents) if self.documents is None else int(np.isin(documents, self.documents).sum())


def find_filter(
    run: Run,
    documents: Collection[int | str] | None = None,
    domain: str | None = None,
    phase: str | None = None,
    positions: tuple[int, int | None] | None = None,
) -> Filter:
    """Return a filter of a run's tokens, after a look at whether the run has what is asked for.

    Args:
        run: an open run.
        documents: numbers or names.
        domain: the documents of this domain only.
        phase: "prompt", "generated" or "special".
        positions: the first place within a document, and the place after the last (None: to the end).

    Raises:
        BadInputError: there is no such document, domain or phase, or the positions are none.
    """
    numbers = None if documents is None else _numbers(run, documents)
    if domain is not None:
        of_domain = _of_domain(run, domain)
        numbers = of_domain if numbers is None else np.intersect1d(numbers, of_domain)
    if phase is not None and phase not in PHASES:
        raise BadInputError(f"phase {phase!r}: choose one of {', '.join(PHASES)}")
    if positions is not None:
        first, stop = positions
        if first < 0 or (stop is not None and stop <= first):
            raise BadInputError(
                f"positions {positions!r}: give the first, from 0 on, and the one after the last, or None for the end"
            )
        positions = (first, stop)
    return Filter(numbers, phase, positions)


def _numbers(run: Run, documents: Collection[int | str]) -> NDArray[np.int64]:
    if isinstance(documents, str):
        raise BadInputError(f"documents {documents!r}: give a list of numbers or names")
    known = run.documents()
    names = [document for document in documents if isinstance(document, str)]
    numbers = [document for document in documents if not isinstance(document, str)]
    by_name = known.filter(pl.col("name").is_in(names))
    unknown: list[int | str] = [name for name in names if name not in set(by_name["name"])]
    here = set(known["document"]) if numbers else set()
    unknown += [number for number in numbers if number not in here]
    if unknown:
        raise BadInputError(
            f"document {unknown[0]!r}: the run has no such document; it has {known.height}, for example"
            f" {known['name'].head(3).to_list()}"
        )
    return np.unique(np.array([*numbers, *by_name["document"]], dtype=np.int64))


def _of_domain(run: Run, domain: str) -> NDArray[np.int64]:
    documents = run.documents()
    found = documents.filter(pl.col("domain") == domain)["document"].to_numpy().astype(np.int64)
    if not found.size:
        domains = sorted(documents["domain"].drop_nulls().unique())
        has = f"it has {', '.join(domains[:10])}" if domains else "its documents have none"
        raise BadInputError(f"domain {domain!r}: the run has no such domain, {has}")
    return np.sort(found)
