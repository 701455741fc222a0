"""Traces are killed at random moments, and the disk fills up; nothing is lost but the open shard."""

from __future__ import annotations

import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from traced_models import files_of

from moe_probe.errors import RunError
from moe_probe.store import open_run

FEW, MANY = 3, 20
PATIENCE_SECONDS = 120


class Tracer:
    """The process that traces in children of its own."""

    def __init__(self, folder: Path) -> None:
        here = Path(__file__).parent
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": f"{here.parent}:{here}",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(here / "killed_traces.py"), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        while self.answer() != "ready":
            pass  # the model's loader may print

    def answer(self, seconds: float = PATIENCE_SECONDS) -> str:
        """Return the next line, "" if there is none in so many seconds."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline().strip() if ready else ""

    def start(self, run: Path, limit: str = "") -> int:
        """Start a trace and return the number of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{run} {limit}\n")
        self._process.stdin.flush()
        return int(self.answer().split()[1])

    def finish(self, run: Path) -> None:
        """Trace to the end."""
        self.start(run)
        assert self.answer() == "ended 0"

    def kill(self, run: Path, seconds: float) -> bool:
        """Trace, kill after so many seconds, and return whether the trace was still going on."""
        child = self.start(run)
        line = self.answer(seconds)
        if not line:
            with suppress(ProcessLookupError):  # it may have ended just now
                os.kill(child, signal.SIGKILL)
            line = self.answer()
        assert line in ("ended 0", "ended -9")
        return line == "ended -9"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="module")
def tracer(tmp_path_factory) -> Iterator[Tracer]:
    opened = Tracer(tmp_path_factory.mktemp("model"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def undisturbed(tracer, tmp_path_factory) -> tuple[dict[str, str], float]:
    """The files of a run that nobody disturbed, and how long it took."""
    folder = tmp_path_factory.mktemp("undisturbed")
    tracer.finish(folder / "warm")
    began = time.monotonic()
    tracer.finish(folder / "run")
    return files_of(folder / "run"), time.monotonic() - began


def check_what_is_there(run: Path) -> int:
    """Return how many tokens a killed run shows; what it shows must be whole."""
    try:
        opened = open_run(run)
    except RunError as error:
        if not re.search(r"no such run|interrupted before its first|no run, for it has no", str(error)):
            raise
        return 0
    assert opened.tokens().height == opened.n_tokens == opened.experts(layer=0).shape[0]
    assert opened.tokens(["document", "position"]).is_duplicated().sum() == 0
    return opened.n_tokens


def kill_and_resume(tracer: Tracer, undisturbed: tuple[dict[str, str], float], folder: Path, kills: int) -> list[int]:
    """Kill that many traces, each at a random moment, some twice; return what each run showed before it went on."""
    expected, seconds = undisturbed
    draw = random.Random(kills)
    shown: list[int] = []
    for attempt in range(10 * kills):
        run = folder / f"run{attempt}"
        moment = seconds * (len(shown) + draw.random()) / kills  # early, late and in between
        if tracer.kill(run, moment):
            shown.append(check_what_is_there(run))
            if draw.random() < 0.5:
                tracer.kill(run, seconds * draw.random())
                assert check_what_is_there(run) >= shown[-1]
            tracer.finish(run)
            assert files_of(run) == expected
            shutil.rmtree(run)
        else:
            seconds *= 0.95  # the machine is quicker by now than when the undisturbed run was timed
        if len(shown) == kills:
            return shown
    raise AssertionError(f"{10 * kills} traces ended before they could be killed {kills} times")


def test_a_trace_killed_at_random_moments_ends_as_if_nothing_had_happened(tracer, undisturbed, tmp_path):
    kill_and_resume(tracer, undisturbed, tmp_path, FEW)


@pytest.mark.prove
def test_twenty_kills_change_no_byte(tracer, undisturbed, tmp_path):
    shown = kill_and_resume(tracer, undisturbed, tmp_path, MANY)
    assert len(set(shown)) > 3  # they hit different shards


def test_a_full_disk_is_one_line_and_keeps_whole_shards(tracer, undisturbed, tmp_path):
    run = tmp_path / "run"
    tracer.start(run, "2000")
    line = tracer.answer()
    said = re.fullmatch(
        rf"error {run}/(?:tokens|routing)/part-0000..\.parquet: cannot be written \(no space left\);"
        r" whole shards kept: (\d+); make room and go on with --resume",
        line,
    )
    assert said is not None, line
    assert tracer.answer() == "ended 1"
    assert not list(run.rglob("*.tmp"))
    opened = open_run(run)
    assert (opened.complete, opened.shards) == (False, list(range(int(said[1]))))
    assert check_what_is_there(run) == opened.n_tokens
    tracer.finish(run)
    assert files_of(run) == undisturbed[0]
