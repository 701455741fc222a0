"""Snippets: tokens that an expert was given, in their context, for a reader to judge a name by.

Which tokens are shown is drawn by a hash of their places and the expert, not chosen for how well they fit. It does not
know how an expert got its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.schema import SINK_POSITIONS

if TYPE_CHECKING:
    from moe_probe.counts import TokenRows
    from moe_probe.schema import Router

OPEN, CLOSE = "⟦", "⟧"
BETWEEN = " ‖ "
"""What stands between two snippets of one expert."""

CONTEXT_CHARACTERS = 40
_MOST = 3
_LOOKED_AT = 64
_NULL, _NOWHERE, _ANY = -1, -2, -3  # instead of a value's number
_SHOWN_SPACE = {" ": "␣", "\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class Wanted:
    """The tokens that are to be shown for one expert: those with a label's value, of one domain or (None) of any."""

    label_set: str
    label: str
    domain: str | None = None


class Snippets:
    """Draws snippets from some rows of a run."""

    def __init__(self, rows: TokenRows) -> None:
        """Take rows that hold `text` and every label set that will be asked for."""
        self._rows = rows
        frame = rows.frame
        self._texts: list[str] = frame["text"].to_list()
        self._ids = frame["token_id"].to_numpy()
        self._documents = frame["document"].to_numpy()
        self._positions = frame["position"].to_numpy()
        self._beyond_sinks = frame["window_position"].to_numpy() >= SINK_POSITIONS
        self._codes: dict[str, tuple[dict[str, int], NDArray[np.int64]]] = {}

    def of(self, router: Router, wanted: dict[int, Wanted]) -> dict[int, list[str]]:
        """Return up to three snippets for each expert of a router that something is wanted for.

        They are of different documents and token types where there are, and in the order of the hash.
        """
        if not wanted:
            return {}
        experts = self._rows.experts(router)  # (rows, slots)
        found: dict[int, list[str]] = {}
        for label_set in dict.fromkeys(one.label_set for one in wanted.values()):
            asked = {expert: one for expert, one in wanted.items() if one.label_set == label_set}
            for expert, places in self._places(experts, label_set, asked, router):
                found[expert] = [self.at(place) for place in self._varied(places)]
        return found

    def _places(
        self, experts: NDArray[np.int32], label_set: str, asked: dict[int, Wanted], router: Router
    ) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield each expert with the rows that were given to it and are wanted, in the order of their hashes."""
        numbers, codes = self._coded(label_set)
        domain_numbers, domains = self._coded("domain_of_document")
        of_expert = np.full((2, router.n_experts), _NOWHERE)
        for expert, one in asked.items():
            domain = _ANY if one.domain is None else domain_numbers.get(one.domain, _NOWHERE)
            of_expert[:, expert] = numbers.get(one.label, _NOWHERE), domain
        hits = []
        for held in experts.T:
            label, domain = of_expert[:, held]  # a dropped slot is the last expert's here, and left out below
            fits = (label == codes) & ((domain == _ANY) | (domain == domains)) & (held >= 0)
            places = np.flatnonzero(fits & self._beyond_sinks)
            hits.append(np.stack([held[places].astype(np.int64), places]))
        found, places = np.concatenate(hits, axis=1)
        hashes = _hashes(self._documents[places], self._positions[places], found * (router.index + 1))
        order = np.lexsort((hashes, found))
        found, places = found[order], places[order]
        bounds = [0, *(np.flatnonzero(np.diff(found)) + 1).tolist(), len(found)]
        for first, last in pairwise(bounds):
            if first < last:
                yield int(found[first]), places[first:last]

    def _coded(self, column: str) -> tuple[dict[str, int], NDArray[np.int64]]:
        """Return a number for each value of a column, and each row's number."""
        if column not in self._codes:
            values = self._rows.frame[column].cast(pl.String)
            names = values.drop_nulls().unique().sort()
            codes = values.cast(pl.Enum(names)).to_physical().cast(pl.Int64).fill_null(_NULL)
            self._codes[column] = ({name: number for number, name in enumerate(names)}, codes.to_numpy())
        return self._codes[column]

    def _varied(self, places: NDArray[np.int64]) -> list[int]:
        """Choose up to three rows: first those of documents and types not shown yet, in the order given."""
        looked_at = places[:_LOOKED_AT].tolist()
        chosen: list[int] = []
        for strict in (True, False):
            for place in looked_at:
                documents = {self._documents[one] for one in chosen}
                types = {self._ids[one] for one in chosen}
                new = self._documents[place] not in documents and self._ids[place] not in types
                if len(chosen) < _MOST and place not in chosen and (new or not strict):
                    chosen.append(place)
        return sorted(chosen, key=looked_at.index)

    def at(self, place: int) -> str:
        """Return the token of one of the rows in its context, on one line and within its document."""
        document = self._documents[place]
        before = self._context(place, -1, document)
        after = self._context(place, 1, document)
        text = self._texts[place]
        core = text.strip()
        left = before + text[: len(text) - len(text.lstrip())] if core else before
        right = text[len(text.rstrip()) :] + after if core else after
        shown = core or "".join(_SHOWN_SPACE.get(character, "␣") for character in text)
        return f"{_plain(left)}{OPEN}{_plain(shown)}{CLOSE}{_plain(right)}".strip()

    def _context(self, place: int, step: int, document: int) -> str:
        """Return the text on one side of a token, as far as it is needed, with `…` where there is more of it."""
        parts: list[str] = []
        length = 0
        place += step
        while 0 <= place < len(self._texts) and self._documents[place] == document:
            if length >= CONTEXT_CHARACTERS:
                parts.append("…")
                break
            parts.append(self._texts[place])
            length += len(self._texts[place])
            place += step
        return "".join(parts if step > 0 else parts[::-1])


def shown_token(text: str) -> str:
    r"""Return a token's text as one word: without the spaces around it, and with those inside it made visible.

    Example:
        >>> shown_token(" the"), shown_token("\n"), shown_token("a b")
        ('the', '⏎', 'a␣b')
    """
    return "".join(_SHOWN_SPACE.get(character, character) for character in text.strip() or text)


def _plain(text: str) -> str:
    """Return a text on one line, whose own marks cannot be taken for ours."""
    kept = text.translate({ord(OPEN): "[", ord(CLOSE): "]", ord(BETWEEN.strip()): "|"})
    edges = (" " if kept[:1].isspace() else "", " " if kept[-1:].isspace() and kept.strip() else "")
    return edges[0] + " ".join(kept.split()) + edges[1]


def _hashes(*numbers: NDArray[np.integer]) -> NDArray[np.uint64]:
    """Return a number for each place and expert, the same on every machine (the finaliser of splitmix64)."""
    mixed = np.zeros(numbers[0].shape, np.uint64)
    for part in numbers:
        mixed = mixed + part.astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def join_snippets(snippets: Sequence[str]) -> str | None:
    """Return the snippets of one expert as one string, None if there are none."""
    return BETWEEN.join(snippets) or None
