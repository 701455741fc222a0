"""The change of every single token, against two forwards by hand; and the text, cost and words around it."""

from __future__ import annotations

import threading

import numpy as np
import polars as pl
import pytest
import torch

import moe_probe as mp
from moe_probe.effects.by_token import change_bound, most_changed, token_changes
from moe_probe.effects.cost import Cost, measure_cost
from moe_probe.effects.table import MORE_THAN_ANY, MORE_THAN_CONTROLS
from moe_probe.effects.texts import documents_of
from moe_probe.effects.wording import effect_sentence
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.intervening import ablate, reroute
from moe_probe.measures.verdicts import NOT_ENOUGH, NOT_SHOWN, THIS_TEXT_ONLY
from moe_probe.models import LanguageModel
from moe_probe.schema import Router
from moe_probe.watching import Progress

LAYER, EXPERTS = 3, [0, 5]
TEXTS = {
    "first": "The sum of 12 and 30 is 42.\nSo they say.",
    "second": "Geese fly south, and 3 of them return in spring.",
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.set_num_threads(1)
    return mp.load("tiny-mixtral", device_map="cpu")


@pytest.fixture
def documents() -> list[mp.Document]:
    return [mp.Document(name, text, language="en") for name, text in TEXTS.items()]


def bits_by_hand(lm: LanguageModel, text: str) -> np.ndarray:
    """Return the surprisal of each token of a text in one forward of the whole model."""
    ids = torch.tensor([[lm.tokenizer.bos_token_id, *lm.tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.inference_mode():
        logits = lm.model(ids).logits[0, :-1].double().log_softmax(-1)
    return (-logits.gather(1, ids[0, 1:, None])[:, 0] / np.log(2)).numpy()


@pytest.mark.parametrize(("how", "change"), [("ablate", ablate), ("reroute", reroute)])
def test_a_change_is_what_two_forwards_by_hand_differ_by(
    lm: LanguageModel, documents: list[mp.Document], how: str, change: object
) -> None:
    # Small batches, and padding within them.
    for batch_tokens in (20, 2_048):
        frame = token_changes(lm, documents, LAYER, EXPERTS, how=how, labels=["shape"], batch_tokens=batch_tokens)
        for name, text in TEXTS.items():
            rows = frame.filter(document=name)
            on = bits_by_hand(lm, text)
            with change(lm.model, LAYER, EXPERTS):
                off = bits_by_hand(lm, text)
            assert np.abs(off - on).max() > 0.01
            np.testing.assert_allclose(rows["surprisal_bits"], on, atol=2e-4)
            np.testing.assert_allclose(rows["change_bits"], off - on, atol=4e-4)


def test_a_row_says_which_token_of_which_text_it_is(lm: LanguageModel, documents: list[mp.Document]) -> None:
    frame = token_changes(lm, documents, LAYER, EXPERTS, labels=["shape"])
    assert frame.columns == ["document", "position", "token", "text", "shape", "surprisal_bits", "change_bits"]
    for name, text in TEXTS.items():
        rows = frame.filter(document=name)
        assert "".join(rows["text"]) == text
        assert rows["position"].to_list() == list(range(rows.height))
        assert rows["token"].to_list() == lm.tokenizer.tokenize(text)
    assert frame.filter(pl.col("text").str.strip_chars().is_in(["The", "Geese"]))["shape"].unique().to_list() == [
        "capitalised"
    ]


def test_the_model_is_left_as_it_was(lm: LanguageModel, documents: list[mp.Document]) -> None:
    before = bits_by_hand(lm, TEXTS["first"])
    token_changes(lm, documents, LAYER, EXPERTS)
    assert np.array_equal(bits_by_hand(lm, TEXTS["first"]), before)


def test_stopped_tokens_have_no_numbers_and_the_others_have(lm: LanguageModel, documents: list[mp.Document]) -> None:
    whole = token_changes(lm, documents, LAYER, EXPERTS, batch_tokens=20)
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "switching experts off":
            cancel.set()

    part = token_changes(lm, documents, LAYER, EXPERTS, batch_tokens=20, on_progress=stop, cancel=cancel)
    known = part.filter(pl.col("change_bits").is_not_null())
    assert 0 < known.height < part.height == whole.height
    assert known["document"].n_unique() == 1
    joined = known.join(whole, on=["document", "position"])
    assert joined["change_bits"].to_list() == joined["change_bits_right"].to_list()


def test_stopped_before_the_text_is_traced_it_says_so(lm: LanguageModel, documents: list[mp.Document]) -> None:
    cancel = threading.Event()

    def stop(progress: Progress) -> None:
        if progress.phase == "tracing":
            cancel.set()

    with pytest.raises(MoeProbeError, match="nothing is measured yet"):
        token_changes(lm, documents, LAYER, EXPERTS, on_progress=stop, cancel=cancel)


def test_what_is_not_there_is_refused(lm: LanguageModel, documents: list[mp.Document]) -> None:
    with pytest.raises(BadInputError, match="layer 17: it has no router"):
        token_changes(lm, documents, 17, EXPERTS)
    with pytest.raises(BadInputError, match="expert 8: it has 8"):
        token_changes(lm, documents, LAYER, [8])


@pytest.mark.parametrize(
    ("changes", "bound"),
    [
        ([0.3, -0.04], 0.5),
        ([1.0], 1.0),
        ([-1.01], 2.0),
        ([0.2], 0.2),
        ([12.0], 20.0),
        ([0.0, None], 0.01),
        ([None], 0.01),
    ],
)
def test_a_scale_ends_at_a_round_number(changes: list[float | None], bound: float) -> None:
    assert change_bound(pl.DataFrame({"change_bits": changes}, schema={"change_bits": pl.Float64})) == bound


def test_a_scale_is_not_stretched_by_one_token_in_a_hundred() -> None:
    assert change_bound(pl.DataFrame({"change_bits": [0.1] * 99 + [40.0]})) == 0.1


def test_the_document_that_changes_most_is_found_up_or_down() -> None:
    frame = pl.DataFrame({"document": ["a", "b", "b", "c"], "change_bits": [0.3, -0.5, -0.2, None]})
    assert most_changed(frame) == "b"


def test_a_cost_counts_every_token_and_grows_with_the_layers_above(
    lm: LanguageModel, documents: list[mp.Document]
) -> None:
    cost = measure_cost(lm, documents)
    assert cost.n_tokens == sum(len(lm.tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS.values())
    assert cost.n_layers == 6
    assert cost.seconds_per_token > 0
    low, high = (Router(layer, "", layer, 8, 2, "") for layer in (0, 5))
    assert cost.seconds(low, 1) > cost.seconds(high, 1) > cost.seconds(high, 8)
    assert Cost(1_000, 0.001, 4).seconds(Router(0, "", 0, 8, 2, ""), 8) == pytest.approx(8.0)


@pytest.fixture(scope="module")
def run(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> mp.Run:
    documents = [
        mp.Document(
            "long", "One two three four. " * 10, language="en", domain="prose", labels={"mood": [(0, 3, "sad")]}
        ),
        mp.Document("short", "Five.", language="en", domain="verse"),
    ]
    return mp.trace(lm, documents, tmp_path_factory.mktemp("runs") / "run", labels=["shape", "mood"])


def test_a_run_gives_its_documents_back(run: mp.Run) -> None:
    first, second = documents_of(run)
    assert (first.name, first.text, first.domain, first.language) == (
        "long",
        "One two three four. " * 10,
        "prose",
        "en",
    )
    assert second.text == "Five."
    assert [one.name for one in documents_of(run, [1])] == ["short"]


def test_labels_of_ones_own_come_back_and_those_of_a_taxonomy_do_not(run: mp.Run, lm: LanguageModel) -> None:
    first = documents_of(run)[0]
    assert set(first.labels or ()) == {"mood"}
    again = token_changes(lm, documents_of(run), LAYER, EXPERTS, labels=["mood"])
    assert again["mood"].to_list() == run.tokens(["mood"])["mood"].cast(pl.String).to_list()
    assert "sad" in again["mood"].to_list()


def test_tokens_are_shared_out_evenly_and_short_documents_leave_theirs_to_others(run: mp.Run) -> None:
    lengths = dict(run.documents().select("name", "tokens").iter_rows())
    long, short = documents_of(run, max_tokens=lengths["short"] + 9)
    assert short.text == "Five."
    assert long.text == "".join(run.document_tokens("long", ["text"])["text"][:9])


def test_documents_that_are_not_there_are_refused(run: mp.Run) -> None:
    with pytest.raises(BadInputError, match="document 2: the run has 2, counted from 0"):
        documents_of(run, [0, 2])


def _table(
    verdicts: list[str], carried_by: str = "predicted", experts: str = "3", *, random: bool = True
) -> pl.DataFrame:
    labels = ["VERB", "NUM", "NOUN"][: len(verdicts)]
    return pl.DataFrame(
        {
            "layer": 2,
            "experts": experts,
            "label_set": "upos",
            "label": labels,
            "carried_by": carried_by,
            "difference": [0.5, 0.25, -0.1][: len(verdicts)],
            "difference_ci_low": [0.4, 0.1, None][: len(verdicts)],
            "difference_ci_high": [0.6, 0.4, None][: len(verdicts)],
            "over_random": 0.3 if random else None,
            "matched_experts": 4,
            "verdict": verdicts,
        }
    )


def test_a_sentence_says_whom_it_hurts_by_how_much_and_beyond_what() -> None:
    said = effect_sentence(_table([MORE_THAN_ANY, MORE_THAN_CONTROLS, NOT_SHOWN]))
    assert said.startswith("Switching off expert 3 of layer 2 hurts verbs: +0.50 bits (+0.40 to +0.60) more surprisal")
    assert "more than dropping as many assignments at random, and more than any other expert of the layer." in said
    assert said.endswith("not more than every other expert: numerals.")
    controls = effect_sentence(_table([MORE_THAN_CONTROLS] * 2, "routed", "0 2", random=False), how="reroute")
    assert controls.startswith(
        "Sending the tokens of experts 0 and 2 of layer 2 to the next best hurts tokens that follow"
    )
    assert "more than switching off one of 4 experts of like load; that it is" in controls
    assert "at random" not in controls
    assert "Likewise, less strongly: tokens that follow numerals." in controls


def test_a_sentence_claims_no_more_than_the_table() -> None:
    assert "It was not shown" in effect_sentence(_table([NOT_SHOWN, NOT_ENOUGH, NOT_SHOWN]))
    assert "too little text" in effect_sentence(_table([NOT_ENOUGH, NOT_ENOUGH]))
    here = effect_sentence(_table([THIS_TEXT_ONLY, NOT_SHOWN]))
    assert here.startswith("In this text, switching off expert 3")
    assert here.endswith("says nothing about other texts.")
    assert effect_sentence(_table([])) == "Nothing was measured."


def test_a_text_without_a_token_has_no_cost(lm: LanguageModel) -> None:
    with pytest.raises(BadInputError, match="the text holds no token"):
        measure_cost(lm, [])
