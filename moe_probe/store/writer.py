"""Writes a run so that it can be killed at any moment and lose one shard at most.

Everything is written as `*.tmp`, flushed to the disk and renamed; a shard exists when its routing file does. What the
manifest says about routing (self-check, warnings) lies in the routing files too, so that a resumed run ends as an
undisturbed one. It does not know models, texts or how rows are made.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.errors import RunError
from moe_probe.schema import (
    DOCUMENTS_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    PROBABILITIES_FOLDER,
    ROUTING_FOLDER,
    SCHEMA_VERSION,
    TOKENS_FOLDER,
    LabelSet,
    Router,
    probabilities_file,
    routing_file,
    tokens_file,
)
from moe_probe.store.files import flush, new_file, read_json, writing
from moe_probe.store.parquet import (
    ShardFacts,
    all_warnings,
    read_facts,
    write_probabilities,
    write_routing,
    write_tokens,
)
from moe_probe.store.plan import check_same_plan

__all__ = ["LOCK_FILE", "SPOOL_FILE", "RunWriter", "ShardFacts", "write_routing", "write_tokens"]

LOCK_FILE = "writer.lock"
SPOOL_FILE = "spool.arrow.tmp"
"""Where a tracer may keep its inputs while it writes the run."""

_FOLDERS = (TOKENS_FOLDER, PROBABILITIES_FOLDER, ROUTING_FOLDER)
_BEFORE_THE_PLAN = {LOCK_FILE, SPOOL_FILE, *_FOLDERS, f"{PLAN_FILE}.tmp"}


class RunWriter:
    """A run's folder held open for writing, by one process at a time.

    Example:
        >>> import tempfile
        >>> with RunWriter(Path(tempfile.mkdtemp()) / "x") as writer:
        ...     writer.has_shard(0)
        False
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        """Open a new run, or go on with one.

        Args:
            path: the run's folder; made if it does not exist.
            resume: go on with a run that is there.

        Raises:
            RunError: if another process writes to the run, if a run is there and `resume` is not set, or if the folder
                holds something else.
        """
        self.path = Path(path)
        self._facts: dict[int, tuple[int, ShardFacts]] = {}
        self._staged: dict[int, pa.Table] = {}
        self._staged_shards: dict[int, tuple[int, ShardFacts]] = {}  # by `stage_routing`, until they are committed
        self._is_new = False
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"{self.path}: a run is a folder, and this is a file; choose another name")
        self._made = not self.path.exists()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)
        try:
            self._check_folder(resume)
            self._sweep()
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes write to the run; leave no temporary file behind."""
        if self._lock < 0:
            return
        self._sweep()
        if self._is_new and not self._facts and not (self.path / MANIFEST_FILE).exists():
            # Nothing is whole: the next attempt may differ, so do not hold it to this plan.
            for name in (PLAN_FILE, DOCUMENTS_FILE):
                (self.path / name).unlink(missing_ok=True)
            for folder in _FOLDERS:
                shutil.rmtree(self.path / folder, ignore_errors=True)
        elif not (self.path / PLAN_FILE).exists():
            for folder in _FOLDERS:
                with suppress(OSError):  # not there, or there is something in it that is not ours
                    (self.path / folder).rmdir()
        self._unlock()

    def _unlock(self) -> None:
        with suppress(FileNotFoundError):
            (self.path / LOCK_FILE).unlink()
        if self._made and not any(self.path.iterdir()):  # nothing came of it
            self.path.rmdir()
        os.close(self._lock)
        self._lock = -1

    def _sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for name in (PLAN_FILE, MANIFEST_FILE, DOCUMENTS_FILE):
            (self.path / f"{name}.tmp").unlink(missing_ok=True)
        (self.path / SPOOL_FILE).unlink(missing_ok=True)
        for folder in _FOLDERS:
            for left_over in (self.path / folder).glob("part-*.parquet.tmp"):
                left_over.unlink()

    def _check_folder(self, resume: bool) -> None:
        known = {PLAN_FILE, MANIFEST_FILE}
        names = {entry.name for entry in self.path.iterdir()}
        if names & known:
            if not resume:
                raise RunError(f"{self.path}: a run is there already; use --resume to go on, or choose another folder")
        elif strangers := sorted(names - _BEFORE_THE_PLAN):
            raise RunError(
                f"{self.path}: the folder is no run and holds {strangers[0]!r}; choose a new or empty folder"
            )

    def publish_plan(self, plan: Mapping[str, object]) -> None:
        """Write plan.json, or check that the one that is there says the same; find the shards that exist.

        Raises:
            RunError: if the run was made from something else, or a shard that is there is damaged.
        """
        path = self.path / PLAN_FILE
        self._make_folders()
        if path.exists():
            check_same_plan(self.path, read_json(path), plan)
        else:
            self._write_json(PLAN_FILE, plan)
            self._is_new = True
        shards: Any = plan["shards"]
        for number, (_, _, rows) in enumerate(shards):
            if (self.path / routing_file(number)).exists():
                self._facts[number] = (rows, read_facts(self.path, number, rows))

    def _make_folders(self) -> None:
        with writing(self.path):
            for folder in (TOKENS_FOLDER, ROUTING_FOLDER):
                (self.path / folder).mkdir(exist_ok=True)

    def is_complete(self) -> bool:
        """Return whether the run was finished before, so that nothing is left to do."""
        path = self.path / MANIFEST_FILE
        return path.exists() and read_json(path).get("complete") is True

    def has_shard(self, number: int) -> bool:
        """Return whether a shard is written whole."""
        return number in self._facts

    @property
    def shards(self) -> list[int]:
        """The numbers of the shards that are written whole, in order."""
        return sorted(self._facts)

    @property
    def scores(self) -> tuple[bool, ...] | None:
        """Which routers' entropy and margin are known, by the first whole shard; None where there is no shard."""
        return self._facts[min(self._facts)][1].scores if self._facts else None

    def write_documents(self, tables: Iterable[pa.Table]) -> None:
        """Write documents.parquet from one or more tables of the same columns, unless it is there."""
        if (self.path / DOCUMENTS_FILE).exists():  # of the same corpus, or the plan would differ
            return
        with self._new_file(DOCUMENTS_FILE) as temporary:
            writer: pq.ParquetWriter | None = None
            for table in tables:
                if writer is None:
                    writer = pq.ParquetWriter(temporary, table.schema, compression="zstd", store_schema=False)
                writer.write_table(table)
            if writer is None:
                raise ValueError("write_documents needs at least one table, if an empty one")
            writer.close()

    def stage_tokens(self, number: int, tokens: pa.Table) -> None:
        """Put the tokens of a shard on the disk before the rest of it is known: as a temporary file, as yet.

        `write_shard` of the same table then has only to rename it. One thread may stage while another writes.

        Raises:
            MoeProbeError: if the disk is full.
        """
        path = self.path / tokens_file(number)
        with writing(path, self.shards):
            temporary = path.with_name(path.name + ".tmp")
            write_tokens(temporary, tokens)
            flush(temporary)
        self._staged[number] = tokens

    def write_shard(
        self, number: int, tokens: pa.Table, routing: pa.Table, facts: ShardFacts, probabilities: pa.Table | None = None
    ) -> None:
        """Write a shard: tokens first, then probabilities if there are, then routing, after which it exists.

        Args:
            number: the shard's place in the plan.
            tokens: a row a token; see `schema.TOKEN_COLUMNS`.
            routing: a row a token, in the same order; see `schema.routing_columns`.
            facts: what is known about the shard beside its rows.
            probabilities: a row a token, in the same order, where they were asked for.

        Raises:
            MoeProbeError: if the disk is full.
        """
        if (probabilities is not None) != any(facts.probabilities):
            raise ValueError(f"shard {number}: its facts and its tables differ in whether there are probabilities")
        if probabilities is not None and probabilities.num_rows != tokens.num_rows:
            raise ValueError(f"shard {number}: {tokens.num_rows} token rows, {probabilities.num_rows} of probabilities")
        if tokens.num_rows != routing.num_rows:
            raise ValueError(f"shard {number}: {tokens.num_rows} token rows, {routing.num_rows} routing rows")
        staged = self._staged.pop(number, None)
        with self._new_file(tokens_file(number)) as temporary:
            if staged is not tokens:
                write_tokens(temporary, tokens)
        if probabilities is not None:
            with writing(self.path):
                (self.path / PROBABILITIES_FOLDER).mkdir(exist_ok=True)
            with self._new_file(probabilities_file(number)) as temporary:
                write_probabilities(temporary, probabilities)
        with self._new_file(routing_file(number)) as temporary:
            write_routing(temporary, routing, facts)
        self._facts[number] = (tokens.num_rows, facts)

    def stage_routing(self, number: int, routing: pa.Table, facts: ShardFacts) -> None:
        """Put the routing of a shard into a temporary file before there is a plan, without waiting for the disk.

        `stage_rest` makes the shard whole, and `commit_staged` lets all such shards exist. One thread may stage routing
        while another stages the rest of the shard before.

        Raises:
            MoeProbeError: if the disk is full.
        """
        self._make_folders()
        path = self.path / routing_file(number)
        with writing(path):
            write_routing(path.with_name(path.name + ".tmp"), routing, facts)
        self._staged_shards[number] = routing.num_rows, facts

    def stage_rest(self, number: int, tokens: pa.Table) -> None:
        """Put the tokens of a shard whose routing is staged beside it, and flush both to the disk.

        Raises:
            MoeProbeError: if the disk is full.
        """
        if tokens.num_rows != self._staged_shards[number][0]:
            raise ValueError(
                f"shard {number}: {tokens.num_rows} token rows, {self._staged_shards[number][0]} routing rows"
            )
        path = self.path / tokens_file(number)
        with writing(path):
            temporary = path.with_name(path.name + ".tmp")
            write_tokens(temporary, tokens)
            flush(temporary)
            flush(self.path / f"{routing_file(number)}.tmp")

    def commit_staged(self) -> None:
        """Let the shards exist that were staged, once their plan is published: first all tokens, then all routing."""
        with writing(self.path):
            for name, folder in ((tokens_file, TOKENS_FOLDER), (routing_file, ROUTING_FOLDER)):
                for number in self._staged_shards:
                    (self.path / f"{name(number)}.tmp").rename(self.path / name(number))
                flush(self.path / folder)
        self._facts |= self._staged_shards
        self._staged_shards = {}

    def drop_staged(self) -> None:
        """Remove what was staged, to begin again."""
        self._staged_shards = {}
        self._sweep()

    def replace_tokens(self, shards: Iterable[tuple[int, pa.Table]]) -> None:
        """Put other tokens files in the place of those that are there: first all are written, then all are renamed.

        Args:
            shards: the number and the tokens of each shard.
        """
        names: list[str] = []
        for number, tokens in shards:
            names.append(tokens_file(number))
            with writing(self.path / names[-1]):
                temporary = self.path / f"{names[-1]}.tmp"
                write_tokens(temporary, tokens)
                flush(temporary)
        with writing(self.path):
            for name in names:
                (self.path / f"{name}.tmp").rename(self.path / name)
            flush(self.path / TOKENS_FOLDER)

    def replace_manifest(self, manifest: Mapping[str, object]) -> None:
        """Write run.json anew."""
        self._write_json(MANIFEST_FILE, manifest)

    def publish(
        self,
        about: Mapping[str, object],
        routers: Sequence[Router],
        labels: Sequence[LabelSet],
        *,
        complete: bool,
        weights: bool = True,
    ) -> None:
        """Write run.json: the shards that are whole become the run.

        Args:
            about: further facts of the manifest: model, precision, corpus and so on.
            routers: where the model chooses experts.
            labels: the label columns of the tokens.
            complete: whether these are all shards of the plan.
            weights: whether the routers' weights are known.
        """
        in_order = [self._facts[number] for number in self.shards]
        scores = self.scores or (False,) * len(routers)
        # What is not said is true: a run that was traced has weights, and says so by saying nothing.
        unweighted = {} if weights else {"weights": False}
        shared = in_order[0][1].probabilities if in_order else ()
        of_probabilities: Sequence[dict[str, bool]] = [{"probabilities": known} for known in shared]
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "complete": complete,
            **about,
            "routers": [
                {**router.as_dict(), "scores": scored, **unweighted, **more}
                for router, scored, more in zip(routers, scores, of_probabilities or [{}] * len(routers), strict=True)
            ],
            "labels": [label.as_dict() for label in labels],
            "self_check": in_order[0][1].self_check if in_order else "not run: no shard is whole",
            "warnings": all_warnings([facts for _, facts in in_order]),
            "shards": [{"number": number, "rows": self._facts[number][0]} for number in self.shards],
        }
        self._write_json(MANIFEST_FILE, manifest)

    def _write_json(self, name: str, value: Mapping[str, object]) -> None:
        with self._new_file(name) as temporary:
            temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @contextmanager
    def _new_file(self, name: str) -> Iterator[Path]:
        with new_file(self.path / name, self.shards) as temporary:
            yield temporary


def _lock(path: Path) -> int:
    """Lock a run's folder for this process, or raise. The lock goes with the process, however it ends."""
    while True:
        with writing(path):
            descriptor = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise RunError(
                f"{path}: another process is writing to this run; wait for it or choose another folder"
            ) from error
        # The process before us may have removed the file between our opening and our locking it.
        with suppress(FileNotFoundError):
            if os.stat(path / LOCK_FILE).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)
