"""Every expert and weight in a run equals what a forward of each block, written out by hand, uses.

While a run is traced, the inputs of each forward are noted; afterwards the very same inputs go through the hand-written
forward. Which window a line of a batch holds is found from its token ids, by cutting the documents by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import traced_models
from hand_forward import hand_forward

import moe_probe as mp
from moe_probe.corpus import Document
from moe_probe.models import LanguageModel
from moe_probe.tracing import trace

CONTEXT = 16
DOCUMENTS = [Document("long", traced_models.text(45, seed=1))] + [
    Document(f"short {n}", traced_models.text(1 + n % 3, seed=10 + n)) for n in range(14)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def load(architecture: str, quantization: str | None, folders: Path) -> LanguageModel:
    if architecture == "tiny-mixtral":
        return mp.load("tiny-mixtral", quantization=quantization, device_map="cpu")
    return traced_models.language_model(folders / architecture, architecture, quantization)


def windows_by_hand(lm: LanguageModel) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return for each window, with <s> before it, the document and the position that it starts at."""
    windows = {}
    for number, document in enumerate(DOCUMENTS):
        ids = lm.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids), CONTEXT - 1):
            windows[(lm.tokenizer.bos_token_id, *ids[start : start + CONTEXT - 1])] = (number, start)
    return windows


def trace_and_note(lm: LanguageModel, out: Path, batch_tokens: int) -> tuple[mp.Run, list[dict[str, Any]]]:
    """Return a run and the inputs of every forward that made it."""
    noted: list[dict[str, Any]] = []
    handle = lm.model.base_model.register_forward_pre_hook(lambda _, args, given: noted.append(given), with_kwargs=True)
    try:
        run = trace(lm, DOCUMENTS, out, labels=(), context=CONTEXT, batch_tokens=batch_tokens)
    finally:
        handle.remove()
    return run, noted


@pytest.mark.parametrize("quantization", [None, "8bit", "4bit"])
@pytest.mark.parametrize("architecture", [*tiny_models.ARCHITECTURES, "tiny-mixtral"])
def test_a_run_holds_what_a_hand_written_forward_uses(architecture, quantization, folders, tmp_path):
    lm = load(architecture, quantization, folders)
    windows = windows_by_hand(lm)
    for batch, batch_tokens in ((1, 1), (16, 16 * CONTEXT)):
        run, noted = trace_and_note(lm, tmp_path / str(batch), batch_tokens)
        assert max(len(given["input_ids"]) for given in noted) == batch
        tokens = run.tokens(["document", "position"])
        row_of = {place: row for row, place in enumerate(tokens.iter_rows())}
        assert len(row_of) == run.n_tokens == sum(len(window) - 1 for window in windows)
        found = [(run.experts(router=r), run.weights(router=r), run.entropy(router=r)) for r in range(len(run.routers))]
        unseen = set(windows)
        for given in noted:
            with torch.inference_mode():
                decided = hand_forward(lm.model, lambda given=given: lm.model.base_model(**given), outputs=False)
            mask = given["attention_mask"]
            lengths = (
                mask.sum(1).tolist() if mask is not None else [given["input_ids"].shape[1]] * len(given["input_ids"])
            )
            rows, flat = [], []  # of the run, and of the forward
            for line, length in enumerate(lengths):
                window = tuple(given["input_ids"][line, :length].tolist())
                unseen.discard(window)
                document, start = windows[window]
                rows += [row_of[document, start + place] for place in range(length - 1)]
                flat += [line * given["input_ids"].shape[1] + 1 + place for place in range(length - 1)]
            assert [one.layer for one in decided] == [router.layer for router in run.routers]
            for one, (experts, weights, entropy) in zip(decided, found, strict=True):
                sure = ~one.tied[flat]
                assert sure.mean() > 0.9
                np.testing.assert_array_equal(experts[rows][sure], one.experts[flat][sure])
                np.testing.assert_allclose(weights[rows][sure], one.weights[flat][sure], rtol=2**-10, atol=2**-24)
                if entropy is not None:
                    np.testing.assert_allclose(entropy[rows], one.entropy[flat], rtol=2**-9, atol=2**-8)
        assert not unseen
