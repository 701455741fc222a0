"""What a trace will take, told before it begins: the memory of the model, the tokens of the text, and about how long.

The time is not guessed: the first tokens of the text are traced, labels and all, into a folder that is thrown away.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import moe_probe as mp
from moe_probe.errors import BadInputError
from moe_probe_app.components.desk import Desk, Request

if TYPE_CHECKING:
    from moe_probe.models import LanguageModel

TIMED_TOKENS = (256, 1_024)
"""What is traced to time it: two sizes, so that what each token takes is told from what every trace takes once."""


@dataclass(frozen=True)
class Estimate:
    """What a trace takes: tokens of the text, about how many seconds, and bytes of memory."""

    n_tokens: int
    seconds: float
    model_bytes: int
    free_bytes: int
    device: str

    def text(self) -> str:
        """Return the same in words, for a reader who decides whether to wait.

        Example:
            >>> Estimate(12_345, 130.0, 8_100_000, 5_000_000_000, "cpu").text()
            '12,345 tokens, about 2 minutes. The model takes 0.008 GB on cpu, where 5.0 GB more are free.'
        """
        about = "a few seconds" if self.seconds < 5 else f"about {self.seconds:.0f} seconds"
        if self.seconds >= 100:
            minutes = self.seconds / 60
            about = f"about {minutes:.0f} minutes" if minutes < 90 else f"about {minutes / 60:.1f} hours"
        takes = f"{self.model_bytes / 1e9:.{1 if self.model_bytes > 5e7 else 3}f} GB"
        return (
            f"{self.n_tokens:,} tokens, {about}. The model takes {takes} on {self.device}, where "
            f"{self.free_bytes / 1e9:.1f} GB more are free."
        )


def ask(desk: Desk, request: Request) -> Future[Estimate]:
    """Queue an estimate. A model that does not fit is refused by it, before a weight is read."""
    return desk.queue(lambda: estimate(desk.model(request.model, request.quantization), request))


def estimate(language_model: LanguageModel, request: Request) -> Estimate:
    """Count the tokens of a request, and time its first ones.

    Raises:
        BadInputError: the documents hold no token, or a label cannot be given.
    """
    # Imported here: what needs torch must not keep the page from opening.
    from moe_probe.models.fit import free_bytes
    from moe_probe.tracing.encoding import Encoder
    from moe_probe.tracing.job import n_embeddings

    encoder = Encoder(language_model.tokenizer, language_model.name, n_embeddings(language_model))
    n_tokens = sum(one.n_tokens for group in encoder.encode(request.documents) for one in group)
    if not n_tokens:
        raise BadInputError("the text holds no token; give another one")
    few, many = (min(n_tokens, tokens) for tokens in TIMED_TOKENS)
    _time(language_model, request, few)  # the tagger and the kernels warm up
    seconds = _extrapolated(
        n_tokens, (few, _time(language_model, request, few)), (many, _time(language_model, request, many))
    )
    model_bytes = sum(int(row["bytes"]) for row in language_model.precision_rows())
    free = free_bytes(language_model.device)
    return Estimate(n_tokens, seconds, model_bytes, free, str(language_model.device))


def _extrapolated(n_tokens: int, first: tuple[int, float], second: tuple[int, float]) -> float:
    """Return the seconds of a trace from those of two short ones, each (tokens, seconds).

    Where the longer one was not slower, its time is taken to grow with the tokens: rather too long than too short.

    Example:
        >>> _extrapolated(10_000, (256, 1.5), (1_024, 3.0)), _extrapolated(10_000, (256, 3.0), (1_000, 2.0))
        (20.53125, 20.0)
    """
    (few, short), (many, long) = first, second
    if few >= many or long <= short:
        return long * n_tokens / many
    return long + (n_tokens - many) * (long - short) / (many - few)


def _time(language_model: LanguageModel, request: Request, max_tokens: int) -> float:
    with tempfile.TemporaryDirectory(prefix="moe-probe-") as folder:
        began = time.perf_counter()
        out = Path(folder) / "timed"
        mp.trace(language_model, request.documents, out, labels=request.labels, max_tokens=max_tokens)
        return time.perf_counter() - began
