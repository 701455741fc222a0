"""The `stmoe` label: the seven kinds of token that experts of ST-MoE's encoder were seen to specialise in.

| value | a word that is |
|---|---|
| `sentinel_tokens` | a mark where text was cut out or is to be filled in: `<extra_id_7>`, `<mask>`, `[MASK]` |
| `punctuation` | punctuation (PUNCT) |
| `proper_names` | a name (PROPN) |
| `counting_and_numbers` | a numeral (NUM), begins with a digit, or spells a cardinal or an ordinal: 37, 15th, third |
| `conjunctions_and_articles` | a conjunction (CCONJ, SCONJ), or a determiner (DET) that is a, an or the |
| `verbs` | a main verb (VERB); an auxiliary is `other`, for the paper's examples of verbs have none |
| `visual_descriptions` | a noun or an adjective of one of two word lists: colour and light, shape and place |
| `other` | any other word |

The first that holds decides, from the top; of words that stand in a list but are names or verbs ("Mr Green", "light
it"), the part of speech decides. Parts of speech are gold where a document brings them as `upos`, else the tagger's.

The paper shows examples and no rules; these are ours, and the lists English. So only documents in English are labelled,
and in all others every token is `untagged`.

It does not know tokenizers, nor how a text is tagged (`tagging`).

Paper: Zoph et al. 2022, ST-MoE: Designing Stable and Transferable Sparse Expert Models (arXiv 2202.08906), section 7.1
and Table 13.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from moe_probe.corpus import Document, Span
from moe_probe.labels.align import Pieces, label_from_spans
from moe_probe.labels.given import label_as_given, label_uniformly
from moe_probe.labels.shape import NUMBER_WORDS
from moe_probe.labels.tagged import TaggedLabeller
from moe_probe.labels.tagging import TaggedText, find_tagger, primary
from moe_probe.labels.upos import UPOS
from moe_probe.schema import UNTAGGED, LabelSet

STMOE = "stmoe"
SENTINELS = "sentinel_tokens"
OTHER = "other"
KINDS = (
    SENTINELS,
    "punctuation",
    "conjunctions_and_articles",
    "verbs",
    "visual_descriptions",
    "proper_names",
    "counting_and_numbers",
)
"""The seven kinds, in the order of the paper's table."""

_COLOUR_AND_LIGHT = """
    amber beige black blond blonde blue bluish bright brightness brown color colored colorful colour coloured colourful
    crimson dark darker darkness dim faint glossy glow golden gray green greenish grey hazy hue indigo ivory lavender
    light lighter lilac luminous magenta maroon mauve orange pale pastel pink purple red reddish scarlet shade shadow
    shadowy shiny silver sparkling teal tint translucent transparent turquoise violet visible vivid white whitish yellow
    yellowish
"""
_SHAPE_AND_PLACE = """
    angular bottom broad center central centre circle circular crooked cubic curly curve curved diagonal flat front
    horizontal inner lower middle narrow oblong open outer oval parallel pointed raw rear rectangle rectangular round
    rounded shallow shape spherical square steep straight striped tall thick thin top triangle triangular upper
    uppermost vertical wavy wide
"""

_ENGLISH = "en"
_ARTICLES = ("a", "an", "the")
_SENTINEL = re.compile(r"<extra_id_\d+>|<mask>|\[MASK\]|<fim_(?:prefix|middle|suffix)>")
_KIND_OF_PART = {
    "PUNCT": "punctuation",
    "PROPN": "proper_names",
    "NUM": "counting_and_numbers",
    "CCONJ": "conjunctions_and_articles",
    "SCONJ": "conjunctions_and_articles",
    "VERB": "verbs",
}
_VISUAL = frozenset([*_COLOUR_AND_LIGHT.split(), *_SHAPE_AND_PLACE.split()])
_DESCRIBES = ("ADJ", "NOUN")
_COUNTS = ("ADJ", "ADV", "NOUN")


