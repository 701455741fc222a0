"""Bring token rows of whole documents to memory, so many that any run fits, for what needs tokens in their order.

It does not know what they are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.batches import in_batches
from moe_probe.counts.clusters import Clusters, unit_for
from moe_probe.counts.filters import Filter
from moe_probe.errors import BadInputError
from moe_probe.store.clusters import name_hash

if TYPE_CHECKING:
    from moe_probe.store import Run

MOST_TOKENS = 2_000_000

_AHEAD_BYTES = 64 * 2**20
_ALWAYS = ("document", "position", "window_position", "word_initial", "token_id")


@dataclass(frozen=True, eq=False)
class TokenRows:
    """Token rows of whole documents, in the order of the run, and their routing on demand.

    `frame` holds row (the number of the row in the run), document, position, window_position, word_initial, token_id,
    the columns asked for, `cluster` (0 to 63) and `domain_of_document` (null where none). The first positions of each
    window are in it. `complete` says that it holds every document of the run, `cluster_unit` is "document", or "block"
    where fewer than five documents have a token beyond the first of a window.
    """

    frame: pl.DataFrame
    complete: bool
    cluster_unit: str
    _run: Run = field(repr=False)
    _places: dict[int, NDArray[np.int64]] = field(repr=False)
    _ahead: dict[Callable[[int, int], str], dict[int, NDArray[Any]]] = field(default_factory=dict, repr=False)

    def experts(self, router: int | schema.Router) -> NDArray[np.int32]:
        """Return the experts of a router, (rows, slots): slot 0 is the first choice; -1 where a slot held none."""
        return self._take(schema.expert_column, pl.Int32, router)

    def weights(self, router: int | schema.Router) -> NDArray[np.float32]:
        """Return the factors that the experts' outputs were multiplied by, (rows, slots); NaN where not known."""
        index = self._run.router_index(router=router.index if isinstance(router, schema.Router) else router)
        if not self._run.with_weights[index]:
            return np.full((self.frame.height, self._run.routers[index].n_slots), np.nan, dtype=np.float32)
        return self._take(schema.weight_column, pl.Float32, index)

    def _take(
        self, column_of: Callable[[int, int], str], dtype: type[pl.DataType], router: int | schema.Router
    ) -> NDArray[Any]:
        """Return one array; those of the next routers, which are wanted next, are read with it as far as they fit."""
        index = self._run.router_index(router=router.index if isinstance(router, schema.Router) else router)
        if index not in self._ahead.get(column_of, {}):
            self._ahead[column_of] = {}
            following = self._run.routers[index:]
            batch = next(in_batches(following, lambda one: 4 * self.frame.height * one.n_slots, _AHEAD_BYTES))
            self._ahead[column_of] = {one.index: array for one, array in self._read(batch, column_of, dtype)}
        # A copy, which the caller may write to.
        return self._ahead[column_of][index].copy()

    def _read(
        self, routers: Sequence[schema.Router], column_of: Callable[[int, int], str], dtype: type[pl.DataType]
    ) -> Iterator[tuple[schema.Router, NDArray[Any]]]:
        columns = [[column_of(router.index, slot) for slot in range(router.n_slots)] for router in routers]
        kind = np.int32 if dtype == pl.Int32 else np.float32
        arrays = [np.empty((self.frame.height, router.n_slots), dtype=kind) for router in routers]
        start = 0
        for shard in self._run.iter_shards():
            places = self._places.get(shard.number)
            if places is None:
                continue
            frame = shard.routing([column for names in columns for column in names])
            frame = frame if len(places) == shard.rows else frame[places]
            rows = slice(start, start + len(places))
            for names, array in zip(columns, arrays, strict=True):
                for slot, column in enumerate(names):
                    values = frame[column].cast(dtype)
                    array[rows, slot] = (values.fill_null(schema.DROPPED) if kind == np.int32 else values).to_numpy()
            start = rows.stop
        return zip(routers, arrays, strict=True)


def load_rows(run: Run, columns: Sequence[str] = (), *, most_tokens: int = MOST_TOKENS) -> TokenRows:
    """Bring the tokens of whole documents to memory, in the order of a hash of their names, until there are enough.

    The hash makes it a fair choice of documents, and the same one in every run of the corpus. Documents are taken as
    long as they fit; where the very first does not, its first `most_tokens` tokens are.

    Args:
        run: an open run.
        columns: columns of the tokens that are wanted beside those which are always there.
        most_tokens: how many rows to hold at most.

    Raises:
        BadInputError: the run has no such column, or `most_tokens` is below 1.
    """
    wanted = list(dict.fromkeys([*_ALWAYS, *columns]))
    taken = {"row", "cluster", "domain_of_document"} & set(wanted)
    if taken:
        raise BadInputError(f"column {min(taken)!r}: token rows have one of that name already; rename the label")
    if most_tokens < 1:
        raise BadInputError(f"most_tokens {most_tokens}: give 1 or more")
    documents = run.documents().filter(pl.col("tokens") > 0).select("document", "name", "domain", "tokens")
    chosen = _choose(documents, most_tokens)
    frames: list[pl.DataFrame] = []
    places: dict[int, NDArray[np.int64]] = {}
    before, left = 0, most_tokens
    holding = set(Filter(documents=np.sort(chosen)).shards(run))
    for shard in run.iter_shards():
        if shard.number in holding:
            frame = shard.tokens(wanted)
            here = np.flatnonzero(np.isin(frame["document"].to_numpy(), chosen))[:left]
            left -= len(here)
            if len(here):
                places[shard.number] = here
                frames.append(frame[here].with_columns(row=pl.Series(here + before)))
        before += shard.rows
    # A run without tokens has columns all the same.
    frame = pl.concat(frames) if frames else run.tokens(wanted).clear().with_columns(row=pl.lit(0, pl.Int64))
    return _token_rows(run, frame, documents, places, complete=frame.height == run.n_tokens)


def _choose(documents: pl.DataFrame, most_tokens: int) -> NDArray[np.int64]:
    """Return the numbers of the documents that are taken, the first one whatever its length."""
    hashes = np.array([name_hash(name) for name in documents["name"]], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    ends = np.cumsum(documents["tokens"].to_numpy()[order])
    n_taken = max(int(np.searchsorted(ends, most_tokens, side="right")), 1)
    return documents["document"].to_numpy()[order[:n_taken]].astype(np.int64)


def _token_rows(
    run: Run, frame: pl.DataFrame, documents: pl.DataFrame, places: dict[int, NDArray[np.int64]], *, complete: bool
) -> TokenRows:
    beyond = frame.filter(pl.col("window_position") >= schema.SINK_POSITIONS)
    unit = unit_for(beyond["document"].n_unique())
    clusters = Clusters(run, unit).of(frame["document"].to_numpy(), frame["position"].to_numpy())
    domains = documents.select("document", domain_of_document="domain")
    frame = frame.with_columns(cluster=pl.Series(clusters, dtype=pl.Int64))
    frame = frame.join(domains, on="document", how="left", maintain_order="left")
    return TokenRows(frame.select("row", pl.exclude("row")), complete, unit, run, places)
