from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

import moe_probe as mp
from moe_probe.charts.effects import effect_heatmap
from moe_probe.effects import effect, effect_map, effect_table, open_effects
from moe_probe.effects.folder import MANIFEST, PARTS
from moe_probe.effects.table import MORE_THAN_ANY
from moe_probe.effects.wording import effect_sentence
from moe_probe.errors import BadInputError, RunError
from moe_probe.intervening import ablate
from moe_probe.measures.verdicts import NOT_ENOUGH, THIS_TEXT_ONLY
from moe_probe.models import LanguageModel
from moe_probe.watching import Progress

LAYER = 3
Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
DIGITS = 5  # the expert of the lowest layer that all digits are sent to, and nothing else


def texts(n_documents: int = 24, lines: int = 5) -> list[mp.Document]:
    """Sums, so that digits and other tokens alternate."""
    rng = np.random.default_rng(0)
    documents = []
    for number in range(n_documents):
        rows = [f"{a} + {b} = {a + b}. The sum of them is {a + b}." for a, b in rng.integers(10, 500, (lines, 2))]
        documents.append(mp.Document(f"sums {number}", "\n".join(rows), language="en"))
    return documents


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    torch.set_num_threads(1)
    return mp.load("tiny-mixtral")


@pytest.fixture
def alike(lm: LanguageModel) -> Iterator[LanguageModel]:
    """The model with equal experts in one layer, so that only its router can tell them apart."""
    experts = lm.model.model.layers[0].mlp.experts
    before = {name: parameter.detach().clone() for name, parameter in experts.named_parameters()}
    with torch.no_grad():
        for name, parameter in experts.named_parameters():
            parameter.copy_(before[name][DIGITS].expand_as(parameter))
    yield lm
    with torch.no_grad():
        for name, parameter in experts.named_parameters():
            parameter.copy_(before[name])