def stmoe_labeller(language: str = _ENGLISH, tagger: str | None = None) -> TaggedLabeller:
    """Return the labeller of `stmoe`, with the pipeline that `find_tagger` finds.

    Raises:
        BadInputError: if `tagger` names a pipeline that is not installed.
    """
    found = find_tagger(language, tagger)

    def needs_tagger(document: Document) -> bool:
        return found.language == _ENGLISH and found.speaks(document) and not _brings_any(document)

    return TaggedLabeller(
        LabelSet(STMOE, f"{found.source()}; word lists", word_level=True),
        found,
        needs_tagger,
        from_words=_from_words,
        from_document=_from_document,
    )


def kind_of(word: str, part_of_speech: str) -> str:
    """Return which of `KINDS` a word is, or `other`.

    Args:
        word: as the text has it.
        part_of_speech: its universal part of speech.

    Example:
        >>> [kind_of("died", "VERB"), kind_of("The", "DET"), kind_of("this", "DET"), kind_of("blue", "ADJ")]
        ['verbs', 'conjunctions_and_articles', 'other', 'visual_descriptions']
        >>> [kind_of("15th", "ADJ"), kind_of("Third", "ADJ"), kind_of("one", "PRON"), kind_of("Green", "PROPN")]
        ['counting_and_numbers', 'counting_and_numbers', 'other', 'proper_names']
    """
    lower = word.lower()
    if _SENTINEL.fullmatch(word):
        return SENTINELS
    if part_of_speech not in ("PUNCT", "PROPN") and (
        word[:1].isnumeric() or (part_of_speech in _COUNTS and lower in NUMBER_WORDS)
    ):
        return "counting_and_numbers"
    if part_of_speech in _KIND_OF_PART:
        return _KIND_OF_PART[part_of_speech]
    if part_of_speech == "DET" and lower in _ARTICLES:
        return "conjunctions_and_articles"
    if part_of_speech in _DESCRIBES and (lower in _VISUAL or lower.removesuffix("s") in _VISUAL):
        return "visual_descriptions"
    return OTHER


def _brings_any(document: Document) -> bool:
    """Return whether a document brings these labels, or gold parts of speech word by word."""
    labels = document.labels or {}
    return STMOE in labels or not isinstance(labels.get(UPOS, ""), str)


def _from_words(document: Document, pieces: Pieces, tagged: TaggedText) -> list[str]:
    table = tagged.parts_of_speech()
    bounds = zip(table.starts.tolist(), table.ends.tolist(), table.codes.tolist(), strict=True)
    return _label(document.text, pieces, ((start, end, table.values[code]) for start, end, code in bounds))


def _from_document(document: Document, pieces: Pieces) -> list[str]:
    labels = document.labels or {}
    if STMOE in labels:
        return label_as_given(document, pieces, STMOE, word_level=True)
    gold = labels.get(UPOS, "")
    if isinstance(gold, str) or document.language is None or primary(document.language) != _ENGLISH:
        return label_uniformly(pieces, UNTAGGED)
    return _label(document.text, pieces, gold)


def _label(text: str, pieces: Pieces, parts_of_speech: Iterable[Span]) -> list[str]:
    labels = label_from_spans(text, pieces, list(_kinds(text, parts_of_speech)), word_level=True)
    for token in pieces.special.nonzero()[0].tolist():
        # A tokenizer that knows sentinels calls them special; they are what this label is about.
        if _SENTINEL.fullmatch(text[pieces.starts[token] : pieces.ends[token]].strip()):
            labels[token] = SENTINELS
    return labels


def _kinds(text: str, parts_of_speech: Iterable[Span]) -> Iterator[Span]:
    """Yield the kinds of words, and sentinels instead of the words that a tagger cuts them into."""
    sentinels: Sequence[tuple[int, int]] = [match.span() for match in _SENTINEL.finditer(text)]
    done = 0
    for start, end, part in parts_of_speech:
        while done < len(sentinels) and sentinels[done][1] <= start:
            yield (*sentinels[done], SENTINELS)
            done += 1
        if done == len(sentinels) or end <= sentinels[done][0]:
            yield start, end, kind_of(text[start:end], part)
    for left in sentinels[done:]:
        yield (*left, SENTINELS)
