"""Which characters each token of a generated text spells, found by decoding one token more at a time.

A tokenizer gives offsets for text that it cuts, not for tokens that a model wrote, and cutting the decoded text anew
may give other tokens. So the tokens stay as they are, and their characters are found here. It does not know models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_CONTEXT = 8
"""Tokens before those in hand that are decoded with them at least: what a token spells may depend on them."""

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[list[int]], str]


def spell(decode: Decode, before: Sequence[int], ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text that tokens spell, and for each token the first and past-the-last character that it reaches.

    A character whose bytes lie in several tokens is reached first by the first of them. The spans are in the order of
    the tokens and together reach the whole text; `labels.align.own` tells from them which token owns what.

    Args:
        decode: the tokenizer's, special tokens spelled out.
        before: the tokens before them: some tokenizers give the first token of a text no space, or a token alone other
            characters than within a text.
        ids: the tokens.

    Example:
        >>> text, spans = spell(lambda ids: bytes(ids).decode(errors="replace"), [], [97, 0xC3, 0xA9, 98])
        >>> text, spans
        ('aéb', [(0, 1), (1, 2), (2, 2), (2, 3)])
    """
    texts: list[str] = []
    spans: list[tuple[int, int]] = []
    n_characters = 0
    settled = list(before)
    joints = [0]  # where in `settled` no character is cut
    held: list[int] = []
    decoded = [decode(settled)]  # without and with each of the tokens held
    for place, token in enumerate(ids):
        held.append(token)
        decoded.append(decode(settled + held))
        if decoded[-1].endswith(_UNFINISHED) and place < len(ids) - 1:
            continue  # the next token may finish the character
        new, reached = _reach(decode, held, decoded)
        begin = 0
        for end in reached:
            spans.append((n_characters + begin, n_characters + end))
            begin = end
        texts.append(new)
        n_characters += len(new)
        joints.append(len(settled))
        settled += held
        held = []
        first = next(joint for joint in reversed(joints) if joint <= max(len(settled) - _CONTEXT, 0))
        settled = settled[first:]
        joints = [joint - first for joint in joints if joint >= first]
        decoded = [decode(settled)]
    return "".join(texts), spans


def _reach(decode: Decode, held: Sequence[int], decoded: Sequence[str]) -> tuple[str, list[int]]:
    """Return what the held tokens spell, and how many of these characters are reached by the end of each."""
    if not decoded[-1].startswith(decoded[0]):
        # Bytes that are no character, which some decoders replace back to where the bytes began.
        decoded = [decode(list(held[:stop])) for stop in range(len(held) + 1)]
    known, whole = len(decoded[0]), decoded[-1]
    new = whole[known:]
    reached: list[int] = []
    furthest = 0
    for partial in decoded[1:-1]:
        common = _common(partial, whole)
        # What goes on otherwise than the whole is the beginning of one character more.
        end = max(common + (len(partial) > common) - known, 1)
        furthest = max(furthest, min(end, len(new)))
        reached.append(furthest)
    return new, [*reached, len(new)]


def _common(one: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