@contextmanager
def router_that(lm: LanguageModel, choose: Choose) -> Iterator[None]:
    """Let the lowest layer's router choose otherwise: `choose` makes logits of hidden states and token ids."""
    gate = lm.model.model.layers[0].mlp.gate
    seen: dict[str, torch.Tensor] = {}

    def remember(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        seen["ids"] = kwargs["input_ids"].reshape(-1)

    def forward(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = choose(hidden, seen["ids"])
        weights, ids = logits.softmax(-1).topk(2)
        return logits, weights / weights.sum(-1, keepdim=True), ids

    handle = lm.model.model.register_forward_pre_hook(remember, with_kwargs=True)
    gate.forward = forward
    try:
        yield
    finally:
        handle.remove()
        del gate.forward


def digits_to_one_expert(lm: LanguageModel) -> Choose:
    """Digits go to one expert, which gets nothing else; everything else goes by chance."""
    digit_ids = torch.tensor([lm.tokenizer.convert_tokens_to_ids(str(digit)) for digit in range(10)])

    def choose(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = by_chance(hidden, ids)
        logits[:, DIGITS] = torch.where(torch.isin(ids, digit_ids), logits.amax(-1) + 4.0, -1e4)
        return logits

    return choose


def by_chance(hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    # A function of token and place, so that every forward of the same text chooses alike.
    generator = torch.Generator().manual_seed(int(ids.sum()))
    return torch.randn(len(ids), 8, generator=generator)


def test_a_planted_expert_for_digits_is_found_and_a_random_router_has_none(
    alike: LanguageModel, tmp_path: Path
) -> None:
    # Tried in all six layers with the expert that digits prefer: only here is what it does for digits so much more than
    # what dropping as many assignments at random does, which hurts digits too. With the experts as trained, a random
    # router's expert may truly be needed for digits, since it was trained on them: hence the equal ones.
    with router_that(alike, digits_to_one_expert(alike)):
        planted = effect_table(effect_map(alike, texts(16, 3), tmp_path / "planted", label="shape", layers=[0]))
    assert planted.filter(verdict=MORE_THAN_ANY).select("experts", "label").rows() == [(str(DIGITS), "number")]
    row = planted.filter(experts=str(DIGITS), label="number").row(0, named=True)
    assert row["difference_ci_low"] > 0.1
    assert row["over_random_ci_low"] > 0
    with router_that(alike, by_chance):
        chance = effect_table(effect_map(alike, texts(16, 3), tmp_path / "chance", label="shape", layers=[0]))
    assert chance.filter(pl.col("verdict").str.starts_with("more than")).is_empty()
    assert chance.filter(label="number")["verdict"].to_list() == ["not shown"] * 8


def test_the_mean_is_the_paired_change_of_surprisal_computed_by_hand(lm: LanguageModel) -> None:
    documents = texts(6, 2)
    found = effect(lm, documents, LAYER, [0, 2], label="shape", carried_by="predicted", batch_tokens=300)
    sums: dict[str, list[float]] = {}
    run_labels = _labels(lm, documents)
    for document in documents:
        ids = torch.tensor(
            [[lm.tokenizer.bos_token_id, *lm.tokenizer(document.text, add_special_tokens=False).input_ids]]
        )
        with torch.inference_mode():
            on = lm.model(ids).logits
            with ablate(lm.model, LAYER, [0, 2]):
                off = lm.model(ids).logits
        changes = [
            (-one[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0] / np.log(2)).numpy() for one in (on, off)
        ]
        for place, label in enumerate(run_labels[document.name]):
            if place + 1 >= 4:  # window positions below 4 are left out
                sums.setdefault(label, []).append(float(changes[1][place] - changes[0][place]))
    for row in found.iter_rows(named=True):
        assert row["n"] == len(sums[row["label"]])
        assert row["mean_bits"] == pytest.approx(np.mean(sums[row["label"]]), abs=2e-4)


def _labels(lm: LanguageModel, documents: list[mp.Document]) -> dict[str, list[str]]:
    from moe_probe.labels import open_labeller
    from moe_probe.labels.align import Pieces, own

    labeller = open_labeller("shape")
    found = {}
    for document in documents:
        offsets = lm.tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        starts, ends = own(document.text, offsets)
        (found[document.name],) = labeller([document], [Pieces(starts, ends, np.zeros(len(starts), bool))])
    return found


def test_routed_and_predicted_are_neighbours_of_one_change(lm: LanguageModel) -> None:
    documents = [mp.Document(f"d{number}", "12 + 34 = 46 and so on.", language="en") for number in range(5)]
    routed, predicted = (
        effect(lm, documents, LAYER, [1], label="shape", carried_by=carrier) for carrier in ("routed", "predicted")
    )
    # The first four positions are left out, special token included: routed tokens begin one later and end one earlier.
    assert routed["n"].sum() == predicted["n"].sum() - 5


def test_stopping_and_going_on_gives_the_same_bytes(lm: LanguageModel, tmp_path: Path) -> None:
    options = {"label": "shape", "layers": [4, 5], "batch_tokens": 120}
    whole = effect_map(lm, texts(6, 2), tmp_path / "whole", **options)
    cancel = threading.Event()

    def stop_in_the_second(progress: Progress) -> None:
        if progress.phase == "switching experts off" and progress.tokens_done > 0.4 * (progress.tokens_total or 0):
            cancel.set()

    part = effect_map(lm, texts(6, 2), tmp_path / "part", on_progress=stop_in_the_second, cancel=cancel, **options)
    assert 0 < len(part.done) < len(whole.done)
    assert effect_table(part)["n"].sum() < effect_table(whole)["n"].sum()
    resumed = effect_map(lm, texts(6, 2), tmp_path / "part", resume=True, **options)
    assert resumed.complete
    for file in sorted((tmp_path / "whole" / PARTS).iterdir()):
        with np.load(file) as one, np.load(tmp_path / "part" / PARTS / file.name) as other:
            assert all(np.array_equal(one[name], other[name]) for name in ("clusters", "sums", "counts"))
    assert effect_table(open_effects(tmp_path / "part")).equals(effect_table(whole))


def test_a_budget_leaves_a_sample_that_holds_every_expert(lm: LanguageModel, tmp_path: Path) -> None:
    options = {"label": "shape", "layers": [5], "batch_tokens": 250}
    folder = effect_map(lm, texts(8, 3), tmp_path / "map", budget_seconds=0, **options)
    assert len(folder.done) == 1
    table = effect_table(folder)
    assert table["experts"].n_unique() == 8


def test_a_folder_with_other_settings_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    documents = texts(5, 1)
    effect_map(lm, documents, tmp_path / "map", label="shape", layers=[5])
    with pytest.raises(RunError, match="there already"):
        effect_map(lm, documents, tmp_path / "map", label="shape", layers=[5])
    with pytest.raises(RunError, match=r"measured otherwise \(passes, shape\)"):
        effect_map(lm, documents, tmp_path / "map", label="shape", layers=[4, 5], resume=True)
    part = next((tmp_path / "map" / PARTS).iterdir())
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(RunError, match="damaged"):
        effect_table(open_effects(tmp_path / "map"))
    part.unlink()
    with pytest.raises(RunError, match="nothing is measured yet"):
        effect_table(open_effects(tmp_path / "map"))
    with pytest.raises(RunError, match=MANIFEST):
        open_effects(tmp_path)


def test_one_text_gives_no_verdict(lm: LanguageModel) -> None:
    found = effect(lm, texts(1, 40), LAYER, [0], label="shape")
    assert set(found["verdict"]) <= {"not shown", NOT_ENOUGH, THIS_TEXT_ONLY}


def test_what_is_not_there_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="layer 17: it has no router; layers with one are 0, 1"):
        effect(lm, texts(5, 1), 17, [0], label="shape")
    with pytest.raises(BadInputError, match="layer 17: it has no router"):
        effect_map(lm, texts(5, 1), tmp_path / "map", layers=[17])
    with pytest.raises(BadInputError, match="carried_by 'both': choose one of predicted, routed"):
        effect(lm, texts(5, 1), LAYER, [0], label="shape", carried_by="both")


@pytest.mark.parametrize("experts", [[99], [-1], []])
def test_experts_that_do_not_exist_are_refused_before_anything_runs(lm: LanguageModel, experts: list[int]) -> None:
    with pytest.raises(BadInputError, match=r"it has 8, counted from 0|give at least one"):
        effect(lm, texts(5, 1), LAYER, experts, label="shape")


def test_rerouting_has_no_random_control_and_is_judged_by_experts_of_like_load(lm: LanguageModel) -> None:
    found = effect(lm, texts(8, 2), LAYER, [7], label="shape", how="reroute")
    assert found["over_random"].null_count() == found["random_difference"].null_count() == len(found)
    assert found["matched_experts"].to_list()[0] > 0
    tested = found.filter(pl.col("q_value").is_not_null())
    assert not tested.is_empty()
    assert "at random" not in effect_sentence(found, how="reroute")
    figure = effect_heatmap(found, LAYER)
    assert "for other experts of half to twice the load" in figure.layout.title.subtitle.text


def test_nothing_is_left_behind_in_the_model(lm: LanguageModel) -> None:
    before = lm.model(torch.arange(3, 40)[None]).logits
    effect(lm, texts(5, 1), LAYER, [0], label="shape", how="reroute")
    assert torch.equal(lm.model(torch.arange(3, 40)[None]).logits, before)
    assert not any("forward" in module.__dict__ or module._forward_hooks for module in lm.model.modules())
