"""Keeps what a model wrote with the run, batch by batch, so that a trace that goes on does not write it anew.

A line a batch, flushed to the disk; a line that was cut short by a kill is written again. It does not know models.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_probe.errors import RunError
from moe_probe.schema import PLAN_FILE, TOKENS_FOLDER
from moe_probe.store.files import flush, writing
from moe_probe.store.plan import check_same_plan, fingerprint

GENERATED_FILE = f"{TOKENS_FOLDER}/generated.jsonl"


class Kept:
    """The ids that a model wrote, in batches.

    Attributes:
        batches: those that are on the disk: for each prompt of a batch the ids after it.
    """

    def __init__(self, run: Path, made_from: Mapping[str, object], *, resume: bool) -> None:
        """Read what is there.

        Args:
            run: the run's folder.
            made_from: what the ids follow from: prompts, model, settings; values that JSON can hold.
            resume: whether the caller means to go on with what is there.

        Raises:
            RunError: if what is there was made from something else, or is there and `resume` is not set.
        """
        self._path = run / GENERATED_FILE
        self._head = {"fingerprint": fingerprint(made_from), "made_from": dict(made_from), "shards": None}
        self.batches: list[list[list[int]]] = []
        if self._path.exists():
            if not resume:
                raise RunError(
                    f"{run}: a trace that was stopped left generated text there; use --resume to go on, or choose"
                    " another folder"
                )
            self._read(run)
        elif (run / PLAN_FILE).exists():
            raise RunError(
                f"{run}: the text of the run that is there was not generated, or its {GENERATED_FILE} is gone; choose"
                " another folder"
            )

    def add(self, batch: Sequence[Sequence[int]]) -> None:
        """Put one more batch on the disk.

        Raises:
            MoeProbeError: if the disk is full.
        """
        lines = [] if self._path.exists() else [self._head]
        with writing(self._path):
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                for line in (*lines, {"generated": batch}):
                    file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            if lines:
                flush(self._path.parent)
        self.batches.append([list(ids) for ids in batch])

    def _read(self, run: Path) -> None:
        """Read the lines that are whole, and cut off what is not."""
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            lines: list[Any] = [json.loads(line) for line in whole.splitlines()]
            head = lines[0] if lines else self._head
            self.batches = [[[int(token) for token in ids] for ids in line["generated"]] for line in lines[1:]]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self._path}: is damaged ({error}); choose another folder") from error
        check_same_plan(run, head, self._head)
        with writing(self._path):
            if not whole:
                self._path.unlink()
            elif len(whole) < len(content):
                os.truncate(self._path, len(whole))
