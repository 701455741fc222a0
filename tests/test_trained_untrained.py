"""The bundled model beside itself before training, on English that comes with every Python."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import polars as pl
import pytest
import torch

import moe_probe as mp
from moe_probe_data import MODEL
from moe_probe_data.train_tiny_mixtral import Recipe, new_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, mp.Run]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    new_model(Recipe(steps=1)).save_pretrained(folder / "model")
    mp.load(str(MODEL)).tokenizer.save_pretrained(folder / "model")
    documents = [mp.Document(name, text, language="en") for name, text in sorted(topics.items()) if len(text) > 500]
    return {
        name: mp.trace(mp.load(str(model)), documents, folder / name, labels=("upos",), max_tokens=20_000, context=256)
        for name, model in (("trained", Path(MODEL)), ("untrained", folder / "model"))
    }


def test_the_trained_router_knows_syntax_and_the_untrained_one_none(runs: dict[str, mp.Run]) -> None:
    cells = {name: mp.label_table(run, "upos").filter(slot="0") for name, run in runs.items()}
    by_layer = cells["trained"].group_by("layer").agg((pl.col("verdict") == "specialised").sum().alias("specialised"))
    assert (by_layer["specialised"] > 0).sum() >= 4
    assert cells["untrained"].filter(verdict="specialised").is_empty()
    assert (cells["untrained"]["q_value"] < 0.05).sum() > 20  # documents alone would have believed it


def test_only_the_trained_router_foretells_unseen_words(runs: dict[str, mp.Run]) -> None:
    trained, untrained = (mp.specialisation(runs[name], "upos").sort("layer") for name in ("trained", "untrained"))
    assert (trained["held_out_ci_low"] > 0).sum() >= 4
    assert (untrained["held_out_ci_low"] <= 0).all()
    assert (untrained["mutual_information_bits"] > 0.05).any()  # by occurrence it would have seemed to
