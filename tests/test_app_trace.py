"""The page Trace and the desk behind it: files, estimates, the queue, and what stays of a trace that is stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from app_pages import open_page, written

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError
from moe_probe.watching import Progress
from moe_probe_app.components import desk, estimate, upload, waiting
from moe_probe_app.components.desk import Desk, Job, Request
from moe_probe_app.settings import BUNDLED, Settings, configure
from moe_probe_app.soundness import open_sound

LONG = "The baker walks along the river and greets the geese. " * 700


class StopAfter(threading.Event):
    """Is set once it was asked so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.fixture(scope="module")
def one_desk() -> Desk:
    """A desk that has the bundled model loaded."""
    found = Desk()
    found.queue(lambda: found.model(BUNDLED, None)).result(timeout=120)
    return found


@pytest.fixture(autouse=True)
def started(tmp_path: Path) -> Iterator[None]:
    configure(Settings(tmp_path))
    yield
    configure(Settings(Path("runs")))


def request_for(text: str, title: str = "a title") -> Request:
    return Request(title, (Document("text", text),), BUNDLED, None, ("shape",))


def test_a_trace_that_is_stopped_keeps_the_parts_that_are_whole(one_desk: Desk, tmp_path: Path) -> None:
    job = Job(request_for(LONG), "stopped", cancel=StopAfter(6))
    out = one_desk._trace(job, tmp_path / "stopped")
    run = open_sound(out)
    assert not run.complete
    assert not job.complete
    assert 0 < run.n_tokens < 8_000
    assert job.kept == run.n_tokens == len(run.experts(router=0))
    assert LONG.startswith("".join(run.tokens()["text"]))


@pytest.mark.parametrize("times", [0, 1, 2])
def test_of_a_trace_that_is_stopped_at_once_nothing_is_left(one_desk: Desk, tmp_path: Path, times: int) -> None:
    job = Job(request_for(LONG), "stopped", cancel=StopAfter(times))
    with pytest.raises(desk.MoeProbeError, match=r"nothing was (kept|traced)"):
        one_desk._trace(job, tmp_path / "stopped")
    assert list(tmp_path.iterdir()) == []


def test_a_whole_trace_is_complete_and_the_model_stays(one_desk: Desk, tmp_path: Path) -> None:
    before = one_desk._loaded
    job = one_desk.submit(request_for("One two three."), tmp_path)
    assert job.future is not None
    run = open_sound(job.future.result(timeout=120))
    assert run.complete
    assert job.complete
    assert job.kept == run.n_tokens
    assert one_desk._loaded is before
    assert one_desk.jobs() == []


def test_one_thing_is_done_at_a_time_and_the_others_are_told_their_place(tmp_path: Path) -> None:
    busy, gate = Desk(), threading.Event()
    first = busy.queue(gate.wait)
    jobs = [busy.submit(request_for("One.", f"job {number}"), tmp_path) for number in range(3)]
    assert [busy.ahead(future) for future in (first, *(job.future for job in jobs))] == [0, 1, 2, 3]
    assert [job.name for job in busy.jobs()] == ["job-0", "job-1", "job-2"]
    assert waiting.how_far(jobs[1], 2) == (0.0, "Waiting: 2 other tasks with a model must end first …")
    for job in jobs:
        job.stop()
    assert [job.problem() for job in jobs] == ["It was taken back before it began."] * 3
    assert busy.jobs() == []
    last = busy.submit(request_for("One.", "last"), tmp_path)
    assert busy.ahead(last.future) == 1
    last.stop()
    gate.set()
    first.result(timeout=20)
    assert list(tmp_path.iterdir()) == []


def test_how_far_it_is_is_said_in_words() -> None:
    job = Job(request_for("One."), "job")
    assert waiting.how_far(job, 0)[1] == "About to begin …"
    assert waiting.how_far(job, 1)[1] == "Waiting: 1 other task with a model must end first …"
    job.state = "loading"
    assert waiting.how_far(job, 0)[1] == "Loading the model …"
    job.state = "working"
    job.progress = Progress("reading", 12, None, 1.0)
    assert waiting.how_far(job, 0)[1] == "Reading the text …"
    job.progress = Progress("tracing", 500, 2_000, 1.0)
    assert waiting.how_far(job, 0) == (
        0.25,
        "Finding where each token is sent: 500 of 2,000 tokens through the model, 3 s left",
    )
    job.cancel.set()
    assert waiting.how_far(job, 0)[1] == "Stopping …"


