"""What labels are called in plain English: `VBD` is "verbs in the past tense".

A name says what the tokens are and nothing else. Values that nobody has named are quoted as they are. It does not know
runs or numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moe_probe.corpus import CODE_LANGUAGES
from moe_probe.labels.stmoe import KINDS, OTHER
from moe_probe.schema import CONTINUATION, NEWLINE, SPECIAL, UNTAGGED, WHITESPACE

_UPOS = {
    "ADJ": "adjectives",
    "ADP": "prepositions and postpositions",
    "ADV": "adverbs",
    "AUX": "auxiliary verbs",
    "CCONJ": "coordinating conjunctions",
    "DET": "determiners",
    "INTJ": "interjections",
    "NOUN": "common nouns",
    "NUM": "numerals",
    "PART": "particles",
    "PRON": "pronouns",
    "PROPN": "proper names",
    "PUNCT": "punctuation",
    "SCONJ": "subordinating conjunctions",
    "SYM": "symbols",
    "VERB": "verbs",
    "X": "words of no part of speech",
}
_PENN = {
    "#": "number signs",
    "$": "currency signs",
    "''": "closing quotation marks",
    ",": "commas",
    "-LRB-": "opening brackets",
    "-RRB-": "closing brackets",
    ".": "marks that end a sentence",
    ":": "colons, dashes and dots within a sentence",
    "ADD": "web and mail addresses",
    "AFX": "affixes",
    "CC": "coordinating conjunctions",
    "CD": "cardinal numbers",
    "DT": "determiners",
    "EX": "existential there",
    "FW": "foreign words",
    "GW": "parts of words written apart",
    "HYPH": "hyphens",
    "IN": "prepositions and subordinating conjunctions",
    "JJ": "adjectives in the base form",
    "JJR": "comparative adjectives",
    "JJS": "superlative adjectives",
    "LS": "list markers",
    "MD": "modal verbs",
    "NFP": "superfluous punctuation and emoticons",
    "NN": "singular nouns",
    "NNP": "singular proper names",
    "NNPS": "plural proper names",
    "NNS": "plural nouns",
    "PDT": "predeterminers",
    "POS": "possessive endings",
    "PRP": "personal pronouns",
    "PRP$": "possessive pronouns",
    "RB": "adverbs in the base form",
    "RBR": "comparative adverbs",
    "RBS": "superlative adverbs",
    "RP": "particles of verbs",
    "SYM": "symbols",
    "TO": "the word to",
    "UH": "interjections",
    "VB": "verbs in the base form",
    "VBD": "verbs in the past tense",
    "VBG": "verbs that end in -ing",
    "VBN": "past participles",
    "VBP": "verbs in the present tense, but for the third person singular",
    "VBZ": "verbs in the third person singular of the present tense",
    "WDT": "wh-determiners",
    "WP": "wh-pronouns",
    "WP$": "possessive wh-pronouns",
    "WRB": "wh-adverbs",
    "XX": "unknown words",
    "``": "opening quotation marks",
}
_SHAPE = {
    "number": "numbers in digits",
    "number_word": "number words",
    "all_capitals": "words in capitals",
    "capitalised": "capitalised words",
    "word": "words that do not begin with a capital",
    "operator": "operators and mathematical signs",
    "punctuation": "punctuation",
    "symbol": "emoji and other symbols",
}
_CODE = {
    "builtin": "built-in names in code",
    "comment": "comments in code",
    "decorator": "decorators in code",
    "docstring": "docstrings in code",
    "function": "names of functions in code",
    "keyword": "keywords in code",
    "name": "names in code",
    "number": "numbers in code",
    "operator": "operators in code",
    "punctuation": "punctuation in code",
    "string": "strings in code",
    "tag": "tags in code",
    "text": "plain text in code",
    "type": "names of types in code",
    WHITESPACE: "white space in code",
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "upos": _UPOS,
    "xpos": _PENN,
    "stmoe": {kind: kind.replace("_", " ") for kind in KINDS},
    "shape": _SHAPE,
    "code": _CODE,
    "phase": {"prompt": "text of the prompt", "generated": "generated text"},
}
_OF_EVERY_SET = {
    SPECIAL: "special tokens",
    CONTINUATION: "later pieces of words",
    WHITESPACE: "white space",
    NEWLINE: "line breaks",
}


def plain_names(label_set: str, values: Iterable[str]) -> dict[str, str]:
    """Return what the values of a label are called.

    Args:
        label_set: the label's name.
        values: all of its values that occur, for tags of a language other than English are only told from Penn's by
            the company they keep.

    Example:
        >>> plain_names("xpos", ["VBD", "NN"]) == {"VBD": "verbs in the past tense", "NN": "singular nouns"}
        True
        >>> plain_names("xpos", ["NN", "ART"])["NN"]  # German tags, where NN is any common noun
        'words with the xpos NN'
        >>> plain_names("domain", ["python"])["python"], plain_names("mood", ["sad"])["sad"]
        ('text of the domain python', 'tokens with the mood sad')
    """
    values = list(values)
    known = _NAMES.get(label_set, {})
    if label_set == "xpos" and not set(values) <= {*known, *_OF_EVERY_SET, UNTAGGED}:
        known = {}
    return {value: known.get(value) or _of_any_set(label_set, value) for value in values}


def is_kind(label_set: str, value: str) -> bool:
    """Return whether a value says what a token is: `untagged` and `other` only say what it is not.

    Example:
        >>> is_kind("stmoe", "verbs"), is_kind("stmoe", "other"), is_kind("domain", "other")
        (True, False, True)
    """
    return value != UNTAGGED and not (label_set in ("stmoe", "code") and value == OTHER)


def _of_any_set(label_set: str, value: str) -> str:
    if value in _OF_EVERY_SET:
        return _OF_EVERY_SET[value]
    shown = " ".join(value.split())
    if label_set == "domain":
        return f"text of the domain {shown}"
    if label_set == "language":
        return f"code in {shown}" if value in CODE_LANGUAGES else f"text in the language {shown}"
    return f"{'words' if label_set in _WORDS else 'tokens'} with the {label_set} {shown}"


_WORDS = ("upos", "xpos", "stmoe", "shape")
