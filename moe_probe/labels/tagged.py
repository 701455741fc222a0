"""Labels the documents that need a tagger from its tags, and all others from what they bring along.

It does not know which documents need one, nor what a tag stands for: `upos`, `xpos` and `stmoe` do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError
from moe_probe.labels.align import Pieces
from moe_probe.labels.tagging import TaggedText, Tagger, has_fine_tags
from moe_probe.schema import LabelSet


@dataclass(frozen=True, eq=False)
class TaggedLabeller:
    """Labels words, with a tagger where a document needs one.

    Attributes:
        label_set: its name and what makes its labels.
        tagger: shared with all labellers that use the same pipeline.
        needs_tagger: whether a document is labelled from the tagger's words.
        from_words: the labels of a document's tokens from the tagger's words.
        from_document: the labels of any other document's tokens.
        fine: the pipeline must give tags of its own.
    """

    label_set: LabelSet
    tagger: Tagger
    needs_tagger: Callable[[Document], bool]
    from_words: Callable[[Document, Pieces, TaggedText], list[str]]
    from_document: Callable[[Document, Pieces], list[str]]
    fine: bool = False

    def prepare(self, documents: Sequence[Document]) -> None:
        """Load the pipeline if one of these documents needs it.

        Raises:
            BadInputError: naming the document, and the command that installs a pipeline or what is wrong with it.
        """
        needing = next((document for document in documents if self.needs_tagger(document)), None)
        if needing is None:
            return
        name = self.label_set.name
        pipeline = self.tagger.open(needing, name)
        if self.fine and not has_fine_tags(pipeline):
            raise BadInputError(
                f"document {needing.name!r} is to get the label {name!r}, but the spaCy pipeline "
                f"{self.tagger.pipeline!r} gives universal parts of speech only; choose another one, or leave {name!r} "
                "out of the labels"
            )

    def __call__(self, documents: Sequence[Document], pieces: Sequence[Pieces]) -> list[list[str]]:
        """Return one value a token for each document.

        Raises:
            BadInputError: as `prepare`.
        """
        self.prepare(documents)
        needing = [document for document in documents if self.needs_tagger(document)]
        tagged = iter(self.tagger.tag(needing, self.label_set.name))
        return [
            self.from_words(document, owned, next(tagged))
            if self.needs_tagger(document)
            else self.from_document(document, owned)
            for document, owned in zip(documents, pieces, strict=True)
        ]
