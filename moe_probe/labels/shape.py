r"""The `shape` label: what a token looks like, by rule alone, in any language and without a model.

Every token gets exactly one of `VALUES`. A value is that of the whole word (see `words`) at the token's first visible
character, so that it does not depend on where a tokenizer cuts; a token that does not begin its word is
`continuation`.

| value | a word that |
|---|---|
| `number` | begins with a digit: 7, 3.14, 10:30, 15th, ½ |
| `number_word` | is an English cardinal or ordinal: seven, Third, million |
| `all_capitals` | has two or more capitals and no small letter: NASA, MAX_LEN, H2O |
| `capitalised` | begins with a capital: London, I, McKay |
| `word` | has letters and is none of the above: cat, l'homme, x1, 猫 |
| `operator` | is `+ * / % = < > & ^ ~ \ @`, a pipe or a mathematical sign; `- ! : ?` before `=` or `>`; a minus |
| `punctuation` | is any other punctuation mark, or underscores only |
| `symbol` | is an emoji, a flag, a currency or other sign, or a control character |

`newline` is white space with a line break in it, `whitespace` any other, `special` a special token. A minus is a
hyphen with a digit next to its right (a space may lie between) and no letter or digit touching it on the left.

It does not know parts of speech: `May` is capitalised, `two-fold` begins with a number word.
"""

from __future__ import annotations

import unicodedata

import numpy as np
import numpy.typing as npt

from moe_probe.labels import words
from moe_probe.labels.align import Pieces, SpanTable, label_from_table
from moe_probe.schema import CONTINUATION, SPECIAL, WHITESPACE

NEWLINE = "newline"
_WORD_VALUES = (
    "number",
    "number_word",
    "all_capitals",
    "capitalised",
    "word",
    "operator",
    "punctuation",
    "symbol",
)
VALUES = (*_WORD_VALUES, CONTINUATION, WHITESPACE, NEWLINE, SPECIAL)
"""Every value that a token's shape can have."""

_NUMBERS = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion
    hundreds thousands millions billions trillions dozen dozens
    first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth
    sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth sixtieth seventieth eightieth
    ninetieth hundredth thousandth millionth billionth
"""
NUMBER_WORDS = frozenset(_NUMBERS.split())
"""English cardinals and ordinals, in small letters."""

_LONGEST_NUMBER_WORD = max(map(len, NUMBER_WORDS))
_OPERATORS = "+*/%=<>&|^~\\@"
_OPERATORS_BEFORE_SIGN = "-!:?"
_LINE_BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def label_shape(text: str, pieces: Pieces) -> list[str]:
    """Return the shape of each token.

    Example:
        >>> from moe_probe.labels.align import own
        >>> starts, ends = own("Two 3s!", [(0, 3), (3, 5), (5, 6), (6, 7)])
        >>> label_shape("Two 3s!", Pieces(starts, ends, np.zeros(4, bool)))
        ['number_word', 'number', 'continuation', 'punctuation']
    """
    found = words.find_words(text)
    table = SpanTable(found.starts, found.ends, word_shapes(text, found), _WORD_VALUES)
    labels = label_from_table(found.codes, pieces, table, word_level=True)
    for token in _with_line_break(found.codes, pieces).tolist():
        if labels[token] == WHITESPACE:
            labels[token] = NEWLINE
    return labels


def word_shapes(text: str, found: words.Words) -> npt.NDArray[np.int64]:
    """Return the shape of each word (words,) as a place in the first eight of `VALUES`."""
    number, number_word, all_capitals, capitalised, word, operator, punctuation, symbol = range(8)
    if not len(found.starts):
        return np.zeros(0, np.int64)
    shown = np.flatnonzero(found.classes != words.SPACE)
    kinds = found.classes[shown]
    firsts = np.searchsorted(shown, found.starts)
    n_upper = np.add.reduceat((kinds == words.UPPER).astype(np.int32), firsts)
    n_lower = np.add.reduceat((kinds == words.LOWER).astype(np.int32), firsts)
    lettered = np.isin(kinds, [words.UPPER, words.LOWER, words.LETTER, words.UNSPACED]) & (
        found.codes[shown] != ord("_")
    )
    has_letters = np.logical_or.reduceat(lettered, firsts)
    first_kind = found.classes[found.starts]

    # The first rule that holds decides.
    rules = [
        (first_kind == words.DIGIT, number),
        (_are_number_words(text, found, has_letters), number_word),
        (has_letters & (n_upper >= 2) & (n_lower == 0), all_capitals),
        (has_letters & (first_kind == words.UPPER), capitalised),
        (has_letters, word),
        (_are_operators(found), operator),
        (np.isin(first_kind, [words.PUNCTUATION, words.LETTER]) | (found.codes[found.starts] == ord("`")), punctuation),
    ]
    return np.select([holds for holds, _ in rules], [value for _, value in rules], symbol)


def _are_number_words(text: str, found: words.Words, has_letters: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    lengths = found.ends - found.starts
    answers = np.zeros(len(lengths), np.bool_)
    candidates = np.flatnonzero(has_letters & (lengths >= 3) & (lengths <= _LONGEST_NUMBER_WORD))
    bounds = zip(found.starts[candidates].tolist(), found.ends[candidates].tolist(), strict=True)
    answers[candidates] = [text[start:end].lower() in NUMBER_WORDS for start, end in bounds]
    return answers


def _are_operators(found: words.Words) -> npt.NDArray[np.bool_]:
    """Return which words are operators, given that they hold no letter and do not begin with a digit."""
    codes = found.codes[found.starts]
    # Two characters beyond the end, so that each word has neighbours.
    padded = np.concatenate([found.codes, [0, 0]])
    kinds = np.concatenate([found.classes, [words.SPACE, words.SPACE]])
    after = found.ends
    before_sign = _among(codes, _OPERATORS_BEFORE_SIGN) & _among(padded[after], "=>")
    next_shown = np.where(kinds[after] == words.SPACE, after + 1, after)
    left = np.where(found.starts > 0, found.classes[found.starts - 1], words.SPACE)
    touched = np.isin(left, [words.UPPER, words.LOWER, words.LETTER, words.UNSPACED, words.DIGIT, words.MARK])
    minus = (codes == ord("-")) & (after - found.starts == 1) & (kinds[next_shown] == words.DIGIT) & ~touched
    operators: npt.NDArray[np.bool_] = _among(codes, _OPERATORS) | _are_mathematical(codes) | before_sign | minus
    return operators


def _are_mathematical(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
    distinct, places = np.unique(codes, return_inverse=True)
    mathematical = np.array([unicodedata.category(chr(code)) == "Sm" for code in distinct.tolist()], np.bool_)
    answers: npt.NDArray[np.bool_] = mathematical[places]
    return answers


def _among(codes: npt.NDArray[np.uint32], characters: str) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = np.isin(codes, [ord(character) for character in characters])
    return found


def _with_line_break(codes: npt.NDArray[np.uint32], pieces: Pieces) -> npt.NDArray[np.int64]:
    """Return the tokens that own a line break."""
    breaks = np.flatnonzero(_among(codes, _LINE_BREAKS))
    first = np.searchsorted(breaks, pieces.starts)
    return np.flatnonzero(np.append(breaks, len(codes))[first] < pieces.ends)
