"""Where the time of a trace goes: parts add up, and each is charged with what was done in it."""

from __future__ import annotations

import io
import threading

import pytest
import traced_models
from rich.console import Console
from traced_models import files_of

from moe_probe.corpus import Document
from moe_probe.models import LanguageModel
from moe_probe.progress import profile_table
from moe_probe.recording.recorder import Recording
from moe_probe.store.writer import RunWriter
from moe_probe.tracing import BESIDE, Profile, forward, generate_and_trace, generator, profile, trace
from moe_probe.tracing.profile import Stopwatch
from moe_probe.tracing.rows import RowMaker
from moe_probe.tracing.spool import Spool

OPTIONS = {"labels": ("shape",), "context": 32, "shard_rows": 100, "batch_tokens": 64}


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


class Clock:
    """Every thread's own time, which passes only where it is told to."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def __call__(self) -> tuple[float, float, float]:
        now = getattr(self._threads, "now", 0.0)
        return now, 3 * now, 2 * now  # of the wall, of the process, of the thread

    def advance(self, seconds: float) -> None:
        self._threads.now = getattr(self._threads, "now", 0.0) + seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(profile, "_now", clock)
    return clock


def takes(monkeypatch, clock: Clock, owner: object, name: str, seconds: float) -> list[float]:
    """Let each call of a function take so long before it begins; return the list that the calls are counted in."""
    original, calls = getattr(owner, name), []

    def slowly(*arguments, **options):
        clock.advance(seconds)
        calls.append(seconds)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, slowly)
    return calls


def test_a_part_within_a_part_stops_the_outer_one(clock):
    watch = Stopwatch()
    clock.advance(1)
    with watch.part("model"):
        clock.advance(10)
        with watch.part("copy"):
            clock.advance(100)
        clock.advance(1_000)
    found = watch.profile(22)
    assert {part.part: part.wall_seconds for part in found.parts} == {"model": 1_010, "copy": 100, "other": 1}
    assert (found.wall_seconds, found.processor_seconds, found.tokens_per_second) == (1_111, 3_333, 22 / 1_111)
    # Of threads: 2 a second, but the model has what is left of the process.
    assert {part.part: part.processor_seconds for part in found.parts} == {"model": 3_131, "copy": 200, "other": 2}


def test_what_is_read_alone_is_charged_with_the_whole_process(clock):
    watch = Stopwatch()
    with watch.part("read"):
        clock.advance(5)
    assert watch.profile(0).of("read").processor_seconds == 15
    assert watch.profile(0).of("write").wall_seconds == 0


def test_a_part_that_fails_is_charged_all_the_same(clock):
    watch = Stopwatch()

    def fail() -> None:
        with watch.part("copy"):
            clock.advance(4)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.advance(3)
    found = watch.profile(0)
    assert (found.of("copy").wall_seconds, found.of("other").wall_seconds) == (4, 3)


def test_a_profile_is_made_where_its_stopwatch_was_started():
    refused: list[str] = []

    def elsewhere(watch: Stopwatch) -> None:
        try:
            watch.profile(0)
        except ValueError as error:
            refused.append(str(error))

    thread = threading.Thread(target=elsewhere, args=(Stopwatch(),))
    thread.start()
    thread.join()
    assert refused == ["a profile is made in the thread that started its stopwatch"]


def test_every_part_of_a_trace_is_charged_with_what_it_does(lm, clock, tmp_path, monkeypatch):
    documents = [Document(f"d{number}", traced_models.text(60, seed=number)) for number in range(3)]
    calls = {
        "read": takes(monkeypatch, clock, Spool, "add", 1e0),
        "model": takes(monkeypatch, clock, forward, "decode", 1e1),
        "end": takes(monkeypatch, clock, Recording, "_end", 1e2),  # the recorder's, when the model has ended
        "open": takes(monkeypatch, clock, Recording, "_open", 1e3),
        "label": takes(monkeypatch, clock, RowMaker, "make", 1e4),
        "write": takes(monkeypatch, clock, RunWriter, "write_shard", 1e5),
        "stage": takes(monkeypatch, clock, RunWriter, "stage_tokens", 1e6),
    }
    found: list[Profile] = []
    monkeypatch.setattr(forward, "leaves_processor", lambda: True)
    run = trace(lm, documents, tmp_path / "run", on_profile=found.append, **OPTIONS)
    (seen,) = found
    assert len(calls["model"]) == len(calls["end"]) == len(calls["open"]) > len(calls["label"]) == len(run.shards) > 2
    spent = {part.part: part.wall_seconds for part in seen.parts}
    assert (
        spent
        == {
            "read": sum(calls["read"]),
            "model": sum(calls["model"]),
            "copy": sum(calls["end"])
            + calls["open"][0],  # the first ends before anyone said that another thread takes it
            "sort": sum(calls["open"][1:]),
            "label": sum(calls["label"]),
            "write": sum(calls["write"]) + sum(calls["stage"]),
        }
    )
    assert seen.n_tokens == run.n_tokens
    assert seen.wall_seconds == sum(seconds for part, seconds in spent.items() if part not in BESIDE)


def test_what_a_model_writes_is_a_part_of_its_own(lm, clock, tmp_path, monkeypatch):
    calls = takes(monkeypatch, clock, generator.Generator, "write", 7.0)
    found: list[Profile] = []
    documents = [Document(name, "the sea") for name in "abc"]
    generate_and_trace(
        lm, documents, tmp_path / "run", max_new_tokens=3, batch_size=1, labels=(), on_profile=found.append
    )
    assert len(calls) == 3
    assert found[0].of("generate").wall_seconds == 21
    assert found[0].of("read").wall_seconds == 0


def test_parts_add_up_by_the_real_clock_and_a_run_that_is_there_takes_no_model(lm, tmp_path):
    found: list[Profile] = []
    documents = [Document(f"d{number}", traced_models.text(80, seed=number)) for number in range(3)]
    for resume in (False, True):
        trace(lm, documents, tmp_path / "run", resume=resume, on_profile=found.append, **OPTIONS)
    first, second = found
    assert {part.part for part in first.parts} >= {"read", "model", "copy", "label", "write", "other"}
    assert sum(part.wall_seconds for part in first.parts if part.part not in BESIDE) == pytest.approx(
        first.wall_seconds, rel=1e-3
    )
    assert sum(part.processor_seconds for part in first.parts) == pytest.approx(first.processor_seconds, rel=1e-3)
    assert (second.n_tokens, second.of("model").wall_seconds, second.of("write").wall_seconds) == (0, 0, 0)


def test_the_table_says_what_ran_beside_and_what_share_of_the_whole_the_others_took(clock):
    watch = Stopwatch()
    with watch.part("model"):
        clock.advance(6)
    with watch.part("idle"):
        clock.advance(2)
    thread = threading.Thread(target=_write, args=(watch, clock))
    thread.start()
    thread.join()
    printed = io.StringIO()
    Console(file=printed, width=100).print(profile_table(watch.profile(40), BESIDE))
    lines = [line.split() for line in printed.getvalue().splitlines()]
    assert " ".join(lines[0]) == "Where the time went: 40 tokens, 5 tokens/s"
    rows = {line[0]: line[1:] for line in lines[2:]}
    assert rows["model"][:2] == ["6.00", "75.0%"]
    assert rows["write"][:2] == ["4.00", "beside"]
    assert rows["idle"] == ["2.00", "25.0%", "4.00", "16.7%"]
    assert rows["all"] == ["8.00", "24.00"]


def _write(watch: Stopwatch, clock: Clock) -> None:
    with watch.part("write"):
        clock.advance(4)


def test_a_stopwatch_does_not_follow_the_time_of_day(lm, tmp_path, monkeypatch):
    """The day's clock goes back an hour at each look; nothing may depend on it."""
    days = iter(range(10**9, 0, -3_600))
    documents = [Document("a", traced_models.text(80, seed=1))]
    trace(lm, documents, tmp_path / "before", **OPTIONS)
    monkeypatch.setattr("time.time", lambda: float(next(days)))
    run = trace(lm, documents, tmp_path / "run", **OPTIONS)
    monkeypatch.undo()
    times = run.manifest["times"]
    assert times["seconds"] >= 0
    assert times["finished"] >= times["started"]
    assert files_of(tmp_path / "run") == files_of(tmp_path / "before")
