"""Labels that documents bring along: `domain`, `language`, `phase`, gold tags, and any label of the user's own.

Such a label holds for a whole document (a string) or for stretches of it (spans of characters). A string is the value
of every token; with spans, a token has the value at its first visible character. What a document does not say is
`untagged`; special tokens are `special`.

It does not know where documents come from.
"""

from __future__ import annotations

from moe_probe.corpus import Document
from moe_probe.labels.align import Pieces, label_from_spans
from moe_probe.schema import SPECIAL, UNTAGGED

PROMPT = "prompt"
"""The phase of a text that was given to the model; whoever has a model write a text labels what it wrote."""


def label_as_given(document: Document, pieces: Pieces, name: str, *, word_level: bool = False) -> list[str]:
    """Return for each token the value of `document.labels[name]`.

    Args:
        document: the document.
        pieces: what its tokens own.
        name: the label's name.
        word_level: spans are words: later pieces are `continuation`, and white space is `whitespace`. Without it all
            tokens in a span have its value, white space too.

    Example:
        >>> import numpy as np
        >>> pieces = Pieces(np.array([0, 2]), np.array([2, 4]), np.zeros(2, bool))
        >>> label_as_given(Document("a", "Oh no", labels={"mood": "sad"}), pieces, "mood")
        ['sad', 'sad']
    """
    given = (document.labels or {}).get(name, UNTAGGED)
    if isinstance(given, str):
        return label_uniformly(pieces, given)
    return label_from_spans(document.text, pieces, given, word_level=word_level, whitespace=word_level)


def label_uniformly(pieces: Pieces, value: str | None) -> list[str]:
    """Return one value for every token that is not a special one; None is `untagged`."""
    value = value or UNTAGGED
    return [SPECIAL if special else value for special in pieces.special.tolist()]
