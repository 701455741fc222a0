"""How a corpus is cut into windows and windows into shards: a pure function of token counts and settings.

It does not know texts, models or files. A plan of a billion tokens is a few kilobytes: it keeps where each shard
starts, and the windows follow from the documents' token counts.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError, RunError
from moe_probe.schema import SCHEMA_VERSION

MAX_SHARD_ROWS = 1_000_000
MIN_SHARD_ROWS = 16_384
SHARDS_AIMED_AT = 64
SHARD_MEMORY_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Windowing:
    """How a document is cut: `context` tokens at most in a window, of which the first `n_prefix` are special tokens.

    `stride` tokens at a window's start repeat the end of the window before; they are context only and are not recorded
    again. `special` says that the prefix is recorded too.
    """

    context: int
    stride: int = 0
    n_prefix: int = 0
    special: bool = False

    def __post_init__(self) -> None:
        room = self.context - self.n_prefix
        if room < 1:
            raise BadInputError(
                f"context {self.context}: the special tokens at a window's start take {self.n_prefix}, which leaves no"
                f" room for text; use at least {self.n_prefix + 1}"
            )
        if self.context > MAX_SHARD_ROWS:
            raise BadInputError(f"context {self.context}: a window must fit into a shard; use at most {MAX_SHARD_ROWS}")
        if not 0 <= self.stride < room:
            raise BadInputError(
                f"stride {self.stride}: windows hold {room} tokens of text and must overlap by fewer;"
                f" use 0 to {room - 1}"
            )


@dataclass(frozen=True)
class Window:
    """What of a document the model sees at once: tokens `start` to `end`, of which those from `first` are recorded."""

    document: int
    start: int
    first: int
    end: int

    def rows(self, windowing: Windowing) -> int:
        """Return the number of token rows that the window gives."""
        return self.end - self.first + (windowing.n_prefix if windowing.special else 0)

    def fed(self, windowing: Windowing) -> int:
        """Return the number of tokens that the model is given, special tokens included."""
        return self.end - self.start + windowing.n_prefix


@dataclass(frozen=True)
class ShardStart:
    """Where a shard starts, and how many rows it has: window number `window` of document `document`."""

    number: int
    document: int
    window: int
    rows: int


@dataclass(frozen=True, eq=False)
class Layout:
    """All shards of a corpus, and where the rows of each document start.

    `token_counts`, `rows`, `first_shard` and `first_row` are (documents,): the tokens of a document, its token rows,
    the shard and the row of that shard where they start (both without meaning where there are no rows).
    """

    windowing: Windowing
    shards: tuple[ShardStart, ...]
    token_counts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    first_shard: npt.NDArray[np.int64]
    first_row: npt.NDArray[np.int64]


def document_windows(n_tokens: int, windowing: Windowing, document: int = 0) -> Iterator[Window]:
    """Yield the windows of a document of `n_tokens`; together they record each token once, in order.

    Example:
        >>> [(w.start, w.first, w.end) for w in document_windows(10, Windowing(context=5, stride=2, n_prefix=1))]
        [(0, 0, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]
    """
    room = windowing.context - windowing.n_prefix
    start, recorded = 0, 0
    while recorded < n_tokens:
        end = min(start + room, n_tokens)
        yield Window(document, start, recorded, end)
        start, recorded = end - windowing.stride, end


def shard_rows_for(n_tokens: int, bytes_per_row: int) -> int:
    """Return the number of rows that a shard of a corpus should have.

    An interrupted run loses one shard at most, so a small corpus has small shards; a large one has few files. A shard
    is held in memory until it is written, so wide rows make it shorter.

    Example:
        >>> shard_rows_for(5_000, 100), shard_rows_for(10**9, 448), shard_rows_for(10**9, 1536)
        (16384, 1000000, 349525)
    """
    wanted = max(MIN_SHARD_ROWS, -(-n_tokens // SHARDS_AIMED_AT))
    return max(1, min(MAX_SHARD_ROWS, wanted, SHARD_MEMORY_BYTES // bytes_per_row))


def lay_out(token_counts: Sequence[int], windowing: Windowing, shard_rows: int) -> Layout:
    """Cut documents of the given token counts into windows and shards.

    Shards end at window boundaries and hold at most `shard_rows` rows, or one window where that alone has more.

    Raises:
        BadInputError: if `shard_rows` is not between 1 and `MAX_SHARD_ROWS`.

    Example:
        >>> layout = lay_out([3, 0, 5], Windowing(context=4), shard_rows=4)
        >>> [(shard.document, shard.window, shard.rows) for shard in layout.shards]
        [(0, 0, 3), (2, 0, 4), (2, 1, 1)]
    """
    if not 1 <= shard_rows <= MAX_SHARD_ROWS:
        raise BadInputError(f"shard_rows {shard_rows}: use 1 to {MAX_SHARD_ROWS}")
    starts: list[tuple[int, int]] = []
    sizes: list[int] = []
    rows, first_shard, first_row = array("q"), array("q"), array("q")
    for document, n_tokens in enumerate(token_counts):
        of_document = 0
        for number, window in enumerate(document_windows(n_tokens, windowing, document)):
            size = window.rows(windowing)
            if not sizes or sizes[-1] + size > shard_rows:
                starts.append((document, number))
                sizes.append(0)
            if number == 0:
                first_shard.append(len(sizes) - 1)
                first_row.append(sizes[-1])
            sizes[-1] += size
            of_document += size
        if n_tokens == 0:
            first_shard.append(0)
            first_row.append(0)
        rows.append(of_document)
    shards = tuple(
        ShardStart(number, document, window, size)
        for number, ((document, window), size) in enumerate(zip(starts, sizes, strict=True))
    )
    counts, *places = (np.array(values, dtype=np.int64) for values in (token_counts, rows, first_shard, first_row))
    return Layout(windowing, shards, counts, *places)


def shard_windows(layout: Layout, number: int) -> Iterator[Window]:
    """Yield the windows of one shard in the order of their rows."""
    shard = layout.shards[number]
    left = shard.rows
    document, skip = shard.document, shard.window
    while left > 0:
        for window in list(document_windows(int(layout.token_counts[document]), layout.windowing, document))[skip:]:
            if left == 0:
                return
            left -= window.rows(layout.windowing)
            yield window
        document, skip = document + 1, 0


def plan_json(parts: Mapping[str, object], layout: Layout) -> dict[str, object]:
    """Return what plan.json holds: `parts` name what the run is made from, the fingerprint sums them up.

    Args:
        parts: for example the hash of the inputs, the hash of the model and the settings; values that JSON can hold.
        layout: the shards.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(parts),
        "made_from": dict(parts),
        "windowing": asdict(layout.windowing),
        "documents": len(layout.rows),
        "tokens": int(layout.rows.sum()),
        "shards": [[shard.document, shard.window, shard.rows] for shard in layout.shards],
    }


def fingerprint(parts: Mapping[str, object]) -> str:
    """Return the SHA-256 of values that JSON can hold, whatever the order of the keys.

    Example:
        >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
        True
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def check_same_plan(path: object, old: Mapping[str, object], new: Mapping[str, object]) -> None:
    """Refuse to go on with a run that was made from something else.

    Raises:
        RunError: naming what differs, with both values where they are short.
    """
    if old.get("fingerprint") == new["fingerprint"] and old.get("shards") == new["shards"]:
        return
    before, now = _flat(old.get("made_from")), _flat(new["made_from"])
    differences = [
        f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
        for name in [*now, *(name for name in before if name not in now)]
        if before.get(name) != now.get(name)
    ]
    raise RunError(
        f"{path}: this run was made from something else ({'; '.join(differences) or 'its shards differ'});"
        " resume it with the same arguments and inputs, or choose another folder"
    )


def _flat(parts: object) -> dict[str, object]:
    if not isinstance(parts, Mapping):
        return {}
    flat: dict[str, object] = {}
    for name, value in parts.items():
        if isinstance(value, Mapping):
            flat |= {str(key): inner for key, inner in value.items()}
        else:
            flat[str(name)] = value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:12]}…{text[-8:]}"
