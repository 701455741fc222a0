"""Counts what a model executes while it runs, by expert, label and cluster of documents, and keeps nothing of a token.

Experts may stay on the device that they were executed on: what leaves it, once, at the end, are the counts. They are
those that `moe_probe.counts` makes of a run with tokens, and are told the clusters; they do not know how documents are
hashed, nor what a count means. The first four positions of each window are not counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from moe_probe.errors import RoutingError
from moe_probe.schema import DROPPED, NOT_WORDS, SINK_POSITIONS, UNTAGGED, LabelSet, Router
from moe_probe.store.clusters import N_CLUSTERS
from moe_probe.store.totals import ANY_SLOT, WORD_INITIAL, LabelTotals
from moe_probe_kernels import Tally, Way

_ALL, _WORD_INITIAL = "all", "word_initial"
_FIRST_LABELS = 4
"""Labels that there is room for at first; it doubles."""

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counted:
    """Assignments by expert and label of one label set, as `counts.LabelCounts` holds them.

    `clustered[i]` is (64, experts, labels) int64 for router i. `labels` are those that a counted token has, sorted; `n`
    is how many tokens were counted, `documents` the numbers of those that have a counted token which is not `untagged`.
    """

    label_set: LabelSet
    slot: str | int
    tokens: str
    labels: tuple[str, ...]
    clustered: tuple[npt.NDArray[np.int64], ...]
    n: int
    documents: npt.NDArray[np.int64]


class Counter:
    """Adds up what was executed, batch by batch.

    The first choice is counted apart from the later ones, so that `counted` knows the slots "any" and 0; of label sets
    in `apart` each slot is. The counts of a label set take 8 bytes for each router, expert, label and cluster, four
    times, or where each slot is counted apart twice as often as there are slots.
    """

    def __init__(
        self,
        routers: Sequence[Router],
        label_sets: Sequence[LabelSet],
        clusters: npt.NDArray[np.integer],
        device: torch.device | str = "cpu",
        *,
        first: int = 0,
        apart: Collection[str] = (),
    ) -> None:
        """Begin with nothing counted.

        Args:
            routers: where the model chooses experts.
            label_sets: the labels of the tokens that are to be counted.
            clusters: (documents,) the cluster of each document, 0 to 63, by its number less `first`.
            device: where the experts will be.
            first: the number of the first document.
            apart: the names of the label sets of which each slot is counted apart.

        Raises:
            ValueError: if a cluster is none of the 64.
        """
        if clusters.size and not 0 <= int(clusters.min()) <= int(clusters.max()) < N_CLUSTERS:
            raise ValueError(f"clusters from {clusters.min()} to {clusters.max()}: they are 0 to {N_CLUSTERS - 1}")
        self.routers = tuple(routers)
        self.ran: Way | Literal["numpy"] | None = None
        self._clusters = clusters.astype(np.int64)
        self._first = first
        self._apart = frozenset(apart)
        self._device = torch.device(device)
        self._stacks = _stacks(self.routers)
        self._sets = {one.name: _SetCounts(one, len(clusters)) for one in label_sets}
        self._tallies: dict[tuple[str, int], Tally] = {}

    def add(self, experts: Sequence[torch.Tensor], tokens: pa.Table) -> None:
        """Count some tokens; nothing here waits for the device.

        Args:
            experts: for each router (slots, tokens), the first choice in slot 0, -1 where a slot held none.
            tokens: a row a token in the same order, with the columns document, window_position, word_initial and one
                for each label set.

        Raises:
            ValueError: if the experts are not of as many routers, slots and tokens.
        """
        self._check(experts, tokens.num_rows)
        if not tokens.num_rows:
            return
        documents = _numbers(tokens, "document") - self._first
        no_sink = _numbers(tokens, "window_position") >= SINK_POSITIONS
        initial = tokens.column("word_initial").to_numpy(zero_copy_only=False).astype(np.bool_)
        on_host = self._device.type == "cpu"
        stacked = [] if on_host else [torch.stack([experts[router] for router in stack]) for stack in self._stacks]
        for name, counts in self._sets.items():
            cells = counts.add(tokens.column(name), documents, self._clusters[documents], no_sink, initial)
            if on_host:
                self.ran = "numpy"
                for number, stack in enumerate(self._stacks):
                    _add_on_host(self._tally(name, number), [experts[router].numpy() for router in stack], cells)
                continue
            on_device = self._sent(cells)
            for number, ids in enumerate(stacked):
                self.ran = self._tally(name, number).add(ids, on_device, dropped=DROPPED)

    def counted(self, label: str, slot: str | int = ANY_SLOT, tokens: str | None = None) -> Counted:
        """Return the counts of a label set; waits for the device.

        Args:
            label: the name of the label set.
            slot: "any", 0 for the first choice, or a further one where `LabelTotals.slots` has it.
            tokens: "all" or "word_initial"; by default word-initial for labels that cut the text into words, else all.

        Raises:
            RoutingError: if an expert was executed that does not exist.
            ValueError: if there is no such label set, or it was not counted so.
        """
        totals = self.totals(label) if label in self._sets else None
        slots = [ANY_SLOT] if totals is None else totals.slots(self.routers)
        if totals is None or slot not in slots or tokens not in (None, _ALL, _WORD_INITIAL):
            raise ValueError(
                f"label {label!r}, slot {slot!r}, tokens {tokens!r}: counted were {', '.join(self._sets)}, slots "
                f"{', '.join(map(str, slots))}, tokens {_ALL} and {_WORD_INITIAL}"
            )
        label_set = self._sets[label].label_set
        tokens = tokens or (_WORD_INITIAL if label_set.word_level else _ALL)
        found = totals.select(slot, tokens == _WORD_INITIAL)
        return Counted(label_set, slot, tokens, found.labels, found.clustered, found.n, found.documents)

    def totals(self, label: str) -> LabelTotals:
        """Return all that was counted of a label set; waits for the device.

        Raises:
            KeyError: if there is no such label set.
            RoutingError: if an expert was executed that does not exist.
        """
        counts = self._sets[label]
        labels, places = counts.sorted_labels(counts.rows.sum(axis=0))
        tables: dict[int, npt.NDArray[np.int64]] = {}
        for number, stack in enumerate(self._stacks):
            tally = self._tally(label, number)
            self._refuse_strays(tally, stack)
            found = self._by_class(tally)[:, :, :, :, places].cpu().numpy()
            for place, router in enumerate(stack):
                # (planes, kinds, clusters, labels, experts) to (planes, kinds, clusters, experts, labels)
                tables[router] = np.ascontiguousarray(found[place].swapaxes(3, 4))
        others, initial = (np.flatnonzero(seen) + self._first for seen in counts.documents)
        assert WORD_INITIAL == 1, "the axis of two is in this order"
        return LabelTotals(
            labels,
            tuple(tables[index] for index in range(len(self.routers))),
            counts.rows[:, places],
            (others, initial),
        )

    def _check(self, experts: Sequence[torch.Tensor], n_tokens: int) -> None:
        if len(experts) != len(self.routers):
            raise ValueError(f"experts of {len(experts)} routers: the model has {len(self.routers)}")
        for router, ids in zip(self.routers, experts, strict=True):
            if tuple(ids.shape) != (router.n_slots, n_tokens):
                raise ValueError(
                    f"{router.name}: experts {tuple(ids.shape)} must be (slots, tokens), {(router.n_slots, n_tokens)}"
                )

    def _sent(self, cells: Codes) -> torch.Tensor:
        """Return cells on the device, (1, tokens); from pinned memory, for else the copy would wait for the device."""
        narrow = torch.from_numpy(cells[None].astype(np.int32))
        if self._device.type == "cuda":
            narrow = narrow.pin_memory()
        return narrow.to(self._device, non_blocking=True)

    def _tally(self, name: str, stack: int) -> Tally:
        """Return the tally of a label set and a stack of routers, with room for the labels seen so far."""
        room = self._sets[name].room
        first = self.routers[self._stacks[stack][0]]
        planes = first.n_slots if name in self._apart else min(2, first.n_slots)
        shape = (len(self._stacks[stack]), planes, 2 * N_CLUSTERS * room, first.n_experts)
        held = self._tallies.get((name, stack))
        if held is None or held.counts.shape[2] < shape[2]:
            larger = Tally(*shape, device=self._device)
            if held is not None:
                old = self._by_class(held)
                self._by_class(larger)[..., : old.shape[-2], :] = old
                larger.strays += held.strays
            self._tallies[name, stack] = held = larger
        return held

    @staticmethod
    def _by_class(tally: Tally) -> torch.Tensor:
        """Return the counts as (routers, planes, word-initial or not, clusters, labels, experts)."""
        n_routers, n_planes, _, n_experts = tally.counts.shape
        return tally.counts.view(n_routers, n_planes, 2, N_CLUSTERS, -1, n_experts)

    def _refuse_strays(self, tally: Tally, stack: Sequence[int]) -> None:
        for router, strays in zip(stack, tally.strays.tolist(), strict=True):
            if strays:
                raise RoutingError(
                    f"{self.routers[router].name}: {strays} assignments went to experts that do not exist, it has"
                    f" {self.routers[router].n_experts}; this is a fault, please report it"
                )


class _SetCounts:
    """What is known of one label set on the way: its labels as they come, and how many rows of each were counted.

    Attributes:
        rows: (2, room) rows that were counted, not word-initial and word-initial, by label.
        documents: (2, documents) which have a counted row that is not `untagged`.
    """

    def __init__(self, label_set: LabelSet, n_documents: int) -> None:
        self.label_set = label_set
        self.rows = np.zeros((2, _FIRST_LABELS), dtype=np.int64)
        self.documents = np.zeros((2, n_documents), dtype=np.bool_)
        self._codes: dict[str, int] = {}

    @property
    def room(self) -> int:
        """How many labels there is room for."""
        return self.rows.shape[1]

    def add(
        self,
        column: pa.ChunkedArray,
        documents: Codes,
        clusters: Codes,
        no_sink: npt.NDArray[np.bool_],
        initial: npt.NDArray[np.bool_],
    ) -> Codes:
        """Note some rows, and return the cell of each: -1 where it is not counted.

        Cells are word-initial or not, then cluster, then label.
        """
        values, codes = self._encode(column)
        if self.label_set.word_level:
            initial = ~np.isin(codes, [code for value, code in values.items() if value in NOT_WORDS])
        classes = initial.astype(np.int64)
        places = (classes * self.room + codes)[no_sink]
        self.rows += np.bincount(places, minlength=2 * self.room).reshape(2, self.room)
        tagged = no_sink & (codes != values.get(UNTAGGED, -1))
        self.documents[classes[tagged], documents[tagged]] = True
        return np.where(no_sink, (classes * N_CLUSTERS + clusters) * self.room + codes, -1)

    def sorted_labels(self, rows: npt.NDArray[np.int64]) -> tuple[tuple[str, ...], list[int]]:
        """Return the labels that counted rows have, sorted, and their codes."""
        labels = sorted(value for value, code in self._codes.items() if rows[code])
        return tuple(labels), [self._codes[label] for label in labels]

    def _encode(self, column: pa.ChunkedArray) -> tuple[Mapping[str, int], Codes]:
        """Return the codes of all values so far, and that of each row."""
        if column.null_count:
            raise ValueError(f"label {self.label_set.name!r}: {column.null_count} rows have none")
        encoded = pc.cast(column, pa.string()).combine_chunks().dictionary_encode()
        here = [self._codes.setdefault(value, len(self._codes)) for value in encoded.dictionary.to_pylist()]
        while len(self._codes) > self.room:
            self.rows = np.pad(self.rows, ((0, 0), (0, self.room)))
        codes: Codes = np.array(here, dtype=np.int64)[encoded.indices.to_numpy()]
        return self._codes, codes


def _stacks(routers: Sequence[Router]) -> list[list[int]]:
    """Return the routers in stacks of as many experts and slots, which are counted in one launch."""
    stacks: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for router in routers:
        stacks[router.n_experts, router.n_slots].append(router.index)
    return list(stacks.values())


def _add_on_host(tally: Tally, experts: Sequence[npt.NDArray[np.signedinteger]], cells: Codes) -> None:
    """Add as `Tally.add` does, several times as fast as torch on a processor.

    Args:
        tally: of the routers.
        experts: for each router (slots, tokens).
        cells: (tokens,) -1 where a token is not counted.
    """
    _, n_planes, n_cells, n_experts = tally.counts.shape
    counted = np.flatnonzero(cells >= 0)
    starts = cells[counted] * n_experts
    nowhere = n_cells * n_experts
    for place, of_router in enumerate(experts):
        for slot, ids in enumerate(of_router):
            executed = ids if len(counted) == len(ids) else ids[counted]
            codes = starts + executed
            outside = (executed < 0) | (executed >= n_experts)
            if outside.any():
                tally.strays[place] += int(np.count_nonzero(outside & (executed != DROPPED)))
                codes[outside] = nowhere
            total = tally.counts[place, min(slot, n_planes - 1)].view(-1).numpy()
            if 8 * len(codes) < nowhere:  # fewer additions than there are counts
                np.add.at(total, codes[~outside], 1)
            else:
                total += np.bincount(codes, minlength=nowhere + 1)[:nowhere]


def _numbers(tokens: pa.Table, name: str) -> Codes:
    numbers: Codes = tokens.column(name).to_numpy().astype(np.int64)
    return numbers
