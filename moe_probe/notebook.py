"""What a notebook shows of a run, a document or a recording, offline: the explorer's own text view in a frame.

    run                                   a card: model, corpus, routers, labels
    run.document(0)                       the text, each token in the colour of its expert; all layers
    recording.routing()                   the same of a recording; it has no texts, so that positions stand for them
    show(recording.routing(), tokens=…)   with the tokens' texts
    show(run.document(0), layer=3, focus=[5])

The frame may run its own script and nothing else: it has no access to the notebook, and its page asks the network for
nothing. Tables need nothing of all this: they are Polars frames, and charts (`moe_probe.charts`) are plotly figures.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
import polars as pl

from moe_probe.errors import BadInputError
from moe_probe.schema import Router
from moe_probe.store import Run
from moe_probe.store.columns import Floats, Ints
from moe_probe.store.document import DocumentRouting
from moe_probe.tokenview import PackableDocument
from moe_probe.tokenview.page import standalone

if TYPE_CHECKING:
    from moe_probe.recording import Routing

HEIGHT = 620
"""Pixels of a frame."""

MOST_ASSIGNMENTS = 320_000
"""How much of a long document is shown, counted in slots of all routers: 5,000 tokens of 32 layers with 2 slots."""


@dataclass(frozen=True)
class Shown:
    """Something that a notebook shows: `html` as it is."""

    html: str = field(repr=False)

    def _repr_html_(self) -> str:
        return self.html


def show(
    value: DocumentRouting | Routing,
    *,
    tokens: Sequence[str] | None = None,
    layer: int | None = None,
    focus: Sequence[int] = (),
) -> Shown:
    """Return the text view of a document or a recording, for the last line of a notebook's cell.

    Args:
        value: from `run.document(0)` or `recording.routing()`.
        tokens: a recording's texts, one a row of it, such as `[lm.tokenizer.decode(id) for id in ids[0]]`.
        layer: the layer that is shown first; None = the first there is.
        focus: experts that are focused at first, at most eight.

    Raises:
        BadInputError: `tokens` are given for a document, which has its own, or are not one a row; or there is no such
            layer or expert.
    """
    if _is_recording(value):
        return Shown(_frame(_RecordedText(value, tokens), layer, focus))
    if not isinstance(value, DocumentRouting):
        raise BadInputError(f"{type(value).__name__}: only a document or a recording has a text view")
    if tokens is not None:
        raise BadInputError(f"document {value.name!r} has its own tokens; show it without tokens=")
    return Shown(_frame(value, layer, focus))


def picture(value: object) -> str:
    """Return what a notebook shows of a run, a document or a recording, as HTML.

    Raises:
        BadInputError: it is none of these.
    """
    if isinstance(value, Run):
        return _card(value)
    if isinstance(value, DocumentRouting) or _is_recording(value):
        return show(value).html
    raise BadInputError(f"{type(value).__name__}: only a run, a document or a recording has a picture")


def _is_recording(value: object) -> TypeGuard[Routing]:
    """Say whether a value is a `Routing`, without importing its package, which needs torch."""
    return type(value).__module__ == "moe_probe.recording.routing" and type(value).__name__ == "Routing"


@dataclass(frozen=True)
class _RecordedText:
    """A recording as a document: its tokens' texts, or where none are known their positions."""

    routing: Routing
    given: Sequence[str] | None
    name: str = "recording"

    def __post_init__(self) -> None:
        if self.given is not None and len(self.given) != self.routing.n_tokens:
            raise BadInputError(
                f"tokens: {len(self.given)} for {self.routing.n_tokens} recorded rows; give one a row, without padding"
            )

    @property
    def tokens(self) -> pl.DataFrame:
        """A row a recorded token."""
        sequences, positions = self.routing.sequences, self.routing.positions
        first = np.r_[True, sequences[1:] != sequences[:-1]] if len(sequences) else np.zeros(0, bool)
        texts = list(self.given) if self.given is not None else [f" {position}" for position in positions.tolist()]
        ends = [*first[1:].tolist(), False]
        return pl.DataFrame(
            {
                "position": np.arange(self.routing.n_tokens),
                "token": texts,
                # A sequence begins on a line of its own.
                "text": [text + "\n" if end else text for text, end in zip(texts, ends, strict=False)],
                "sequence": [str(sequence) for sequence in sequences.tolist()],
                "place": [str(position) for position in positions.tolist()],
            }
        )

    @property
    def routers(self) -> Sequence[Router]:
        """The recording's routers."""
        return self.routing.routers

    def experts(self, *, router: int) -> Ints:
        """Return the experts of a router, (tokens, slots)."""
        return self.routing.experts(router)

    def weights(self, *, router: int) -> Floats:
        """Return the weights of a router, (tokens, slots)."""
        return self.routing.weights(router)

    def entropy(self, *, router: int) -> Floats | None:
        """Return the entropy of a router in bits, (tokens,), or None."""
        return self.routing.entropy(router)


def _frame(document: PackableDocument, layer: int | None, focus: Sequence[int]) -> str:
    n_tokens = document.tokens.height
    stop = min(n_tokens, max(1, MOST_ASSIGNMENTS // max(1, sum(router.n_slots for router in document.routers))))
    left = "" if stop == n_tokens else f"The first {stop:,} of {n_tokens:,} tokens; write_text_page writes all of them."
    page = standalone(document, layer=layer, focus=focus, lead=left, stop=stop, files=False)
    return (
        f'<iframe title="{html.escape(document.name)}, tokens coloured by expert" sandbox="allow-scripts" '
        f'style="width:100%;height:{HEIGHT}px;border:0" srcdoc="{html.escape(page)}"></iframe>'
    )


def _card(run: Run) -> str:
    from moe_probe.info import run_facts  # it counts, too, and what counts takes long to import

    facts = run_facts(run) | ({"warnings": "; ".join(run.warnings)} if run.warnings else {})
    rows = "".join(
        f'<tr><th style="text-align:left">{name}</th><td style="text-align:left">{html.escape(value)}</td></tr>'
        for name, value in facts.items()
    )
    return f"<table><caption>Run {html.escape(str(run.path.name))}</caption><tbody>{rows}</tbody></table>"
