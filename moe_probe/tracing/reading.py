"""Reads a tokenised corpus once, into a spool, and says what it is made of.

It does not know windows or models.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from moe_probe.corpus import Document, Input, read_documents
from moe_probe.errors import BadInputError
from moe_probe.labels import TAXONOMIES, Labeller
from moe_probe.tracing.encoding import EncodedDocument
from moe_probe.tracing.spool import Spool


@dataclass(eq=False)
class Corpus:
    """What was read: integers for each document, and sums.

    Attributes:
        token_counts: tokens of each document.
        character_counts: characters that these tokens own.
        tokens_by_domain: tokens of each domain; "" for documents without one.
        tokens_by_language: tokens of each language; "" for documents without one.
        labels: names of the labels that documents bring along.
        digest: over names, texts, labels and token ids, in hexadecimal, once all is read.
    """

    token_counts: array[int] = field(default_factory=lambda: array("q"))
    character_counts: array[int] = field(default_factory=lambda: array("q"))
    tokens_by_domain: Counter[str] = field(default_factory=Counter)
    tokens_by_language: Counter[str] = field(default_factory=Counter)
    labels: set[str] = field(default_factory=set)
    n_tokens: int = 0
    digest: str = ""

    def add(self, encoded: EncodedDocument) -> None:
        """Count one more document."""
        self.token_counts.append(encoded.n_tokens)
        self.character_counts.append(int(encoded.ends[-1]) if encoded.n_tokens else 0)
        self.tokens_by_domain[encoded.document.domain or ""] += encoded.n_tokens
        self.tokens_by_language[encoded.document.language or ""] += encoded.n_tokens
        self.labels.update(encoded.document.labels or ())
        self.n_tokens += encoded.n_tokens


def read_corpus(
    groups: Iterable[list[EncodedDocument]],
    labellers: Sequence[Labeller],
    spool: Spool,
    max_tokens: int | None,
) -> Iterator[Corpus]:
    """Read documents into the spool, and yield the corpus as it grows; what is yielded last is whole.

    Args:
        groups: the documents as `Encoder.encode` gives them, some at once.
        labellers: asked early whether they can label these documents.
        spool: where the documents go.
        max_tokens: how many tokens to take; the document in which they are reached is cut there.

    Raises:
        BadInputError: if `max_tokens` is below 1, a document cannot be read, encoded or labelled, or a label is neither
            a taxonomy nor one that any document brings along.
    """
    if max_tokens is not None and max_tokens < 1:
        raise BadInputError(f"max_tokens {max_tokens}: take at least 1 token")
    corpus = Corpus()
    digest = hashlib.sha256()
    for encoded in groups:
        for labeller in labellers:
            labeller.prepare([one.document for one in encoded])
        taken: list[EncodedDocument] = []
        for one in encoded:
            if max_tokens is not None and corpus.n_tokens + one.n_tokens > max_tokens:
                one = one.cut(max_tokens - corpus.n_tokens)
            if corpus.n_tokens != max_tokens:
                taken.append(one)
                corpus.add(one)
                _update(digest, one)
        if taken:
            spool.add(taken)
        yield corpus
        if corpus.n_tokens == max_tokens:
            break
    spool.finish()
    check_labels(labellers, corpus.labels)
    corpus.digest = digest.hexdigest()
    yield corpus


def check_labels(labellers: Sequence[Labeller], brought: Collection[str]) -> None:
    """Refuse labels that are neither taxonomies nor among those that the documents `brought` along.

    Raises:
        BadInputError: naming the label.
    """
    for name in (labeller.label_set.name for labeller in labellers):
        if name not in TAXONOMIES and name not in brought:
            raise BadInputError(
                f"label {name!r}: no document brings it along, and it is none of {', '.join(TAXONOMIES)};"
                " check its name"
            )


def stream_documents(inputs: Input | Iterable[Input], language: str | None) -> Iterator[Document]:
    """Return the documents of all inputs. An iterator (a generator, say) is used up one by one and held nowhere.

    Raises:
        BadInputError: as `read_documents`.
    """
    if not isinstance(inputs, Iterator):
        return read_documents(inputs, language=language)
    return _one_by_one(inputs, language)


def _one_by_one(inputs: Iterator[Input], language: str | None) -> Iterator[Document]:
    names: set[str] = set()
    for item in inputs:
        for document in read_documents([item], language=language):
            if document.name in names:
                raise BadInputError(f"two documents are called {document.name!r}; give each a name of its own")
            names.add(document.name)
            yield document
    if not names:
        raise BadInputError("no input: the iterator gave no document")


def _update(digest: hashlib._Hash, encoded: EncodedDocument) -> None:
    document = encoded.document
    facts: list[object] = [document.name, document.domain, document.language, document.labels]
    if encoded.n_prompt is not None:
        facts.append(encoded.n_prompt)
    for part in (json.dumps(facts).encode(), document.text.encode(), encoded.ids.tobytes(), encoded.ends.tobytes()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
