"""The tokens' pieces and texts: from a tokenizer, from the strings of the file, or not at all.

It does not know experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError
from moe_probe.importers.findings import Findings
from moe_probe.importers.trace import Trace

UNKNOWN_ID = -1

_MOST_SPECIAL = 8
_CUT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT = 6
_SPACES = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n", "ĉ": "\t"})


@dataclass(frozen=True, eq=False)
class Said:
    """What the rows of a document say: a value a row, no pieces and texts where unknown; a special one's text is ''."""

    pieces: list[str]
    texts: list[str]
    special: npt.NDArray[np.bool_]


class Words:
    """Makes pieces and texts, with a tokenizer where there is one."""

    def __init__(self, tokenizer: Any = None) -> None:
        """Take a tokenizer of transformers, the folder or name of one, or None."""
        self.tokenizer = _load(tokenizer) if isinstance(tokenizer, str) else tokenizer
        self._special = set(getattr(self.tokenizer, "all_special_ids", ()))
        self._codes: dict[str, int] = {}

    def of(self, trace: Trace, rows: npt.NDArray[np.int64], findings: Findings) -> Said:
        """Return what some rows of a document say.

        Raises:
            BadInputError: if an id is none of the tokenizer's.
        """
        total = trace.experts.shape[2]
        if self.tokenizer is not None and trace.token_ids is not None:
            said = self._decoded(trace.token_ids[:total].tolist(), trace.where)
        elif trace.pieces is not None:
            said = _aligned(trace, total, findings)
        else:
            missing = "token ids" if self.tokenizer is not None or trace.token_ids is None else "token strings"
            findings.say(f"some documents have no {missing}: their tokens have no text{_LACKING[missing]}")
            return Said([], [], np.zeros(len(rows), np.bool_))
        if len(rows) == total:
            return said
        some = rows.tolist()
        return Said([said.pieces[row] for row in some], [said.texts[row] for row in some], said.special[rows])

    def numbers(self, pieces: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return numbers that tell pieces apart where token ids are not known: from -2 downwards, and -1 for ''."""
        codes = [self._codes.setdefault(piece, -2 - len(self._codes)) if piece else UNKNOWN_ID for piece in pieces]
        return np.array(codes, np.int32)

    def _decoded(self, ids: list[int], where: str) -> Said:
        try:
            pieces = [piece or "" for piece in self.tokenizer.convert_ids_to_tokens(ids)]
            texts = decode_each(ids, lambda some: self.tokenizer.decode(some, clean_up_tokenization_spaces=False))
        except (IndexError, OverflowError, TypeError) as error:
            raise BadInputError(f"{where}: a token id is none of the tokenizer's; is it the model's own?") from error
        special = np.array([token in self._special for token in ids], np.bool_)
        return Said(pieces, ["" if gone else text for text, gone in zip(texts, special, strict=True)], special)


_LACKING = {
    "token strings": "; give the model's tokenizer (tokenizer=)",
    "token ids": ", and what is told by token id (-1 here) says nothing of them",
}


def decode_each(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return the text that each token adds to those before it; together they are the text.

    A character that takes several tokens belongs to the first of them. A token is decoded after a few others, for a
    tokenizer may trim the space before the first.

    Example:
        >>> decode_each([72, 195, 169], lambda some: bytes(some).decode(errors="replace"))
        ['H', 'é', '']
    """
    texts = [""] * len(ids)
    begin = done = 0
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[begin:done])), decode(list(ids[begin:end]))
        if now.endswith(_CUT) and end < len(ids) and end - done < 8:
            continue
        texts[done] = now[len(before) :]
        done = end
        begin = max(0, done - _CONTEXT)
    return texts


def _aligned(trace: Trace, total: int, findings: Findings) -> Said:
    """Take the file's own strings; where they add up to its text but for the first few, those are special."""
    pieces = (trace.pieces or [])[:total]
    special = np.zeros(len(pieces), np.bool_)
    if trace.text is None:
        return Said(pieces, list(pieces), special)
    whole = trace.pieces or []
    for texts in (whole, [piece.translate(_SPACES) for piece in whole]):
        for first in range(min(_MOST_SPECIAL, len(texts)) + 1):
            joined = "".join(texts[first:])
            if joined in (trace.text, f" {trace.text}"):
                special[:first] = True
                return Said(pieces, [*[""] * first, *texts[first:]][:total], special)
    findings.add("retold", 1, trace.where)
    return Said(pieces, list(pieces), special)


def _load(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadInputError(f"tokenizer {name!r}: cannot be loaded ({reason})") from error
