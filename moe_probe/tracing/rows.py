"""Makes the token rows of a shard: places, pieces, text and labels.

Needs no model, so that it runs beside the forward passes. It does not know routing.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import MoeProbeError
from moe_probe.labels import Labeller
from moe_probe.labels.align import Pieces, word_initial
from moe_probe.labels.given import PROMPT
from moe_probe.schema import SPECIAL, SURPRISAL_COLUMN
from moe_probe.store.plan import Window, Windowing
from moe_probe.store.shards import tokens_table
from moe_probe.tracing.encoding import EncodedDocument, Encoder, Ints, grouped

_CHARACTERS_AT_ONCE = 20_000
_DOCUMENTS_AT_ONCE = 64

SPECIAL_POSITION = -1
"""The `position` of a special token at a window's start, which has no place in the document."""

GENERATED = "generated"
"""The phase of a token that the model wrote."""


class Stopped(MoeProbeError):
    """The trace was stopped while rows were made."""


@dataclass(frozen=True, eq=False)
class ShardText:
    """Which shard, its documents by number, and its windows in the order of their rows.

    With a model and a recipe this is all that a shard is made from; it can be sent to another process.
    """

    number: int
    documents: Mapping[int, EncodedDocument]
    windows: Sequence[Window]


@dataclass(frozen=True, eq=False)
class _Values:
    """What is known of the tokens of one document: a value a token."""

    word_initial: npt.NDArray[np.bool_]
    labels: Mapping[str, Sequence[str]]


class RowMaker:
    """Makes token rows shard by shard; a document that goes on in the next shard is labelled once."""

    def __init__(self, encoder: Encoder, windowing: Windowing, labellers: Mapping[str, Labeller]) -> None:
        """Take what tokens and labels are made with; `labellers` must hold one called `phase`."""
        self._encoder = encoder
        self._windowing = windowing
        self._labellers = labellers
        self._last: dict[int, _Values] = {}

    def make(self, shard: ShardText, stop: threading.Event) -> pa.Table:
        """Return the tokens of a shard, a row a token.

        Raises:
            Stopped: if `stop` was set meanwhile.
        """
        values = self._label(shard, stop)
        if shard.windows:
            last = shard.windows[-1].document
            self._last = {last: values[last]}
        columns: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in _NUMBERS}
        texts: list[tuple[bytes, npt.NDArray[np.int32]]] = []
        labels: dict[str, list[str]] = {name: [] for name in self._labellers}
        for window in shard.windows:
            encoded, known = shard.documents[window.document], values[window.document]
            for name, array in self._numbers(window, encoded, known).items():
                columns[name].append(array)
            n_special = len(self._encoder.prefix) if self._windowing.special else 0
            tokens = slice(window.first, window.end)
            text, sizes = _owned(encoded.document.text, encoded.starts[tokens], encoded.ends[tokens])
            texts.append((text, np.concatenate([np.zeros(n_special, np.int32), sizes]) if n_special else sizes))
            for name, of_document in known.labels.items():
                labels[name] += [SPECIAL] * n_special
                labels[name] += of_document[tokens]
        return self._table({name: np.concatenate(parts) for name, parts in columns.items()}, texts, labels)

    def _table(
        self,
        numbers: Mapping[str, npt.NDArray[np.generic]],
        texts: Sequence[tuple[bytes, npt.NDArray[np.int32]]],
        labels: dict[str, list[str]],
    ) -> pa.Table:
        # The pieces in use alone: a vocabulary may be larger than a shard.
        used, codes = np.unique(numbers["token_id"], return_inverse=True)
        pieces = pa.array(self._encoder.find_pieces(used.tolist()), pa.string())
        columns: dict[str, object] = {name: numbers[name] for name in _NUMBERS[:4]}
        columns["token"] = pieces.take(pa.array(codes))
        columns["text"] = _strings(texts)
        columns |= {name: numbers[name] for name in ("char_start", "char_end")}
        columns["phase"] = labels.pop("phase")
        columns["word_initial"] = numbers["word_initial"]
        sources = {name: labeller.label_set.source for name, labeller in self._labellers.items()}
        return tokens_table(columns, labels, sources)

    def _numbers(self, window: Window, encoded: EncodedDocument, known: _Values) -> dict[str, npt.NDArray[np.generic]]:
        """Return the columns of one window that are numbers, its special tokens first where they are recorded."""
        prefix = np.array(self._encoder.prefix, np.int32)
        n_special = len(prefix) if self._windowing.special else 0
        tokens = slice(window.first, window.end)
        n_tokens = window.end - window.first
        first = len(prefix) + window.first - window.start
        rows: dict[str, npt.NDArray[np.generic]] = {
            "document": np.full(n_special + n_tokens, encoded.number, np.int32),
            "position": np.arange(window.first, window.end, dtype=np.int32),
            "window_position": np.arange(first, first + n_tokens, dtype=np.int32),
            "token_id": encoded.ids[tokens],
            "char_start": encoded.starts[tokens],
            "char_end": encoded.ends[tokens],
            "word_initial": known.word_initial[tokens],
        }
        if n_special:
            begin = np.full(n_special, encoded.starts[window.first])
            rows["position"] = np.concatenate([np.full(n_special, SPECIAL_POSITION), rows["position"]])
            rows["window_position"] = np.concatenate([np.arange(n_special), rows["window_position"]])
            rows["token_id"] = np.concatenate([prefix, rows["token_id"]])
            rows["char_start"] = np.concatenate([begin, rows["char_start"]])
            rows["char_end"] = np.concatenate([begin, rows["char_end"]])
            rows["word_initial"] = np.concatenate([np.zeros(n_special, np.bool_), rows["word_initial"]])
        return rows

    def _label(self, shard: ShardText, stop: threading.Event) -> dict[int, _Values]:
        wanted = dict.fromkeys(window.document for window in shard.windows)
        values = {number: self._last[number] for number in wanted if number in self._last}
        # Those that reach into other shards by themselves: what a tagger says may depend, in rare near-ties, on the
        # texts beside, and must not on who makes which shard.
        cut = _documents_cut(shard)
        groups = [[shard.documents[number]] for number in wanted if number in cut and number not in values]
        whole = {
            shard.documents[number].document.name: shard.documents[number] for number in wanted if number not in cut
        }
        for documents in grouped((one.document for one in whole.values()), _CHARACTERS_AT_ONCE, _DOCUMENTS_AT_ONCE):
            groups.append([whole[document.name] for document in documents])
        for encoded in groups:
            if stop.is_set():
                raise Stopped("the trace was stopped")
            documents = [one.document for one in encoded]
            pieces = [self._encoder.pieces(one) for one in encoded]
            labels = {name: labeller(documents, pieces) for name, labeller in self._labellers.items()}
            for place, (one, owned) in enumerate(zip(encoded, pieces, strict=True)):
                initial = word_initial(one.document.text, owned)
                of_document = {name: of_all[place] for name, of_all in labels.items()}
                if one.n_prompt is not None:
                    of_document["phase"] = _phases(one.n_prompt, owned)
                values[one.number] = _Values(initial, of_document)
        return values


