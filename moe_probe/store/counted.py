"""Writes a run that holds counts only: no tokens, no routing, one file of counts that grows with the labels alone.

A shard's counts and its number reach the disk in one file, by one rename: killed at any moment, the run loses the open
shard at most, and counts nothing twice. It does not know how a token is counted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from moe_probe.errors import RunError
from moe_probe.schema import PLAN_FILE, ROUTING_FOLDER, SCHEMA_VERSION, TOKENS_FOLDER, LabelSet, Router
from moe_probe.store.files import writing
from moe_probe.store.parquet import ShardFacts, all_warnings
from moe_probe.store.totals import (
    COUNTED_FOLDER,
    NOTHING,
    TOTALS_FILE,
    LabelTotals,
    Totals,
    read_totals,
    write_totals,
)
from moe_probe.store.writer import RunWriter


class CountsWriter:
    """A run's folder held open for writing counts, by one process at a time; used as `RunWriter` is."""

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        """Open a new run, or go on with one. Raises as `RunWriter`."""
        self._folder = RunWriter(path, resume=resume)
        self._totals: Totals = NOTHING

    def __enter__(self) -> CountsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write to the run; leave no temporary file behind."""
        (self.path / f"{TOTALS_FILE}.tmp").unlink(missing_ok=True)
        if not self._totals.shards:
            with suppress(OSError):
                (self.path / COUNTED_FOLDER).rmdir()
        self._folder.close()
        if not (self.path / PLAN_FILE).exists():  # nothing came of it: the next attempt may differ
            shutil.rmtree(self.path / COUNTED_FOLDER, ignore_errors=True)

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._folder.path

    def publish_plan(self, plan: Mapping[str, object], routers: Sequence[Router]) -> None:
        """Write plan.json, or check that the one that is there says the same; find the shards that are counted.

        Raises:
            RunError: if the run was made from something else, or its counts are damaged.
        """
        self._folder.publish_plan(plan)
        for folder in (TOKENS_FOLDER, ROUTING_FOLDER):  # nothing will be in them
            with suppress(OSError):
                (self.path / folder).rmdir()
        with writing(self.path):
            (self.path / COUNTED_FOLDER).mkdir(exist_ok=True)
        self._totals = read_totals(self.path, routers)
        planned: Any = plan["shards"]
        for number, (rows, _) in self._totals.shards.items():
            if number >= len(planned) or planned[number][2] != rows:
                raise RunError(
                    f"{self.path / TOTALS_FILE}: counts {rows} rows of shard {number}, which the plan has not; delete"
                    f" the folder {COUNTED_FOLDER} and use --resume"
                )

    def is_complete(self) -> bool:
        """Return whether the run was finished before, so that nothing is left to do."""
        return self._folder.is_complete()

    def has_shard(self, number: int) -> bool:
        """Return whether a shard is counted."""
        return number in self._totals.shards

    @property
    def shards(self) -> list[int]:
        """The numbers of the shards that are counted, in order."""
        return sorted(self._totals.shards)

    @property
    def scores(self) -> tuple[bool, ...] | None:
        """Which routers' entropy and margin are known: none, and None where there is no shard."""
        return self._totals.shards[self.shards[0]][1].scores if self._totals.shards else None

    def write_documents(self, tables: Iterable[pa.Table]) -> None:
        """Write documents.parquet, as `RunWriter.write_documents`."""
        self._folder.write_documents(tables)

    def add_shard(self, number: int, rows: int, facts: ShardFacts, sets: Mapping[str, LabelTotals]) -> None:
        """Add a shard's counts to those on the disk.

        Args:
            number: the shard's place in the plan.
            rows: how many token rows it has, counted or not.
            facts: what is known about the shard.
            sets: its counts, a label set each.

        Raises:
            MoeProbeError: if the disk is full.
            ValueError: if the shard is counted already.
        """
        totals = self._totals.plus(number, rows, facts, sets)
        write_totals(self.path, totals)
        self._totals = totals

    def publish(
        self, about: Mapping[str, object], routers: Sequence[Router], labels: Sequence[LabelSet], *, complete: bool
    ) -> None:
        """Write run.json, which says that the run holds counts only. Arguments as `RunWriter.publish`."""
        shards = [(number, *self._totals.shards[number]) for number in self.shards]
        self._folder.replace_manifest(
            {
                "schema_version": SCHEMA_VERSION,
                "complete": complete,
                "counts_only": True,
                **about,
                "routers": [{**router.as_dict(), "scores": False} for router in routers],
                "labels": [label.as_dict() for label in labels],
                "self_check": shards[0][2].self_check if shards else "not run: no shard is whole",
                "warnings": all_warnings([facts for _, _, facts in shards]),
                "shards": [{"number": number, "rows": rows} for number, rows, _ in shards],
            }
        )
