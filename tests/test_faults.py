"""Faults while a trace goes on: only the open shard is lost, memory stays bounded, one line says what to do."""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import traced_models
from rich.console import Console
from traced_models import files_of

from moe_probe.corpus import Document
from moe_probe.errors import MoeProbeError, RunError
from moe_probe.importers import import_run
from moe_probe.info import describe
from moe_probe.models import LanguageModel
from moe_probe.schema import routing_file, tokens_file
from moe_probe.store import open_run
from moe_probe.store.shards import RoutingBlock
from moe_probe.store.writer import RunWriter
from moe_probe.tracing import Progress, shard, trace
from moe_probe.tracing.rows import RowMaker
from moe_probe.tracing.shard import ShardTracer

OPTIONS = {"labels": ("shape",), "context": 32, "shard_rows": 100, "batch_tokens": 64}
LONG_ENOUGH_SECONDS = 0.2
"""For the model to run away from a writer that does not hold it back: it makes a shard in a fraction of that."""


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(f"d{number}", traced_models.text(50, seed=number)) for number in range(6)]


@pytest.fixture(scope="module")
def undisturbed(lm, documents, tmp_path_factory) -> Path:
    run = trace(lm, documents, tmp_path_factory.mktemp("runs") / "run", **OPTIONS)
    assert len(run.shards) > 5
    return run.path


@pytest.mark.parametrize(
    ("phase", "after", "message"),
    [
        ("reading", 0, r"spool.arrow.tmp: cannot be written \(no space left\); make room or choose another folder"),
        ("tracing", 0, r"part-000000.parquet: cannot be written \(no space left\); make room or choose another folder"),
        (
            "tracing",
            300,
            r"(part-00000\d.parquet|run.json): cannot be written \(no space left\); whole shards kept: [1-9]",
        ),
    ],
)
def test_a_disk_that_fills_up_is_one_line_whenever_it_happens(
    lm, documents, undisturbed, tmp_path, phase, after, message
):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(progress: Progress) -> None:
        if progress.phase == phase and progress.tokens_done >= after:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))

    try:
        with pytest.raises(MoeProbeError, match=message):
            trace(lm, documents, tmp_path / "run", on_progress=fill, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "run").exists() == (after > 0)
    assert not list(tmp_path.rglob("*.tmp"))
    trace(lm, documents, tmp_path / "run", resume=True, **OPTIONS)
    assert files_of(tmp_path / "run") == files_of(undisturbed)


