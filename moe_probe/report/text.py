"""The run's own text, three times: coloured by the first choice of its first, its middle and its last router.

As Fig. 8 of Mixtral of Experts (arXiv 2401.04088). It is a picture of a few sentences, and measures nothing. It does
not know pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.palette import EXPERT_COLOURS, INK, expert_colours
from moe_probe.report.page import Part, shown
from moe_probe.schema import DROPPED, Router
from moe_probe.tokenview import is_indented, router_titles, three_routers

if TYPE_CHECKING:
    from moe_probe.store import Run

_LARGE = 200_000
"""Tokens above which a document is passed over for a shorter one of its domain: it is read whole, with all routers."""


@dataclass(frozen=True, eq=False)
class _Excerpt:
    """The beginning of a document: its name, its domain, the tokens' texts, and each pane's first choices."""

    name: str
    domain: str | None
    texts: list[str]
    choices: list[NDArray[np.int32]]


def coloured_text(run: Run, *, characters: int = 1500, most_documents: int = 4) -> Part:
    """Return the beginnings of a few documents, coloured by three routers side by side.

    Args:
        run: an open run.
        characters: about how many in all, shared out among the documents.
        most_documents: how many documents at most, each of another domain as far as there are as many.
    """
    panes = [run.routers[index] for index in three_routers(len(run.routers))]
    rows = choose_documents(run, most_documents)
    excerpts = [
        _excerpt(run, row, panes, share)
        for row, share in zip(rows, _shares([row["characters"] for row in rows], characters), strict=True)
    ]
    if not panes or not excerpts:
        return Part('<p class="quiet">Not enough data: the run has no tokens to show.</p>')
    titles = router_titles(run.routers)
    colours = [_colours(router, [excerpt.choices[pane] for excerpt in excerpts]) for pane, router in enumerate(panes)]
    heads = [
        f"<div><h3>{shown(titles[router.index])}</h3>{_legend(router, worn)}</div>"
        for router, worn in zip(panes, colours, strict=True)
    ]
    body = "".join(heads) + "".join(
        _row(excerpt, colours, [titles[router.index] for router in panes]) for excerpt in excerpts
    )
    style = "".join(
        f".c{number} {{ background: {colour}; color: {INK}; }}" for number, colour in enumerate(EXPERT_COLOURS)
    )
    return Part(f'<style>{style}</style><div class="panes" style="--panes:{len(panes)}">{body}</div>')


def choose_documents(run: Run, most: int) -> list[dict[str, Any]]:
    """Return documents to show, in the order of the run: the first of each domain, of the largest domains.

    Where there are fewer domains than places, further documents fill them.

    Args:
        run: an open run.
        most: how many.
    """
    documents = run.documents().filter(pl.col("tokens") > 0)
    if documents.is_empty():
        return []
    ranked = (
        documents.with_columns(
            large=pl.col("tokens") > _LARGE,
            size=pl.col("tokens").sum().over("domain"),
        )
        .sort("large", pl.when("large").then("tokens").otherwise(0), "document")
        .with_columns(place=pl.int_range(pl.len()).over("domain"))
        .sort("place", "large", -pl.col("size"), "document", maintain_order=True)
        .head(most)
    )
    return ranked.sort("document").select(documents.columns).to_dicts()


def _shares(lengths: Sequence[int], total: int) -> list[int]:
    """Share out characters evenly; what short documents leave goes to the others."""
    shares = [0] * len(lengths)
    left = total
    for rank, place in enumerate(sorted(range(len(lengths)), key=lengths.__getitem__)):
        shares[place] = min(lengths[place], left // (len(lengths) - rank))
        left -= shares[place]
    return shares


def _excerpt(run: Run, row: dict[str, Any], panes: Sequence[Router], characters: int) -> _Excerpt:
    document = run.document(int(row["document"]))
    texts = document.tokens["text"].to_list()
    ends = np.cumsum([len(text) for text in texts])
    # Whole tokens, and on to the end of a word or of what one character's bytes are split into.
    stop = int(np.searchsorted(ends, characters, side="left")) + 1
    while stop < len(texts) and (not texts[stop] or texts[stop][0].isalnum()):
        stop += 1
    choices = [document.experts(router=router.index)[:stop, 0] for router in panes]
    cut = ["…"] if stop < len(texts) else []
    return _Excerpt(row["name"], row["domain"], texts[:stop] + cut, choices)


def _colours(router: Router, choices: Sequence[NDArray[np.int32]]) -> dict[int, int]:
    """Return which of the eight colours each expert wears, by how often it is the first choice in what is shown."""
    chosen = np.concatenate(choices)
    loads = np.bincount(chosen[chosen != DROPPED], minlength=router.n_experts)
    place = {colour: number for number, colour in enumerate(EXPERT_COLOURS)}
    return {expert: place[colour] for expert, colour in expert_colours(loads.tolist()).items()}


def _legend(router: Router, worn: dict[int, int]) -> str:
    swatches = "".join(f'<span class="c{colour}">{expert}</span>' for expert, colour in sorted(worn.items()))
    others = router.n_experts - len(worn)
    rest = f" and {others:,} other experts, not coloured" if others else ""
    return f'<div class="swatches">{swatches}{rest}</div>'


def _row(excerpt: _Excerpt, colours: Sequence[dict[int, int]], titles: Sequence[str]) -> str:
    domain = f" · {excerpt.domain}" if excerpt.domain and not excerpt.name.startswith(excerpt.domain) else ""
    face = " indented" if is_indented("".join(excerpt.texts)) else ""
    panes = "".join(
        f'<div class="routed{face}" data-layer="{shown(title)}">{_spans(excerpt.texts, choices, worn)}</div>'
        for choices, worn, title in zip(excerpt.choices, colours, titles, strict=True)
    )
    return f"<h4><bdi>{shown(excerpt.name, 90)}</bdi><bdi>{shown(domain, 40)}</bdi></h4>{panes}"


def _spans(texts: Sequence[str], choices: NDArray[np.int32], worn: dict[int, int]) -> str:
    spans = [_span(text, int(expert), worn) for text, expert in zip(texts, choices, strict=False)]
    return "".join(spans) + "".join(shown(text) for text in texts[len(choices) :])


def _span(text: str, expert: int, worn: dict[int, int]) -> str:
    """Return a token as markup. The blank before a word has no colour: words then stand apart, their pieces do not."""
    blank, word = (" ", text[1:]) if len(text) > 1 and text[0] == " " and not text[1].isspace() else ("", text)
    # A later byte of a character has no text of its own, a line end no body: they get one, for they have an expert.
    lines = "↵" * word.count("\n") if word.strip("\r\n") == "" and word else ""
    seen = lines or "".join(piece if piece in "\n\t" else shown(piece) for piece in word) or "·"
    after = "\n" * word.count("\n") if lines else ""
    if expert == DROPPED:
        return f'{blank}<span class="dropped" title="dropped">{seen}</span>{after}'
    colour = f' class="c{worn[expert]}"' if expert in worn else ""
    return f'{blank}<span{colour} title="expert {expert}">{seen}</span>{after}'
