"""How long it will take to switch experts off, from one short forward on the very machine. It measures no effect."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moe_probe.corpus import Document
from moe_probe.effects.prefix import find_layers
from moe_probe.errors import BadInputError
from moe_probe.models import LanguageModel
from moe_probe.recording.routers import find_routers
from moe_probe.schema import Router
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.job import n_embeddings

_TIMED_TOKENS = 256
_WHOLE_FORWARDS = 4
"""`effect` and `token_changes` each trace the text, and run the whole model once more."""


@dataclass(frozen=True)
class Cost:
    """What the time depends on: tokens of text, seconds a token of one forward, and the model's layers."""

    n_tokens: int
    seconds_per_token: float
    n_layers: int

    def seconds(self, router: Router, n_chosen: int) -> float:
        """Return about how long `effect` and `token_changes` take together, for so many experts of a router.

        Each forward begins at the changed layer: every other expert by itself, the experts twice, the random control,
        and one that checks.

        Example:
            >>> router = Router(0, "layers.2.mlp", 2, 8, 2, "softmax top-k")
            >>> Cost(n_tokens=100, seconds_per_token=0.01, n_layers=4).seconds(router, n_chosen=1)
            9.5
        """
        above = (self.n_layers - router.layer) / self.n_layers
        forwards = _WHOLE_FORWARDS + above * (router.n_experts - n_chosen + 4)
        return self.n_tokens * self.seconds_per_token * forwards

    def text(self, router: Router, n_chosen: int) -> str:
        """Return the same in words, for a reader who decides whether to wait.

        Example:
            >>> router = Router(0, "layers.2.mlp", 2, 8, 2, "softmax top-k")
            >>> [Cost(tokens, 0.01, 4).text(router, 1) for tokens in (1, 100, 5_000, 200_000)]
            ['a second', '10 seconds', '8 minutes', '5.3 hours']
        """
        seconds = self.seconds(router, n_chosen)
        if seconds < 1.5:
            return "a second"
        if seconds < 100:
            return f"{math.ceil(seconds)} seconds"
        if seconds < 5_400:
            return f"{seconds / 60:.0f} minutes"
        return f"{seconds / 3_600:.1f} hours"


def measure_cost(lm: LanguageModel, documents: Sequence[Document]) -> Cost:
    """Count the tokens of documents, and time one forward of the first of them.

    Args:
        lm: from `load`.
        documents: the texts.

    Raises:
        BadInputError: the documents hold no token.
        UnsupportedModelError: the model's effects cannot be measured.
    """
    layers = find_layers(lm.model, find_routers(lm.model))
    encoder = Encoder(lm.tokenizer, lm.name, n_embeddings(lm))
    encoded = [one for group in encoder.encode(documents) for one in group]
    n_tokens = sum(one.n_tokens for one in encoded)
    if n_tokens == 0:
        raise BadInputError("the text holds no token; give another one")
    first = [int(token) for one in encoded for token in one.ids[:_TIMED_TOKENS]][: min(_TIMED_TOKENS, lm.context)]
    ids = torch.tensor([first], device=lm.device)
    seconds = min(_time(lm, ids) for _ in range(2))  # the first one warms up
    return Cost(n_tokens, seconds / len(first), len(layers))


def _time(lm: LanguageModel, ids: torch.Tensor) -> float:
    began = time.perf_counter()
    with torch.inference_mode():
        lm.model(input_ids=ids, use_cache=False).logits[0, -1, 0].item()  # waits for the device
    return time.perf_counter() - began
