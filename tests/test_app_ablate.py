"""The Ablate page as a script of its own: opening a text, choosing experts, what is shown, what is said in trouble."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from app_pages import written
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import TEXTS, make_run

import moe_probe as mp
import moe_probe_app
from moe_probe.schema import Router
from moe_probe_app.components import ablation
from moe_probe_app.components.ablation import Change, Source
from moe_probe_app.components.desk import open_desk
from moe_probe_app.settings import Settings, configure

PAGE = Path(moe_probe_app.__file__).parent / "pages/ablate.py"
SUMS = [
    mp.Document(f"sum {n}", f"The sum of {n} and 30 is {n + 30}. So they say.\n" * 3, language="en") for n in range(6)
]
LAYER_2 = Router(2, "model.layers.2.mlp", 2, 8, 2, "softmax top-k")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model that is nowhere, and one of the bundled model, the newest."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("runs")
    make_run(root / "strange", TEXTS)
    model = mp.load("tiny-mixtral", quantization="4bit", device_map="cpu")
    mp.trace(model, SUMS, root / "sums", labels=["shape", "domain"])
    return root


@pytest.fixture(autouse=True)
def started(root: Path) -> Iterator[None]:
    configure(Settings(root))
    yield
    configure(Settings(Path("runs")))


def open_page(**query: str) -> AppTest:
    page = AppTest.from_file(str(PAGE), default_timeout=60)
    for key, value in query.items():
        page.query_params[key] = value
    return run(page)


def run(page: AppTest) -> AppTest:
    page.run()
    assert not page.exception, page.exception
    return page


def press(page: AppTest, key: str) -> AppTest:
    next(button for button in page.button if button.key == key or button.key.startswith(key)).click()
    return run(page)


def finish(page: AppTest, key: str) -> AppTest:
    """Wait until what was asked of the desk is done, and look at the page again."""
    if key not in page.session_state:  # so soon that the page saw it
        return page
    page.session_state[key].future.exception(timeout=120)
    return run(page)


def open_sums(**query: str) -> AppTest:
    page = open_page(run="sums", **query)
    page.radio(key="ablate_origin").set_value("Documents of the run")
    run(page)
    return finish(press(page, "ablate_open_run"), "ablate_opening")


def test_a_pasted_text_is_opened_and_an_expert_switched_off(tmp_path: Path) -> None:
    configure(Settings(tmp_path))  # without a run too
    page = open_page()
    page.text_area(key="ablate_text").set_value("The sum of 12 and 30 is 42. So they say, and so it is.")
    page.checkbox(key="ablate_english").uncheck()
    page = finish(press(page, "ablate_open"), "ablate_opening")
    assert page.button(key="ablate_begin").disabled
    page.selectbox(key="ablate_layer").set_value(2)
    page.button_group(key="ablate_experts").set_value([5])
    run(page)
    assert page.button(key="ablate_begin").label == "Switch off expert 5"
    assert "Takes about a second" in written(page)
    page = finish(press(page, "ablate_begin"), "ablate_measuring")
    text = written(page)
    assert "What changed when expert 5 of layer 2 was switched off" in text
    assert "This text only" in text
    assert "too little text" in text
    result = page.session_state["ablate_result"]
    assert "".join(result.tokens["text"]) == "The sum of 12 and 30 is 42. So they say, and so it is."
    assert (
        page.dataframe[0].value["label"].to_list()
        == result.table.sort("difference", descending=True)["label"].to_list()
    )


def test_documents_of_a_run_come_with_its_labels_layer_and_focus() -> None:
    page = open_sums(layer="4", focus="6")
    assert page.selectbox(key="ablate_layer").value == 4
    assert page.button_group(key="ablate_experts").value == [6]
    assert page.selectbox(key="ablate_label").options == ["shape", "domain"]
    page.button_group(key="ablate_experts").set_value([1, 6])
    run(page)
    assert page.query_params["focus"] == "1,6"
    page.selectbox(key="ablate_how").set_value("reroute")
    page = run(page)
    page = finish(press(page, "ablate_begin"), "ablate_measuring")
    text = written(page)
    assert "What changed when experts 1 and 6 of layer 4 were rerouted" in text
    assert "6 documents of sums" in text
    assert "This text only" not in text
    assert "Not the very model" not in text
    shown = page.selectbox(key="ablate_shown")
    assert shown.options == [document.name for document in SUMS]
    result = page.session_state["ablate_result"]
    assert shown.options[shown.value] == result.most_changed
    assert result.sentence in text.replace("&#x27;", "'")
    # The table is the library's, for the very same text.
    model = mp.load("tiny-mixtral", quantization="4bit", device_map="cpu")
    wanted = mp.effect(model, SUMS, 4, [1, 6], label="shape", carried_by="predicted", how="reroute")
    assert result.table["label"].to_list() == wanted["label"].to_list()
    assert result.table["mean_bits"].to_list() == pytest.approx(wanted["mean_bits"].to_list(), abs=1e-4)


def test_labels_with_few_tokens_are_left_out_of_the_chart() -> None:
    page = open_sums(layer="2", focus="3")
    page = finish(press(page, "ablate_begin"), "ablate_measuring")
    most = page.session_state["ablate_result"].table["n"].max()
    page.number_input(key="ablate_least").set_value(most + 1)
    page = run(page)
    assert "No label has so many tokens" in written(page)
    assert f"The commonest has {most:,}" in written(page)


def test_a_run_whose_model_is_not_at_hand_says_which_command(root: Path) -> None:
    page = open_page(run="strange")
    page.radio(key="ablate_origin").set_value("Documents of the run")
    text = written(run(page))
    assert "The model of this run is not at hand: made-up" in text
    assert f"moe-probe explore {root} --model made-up" in text
    assert not page.button


def test_an_empty_text_is_not_opened() -> None:
    page = open_page()
    page.text_area(key="ablate_text").set_value("  \n")
    page = press(page, "ablate_open")
    assert "There is no text" in written(page)
    assert "ablate_opening" not in page.session_state


def test_a_model_that_cannot_be_loaded_says_why(root: Path, tmp_path: Path) -> None:
    configure(Settings(root, model=str(tmp_path / "no-such-model")))
    page = open_page()
    page.selectbox(key="ablate_model").set_value(1)
    page = finish(press(page, "ablate_open"), "ablate_opening")
    assert "The text could not be opened" in written(page)
    assert "no-such-model" in written(page)
    assert page.text_area(key="ablate_text").value  # and another can be tried


def test_what_cannot_be_measured_says_why() -> None:
    page = open_sums(layer="2", focus="0,1,2,3,4,5,6,7")
    page.selectbox(key="ablate_how").set_value("reroute")
    page = finish(press(run(page), "ablate_begin"), "ablate_measuring")
    text = written(page)
    assert "Nothing could be measured" in text
    assert "0 left" in text
    assert page.button(key="ablate_begin").disabled is False


def test_stopped_at_once_nothing_is_shown_and_the_choice_is_still_there() -> None:
    page = open_sums(layer="2", focus="3")
    gate = threading.Event()
    open_desk().queue(gate.wait)
    page = press(page, "ablate_begin")
    task = page.session_state["ablate_measuring"]
    assert task.state == "waiting"  # behind what another page asked for: one model, one thread
    page = press(page, "ablate_stop")
    assert task.cancel.is_set()
    gate.set()
    page = finish(page, "ablate_measuring")
    assert "Nothing was measured" in written(page)
    assert page.button(key="ablate_begin").label == "Switch off expert 3"


def test_an_opening_that_is_stopped_leaves_the_form() -> None:
    page = open_page()
    gate = threading.Event()
    open_desk().queue(gate.wait)
    page = press(press(page, "ablate_open"), "ablate_stop_opening")
    gate.set()
    page = finish(page, "ablate_opening")
    assert "The text was not opened" in written(page)
    assert page.text_area(key="ablate_text").value
    assert "ablate_opened" not in page.session_state


def test_stopped_between_text_and_labels_the_text_stays(root: Path) -> None:
    source = Source("tiny-mixtral", "4bit", ("shape",), run="sums", path=root / "sums")
    opened = ablation.open_text(source)
    opened.future.exception(timeout=120)

    task = ablation.Task()
    switched: list[str] = []

    def stop_at_the_labels(progress: object) -> None:
        phase = progress.phase
        if switched and phase == "reading":
            task.cancel.set()
        if phase == "switching experts off":
            switched.append(phase)

    task.watch = stop_at_the_labels
    result = ablation._measure(opened.answer(), Change(LAYER_2, (3,), "ablate", "shape", "predicted"), task)
    assert result.stopped
    assert result.table is None
    assert result.tokens["change_bits"].null_count() == 0
    page = AppTest.from_file(str(PAGE), default_timeout=60)
    page.session_state["ablate_opened"] = opened.answer()
    page.session_state["ablate_result"] = result
    text = written(run(page))
    assert "Stopped" in text
    assert "No labels yet" in text


def test_all_that_needs_the_model_happens_in_the_one_thread(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    seen: set[str] = set()
    before = torch.nn.Module.__call__

    def spy(self: torch.nn.Module, *args: object, **kwargs: object) -> object:
        seen.add(threading.current_thread().name)
        return before(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", spy)
    opened = ablation.open_text(
        Source("tiny-mixtral", "4bit", ("shape",), run="sums", path=root / "sums", max_tokens=60)
    )
    opened.future.exception(timeout=120)
    done = ablation.measure(opened.answer(), Change(LAYER_2, (3,), "ablate", "shape", "routed"))
    done.future.exception(timeout=120)
    assert done.problem() is None
    assert len(seen) == 1
    assert next(iter(seen)).startswith("trace")


def test_tokens_in_the_page_are_those_of_the_document_that_is_shown() -> None:
    page = open_sums(layer="2", focus="3")
    page = finish(press(page, "ablate_begin"), "ablate_measuring")
    page.selectbox(key="ablate_shown").set_value(2)
    run(page)
    (component,) = page.get("bidi_component")
    data = json.loads(component.proto.json)
    assert "".join(data["tokens"]["text"]) == SUMS[2].text
    rows = page.session_state["ablate_result"].tokens.filter(pl.col("document") == "sum 2")
    assert data["tokens"]["change"] == rows["change_bits"].to_list()
