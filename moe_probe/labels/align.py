"""Aligns labels of characters and words to sub-word tokens, exactly, through character offsets.

Which token owns a character:

- Offsets are code points, in the order of the text. They are clipped to it.
- A character belongs to the first token whose span reaches it. Later tokens on the same character (the byte pieces of
  an emoji; the word after a prefix that the tokenizer put before it) own an empty range at that place.
- A character that no span reaches (a space that the tokenizer trims, a mark that its normaliser drops) belongs to the
  next token that owns anything; at the end of the text, to the last one that does.
- Special tokens, whose offsets are (0, 0), own an empty range at their place.

So the owned ranges, put together, are the text, whatever the tokenizer did.

Which label a token gets: that of the word at its first visible (not white-space) character. About half of the tokens
of a usual vocabulary begin with a space, and a few hold several words.

It does not know tokenizers or taxonomies; labels come in as spans of characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError
from moe_probe.labels import words
from moe_probe.schema import CONTINUATION, SPECIAL, UNTAGGED, WHITESPACE

Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

_FIXED = (UNTAGGED, SPECIAL, WHITESPACE, CONTINUATION)


@dataclass(frozen=True, eq=False)
class Pieces:
    """What each token of one document owns: characters `starts[t]` to `ends[t]` (int32, code points of the document).

    `special[t]` says that token t is a special one, such as a beginning of sequence. The tokens need not cover the
    whole document: those of one window will do.
    """

    starts: Ints
    ends: Ints
    special: Bools

    def __post_init__(self) -> None:
        if not len(self.starts) == len(self.ends) == len(self.special):
            raise BadInputError(
                f"pieces with {len(self.starts)} starts, {len(self.ends)} ends and {len(self.special)} flags: "
                "each token needs one of each"
            )

    def __len__(self) -> int:
        return len(self.starts)


def own(text: str, offsets: Sequence[tuple[int, int]] | npt.NDArray[np.integer]) -> tuple[Ints, Ints]:
    """Return the characters that each token owns, as starts and ends (tokens,), from a tokenizer's offsets.

    `"".join(text[start:end] for start, end in zip(starts, ends))` is the text, if there is a token at all.

    Args:
        text: the whole document.
        offsets: (tokens, 2), the first and past-the-last character of each token, in the order of the tokens.

    Example:
        >>> starts, ends = own("a 🙂", [(0, 1), (1, 3), (2, 3), (2, 3)])  # three byte pieces of one emoji
        >>> starts.tolist(), ends.tolist()
        ([0, 1, 3, 3], [1, 3, 3, 3])
    """
    spans = np.asarray(offsets, np.int64).reshape(-1, 2)
    if not len(spans):
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    begins, ends = np.clip(spans, 0, len(text)).T
    reached = np.maximum.accumulate(np.where(ends > begins, ends, 0))
    before = np.concatenate([[0], reached[:-1]])
    owners = np.flatnonzero(reached > before)
    last = owners[-1] if owners.size else len(spans) - 1
    reached[last:] = len(text)
    before[last + 1 :] = len(text)
    return before.astype(np.int32), reached.astype(np.int32)


def word_initial(text: str, pieces: Pieces) -> Bools:
    """Return for each token (tokens,) whether it owns the first character of a word, as `words.find_words` cuts it.

    Each word has exactly one such token, unless its first character belongs to a special token or lies outside the
    pieces. A token that holds several words is word-initial once.

    Example:
        >>> starts, ends = own("don't go", [(0, 3), (3, 5), (5, 8)])
        >>> word_initial("don't go", Pieces(starts, ends, np.zeros(3, bool))).tolist()
        [True, False, True]
    """
    initial = np.zeros(len(pieces), np.bool_)
    places = words.find_words(text).starts
    owners = np.searchsorted(pieces.ends, places, side="right")
    inside = owners < len(pieces)
    owners, places = owners[inside], places[inside]
    initial[owners[pieces.starts[owners] <= places]] = True
    return initial & ~pieces.special


def label_from_spans(
    text: str,
    pieces: Pieces,
    spans: Sequence[tuple[int, int, str]],
    *,
    word_level: bool,
    whitespace: bool = True,
) -> list[str]:
    """Return one value a token from labelled spans of characters.

    A special token gets `special`. Any other gets the value of the span at its first visible character, `untagged` if
    there is none, and `whitespace` if it shows nothing.

    Args:
        text: the whole document.
        pieces: what each token owns.
        spans: (start, end, value), sorted, not overlapping.
        word_level: each span is a word: a token gets its value only if it holds the first visible character of the
            span, else `continuation`. Without it every token in a span gets the value, later byte pieces too.
        whitespace: give white space its own value. Without it the span that holds its first character decides.

    Example:
        >>> starts, ends = own("unhappy cat", [(0, 2), (2, 7), (7, 11)])
        >>> pieces = Pieces(starts, ends, np.zeros(3, bool))
        >>> label_from_spans("unhappy cat", pieces, [(0, 7, "ADJ"), (8, 11, "NOUN")], word_level=True)
        ['ADJ', 'continuation', 'NOUN']
    """
    codes: dict[str, int] = {}
    rows = [(start, end, codes.setdefault(value, len(codes))) for start, end, value in spans]
    bounds = np.array(rows, np.int64).reshape(-1, 3)
    table = SpanTable(bounds[:, 0], bounds[:, 1], bounds[:, 2], tuple(codes))
    return label_from_table(words.code_points(text), pieces, table, word_level=word_level, whitespace=whitespace)


@dataclass(frozen=True, eq=False)
class SpanTable:
    """Spans as arrays with one entry each: span s is characters `starts[s]` to `ends[s]`, its value `values[codes[s]]`.

    Sorted, not overlapping.
    """

    starts: npt.NDArray[np.integer]
    ends: npt.NDArray[np.integer]
    codes: npt.NDArray[np.integer]
    values: tuple[str, ...]


def label_from_table(
    codes: npt.NDArray[np.uint32], pieces: Pieces, spans: SpanTable, *, word_level: bool, whitespace: bool = True
) -> list[str]:
    """Do what `label_from_spans` does, from arrays: `codes` are the text's code points, `spans` a table."""
    if not len(codes):
        return [SPECIAL if special else UNTAGGED for special in pieces.special.tolist()]
    is_space = words.classes(codes) == words.SPACE
    shown = np.flatnonzero(~is_space)
    place = _next_of(shown, pieces.starts, len(codes))
    visible = place < pieces.ends
    empty = pieces.ends == pieces.starts
    # A token that owns nothing is a later piece of the character before it.
    fallback = np.where(empty, np.maximum(pieces.starts - 1, 0), pieces.starts)
    place = np.where(visible, place, fallback)

    n_values = len(spans.values)
    names = np.array([*spans.values, *_FIXED], dtype=object)
    untagged, special, blank, continuation = (n_values + code for code in range(4))
    if len(spans.starts):
        span = np.searchsorted(spans.starts, place, side="right") - 1
        inside = (span >= 0) & (place < spans.ends[span])
        found = np.where(inside, spans.codes[span], untagged)
        if word_level:
            opens = _next_of(shown, spans.starts, len(codes))[span] == place
            found = np.where(inside & ~opens, continuation, found)
    else:
        found = np.full(len(pieces), untagged)
    if word_level:
        found = np.where(empty, continuation, found)
    if whitespace:
        found = np.where(is_space[place], blank, found)
    labels: list[str] = names[np.where(pieces.special, special, found)].tolist()
    return labels


def _next_of(
    sorted_places: npt.NDArray[np.int64], wanted: npt.NDArray[np.integer], beyond: int
) -> npt.NDArray[np.int64]:
    """Return for each wanted place the first of `sorted_places` that is not before it, or `beyond`."""
    nearest: npt.NDArray[np.int64] = np.append(sorted_places, beyond)[np.searchsorted(sorted_places, wanted)]
    return nearest
