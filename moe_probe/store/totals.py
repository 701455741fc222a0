"""Counts in the place of tokens: the one file of a run that holds counts only, and what can be told of it.

The file holds, for each label set, how many assignments of each expert fell on each label, by cluster of documents; and
which shards these are of. It is written whole each time, so that a shard is in all of it or in nothing. It does not
know how a token is counted, nor what a count means.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_probe.errors import RunError
from moe_probe.schema import Router
from moe_probe.store.clusters import N_CLUSTERS
from moe_probe.store.files import new_file
from moe_probe.store.parquet import ShardFacts

COUNTED_FOLDER = "counted"
TOTALS_FILE = f"{COUNTED_FOLDER}/totals.npz"

ANY_SLOT = "any"
WORD_INITIAL = 1
"""The place, on axes of two, of the tokens that start a word; 0 is that of the others."""

_VERSION = 1
_HEADER = "header.json"
_DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
_MOST_DOCUMENTS = 2**31
_NEVER = (1980, 1, 1, 0, 0, 0)  # the same counts are the same bytes, whenever they were written

Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Selected:
    """Of a label set, the counts of some tokens and slots, as `counts.LabelCounts` holds them.

    `clustered[i]` is (64, experts, labels) int64 for router i; `labels` are those that a counted token has, sorted; `n`
    is how many tokens were counted, `documents` the numbers of those that have one which is not `untagged`.
    """

    labels: tuple[str, ...]
    clustered: tuple[npt.NDArray[np.int64], ...]
    n: int
    documents: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class LabelTotals:
    """What was counted of one label set, of a shard or of a run. Axes of two are word-initial or not.

    Attributes:
        labels: those that a counted token has, sorted.
        tables: for each router (planes, 2, 64, experts, labels): slot s is counted in plane min(s, planes − 1).
        rows: (2, labels) tokens counted.
        documents: of both kinds of tokens, the numbers of the documents with one that is not `untagged`, ascending.
    """

    labels: tuple[str, ...]
    tables: tuple[Integers, ...]
    rows: Integers
    documents: tuple[Integers, Integers]

    def __add__(self, other: LabelTotals) -> LabelTotals:
        """Return the sum; labels that one of both lacks have no count there."""
        labels = tuple(sorted({*self.labels, *other.labels}))
        here, there = self._spread(labels), other._spread(labels)
        return LabelTotals(
            labels,
            tuple(one + more for one, more in zip(here.tables, there.tables, strict=True)),
            here.rows + there.rows,
            (
                np.union1d(self.documents[0], other.documents[0]),
                np.union1d(self.documents[1], other.documents[1]),
            ),
        )

    def _spread(self, labels: tuple[str, ...]) -> LabelTotals:
        """Return the same with room for further labels, in 64 bits."""
        places = [labels.index(label) for label in self.labels]
        arrays = []
        for array in (*self.tables, self.rows):
            wide = np.zeros((*array.shape[:-1], len(labels)), dtype=np.int64)
            wide[..., places] = array
            arrays.append(wide)
        return LabelTotals(labels, tuple(arrays[:-1]), arrays[-1], self.documents)

    def slots(self, routers: Sequence[Router]) -> list[str | int]:
        """Return which slots can be told: "any", and those that no other slot of any router was counted with."""
        most = max((router.n_slots for router in routers), default=0)
        apart = [
            slot
            for slot in range(most)
            if all(
                slot >= router.n_slots or slot < len(table) - 1 or len(table) == router.n_slots
                for router, table in zip(routers, self.tables, strict=True)
            )
        ]
        return [ANY_SLOT, *apart]

    def select(self, slot: str | int, word_initial: bool) -> Selected:
        """Return the counts of a slot that `slots` names, of all tokens or of word-initial ones alone."""
        kinds = slice(WORD_INITIAL, None) if word_initial else slice(None)
        rows = self.rows[kinds].sum(axis=0)
        kept = np.flatnonzero(rows)
        clustered = []
        for table in self.tables:
            planes = slice(None) if slot == ANY_SLOT else slice(int(slot), int(slot) + 1)
            clustered.append(np.ascontiguousarray(table[planes, kinds].sum(axis=(0, 1), dtype=np.int64)[..., kept]))
        documents = self.documents[WORD_INITIAL] if word_initial else np.union1d(*self.documents)
        return Selected(
            tuple(self.labels[index] for index in kept), tuple(clustered), int(rows.sum()), documents.astype(np.int64)
        )


@dataclass(frozen=True, eq=False)
class Totals:
    """All that the file holds: which shards, with their rows and facts, and the counts of each label set."""

    shards: Mapping[int, tuple[int, ShardFacts]]
    sets: Mapping[str, LabelTotals]

    def plus(self, number: int, rows: int, facts: ShardFacts, sets: Mapping[str, LabelTotals]) -> Totals:
        """Return the totals with one more shard.

        Raises:
            ValueError: if the shard is in them already, or was not counted by the same labels.
        """
        if number in self.shards:
            raise ValueError(f"shard {number} is counted already")
        if self.sets and self.sets.keys() != sets.keys():
            raise ValueError(f"shard {number}: counted by {', '.join(sets)}, the others by {', '.join(self.sets)}")
        summed = {name: self.sets[name] + one if self.sets else one for name, one in sets.items()}
        return Totals({**self.shards, number: (rows, facts)}, summed)


NOTHING = Totals({}, {})


def no_totals(routers: Sequence[Router]) -> LabelTotals:
    """Return the counts of no token."""
    tables = tuple(np.zeros((router.n_slots, 2, N_CLUSTERS, router.n_experts, 0), dtype=np.int64) for router in routers)
    none = np.zeros(0, dtype=np.int64)
    return LabelTotals((), tables, np.zeros((2, 0), dtype=np.int64), (none, none))


def write_totals(run: Path, totals: Totals) -> None:
    """Put totals in the place of those that are there, all at once; the same totals are the same bytes.

    Raises:
        MoeProbeError: if the disk is full.
    """
    shards = [
        {"number": number, "rows": rows, **asdict(facts)} for number, (rows, facts) in sorted(totals.shards.items())
    ]
    sets = {name: list(one.labels) for name, one in sorted(totals.sets.items())}
    header = {"version": _VERSION, "shards": shards, "sets": sets}
    kept = list(totals.shards)[:-1]
    with (
        new_file(run / TOTALS_FILE, kept) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
    ):
        file.writestr(_member(_HEADER), json.dumps(header, ensure_ascii=False))
        for name in sets:
            for member, array in _arrays(totals.sets[name]).items():
                with file.open(_member(f"{name}/{member}.npy"), "w", force_zip64=True) as stream:
                    np.save(stream, array.astype(np.min_scalar_type(int(array.max(initial=0)))), allow_pickle=False)


def _member(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name, _NEVER)
    member.compress_type = zipfile.ZIP_DEFLATED
    return member


def _arrays(totals: LabelTotals) -> dict[str, Integers]:
    arrays = {f"router_{index}": table for index, table in enumerate(totals.tables)}
    others, initial = totals.documents
    return {**arrays, "rows": totals.rows, "documents_0": others, "documents_1": initial}


def read_shards(run: Path) -> dict[int, tuple[int, ShardFacts]]:
    """Return the shards that were counted, with their rows and what is known of each; none where nothing was yet.

    Raises:
        RunError: if the file is damaged.
    """
    if not (run / TOTALS_FILE).exists():
        return {}
    try:
        with np.load(run / TOTALS_FILE, allow_pickle=False) as file:
            return {
                _whole(one["number"], 0): (
                    _whole(one["rows"], 1),
                    ShardFacts(tuple(one["scores"]), str(one["self_check"]), tuple(one["warnings"])),
                )
                for one in _header(file)["shards"]
            }
    except _DAMAGE as error:
        raise _damaged(run, error) from error


def read_set(run: Path, name: str, routers: Sequence[Router], shards: Collection[int]) -> LabelTotals:
    """Return the counts of one label set.

    Args:
        run: the run's folder.
        name: of the label set.
        routers: the run's.
        shards: those that the counts must be of.

    Raises:
        RunError: if the file is damaged or missing, is of other shards or routers, or has no such label set.
    """
    try:
        with np.load(run / TOTALS_FILE, allow_pickle=False) as file:
            header = _header(file)
            counted = {int(one["number"]) for one in header["shards"]}
            if counted != set(shards):
                raise RunError(
                    f"{run / TOTALS_FILE}: it counts {len(counted)} shard(s) where the run has {len(shards)}; open the"
                    " run again"
                )
            if name not in header["sets"]:
                raise RunError(
                    f"{run}: label {name!r} was not counted, and the run holds counts only; it has"
                    f" {', '.join(header['sets'])}; trace again with it"
                )
            labels = tuple(str(label) for label in header["sets"][name])
            tables = [
                _read_array(
                    file,
                    f"{name}/router_{router.index}",
                    (2, N_CLUSTERS, router.n_experts, len(labels)),
                    longest=router.n_slots,
                )
                for router in routers
            ]
            rows = _read_array(file, f"{name}/rows", (len(labels),), longest=2)
            others, initial = (
                _read_array(file, f"{name}/documents_{kind}", (), longest=_MOST_DOCUMENTS) for kind in (0, WORD_INITIAL)
            )
            return LabelTotals(labels, tuple(tables), rows, (others, initial))
    except RunError:
        raise
    except _DAMAGE as error:
        raise _damaged(run, error) from error


def _read_array(file: Any, name: str, shape: tuple[int, ...], *, longest: int) -> Integers:
    """Return an array of a shape, and before it an axis of any length up to `longest`.

    Its own header is looked at first: a file may come from anywhere, and unpack to anything.
    """
    with file.zip.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
        if version != (1, 0):
            raise ValueError(f"{name} is an array of version {version}")
        found, _, dtype = np.lib.format.read_array_header_1_0(stream)  # type: ignore[no-untyped-call]
    if found[1:] != shape or not found or found[0] > longest or dtype.kind != "u":
        raise ValueError(f"{name} has counts of shape {found} and type {dtype}")
    array: Integers = file[name]
    return array


def read_totals(run: Path, routers: Sequence[Router]) -> Totals:
    """Return all that was counted, to go on with; `NOTHING` where there is none.

    Raises:
        RunError: as `read_set`.
    """
    shards = read_shards(run)
    if not shards:
        return NOTHING
    with np.load(run / TOTALS_FILE, allow_pickle=False) as file:
        names = list(_header(file)["sets"])
    return Totals(shards, {name: read_set(run, name, routers, shards) for name in names})


def _whole(value: object, least: int) -> int:
    if type(value) is not int or value < least:
        raise ValueError(f"{value!r} where a whole number of {least} or more must be")
    return value


def _header(file: Any) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(file[_HEADER])
    if header["version"] != _VERSION:
        raise ValueError(f"version {header['version']!r} of counts, this moe_probe reads {_VERSION}")
    return header


def _damaged(run: Path, error: Exception) -> RunError:
    return RunError(
        f"{run / TOTALS_FILE}: missing or damaged ({error}); delete the folder {COUNTED_FOLDER} and trace again with"
        " --resume"
    )
