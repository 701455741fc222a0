"""What a notebook shows of a run, a document and a recording. The browser tests open the frame."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import PROSE, Shape, make_run

from moe_probe import notebook
from moe_probe.errors import BadInputError
from moe_probe.notebook import show
from moe_probe.recording import Routing
from moe_probe.recording.routing import Decisions
from moe_probe.schema import Router
from moe_probe.store import Run, open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(make_run(tmp_path_factory.mktemp("run") / "<small>", {"<b>a</b>.txt": PROSE}, Shape(n_layers=2)))


@pytest.fixture
def routing() -> Routing:
    experts = np.array([[5, 1, 0, 2, 3], [2, 0, 4, 1, -1]])
    weights = np.array([[0.75, 0.5, 1, 0.5, 1], [0.25, 0.5, 0, 0.5, 0]], np.float32)
    decided = Decisions(experts, weights, None, None)
    return Routing(
        [Router(0, "layers.0.mlp", 0, 8, 2, "softmax top-k")],
        [decided],
        np.array([0, 0, 0, 1, 1], np.int32),
        np.array([0, 1, 2, 0, 1], np.int32),
    )


def page_of(frame: str) -> str:
    """Return the page that a frame holds, as a browser reads the attribute."""
    (page,) = re.findall(r' srcdoc="([^"]*)"', frame)
    return html.unescape(page)


def test_a_document_shows_itself_in_a_frame_that_may_run_scripts_and_nothing_else(run: Run) -> None:
    frame = run.document(0)._repr_html_()
    assert frame.startswith('<iframe title="&lt;b&gt;a&lt;/b&gt;.txt, tokens coloured by expert" ')
    assert re.findall(r'sandbox="([^"]*)"', frame) == ["allow-scripts"]
    page = page_of(frame)
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page
    assert '"files":false' in page


def test_a_long_document_shows_its_beginning_and_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "MOST_ASSIGNMENTS", 400)
    n_tokens = run.document(0).tokens.height
    page = page_of(run.document(0)._repr_html_())
    assert n_tokens > 100
    assert f"<p>The first 100 of {n_tokens:,} tokens; write_text_page writes all of them.</p>" in page


def test_a_run_shows_a_card_of_what_is_in_it(run: Run) -> None:
    card = run._repr_html_()
    assert "<caption>Run &lt;small&gt;</caption>" in card
    for said in (f"{run.n_tokens:,} tokens of 1 documents", "made-up (4bit)", "2: 2 of 8 experts", "upos (made up)"):
        assert said in card
    assert "<small>" not in card


def test_a_recording_without_texts_shows_positions_and_starts_a_line_with_each_sequence(routing: Routing) -> None:
    text = notebook._RecordedText(routing, None).tokens["text"].to_list()
    assert text == [" 0", " 1", " 2\n", " 0", " 1"]
    assert '"router":0' in page_of(routing._repr_html_())


def test_a_recording_with_texts_shows_them(routing: Routing) -> None:
    tokens = ["One", " two", " three", "Four", " five"]
    assert notebook._RecordedText(routing, tokens).tokens["token"].to_list() == tokens
    settings = page_of(show(routing, tokens=tokens, focus=[5, 2])._repr_html_())
    (said,) = re.findall(r'id="settings">(.*?)</script>', settings)
    assert json.loads(said)["state"]["focus"] == [5, 2]


def test_tokens_of_another_number_are_refused(routing: Routing) -> None:
    with pytest.raises(BadInputError, match="tokens: 2 for 5 recorded rows"):
        show(routing, tokens=["a", "b"])


def test_a_document_has_its_own_tokens(run: Run) -> None:
    with pytest.raises(BadInputError, match="has its own tokens"):
        show(run.document(0), tokens=["a"])


def test_what_has_no_picture_is_refused() -> None:
    with pytest.raises(BadInputError, match="int: only a run, a document or a recording has a picture"):
        notebook.picture(3)
    with pytest.raises(BadInputError, match="str: only a document or a recording has a text view"):
        show("text")  # type: ignore[arg-type]


def test_opening_a_run_loads_no_picture_and_showing_one_needs_no_torch(run: Run) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in {'torch', 'transformers', 'streamlit', 'plotly'}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import moe_probe as mp\n"
        f"run = mp.open_run({str(run.path)!r})\n"
        "print('moe_probe.tokenview' in sys.modules)\n"
        "print(len(run.document(0)._repr_html_()) > 10_000, 'tokens' in run._repr_html_())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\nTrue True\n", done.stderr