ALONE = ("unshare", "--user", "--map-root-user", "--mount")
SMALL_DISK = """
mount -t tmpfs -o size=72k tmpfs "$0" && echo small && read line
mount -o remount,size=64m "$0" && echo large && read line
"""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A disk that is soon full, which another process has mounted for itself, and what makes room on it."""
    if shutil.which("unshare") is None or subprocess.run([*ALONE, "true"], capture_output=True).returncode:
        pytest.skip("a disk of this size cannot be mounted here: unshare --user --mount is missing or not permitted")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*ALONE, "sh", "-c", SMALL_DISK, str(disk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "small\n"

        def make_room() -> None:
            owner.stdin.write("\n")
            owner.stdin.flush()
            assert owner.stdout.readline() == "large\n"

        yield Path(f"/proc/{owner.pid}/root{disk}"), make_room
        owner.stdin.close()


def test_a_real_disk_that_is_too_small_loses_the_open_shard_alone(lm, documents, undisturbed, small_disk):
    disk, make_room = small_disk
    with pytest.raises(MoeProbeError, match=r"cannot be written \(no space left\); whole shards kept: [1-9]"):
        trace(lm, documents, disk / "run", **OPTIONS)
    make_room()
    trace(lm, documents, disk / "run", resume=True, **OPTIONS)
    assert files_of(disk / "run") == files_of(undisturbed)


def test_a_clock_that_jumps_spoils_nothing(lm, documents, undisturbed, tmp_path, monkeypatch):
    noon = time.time()
    days = itertools.cycle([0, 400, -400, 3, -9_000])
    monkeypatch.setattr(time, "time", lambda: noon + next(days) * 86_400)
    run = tmp_path / "run"

    def jump(progress: Progress) -> None:
        for path in run.rglob("*.parquet"):
            moment = time.time()
            os.utime(path, (moment, moment))

    trace(lm, documents, run, on_progress=jump, **OPTIONS)
    assert files_of(run) == files_of(undisturbed)
    times = open_run(run).manifest["times"]
    assert times["seconds"] >= 0
    assert times["finished"] >= times["started"]


def test_a_clock_that_jumps_back_makes_no_import_of_negative_length(tmp_path, monkeypatch):
    moments = itertools.chain([2e9], itertools.repeat(1e9))
    monkeypatch.setattr(time, "time", lambda: next(moments))
    lines = [{"document": 0, "token_idx": place, "layer": 0, "experts": [place % 4, 5]} for place in range(9)]
    (tmp_path / "trace.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    times = import_run("jsonl", tmp_path / "trace.jsonl", tmp_path / "run", n_experts=8).manifest["times"]
    assert times["seconds"] >= 0
    assert times["finished"] >= times["started"]


@pytest.mark.parametrize("name", [tokens_file(2), routing_file(2)])
def test_a_truncated_shard_is_named_and_made_anew_once_it_is_deleted(lm, documents, undisturbed, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=rf"{name}: is damaged or cut short; delete the shard's files and trace again"):
        trace(lm, documents, run, resume=True, **OPTIONS)
    for damaged in (tokens_file(2), routing_file(2)):
        (run / damaged).unlink()
    assert trace(lm, documents, run, resume=True, **OPTIONS).complete
    assert files_of(run) == files_of(undisturbed)


def test_a_slow_writer_holds_the_model_back(lm, documents, undisturbed, tmp_path, monkeypatch):
    """Two shards are in memory at most: the one that is written and the one that the model is at."""
    alive: weakref.WeakSet[RoutingBlock] = weakref.WeakSet()
    most, ran_away = [], threading.Event()
    write = RunWriter.write_shard

    class Counted(RoutingBlock):
        def __init__(self, *arguments, **options) -> None:
            super().__init__(*arguments, **options)
            alive.add(self)
            most.append(len(alive))
            if len(alive) > 2:
                ran_away.set()

    def slowly(*arguments):
        assert not ran_away.wait(LONG_ENOUGH_SECONDS)
        write(*arguments)

    monkeypatch.setattr(shard, "RoutingBlock", Counted)
    monkeypatch.setattr(RunWriter, "write_shard", slowly)
    run = trace(lm, documents, tmp_path / "run", **OPTIONS)
    assert len(most) == len(run.shards)
    assert max(most) == 2
    assert files_of(run.path) == files_of(undisturbed)


def test_slow_labels_hold_the_model_back(lm, documents, undisturbed, tmp_path, monkeypatch):
    """Labels are one shard ahead of the model, or it waits for them: neither runs away."""
    made: list[int] = []
    modelled: list[int] = []
    ran_away = threading.Event()
    make, run_model = RowMaker.make, ShardTracer.run_model

    def slowly(self, text, stop):
        made.append(text.number)
        assert not ran_away.wait(LONG_ENOUGH_SECONDS)
        return make(self, text, stop)

    def watched(self, text, step):
        if len(modelled) > len(made):
            ran_away.set()
        modelled.append(text.number)
        return run_model(self, text, step)

    monkeypatch.setattr(RowMaker, "make", slowly)
    monkeypatch.setattr(ShardTracer, "run_model", watched)
    run = trace(lm, documents, tmp_path / "run", **OPTIONS)
    assert made == modelled == run.shards
    assert not ran_away.is_set()
    assert files_of(run.path) == files_of(undisturbed)


def test_labels_do_not_run_ahead_of_a_slow_model(lm, documents, tmp_path, monkeypatch):
    made: list[int] = []
    ahead: list[int] = []
    make, run_model = RowMaker.make, ShardTracer.run_model
    following = threading.Event()

    def counted(self, text, stop):
        made.append(text.number)
        if len(made) > len(ahead) + 2:
            following.set()
        return make(self, text, stop)

    def slowly(self, text, step):
        assert not following.wait(LONG_ENOUGH_SECONDS)
        ahead.append(len(made) - text.number)
        return run_model(self, text, step)

    monkeypatch.setattr(RowMaker, "make", counted)
    monkeypatch.setattr(ShardTracer, "run_model", slowly)
    trace(lm, documents, tmp_path / "run", **OPTIONS)
    assert max(ahead) == 2  # the model's own and the next


@pytest.mark.parametrize("owner", ["labels", "writer"])
def test_an_error_beside_the_model_ends_the_trace_and_keeps_whole_shards(
    lm, documents, undisturbed, tmp_path, monkeypatch, owner
):
    label, write = RowMaker.make, RunWriter.write_shard

    def make(self, text, stop):
        if owner == "labels" and text.number == 3:
            raise ZeroDivisionError("a labeller's fault")
        return label(self, text, stop)

    def write_shard(self, number, *arguments):
        if owner == "writer" and number == 3:
            raise ZeroDivisionError("a writer's fault")
        write(self, number, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(RowMaker, "make", make)
        patched.setattr(RunWriter, "write_shard", write_shard)
        with pytest.raises(ZeroDivisionError, match=r"a (labeller|writer)'s fault"):
            trace(lm, documents, tmp_path / "run", **OPTIONS)
    run = open_run(tmp_path / "run")
    assert (run.complete, run.shards) == (False, [0, 1, 2])
    assert {thread.name.split("_")[0] for thread in threading.enumerate()} & {"labels", "writer"} == set()
    trace(lm, documents, tmp_path / "run", resume=True, **OPTIONS)
    assert files_of(tmp_path / "run") == files_of(undisturbed)


def test_a_second_trace_into_the_same_run_is_refused_and_harms_nothing(lm, documents, undisturbed, tmp_path):
    refused: list[str] = []

    def meddle(progress: Progress) -> None:
        for resume in (False, True):
            with pytest.raises(RunError) as error:
                trace(lm, documents, tmp_path / "run", resume=resume, **OPTIONS)
            refused.append(str(error.value))

    run = trace(lm, documents, tmp_path / "run", on_progress=meddle, **OPTIONS)
    assert len(refused) > 4
    assert all("another process is writing to this run; wait for it" in message for message in refused)
    assert files_of(run.path) == files_of(undisturbed)


def as_a_kill_leaves_it(run: Path, copy: Path) -> None:
    """Copy a run while it is written: what a kill at this moment would leave. What is listed later was there before."""

    def if_it_is_there(source: str, target: str) -> None:
        with suppress(FileNotFoundError):  # a temporary file, renamed meanwhile
            shutil.copy2(source, target)

    copy.mkdir()
    for name in ("run.json", "routing", "tokens", *sorted(path.name for path in run.iterdir())):
        if (run / name).is_dir():
            shutil.copytree(run / name, copy / name, copy_function=if_it_is_there, dirs_exist_ok=True)
        elif not (copy / name).exists():
            if_it_is_there(str(run / name), str(copy / name))


def test_a_killed_process_loses_the_open_shard_alone_and_info_says_so(lm, documents, undisturbed, tmp_path):
    copies: list[tuple[Path, int]] = []

    def copy(progress: Progress) -> None:
        if progress.phase == "tracing" and progress.tokens_done // 100 > len(copies):
            as_a_kill_leaves_it(tmp_path / "run", tmp_path / f"copy{len(copies)}")
            copies.append((tmp_path / f"copy{len(copies)}", progress.tokens_done))

    whole = trace(lm, documents, tmp_path / "run", on_progress=copy, **OPTIONS)
    assert len(copies) > 3
    told = 0
    for path, done in copies:
        assert (path / "writer.lock").exists()
        assert (path / "spool.arrow.tmp").exists()
        if (path / "run.json").exists():
            run = open_run(path)
            assert not run.complete
            assert run.tokens().equals(whole.tokens().head(run.n_tokens))
            # The shard that was open, and the one whose writing had not ended.
            assert done - 2 * OPTIONS["shard_rows"] - OPTIONS["batch_tokens"] <= run.n_tokens <= done
            printed = io.StringIO()
            describe(run, Console(file=printed, width=200))
            assert "no: go on with moe-probe trace … --resume" in printed.getvalue()
            assert f"{run.n_tokens:,} tokens of" in printed.getvalue()
            shutil.rmtree(path / "counts")  # what was counted to be shown
            told += 1
        trace(lm, documents, path, resume=True, **OPTIONS)
        assert files_of(path) == files_of(undisturbed)
    assert told >= len(copies) - 1