def _documents_cut(shard: ShardText) -> set[int]:
    """Return the documents of a shard of which an earlier or a later one holds tokens too."""
    if not shard.windows:
        return set()
    first, last = shard.windows[0], shard.windows[-1]
    begun = {first.document} if first.first > 0 else set()
    goes_on = {last.document} if last.end < shard.documents[last.document].n_tokens else set()
    return begun | goes_on


def _phases(n_prompt: int, owned: Pieces) -> list[str]:
    """Return the phase of each token: by its place, for a generated token may own no character."""
    phases = [PROMPT] * n_prompt + [GENERATED] * (len(owned) - n_prompt)
    return [SPECIAL if special else phase for special, phase in zip(owned.special.tolist(), phases, strict=True)]


def _owned(text: str, starts: Ints, ends: Ints) -> tuple[bytes, Ints]:
    """Return the text that neighbouring tokens own, in UTF-8, and how many bytes of it each of them does."""
    owned = text[int(starts[0]) : int(ends[-1])]
    encoded = owned.encode()
    if len(encoded) == len(owned):
        return encoded, ends - starts
    codes = np.frombuffer(owned.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    places = np.concatenate([np.zeros(1, np.int32), np.cumsum(widths, dtype=np.int32)])  # of each character
    return encoded, places[ends - starts[0]] - places[starts - starts[0]]


def _strings(texts: Sequence[tuple[bytes, Ints]]) -> pa.Array:
    """Return the texts of tokens as one column, from those of each window and their sizes."""
    sizes = np.concatenate([np.zeros(1, np.int32), *(sizes for _, sizes in texts)])
    data = b"".join(text for text, _ in texts)
    places = np.cumsum(sizes, dtype=np.int32)
    assert places[-1] == len(data), "neighbouring tokens own neighbouring characters, see `labels.align.own`"
    return pa.StringArray.from_buffers(len(sizes) - 1, pa.py_buffer(places), pa.py_buffer(data))


_NUMBERS = (
    "document",
    "position",
    "window_position",
    "token_id",
    "char_start",
    "char_end",
    "word_initial",
)


def with_surprisal(tokens: pa.Table, bits: npt.NDArray[np.float32]) -> pa.Table:
    """Return the tokens with their surprisal in bits; not a number becomes null: a window's first token has none."""
    return tokens.append_column(SURPRISAL_COLUMN, pa.array(bits, pa.float32(), from_pandas=True))
