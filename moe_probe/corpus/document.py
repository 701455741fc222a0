"""A document: one text, what is known of it, and the labels that came with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from moe_probe.errors import BadInputError
from moe_probe.schema import check_label_name

Span: TypeAlias = tuple[int, int, str]
"""A labelled stretch of a text: first character, past-the-last character (code points), value."""


@dataclass(frozen=True)
class Document:
    """One text of a corpus.

    Attributes:
        name: what it is called; unique within a corpus.
        text: the text itself, never empty.
        domain: what kind of text it is, such as `news`, if known.
        language: an ISO 639 code such as `en`, or a programming language such as `python`, if known.
        labels: the labels it came with. A string holds for the whole document; a sequence of (start, end, value), in
            code points, sorted and not overlapping, for stretches of it.

    Raises:
        BadInputError: if the text is empty or no Unicode text, or if a label cannot lie in it.

    Example:
        >>> Document("greeting", "Hello world", labels={"upos": [(0, 5, "INTJ"), (6, 11, "NOUN")]}).labels
        {'upos': ((0, 5, 'INTJ'), (6, 11, 'NOUN'))}
    """

    name: str
    text: str
    domain: str | None = None
    language: str | None = None
    labels: Mapping[str, str | Sequence[Span]] | None = None

    def __post_init__(self) -> None:
        for field in ("name", "text"):
            if not isinstance(getattr(self, field), str):
                raise BadInputError(
                    f"document {self.name!r}: its {field} is {_kind(getattr(self, field))}, not a string"
                )
        for field in ("domain", "language"):
            value = getattr(self, field)
            if value is not None and not (isinstance(value, str) and value):
                raise BadInputError(f"document {self.name!r}: its {field} is {value!r}; give a word, or leave it out")
        if not self.name:
            raise BadInputError("a document without a name: give each document one")
        if not self.text:
            raise BadInputError(f"document {self.name!r}: its text is empty; leave it out")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise BadInputError(
                f"document {self.name!r}: character {error.start} is {self.text[error.start]!a}, half of a surrogate "
                "pair and no character; was a text cut in the middle of an emoji?"
            ) from None
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.name, self.text, self.labels))


def _checked_labels(
    name: str, text: str, labels: Mapping[str, str | Sequence[Span]]
) -> dict[str, str | tuple[Span, ...]]:
    if not isinstance(labels, Mapping):
        raise BadInputError(f"document {name!r}: its labels are {_kind(labels)}, not a mapping from a label's name")
    checked: dict[str, str | tuple[Span, ...]] = {}
    for label, value in labels.items():
        where = f"document {name!r}, label {label!r}"
        try:
            check_label_name(str(label))
        except BadInputError as error:
            raise BadInputError(f"document {name!r}: {error}") from None
        if isinstance(value, str):
            if not value:
                raise BadInputError(f"{where}: an empty value; leave the label out")
            checked[label] = value
        elif isinstance(value, Sequence):
            checked[label] = _checked_spans(where, len(text), value)
        else:
            raise BadInputError(f"{where}: {_kind(value)}; give a string, or a list of [start, end, value]")
    return checked


def _checked_spans(where: str, length: int, spans: Sequence[object]) -> tuple[Span, ...]:
    checked: list[Span] = []
    reached = 0
    for span in spans:
        match span:
            case (int(start), int(end), str(value)) if value:
                checked.append((start, end, value))
            case _:
                raise BadInputError(f"{where}: {span!r} is no [start, end, value] with two whole numbers and a word")
        if not 0 <= start < end <= length:
            raise BadInputError(
                f"{where}: span {start} to {end} lies outside the text of {length} characters, or holds none of it"
            )
        if start < reached:
            raise BadInputError(f"{where}: span {start} to {end} begins before {reached}, where the one before it ends")
        reached = end
    return tuple(checked)


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"
