"""Documents for runs that hold counts only: gold tags, domains, and a label that too few of them have."""

from __future__ import annotations

import random
import re

import traced_models

from moe_probe.corpus import Document

LABELS = ("upos", "shape", "domain", "kind")
OPTIONS = {"labels": LABELS, "context": 64, "shard_rows": 250, "batch_tokens": 512}


def documents(n: int = 12, *, n_words: int = 40) -> list[Document]:
    """Return texts of which two thirds have gold tags, and three a kind."""
    draw = random.Random(7)
    made = []
    for number in range(n):
        text = traced_models.text(n_words + 9 * (number % 5), seed=number)
        words = [match.span() for match in re.finditer(r"\S+", text)]
        labels: dict[str, object] = {}
        if number % 3:
            labels["upos"] = [(start, end, draw.choice(["NOUN", "VERB", "PUNCT"])) for start, end in words]
        if number < 3:
            labels["kind"] = "rare"
        made.append(Document(f"d{number}", text, domain="ab"[number % 2], language="la", labels=labels))
    return made
