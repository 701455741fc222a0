"""The `upos` label: the universal part of speech of each word, gold where the document has it, else by spaCy.

Only documents whose `language` is the tagger's are tagged; in all others every token is `untagged`, for English tags
on French or on code would invent an effect of syntax. Documents with gold tags (`labels["upos"]`, as from a treebank)
need no tagger and no language. The values are those of Universal Dependencies (https://universaldependencies.org/u/pos/).

It does not know tokenizers, nor how a text is tagged (`tagging`).
"""

from __future__ import annotations

from moe_probe.corpus import Document
from moe_probe.labels import words
from moe_probe.labels.align import Pieces, label_from_table
from moe_probe.labels.given import label_as_given
from moe_probe.labels.tagged import TaggedLabeller
from moe_probe.labels.tagging import TaggedText, find_tagger
from moe_probe.schema import LabelSet

UPOS = "upos"


def upos_labeller(language: str = "en", tagger: str | None = None) -> TaggedLabeller:
    """Return the labeller of `upos`, with the pipeline that `find_tagger` finds.

    Raises:
        BadInputError: if `tagger` names a pipeline that is not installed.
    """
    found = find_tagger(language, tagger)
    return TaggedLabeller(
        LabelSet(UPOS, found.source(), word_level=True),
        found,
        needs_tagger=lambda document: UPOS not in (document.labels or ()) and found.speaks(document),
        from_words=_from_words,
        from_document=lambda document, pieces: label_as_given(document, pieces, UPOS, word_level=True),
    )


def _from_words(document: Document, pieces: Pieces, tagged: TaggedText) -> list[str]:
    return label_from_table(words.code_points(document.text), pieces, tagged.parts_of_speech(), word_level=True)
