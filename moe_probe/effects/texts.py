"""The documents of a run, taken out of it again so that a model can read them once more. It does not know models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from moe_probe.corpus import Document
from moe_probe.corpus.document import Span
from moe_probe.errors import BadInputError
from moe_probe.labels import TAXONOMIES
from moe_probe.schema import SPECIAL, UNTAGGED
from moe_probe.store import Run


def documents_of(run: Run, numbers: Sequence[int] | None = None, *, max_tokens: int | None = None) -> list[Document]:
    """Return documents of a run with their text, and with those labels that only they can know.

    Labels of the taxonomies are left out: they are made anew from the text. A long document is cut where the others
    would get less than their share of `max_tokens`.

    Args:
        run: from `open_run`.
        numbers: the documents' numbers; all if None.
        max_tokens: tokens to take at most, about evenly from all documents.

    Raises:
        BadInputError: there is no such document, or none is left.

    Example:
        >>> from moe_probe import open_run
        >>> from moe_probe_data import CHECKPOINT_RUNS
        >>> documents = documents_of(open_run(CHECKPOINT_RUNS / "step-000060"), [0, 1], max_tokens=20)
        >>> [len(document.text) for document in documents]
        [20, 13]
    """
    known = {int(row["document"]): row for row in run.documents().iter_rows(named=True)}
    wanted = list(known) if numbers is None else list(dict.fromkeys(numbers))
    missing = [number for number in wanted if number not in known]
    if missing:
        raise BadInputError(f"document {missing[0]}: the run has {len(known)}, counted from 0")
    shares = _shares({number: int(known[number]["tokens"]) for number in wanted}, max_tokens)
    own = [label.name for label in run.labels if label.name not in TAXONOMIES]
    found = [_document(run, number, known[number], own, shares[number]) for number in wanted if shares[number] > 0]
    documents = [document for document in found if document is not None]
    if not documents:
        raise BadInputError(f"{run.path}: these documents hold no text")
    return documents


def _document(
    run: Run, number: int, known: Mapping[str, str | None], own: Sequence[str], share: int
) -> Document | None:
    columns = ["position", "text", "phase", "char_start", "char_end", *own]
    tokens = run.document_tokens(number, columns).filter(pl.col("position") < share)
    text = "".join(tokens["text"])
    if not text:
        return None
    labels = {name: _spans(tokens, name) for name in own}
    return Document(str(known["name"]), text, known["domain"], known["language"], labels or None)


def _spans(tokens: pl.DataFrame, label: str) -> list[Span]:
    said = tokens.filter(
        ~pl.col(label).cast(pl.String).is_in([UNTAGGED, SPECIAL]) & (pl.col("char_end") > pl.col("char_start"))
    )
    return list(zip(said["char_start"], said["char_end"], said[label].cast(pl.String), strict=True))


def _shares(lengths: Mapping[int, int], total: int | None) -> dict[int, int]:
    """Share out tokens evenly; what short documents leave goes to the others."""
    if total is None:
        return dict(lengths)
    shares: dict[int, int] = {}
    left = total
    for rank, number in enumerate(sorted(lengths, key=lengths.__getitem__)):
        shares[number] = min(lengths[number], left // (len(lengths) - rank))
        left -= shares[number]
    return shares
