"""Count a run by token type: how often each vocabulary entry had each label, and went to each expert.

Type-level measures let every type count once, so that they need these counts and not those by occurrence. They are
kept on disk sparsely, without clusters. Memory is bounded: shards and batches of routers are taken one at a time. It
does not know what the counts mean (measures/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts.batches import in_batches
from moe_probe.counts.cache import Kept, Part, narrow, remembered, remembered_parts
from moe_probe.counts.experts import add_codes, check_slot, iter_experts
from moe_probe.counts.filters import find_filter
from moe_probe.counts.selection import Selection, cache_file, find_label, source
from moe_probe.counts.wide import refuse_wide

if TYPE_CHECKING:
    from moe_probe.store import Run

_BATCH_BYTES = 256 * 2**20
_LABEL_BITS = 24


@dataclass(frozen=True, eq=False)
class TypeCounts:
    """The token types of a run, and their labels.

    Rows are types, in the order of their token ids: `token_ids` (types,), `tokens` the tokenizer's pieces,
    `label_counts` (types, labels) int64. Counted were the token rows that `rows` says ("word_initial" or "all") of one
    `domain` (None: all) that have a label at all, but for the first four positions of each window.
    """

    label_set: schema.LabelSet
    token_ids: NDArray[np.int64]
    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    label_counts: NDArray[np.int64]
    rows: str = "word_initial"
    domain: str | None = None


def load_type_counts(
    run: Run, label: str = "upos", tokens: str = "word_initial", *, domain: str | None = None
) -> TypeCounts:
    """Count how often each token type had each label.

    Args:
        run: an open run.
        label: one of the run's label sets, or "phase".
        tokens: "all" or "word_initial".
        domain: count the documents of this domain only.

    Raises:
        BadInputError: the run has no such label or domain.
        RunError: a label is missing on some row.
    """
    label_set = find_label(run, label)
    rows = _selection(run, label_set, tokens, domain)
    shards = rows.filter.shards(run)
    kept = remembered(
        cache_file(run, f"types-{label_set.name}-{rows.name}"),
        source(run, shards, ("types", *rows.what())),
        partial(_count_types, run, rows, shards),
    )
    token_ids = kept.arrays["token_ids"].astype(np.int64)
    labels = tuple(kept.facts["labels"])
    label_counts = np.zeros((token_ids.size, len(labels)), dtype=np.int64)
    label_counts[kept.arrays["types"], kept.arrays["codes"]] = kept.arrays["counts"]
    return TypeCounts(label_set, token_ids, tuple(kept.facts["tokens"]), labels, label_counts, rows.tokens, domain)


def iter_expert_counts(
    run: Run, types: TypeCounts, slot: str | int = 0
) -> Iterator[tuple[schema.Router, NDArray[np.int64]]]:
    """Yield each router with how often each type went to each expert, (types, experts).

    Args:
        run: the run that `types` was counted from.
        types: decides which rows are counted.
        slot: the rank of the choice, 0 for the first, or "any".

    Raises:
        BadInputError: the run has no such slot, or a router of more than 16,384 experts.
    """
    refuse_wide(run, "counts by token type")
    check_slot(run, slot)
    rows = _selection(run, types.label_set, types.rows, types.domain)
    shards = rows.filter.shards(run)
    which = hashlib.blake2b(types.token_ids.astype("<i8").tobytes(), digest_size=16).hexdigest()
    parts = remembered_parts(
        cache_file(run, f"type-experts-{types.label_set.name}-{slot}-{rows.name}"),
        source(run, shards, ("type experts", slot, which, *rows.what())),
        len(run.routers),
        partial(_count_experts, run, rows, shards, types.token_ids, slot),
    )
    for index, part in parts:
        router = run.routers[index]
        total = np.zeros(len(types.token_ids) * router.n_experts, dtype=np.int64)
        total[part["places"]] = part["counts"]
        yield router, total.reshape(len(types.token_ids), router.n_experts)


def _selection(run: Run, label_set: schema.LabelSet, tokens: str, domain: str | None) -> Selection:
    return Selection(label_set, tokens, untagged=False, filter=find_filter(run, domain=domain))


def _count_types(run: Run, rows: Selection, shards: list[int]) -> Kept:
    """Count labels by type, one shard at a time."""
    counted = _Codes()
    places: dict[str, int] = {}
    pieces: dict[int, str] = {}
    for shard in run.iter_shards():
        if shard.number not in shards:
            continue
        here = rows.rows(shard, ["token_id"])
        kept = np.flatnonzero(here.counted)
        ids = here.columns["token_id"][kept].astype(np.int64)
        labels, place_of_label = here.label_places()
        of_labels = np.array([places.setdefault(label, len(places)) for label in labels], dtype=np.int64)
        of_rows = place_of_label[here.labels.places[kept]]
        counted.add(ids << _LABEL_BITS | of_labels[of_rows] if ids.size else ids)
        # A type has one piece; where it had several, the first of the run names it.
        new, firsts = np.unique(ids, return_index=True)
        unknown = [place for number, place in zip(new.tolist(), firsts.tolist(), strict=True) if number not in pieces]
        if unknown:
            found = shard.tokens(["token"])["token"][kept[unknown]]
            pieces |= dict(zip(ids[unknown].tolist(), found, strict=True))
    codes, counts = counted.total()
    token_ids, types = np.unique(codes >> _LABEL_BITS, return_inverse=True)
    labels = sorted(places)
    columns = np.zeros(len(places), dtype=np.int64)
    columns[[places[label] for label in labels]] = np.arange(len(places))
    return Kept(
        {"labels": labels, "tokens": [pieces[number] for number in token_ids.tolist()]},
        {
            "token_ids": token_ids,
            "types": narrow(types),
            "codes": narrow(columns[codes & (2**_LABEL_BITS - 1)]),
            "counts": narrow(counts),
        },
    )


class _Codes:
    """Counts codes that come in many parts, in memory for the different ones."""

    def __init__(self) -> None:
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        self._waiting = 0

    def add(self, codes: NDArray[np.int64]) -> None:
        """Count some more."""
        self._parts.append(np.unique(codes, return_counts=True))
        self._waiting += len(self._parts[-1][0])
        # Adding up as soon as the parts outgrow their sum costs little over all, and memory for twice the sum at most.
        if self._waiting > 2 * len(self._parts[0][0]) + 2**20:
            self.total()

    def total(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the different codes, ascending, and how often each came."""
        if not self._parts:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        codes, places = np.unique(np.concatenate([codes for codes, _ in self._parts]), return_inverse=True)
        counts = np.zeros(len(codes), dtype=np.int64)
        np.add.at(counts, places, np.concatenate([counts for _, counts in self._parts]))
        self._parts = [(codes, counts)]
        self._waiting = 0
        return codes, counts


def _count_experts(
    run: Run, rows: Selection, shards: list[int], token_ids: NDArray[np.int64], slot: str | int
) -> Iterator[Part]:
    """Yield each router's counts: where they are not zero, and what they are there."""
    n_types = len(token_ids)
    for batch in in_batches(run.routers, lambda router: n_types * router.n_experts * 8, _BATCH_BYTES):
        totals = [np.zeros(n_types * router.n_experts, dtype=np.int64) for router in batch]
        for shard in run.iter_shards():
            if shard.number not in shards:
                continue
            here = rows.rows(shard, ["token_id"])
            counted = here.counted
            ids = here.columns["token_id"][counted]
            types = np.searchsorted(token_ids, ids)
            known = types < n_types
            known[known] = token_ids[types[known]] == ids[known]
            types = types[known]
            places = np.flatnonzero(counted)[known]
            for (router, slots), total in zip(iter_experts(shard, batch, slot, places), totals, strict=True):
                for held in slots:
                    codes = types * router.n_experts + held.experts
                    if held.missing is not None:
                        codes = codes[~held.missing]
                    add_codes(total, codes)
        for total in totals:
            found = np.flatnonzero(total)
            yield {"places": narrow(found), "counts": narrow(total[found])}
