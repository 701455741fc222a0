"""Makes shards of documents as they are read, and has them put on the disk.

What the columns of a run have in common is known for certain only at the end of a trace: which layers hold experts, how
many slots there are, how many bits an expert takes. The documents of the first shard show it nearly always. Where a
later one shows more, nothing is written any more, and the trace is to be read again with what it showed. It does not
know formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa

from moe_probe.importers.behind import Behind
from moe_probe.importers.columns import RoutingColumns
from moe_probe.importers.cutting import Cutting, shard_rows
from moe_probe.importers.kept import Form, Kept
from moe_probe.store.plan import Layout
from moe_probe.store.writer import RunWriter, ShardFacts

Tokens = Callable[[Sequence[tuple[int, Kept]]], pa.Table]
"""Makes the token rows of some documents, each with its number."""
Facts = Callable[[int], ShardFacts]
"""Gives what is known about a shard, given the number of routers."""


class Shards:
    """Those of one run; each is staged with the writer when the next one begins, the last by `finish`."""

    def __init__(self, writer: RunWriter, disk: Behind, tokens: Tokens, facts: Facts, form: Form | None = None) -> None:
        """Begin without a document.

        Args:
            writer: of the run.
            disk: writes the tokens of a shard while the next one is made.
            tokens: makes them.
            facts: gives those of every shard but the last.
            form: what all documents have in common, if that is known.
        """
        self._writer, self._disk, self._tokens, self._facts = writer, disk, tokens, facts
        self._cutting = None if form is None else Cutting(form)
        self._waiting: list[Kept] = []  # until the form is decided
        self._n_waiting = 0  # rows of them
        self._routing: RoutingColumns | None = None
        self._documents: list[tuple[int, Kept]] = []  # those of the last shard, without their routing
        self._n_documents = self._n_shards = 0
        self.lost = False
        """Whether a document did not fit to those before it, so that there are no shards."""

    def add(self, kept: Kept, form: Form) -> None:
        """Take the next document.

        Args:
            kept: the document.
            form: what the documents up to this one have in common.

        Raises:
            MoeProbeError: if the disk is full.
        """
        if self.lost:
            return
        if self._cutting is None:
            self._waiting.append(kept)
            self._n_waiting += kept.n_tokens
            if self._n_waiting >= shard_rows(0, form.row_bytes):
                self._decide(form)
        elif self._cutting.form.holds(form):
            self._put(kept)
        else:
            self._lose()

    def finish(self, form: Form, facts: ShardFacts) -> Layout:
        """Stage the last shard, and return how the documents were cut.

        Args:
            form: what all documents have in common.
            facts: of the last shard.

        Raises:
            MoeProbeError: if the disk is full.
        """
        if self._cutting is None:
            self._decide(form)
        self._stage(facts)
        self._disk.wait()
        assert self._cutting is not None, "the form was decided"
        return self._cutting.layout()

    def _lose(self) -> None:
        self.lost = True
        self._routing, self._documents, self._waiting = None, [], []

    def _decide(self, form: Form) -> None:
        if not form.places:
            self._lose()
            return
        self._cutting = Cutting(form)
        waiting, self._waiting = self._waiting, []
        for kept in waiting:
            self._put(kept)

    def _put(self, kept: Kept) -> None:
        """Put a document into its shard, unless a layer holds nothing in it that has experts in others."""
        assert self._cutting is not None, "the form was decided"
        form = self._cutting.form
        rows = 0 if set(kept.blank) & set(form.places) else kept.n_tokens
        if self._cutting.add(rows):
            self._stage(self._facts(len(form.places)))
            if self._routing is None or self._routing.room < self._cutting.room:
                self._routing = None  # two need not be in memory
                self._routing = RoutingColumns(form, self._cutting.room)
        if rows:
            assert self._routing is not None, "it was made for the first document of the shard"
            self._routing.add(kept)
            self._documents.append((self._n_documents, kept.without_routing()))
        self._n_documents += 1

    def _stage(self, facts: ShardFacts) -> None:
        """Stage the last shard, if there is one."""
        if self._routing is None or not self._documents:
            return
        number, self._n_shards = self._n_shards, self._n_shards + 1
        self._writer.stage_routing(number, self._routing.to_table(), facts)
        self._disk.put(partial(self._writer.stage_rest, number, self._tokens(self._documents)))
        self._routing.clear()
        self._documents = []
