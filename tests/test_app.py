"""Each page of the explorer as a script of its own, and the selection that they share."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from app_pages import open_page, written

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import TEXTS, Shape, make_run

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.store import Run, open_run
from moe_probe_app import library, serve
from moe_probe_app.components import desk
from moe_probe_app.selection import (
    Selection,
    as_query,
    fit,
    from_panes_state,
    from_query,
    from_view_state,
    panes_state,
    view_state,
)
from moe_probe_app.settings import Settings, configure

HOSTILE = "<b>x</b> :red[x] $x$"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "wide", {"a.txt": TEXTS["code/area.py"]}, Shape(n_layers=2, n_experts=64, n_slots=4))
    make_run(root / "small", TEXTS)
    return root


@pytest.fixture
def run(root: Path) -> Run:
    return open_run(root / "small")


@pytest.fixture(autouse=True)
def started(root: Path) -> Iterator[None]:
    configure(Settings(root))
    yield
    configure(Settings(Path("runs")))


@pytest.mark.parametrize(
    "name", ["text", "layers", "syntax", "domains", "experts", "coactivation", "paths", "compare", "ablate", "runs"]
)
@pytest.mark.parametrize("run_name", ["small", "wide"])
def test_a_page_runs_alone_and_shows_the_run_of_its_address(name: str, run_name: str) -> None:
    page = open_page(name, run=run_name, layer="1")
    assert (
        page.sidebar.selectbox(key="sidebar_run").format_func(page.sidebar.selectbox(key="sidebar_run").value)
        == run_name
    )
    assert page.sidebar.selectbox(key="sidebar_layer").value == 1
    assert page.query_params["run"] == run_name


@pytest.mark.parametrize(
    "name", ["text", "layers", "syntax", "domains", "experts", "coactivation", "paths", "compare", "runs"]
)
def test_without_runs_a_page_says_how_to_make_one(name: str, tmp_path: Path) -> None:
    configure(Settings(tmp_path))
    assert "moe-probe trace tiny-mixtral" in written(open_page(name))


def test_a_broken_run_says_what_is_wrong_and_leaves_the_others_open(tmp_path: Path) -> None:
    make_run(tmp_path / "good", {"a.txt": "One two."})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/run.json").write_text('{"schema_version": 99}')
    configure(Settings(tmp_path))
    page = open_page("text", run="bad")
    assert "schema version 99" in written(page)
    page.sidebar.selectbox(key="sidebar_run").select_index(library.run_names(tmp_path).index("good")).run()
    assert not page.exception
    assert page.query_params["run"] == "good"


def test_the_runs_page_tells_precision_self_check_and_labels(run: Run) -> None:
    text = written(open_page("runs", run="small"))
    for word in (
        "Self-check: passed",
        "nf4",
        "4.13",
        "2,400,000",
        "upos",
        "made up",
        "transformers",
        "5.24.0",
        "made-up",
    ):
        assert word in text, word


def test_text_of_a_run_reaches_the_page_escaped(tmp_path: Path) -> None:
    make_run(tmp_path / HOSTILE.replace("/", "_"), {"a.txt": "One two."})
    configure(Settings(tmp_path))
    text = written(open_page("runs"))
    assert "&lt;b&gt;x&lt;_b&gt; :red[x] $x$" in text
    assert "<b>x" not in text


def test_a_run_outside_the_root_is_never_listed(tmp_path: Path) -> None:
    outside = make_run(tmp_path / "outside", {"a.txt": "One two."})
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(outside, target_is_directory=True)
    make_run(root / "inside", {"a.txt": "One two."})
    assert library.run_names(root) == ["inside"]


def test_a_selection_survives_its_address(run: Run) -> None:
    before = Selection(
        "small", document=1, router=4, focus=(3, 1), slot="any", token=12, view="three", numbers=True, label="upos",
        value="NOUN", find="a b&c", against="a/b&c", other=2, difference=True,
    )  # fmt: skip
    assert from_query(as_query(before, run.routers), "small", run) == before


@pytest.mark.parametrize(
    ("query", "field", "value"),
    [
        ({"document": "3"}, "document", 0),
        ({"layer": "6"}, "router", 0),
        ({"router": "-1"}, "router", 0),
        ({"focus": "8,-1,2,2,x"}, "focus", (2,)),
        ({"token": "1.5"}, "token", None),
        ({"token": "9" * 40}, "token", None),
        ({"slot": "second"}, "slot", "first"),
        ({"view": "four"}, "view", "one"),
        ({"label": "colour", "value": "red"}, "label", None),
        ({"label": "upos", "value": "<script>"}, "value", None),
        ({"find": "x" * 900}, "find", "x" * 200),
        ({"against": "x" * 900}, "against", None),
        ({"other_layer": "99"}, "other", None),
        ({"other_router": "-1"}, "other", None),
        ({"difference": "yes"}, "difference", False),
    ],
)
def test_what_a_link_gets_wrong_becomes_the_default(run: Run, query: dict[str, str], field: str, value: object) -> None:
    assert getattr(from_query(query, "small", run), field) == value


def test_at_most_eight_experts_are_focused(root: Path) -> None:
    wide = open_run(root / "wide")
    assert fit(Selection("wide", focus=tuple(range(20))), wide).focus == tuple(range(8))


def test_a_view_that_lies_is_not_believed(run: Run) -> None:
    now = Selection("small", router=2)
    lies = {"router": 999, "focus": ["1", None, 4], "token": True, "slot": 7, "label": 3, "find": None}
    assert from_view_state(now, lies, run) == replace(now, router=0, focus=(4,))
    assert from_view_state(now, view_state(now), run) == now
    lies |= {"other": 999, "difference": "yes", "against": "../../etc"}
    assert from_panes_state(now, lies, run) == replace(now, router=0, focus=(4,))
    assert from_panes_state(now, {**panes_state(now), "other": 4, "difference": True}, run) == replace(
        now, other=4, difference=True
    )


def test_a_new_run_is_named_after_its_text_and_replaces_none(tmp_path: Path) -> None:
    taken: set[str] = set()
    assert desk._free_name("The river, it bends twice!", tmp_path, taken) == "the-river-it-bends"
    (tmp_path / "the-river-it-bends").mkdir()
    assert desk._free_name("../The RIVER it bends", tmp_path, taken) == "the-river-it-bends-2"
    assert desk._free_name("漢字", tmp_path, taken) == "trace"


def test_a_trace_that_cannot_work_says_why(tmp_path: Path) -> None:
    request = desk.Request("One two.", (Document("a", "One two."),), str(tmp_path / "no-such-model"), None, ("shape",))
    job = desk.Desk().submit(request, tmp_path)
    assert job.future is not None
    assert isinstance(job.future.exception(timeout=60), MoeProbeError)
    assert "no-such-model" in (job.problem() or "")


def test_a_pasted_sentence_becomes_a_run(tmp_path: Path) -> None:
    configure(Settings(tmp_path))
    page = open_page("trace")
    page.text_area(key="trace_text").set_value("The baker walks along the river.")
    page.checkbox(key="trace_english").uncheck()
    page.button[0].click().run()
    job = page.session_state["trace_job"]
    folder = job.future.result(timeout=120)
    # The page reruns by itself when the trace is done, and AppTest may press the button again then.
    assert folder.name.removesuffix("-2") == "the-baker-walks-along"
    traced = open_run(folder)
    assert "".join(traced.tokens()["text"]) == "The baker walks along the river."


def test_an_empty_text_is_not_traced(tmp_path: Path) -> None:
    configure(Settings(tmp_path))
    page = open_page("trace")
    page.text_area(key="trace_text").set_value("  \n")
    page.button[0].click().run()
    assert "There is no text" in written(page)
    assert "trace_job" not in page.session_state


def test_a_folder_that_is_not_there_says_how_to_fill_one(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such folder; trace a text first"):
        serve.main(tmp_path / "nothing", port=None, open_browser=False)


def test_a_port_that_is_taken_is_named(root: Path) -> None:
    with socket.socket() as busy:
        busy.bind((serve.ADDRESS, 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(BadInputError, match=rf"port {port}: .*; choose another with --port"):
            serve.main(root, port=port, open_browser=False)


def test_the_server_keeps_to_this_machine_and_tells_nobody() -> None:
    options = serve.server_options(1234)
    assert options["server.address"] == "127.0.0.1"
    assert options["browser.gatherUsageStats"] is False
    assert options["server.enableCORS"] is options["server.enableXsrfProtection"] is True
    assert options["server.allowedHosts"] == ["localhost", "127.0.0.1"]
    assert options["theme.dark.backgroundColor"] == "#161719"
    assert not any("http" in str(value) for value in options.values())
