"""A model that never looks to the right is spared the mask of padding there, and no other one is."""

from __future__ import annotations

import pytest
import tiny_models
import torch
import traced_models
from torch import nn
from traced_models import files_of

from moe_probe.corpus import Document
from moe_probe.models import LanguageModel, load
from moe_probe.recording import survey
from moe_probe.recording.architectures import build
from moe_probe.tracing import forward, trace
from moe_probe.tracing.causal import looks_ahead, without_mask

CPU = torch.device("cpu")
LOOK_AHEAD = {"doge", "openai_privacy_filter"}
LOOK_AHEAD |= {"nllb-moe", "switch_transformers"}  # encoders and decoders, which cannot be tried
OPTIONS = {"labels": (), "context": 32, "shard_rows": 200, "batch_tokens": 128}


class Mean(nn.Module):
    """Adds to each token a share of a mean of the embeddings: of all tokens, or of those up to it."""

    def __init__(self, *, ahead: bool, share: float = 1.0) -> None:
        super().__init__()
        self.embed, self.ahead, self.share = nn.Embedding(2, 4), ahead, share

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, attention_mask: object = None, use_cache: bool = True
    ) -> tuple[torch.Tensor]:
        self.seen = attention_mask
        embedded = self.embed(input_ids)
        means = embedded.mean(1, keepdim=True) if self.ahead else embedded.cumsum(1) / (position_ids[..., None] + 1)
        return (embedded + self.share * means,)


@pytest.mark.parametrize("share", [1.0, 0.02])
def test_whether_a_model_looks_ahead_is_seen_from_what_it_does(share):
    assert looks_ahead(Mean(ahead=True, share=share), CPU)
    assert not looks_ahead(Mean(ahead=False, share=share), CPU)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_model_of_which_nothing_can_be_told_keeps_its_mask(value):
    model = Mean(ahead=False)
    nn.init.constant_(model.embed.weight, value)
    assert looks_ahead(model, CPU)


def test_a_model_that_cannot_be_tried_keeps_its_mask():
    assert looks_ahead(nn.Linear(2, 2), CPU)


@pytest.mark.parametrize("model_type", survey.find_text_architectures())
def test_padding_on_the_right_changes_nothing_in_a_model_that_does_not_look_ahead(model_type):
    decoder = build(model_type).eval().base_model
    if looks_ahead(decoder, CPU):
        assert model_type in LOOK_AHEAD
        return
    lengths = [12, 7, 3]
    ids = torch.randint(2, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    places = torch.arange(12).expand_as(ids)
    with torch.inference_mode():
        together = decoder(input_ids=ids, position_ids=places, use_cache=False)[0]
        for line, length in enumerate(lengths):
            alone = {"input_ids": ids[line : line + 1, :length], "position_ids": places[:1, :length]}
            expected = decoder(**alone, use_cache=False)[0][0]
            assert (together[line, :length] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("architecture", tiny_models.ARCHITECTURES)
def test_no_decoder_looks_ahead(architecture, tmp_path):
    lm = load(tiny_models.save(architecture, tmp_path / "model"), device_map="cpu")
    assert not looks_ahead(forward.decoder(lm), lm.device)


def test_hooks_that_were_there_before_see_the_mask_and_the_model_does_not():
    model, seen = Mean(ahead=False), []
    model.register_forward_pre_hook(lambda _, args, given: seen.append(given["attention_mask"]), with_kwargs=True)
    ids = torch.zeros(1, 3, dtype=torch.int64)
    asked = {"input_ids": ids, "position_ids": ids, "attention_mask": ids}
    with without_mask(model):
        model(**asked)
        assert model.seen is None
    model(**asked)
    assert model.seen is ids
    assert [mask is ids for mask in seen] == [True, True]


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return load(traced_models.save(tmp_path_factory.mktemp("model")), device_map="cpu")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return [Document(f"d{number}", traced_models.text(8 + 7 * number, seed=number)) for number in range(6)]


def masks_seen(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note of each forward that the model computes whether it was given a mask."""
    inner, given = forward.decoder(lm), []
    compute = inner.forward

    def watched(*args, **kwargs):
        given.append(kwargs.get("attention_mask") is not None)
        return compute(*args, **kwargs)

    monkeypatch.setattr(inner, "forward", watched)
    return given


def test_a_trace_gives_no_mask_to_a_decoder_and_writes_what_it_wrote_with_one(lm, documents, tmp_path, monkeypatch):
    given = masks_seen(lm, monkeypatch)
    spared = trace(lm, documents, tmp_path / "spared", **OPTIONS)
    assert len(given) > 2
    assert not any(given)
    given.clear()
    monkeypatch.setattr(forward, "looks_ahead", lambda *_: True)
    masked = trace(lm, documents, tmp_path / "masked", **OPTIONS)
    assert any(given)
    # In this model, whose heads are small, both ways of attention round alike.
    assert files_of(spared.path) == files_of(masked.path)


class Around(nn.Module):
    """A model around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **given: object) -> object:
        return self.inner(**given)


def test_a_model_within_the_one_that_is_called_keeps_its_mask(lm, documents, tmp_path, monkeypatch):
    given = masks_seen(lm, monkeypatch)
    around = Around(forward.decoder(lm))
    monkeypatch.setattr(forward, "decoder", lambda _: around)
    trace(lm, documents, tmp_path / "run", **OPTIONS)
    assert any(given)
