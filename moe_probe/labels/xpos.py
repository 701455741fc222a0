"""The `xpos` label: the fine part of speech of each word in its language's own tag set, gold or by spaCy.

For English these are the tags of the Penn Treebank (Marcus, Santorini & Marcinkiewicz 1993, Building a Large Annotated
Corpus of English, Table 2) with the additions that treebanks of web text use, such as `HYPH` and `ADD`: `VBD` is a verb
in the past tense, `NNS` a plural noun.

Tag sets of two languages must not mix, for `NN` is a singular noun in one and any noun in another. So only documents in
the tagger's language are labelled; a document that brings gold tags (`labels["xpos"]`, as a treebank's fifth column)
and says no language is believed. In all others every token is `untagged`.

It does not know tokenizers, nor how a text is tagged (`tagging`).
"""

from __future__ import annotations

from moe_probe.corpus import Document
from moe_probe.labels import words
from moe_probe.labels.align import Pieces, label_from_table
from moe_probe.labels.given import label_as_given, label_uniformly
from moe_probe.labels.tagged import TaggedLabeller
from moe_probe.labels.tagging import TaggedText, find_tagger
from moe_probe.schema import UNTAGGED, LabelSet

XPOS = "xpos"


def xpos_labeller(language: str = "en", tagger: str | None = None) -> TaggedLabeller:
    """Return the labeller of `xpos`, with the pipeline that `find_tagger` finds.

    Raises:
        BadInputError: if `tagger` names a pipeline that is not installed.
    """
    found = find_tagger(language, tagger)

    def from_document(document: Document, pieces: Pieces) -> list[str]:
        if document.language is None or found.speaks(document):
            return label_as_given(document, pieces, XPOS, word_level=True)
        return label_uniformly(pieces, UNTAGGED)

    return TaggedLabeller(
        LabelSet(XPOS, found.source(), word_level=True),
        found,
        needs_tagger=lambda document: XPOS not in (document.labels or ()) and found.speaks(document),
        from_words=_from_words,
        from_document=from_document,
        fine=True,
    )


def _from_words(document: Document, pieces: Pieces, tagged: TaggedText) -> list[str]:
    return label_from_table(words.code_points(document.text), pieces, tagged.tags(), word_level=True)
