"""Makes the token rows of some documents, with their labels.

It does not know formats, nor experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from moe_probe.corpus import Document
from moe_probe.importers.kept import Bools, Kept
from moe_probe.labels import Labeller
from moe_probe.labels.align import Pieces, word_initial
from moe_probe.labels.given import PROMPT
from moe_probe.schema import SPECIAL, UNTAGGED
from moe_probe.store.shards import tokens_table

GENERATED = "generated"


def token_table(
    documents: Sequence[tuple[int, Kept]], labellers: Mapping[str, Labeller], language: str | None
) -> pa.Table:
    """Return the token rows of some documents, each with its number.

    Args:
        documents: their numbers, and what was kept of them.
        labellers: what makes the labels.
        language: of the texts, if known.
    """
    numbers, kept = zip(*documents, strict=True)
    sizes = [one.n_tokens for one in kept]
    texts = [_read(one) for one in kept]
    phases = np.concatenate([np.where(one.special, 2, one.generated) for one in kept])
    columns = {
        "document": np.repeat(np.array(numbers, np.int32), sizes),
        "position": np.concatenate([one.positions for one in kept]),
        "window_position": np.concatenate([one.places for one in kept]),
        "token_id": np.concatenate([one.token_ids for one in kept]),
        "token": _strings([one.pieces for one in kept], sizes),
        "text": _strings([one.texts for one in kept], sizes),
        "char_start": np.concatenate([text.owned.starts for text in texts]),
        "char_end": np.concatenate([text.owned.ends for text in texts]),
        "phase": pa.DictionaryArray.from_arrays(phases.astype(np.int8), pa.array(_PHASES)),
        "word_initial": np.concatenate([text.initial for text in texts]),
    }
    labels = {
        name: [label for one, text in zip(kept, texts, strict=True) for label in _label(labeller, one, text, language)]
        for name, labeller in labellers.items()
    }
    sources = {name: labeller.label_set.source for name, labeller in labellers.items()}
    return tokens_table(columns, labels, sources)


_PHASES = (PROMPT, GENERATED, SPECIAL)


class _Text(NamedTuple):
    """What a document says, what of it each token owns, and whether that begins a word."""

    text: str
    owned: Pieces
    initial: Bools


def _read(kept: Kept) -> _Text:
    nothing = np.zeros(kept.n_tokens, np.int32)
    if not kept.texts:
        return _Text("", Pieces(nothing, nothing, kept.special), nothing.astype(np.bool_))
    text = "".join(kept.texts)
    lengths = np.fromiter(map(len, kept.texts), np.int32)
    ends = np.cumsum(lengths, dtype=np.int32)
    owned = Pieces(ends - lengths, ends, kept.special)
    return _Text(text, owned, word_initial(text, owned) if text else nothing.astype(np.bool_))


def _strings(documents: Sequence[list[str]], sizes: Sequence[int]) -> pa.Array:
    """Return the strings of the rows of some documents, given how many rows each has: '' where they are unknown.

    Where all are, they come as numbers of a dictionary, which takes no time to make or to write.
    """
    if not any(documents):
        return pa.DictionaryArray.from_arrays(np.zeros(sum(sizes), np.int8), pa.array([""]))
    values = (strings or [""] * size for strings, size in zip(documents, sizes, strict=True))
    return pa.array(chain.from_iterable(values), pa.string())


def _label(labeller: Labeller, kept: Kept, text: _Text, language: str | None) -> list[str]:
    if not text.text:
        given = {"domain": kept.domain, "language": language}.get(labeller.label_set.name) or UNTAGGED
        return [given] * kept.n_tokens
    documents = [Document(kept.name, text.text, kept.domain, language)]
    labeller.prepare(documents)
    return labeller(documents, [text.owned])[0]
