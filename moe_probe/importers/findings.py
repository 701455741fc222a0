"""What was found wrong in a trace, counted, and said in sentences for the run's warnings.

It does not know how anything is found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SENTENCES = {
    "unrecorded": (
        "{count:,} of {rows:,} tokens have no expert in any layer (the file says -1, as for a prompt prefix that came"
        " out of a cache) and are left out"
    ),
    "ragged": "{count:,} of {rows:,} tokens lack experts in some layers (ragged layers or lost rows) and are left out",
    "twice": "{count:,} of {rows:,} tokens have an expert twice in one layer, which no router does, and are left out",
    "blank": (
        "{count:,} of {rows:,} tokens are of documents in which a layer holds nothing but zeros or -1, though it has"
        " experts in others, and are left out"
    ),
    "last": "{count:,} document(s) have one token more than rows of experts: the last token never ran, and is left out",
    "gaps": "{count:,} token(s) are missing between the first and the last of their documents",
    "late": "{count:,} document(s) do not begin at their first token",
    "dropped": "{count:,} slot(s) hold no expert and count as dropped",
    "unsorted": "{count:,} row(s) had their experts not in the order of their weights, and were sorted",
    "negative": "{count:,} weight(s) are negative",
    "weightless": "{count:,} row(s) have no weight but 0",
    "constant": (
        "{count:,} token(s) are in stretches where the experts of every layer stay the same (warm-up rows?); they are"
        " kept"
    ),
    "zeros": "{count:,} time(s) a layer has expert 0 for every token of a document; is that layer recorded?",
    "unchecked": "{count:,} document(s) do not say how many tokens they have, so that lost rows cannot be noticed",
    "retold": (
        "{count:,} document(s) have tokens that do not add up to the text beside them; the text of the tokens is used"
    ),
    "decoding": (
        "{count:,} pass(es) generated one token for each of several texts, which the file does not tell apart; each"
        " pass is a document"
    ),
}


@dataclass
class _Count:
    count: int = 0
    where: str = ""


class Findings:
    """Counts of what was found, by kind, with the first place of each."""

    def __init__(self) -> None:
        """Start with nothing found."""
        self.rows = 0
        self._counts: dict[str, _Count] = {}
        self._said: dict[str, None] = {}

    def add(self, kind: str, count: int | np.integer, where: str) -> None:
        """Count something; nothing if `count` is 0."""
        if count:
            found = self._counts.setdefault(kind, _Count(0, where))
            found.count += int(count)

    def say(self, sentence: str) -> None:
        """Add a sentence once."""
        self._said[sentence] = None

    def count(self, kind: str) -> int:
        """Return how often something was found."""
        return self._counts[kind].count if kind in self._counts else 0

    def sentences(self) -> list[str]:
        """Return all that was found, a sentence each, in the order of the kinds."""
        counted = [
            f"{text.format(count=self._counts[kind].count, rows=self.rows)} (first in {self._counts[kind].where})"
            for kind, text in _SENTENCES.items()
            if kind in self._counts
        ]
        return [*counted, *self._said]
