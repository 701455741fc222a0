"""What switching experts off does to the surprisal of each single token, for a reader who wants to see it in the text.

One forward with the experts and one without, from the changed layer upward. It does not know intervals or controls: of
one token nothing can be said with confidence (measuring.py does that for the tokens of a label).
"""

from __future__ import annotations

import math
import tempfile
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.corpus import Input
from moe_probe.effects.batches import Batches
from moe_probe.effects.measuring import PHASE
from moe_probe.effects.passes import How, Pass, changed_pass, check_prefix, plain_pass
from moe_probe.effects.prefix import Kept, find_layers
from moe_probe.errors import MoeProbeError
from moe_probe.intervening.places import check_experts, find_place
from moe_probe.models import LanguageModel
from moe_probe.recording.routers import find_routers
from moe_probe.store import Run
from moe_probe.tracing import trace
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.forward import check_head
from moe_probe.tracing.job import n_embeddings
from moe_probe.watching import Cancelled, OnProgress, Watch

_WITHIN = 0.95
_ROUND = (1, 2, 5, 10)
_LEAST_BOUND = 0.01


def token_changes(
    lm: LanguageModel,
    documents: Input | Iterable[Input],
    layer: int,
    experts: Sequence[int],
    *,
    how: How = "ablate",
    labels: Sequence[str] = (),
    language: str | None = None,
    context: int | None = None,
    max_tokens: int | None = None,
    batch_tokens: int = 2_048,
    on_progress: OnProgress | None = None,
    cancel: threading.Event | None = None,
) -> pl.DataFrame:
    """Return by how many bits each token is foretold worse once experts of a layer are switched off.

    A change is of the token that is foretold. What was switched off acted on the tokens before it.

    Args:
        lm: from `load`.
        documents: as for `trace`.
        layer: the transformer block; it must have one router.
        experts: the experts' indices; they are switched off together.
        how: "ablate" sets weights to zero; "reroute" sends tokens to the next best expert.
        labels: label sets to give beside the tokens.
        language: of documents that do not say theirs.
        context: tokens in a window.
        max_tokens: tokens of text to take.
        batch_tokens: tokens in a batch.
        on_progress: called after each forward.
        cancel: once set, tokens that were not measured yet have no numbers.

    Returns:
        A row a token in the order of the text: document (its name), position (within the document), token (the
        vocabulary's piece), text, a column for each label set, surprisal_bits (with all experts), change_bits (without
        the experts, less that). Null for a token with none before it in its window.

    Raises:
        BadInputError: an argument or input cannot be used.
        MoeProbeError: cancelled before the text was traced.
        UnsupportedModelError: the model cannot be measured in this way.

    Example:
        >>> from moe_probe import Document, load
        >>> lm = load("tiny-mixtral", device_map="cpu")
        >>> frame = token_changes(lm, [Document("a", "One and two.")], layer=3, experts=[0, 1])
        >>> "".join(frame["text"]), frame.columns[-2:]
        ('One and two.', ['surprisal_bits', 'change_bits'])
    """
    check_head(lm)
    site = find_place(lm.model, layer, None)
    one = Pass(site.router.index, layer, check_experts(site, experts))
    cancel = cancel or threading.Event()
    with tempfile.TemporaryDirectory(prefix="moe-probe-") as scratch:
        run = trace(
            lm,
            documents,
            Path(scratch) / "run",
            labels=labels,
            language=language,
            context=context,
            max_tokens=max_tokens,
            on_progress=on_progress,
            cancel=cancel,
        )
        if not run.complete:
            raise MoeProbeError("cancelled while the text was being traced; nothing is measured yet")
        plain, change = _measure(lm, run, one, how, batch_tokens, Watch(on_progress, cancel))
        return _frame(run, labels, plain, change)


def change_bound(frame: pl.DataFrame) -> float:
    """Return where a scale of changes that is centred on 0 should end, in bits: a round number that 95 % lie within.

    Args:
        frame: from `token_changes`.

    Example:
        >>> change_bound(pl.DataFrame({"change_bits": [0.3, -0.04, None]}))
        0.5
    """
    within = frame["change_bits"].abs().quantile(_WITHIN, interpolation="higher")
    if within is None or within <= _LEAST_BOUND:
        return _LEAST_BOUND
    power = 10.0 ** math.floor(math.log10(within))
    return round(next(step * power for step in _ROUND if within <= step * power * (1 + 1e-9)), 10)


def most_changed(frame: pl.DataFrame) -> str:
    """Return the document whose tokens change most, up or down, in the mean.

    Args:
        frame: from `token_changes`.

    Example:
        >>> most_changed(pl.DataFrame({"document": ["a", "b", "b"], "change_bits": [0.3, -0.5, None]}))
        'b'
    """
    means = frame.group_by("document", maintain_order=True).agg(pl.col("change_bits").abs().mean())
    return str(means.sort("change_bits", descending=True, nulls_last=True, maintain_order=True)["document"][0])


def _measure(
    lm: LanguageModel, run: Run, one: Pass, how: How, batch_tokens: int, watch: Watch
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the surprisal of every token of a run and its change, (tokens,) each, nan where it is not known."""
    batches = Batches(
        run, Encoder(lm.tokenizer, lm.name, n_embeddings(lm)).prefix, "phase", batch_tokens=batch_tokens, seed=0
    )  # the label is of no consequence here
    layers = find_layers(lm.model, find_routers(lm.model))
    plain = np.full(batches.n_tokens, np.nan)
    change = np.full(batches.n_tokens, np.nan)
    watch.begin(PHASE, 0, batches.n_tokens)
    done = 0
    try:
        for index in range(len(batches)):
            batch, kept = batches.batch(index), Kept()
            before = plain_pass(lm, batch, layers, kept)
            if index == 0:
                check_prefix(lm, batch, layers, kept, before, [one.layer])
            after = changed_pass(lm, batch, layers, kept, one, how=how, seed=())
            plain[batch.rows] = before
            change[batch.rows] = after.astype(np.float64) - before
            done += len(batch.rows)
            watch.step(done)
    except Cancelled:
        pass  # what is measured is whole
    return plain, change


def _frame(run: Run, labels: Sequence[str], plain: NDArray[np.float64], change: NDArray[np.float64]) -> pl.DataFrame:
    tokens = run.tokens(list(dict.fromkeys(["document", "position", "token", "text", *labels])))
    documents = run.documents()
    names = documents["name"].cast(pl.String)
    return tokens.with_columns(
        pl.col("document").replace_strict(documents["document"], names, return_dtype=pl.String),
        pl.col("token", "text", *labels).cast(pl.String),
        surprisal_bits=pl.Series(plain).fill_nan(None),
        change_bits=pl.Series(change).fill_nan(None),
    )