def test_parts_are_small_unless_there_would_be_many() -> None:
    def rows(characters: int) -> int:
        return desk._shard_rows((Document("a", "x" * characters),))

    assert rows(10) == rows(1_000_000) == desk.SHARD_ROWS
    assert 3_000_000 // desk.CHARACTERS_A_TOKEN // rows(3_000_000) <= desk.SHARDS_AT_MOST


def test_an_estimate_counts_the_tokens_and_leaves_nothing(one_desk: Desk, tmp_path: Path) -> None:
    whole = one_desk.submit(request_for(LONG), tmp_path)
    assert whole.future is not None
    n_tokens = open_sound(whole.future.result(timeout=120)).n_tokens
    model = one_desk.queue(lambda: one_desk.model(BUNDLED, None)).result(timeout=20)
    found = estimate.ask(one_desk, request_for(LONG)).result(timeout=120)
    assert found.n_tokens == n_tokens
    held = [*model.model.parameters(), *model.model.buffers()]
    assert found.model_bytes == sum(one.numel() * one.element_size() for one in held)
    assert found.seconds > 0
    assert found.free_bytes > 0
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]


def test_an_estimate_is_said_so_that_one_can_decide() -> None:
    def said(seconds: float) -> str:
        return estimate.Estimate(1_234, seconds, 2_000_000_000, 8_000_000_000, "cpu").text()

    tail = " The model takes 2.0 GB on cpu, where 8.0 GB more are free."
    wanted = {3.0: "a few seconds", 60.0: "about 60 seconds", 600.0: "about 10 minutes", 7_200.0: "about 2.0 hours"}
    assert {seconds: said(seconds) for seconds in wanted} == {
        seconds: f"1,234 tokens, {words}.{tail}" for seconds, words in wanted.items()
    }


def test_the_page_estimates_first_and_traces_what_was_estimated(tmp_path: Path) -> None:
    page = open_page("trace")
    page.text_area(key="trace_text").set_value("The baker walks along the river.")
    page.checkbox(key="trace_english").uncheck()
    page.button(key="trace_ask").click().run()
    future: Future[estimate.Estimate] = page.session_state["trace_estimate"][1]
    n_tokens = future.result(timeout=120).n_tokens
    page.run()
    assert f"{n_tokens} tokens, a few seconds." in written(page)
    assert list(tmp_path.iterdir()) == []
    page.button(key="trace_agreed").click().run()
    job = page.session_state["trace_job"]
    # The page reruns by itself when the trace is done, and AppTest may press the button again then.
    assert job.future.result(timeout=120).name.removesuffix("-2") == "the-baker-walks-along"
    assert "trace_estimate" not in page.session_state


def test_the_page_says_what_is_kept_of_a_stopped_trace(one_desk: Desk, tmp_path: Path) -> None:
    job = Job(request_for(LONG), "stopped", cancel=StopAfter(6))
    job.future = one_desk.queue(lambda: one_desk._trace(job, tmp_path / "stopped"))
    job.future.result(timeout=120)
    page = open_page("trace")
    page.session_state["trace_job"] = job
    page.run()
    assert not page.exception
    assert f"The first {job.kept:,} tokens are traced and kept as “stopped”." in written(page)
    assert page.button(key="trace_look").label == "Look at them"


def test_a_file_that_cannot_be_read_is_refused_before_it_is_queued() -> None:
    title, documents = upload.read_texts("pasted", "../Some Notes.md", b"# One", True)
    assert title == "Some Notes"
    assert [(one.name, one.text, one.language) for one in documents] == [("Some Notes.md", "# One", "en")]
    with pytest.raises(BadInputError, match=r"x\.zip: not a kind of file"):
        upload.read_texts("pasted", "x.zip", b"PK", True)
    assert upload.read_texts("  ", None, b"", True) == ("", ())
    title, (document,) = upload.read_texts("Geese fly.", None, b"", False)
    assert (title, document.text, document.language) == ("Geese fly.", "Geese fly.", None)
    assert upload.MOST_BYTES <= 100_000_000
