"""Reads generic JSON lines: one object a prompt, or one object a (token, layer).

A prompt: `experts` as [layer][token][slot], `layers` the number of each layer (from 0 if not given), and perhaps
`weights` of the same shape, `tokens` (strings), `token_ids`, `prompt` or `text`, `name`, `domain`, `model`. MoELens
writes such files.

A row: `layer`, `token_idx`, `experts` [slot], and perhaps `gating_probs` or `weights`, `token`, `token_id`, `document`.
Documents follow one another; without `document` a new one begins where the first (layer, token_idx) comes again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import BadInputError
from moe_probe.importers.alike import read_alike
from moe_probe.importers.lines import Chunk, JsonLines
from moe_probe.importers.nested import from_arrow
from moe_probe.importers.regular import RegularReader, is_whole
from moe_probe.importers.source import Source
from moe_probe.importers.trace import ABSENT, Trace

_CUBE = pa.list_(pa.list_(pa.list_(pa.int32())))
_PROMPTS = {
    "name": pa.string(),
    "prompt": pa.string(),
    "text": pa.string(),
    "domain": pa.string(),
    "model": pa.string(),
    "tokens": pa.list_(pa.string()),
    "token_ids": pa.list_(pa.int32()),
    "layers": pa.list_(pa.int32()),
    "experts": _CUBE,
    "weights": pa.list_(pa.list_(pa.list_(pa.float32()))),
}
_ROWS = {
    "layer": pa.int32(),
    "token_idx": pa.int32(),
    "experts": pa.list_(pa.int32()),
    "gating_probs": pa.list_(pa.float32()),
    "weights": pa.list_(pa.float32()),
    "token": pa.string(),
    "token_id": pa.int32(),
}
_BOUNDS = {"document": 2**53, "layer": 2**31, "token_idx": 2**31, "experts": 2**31, "token_id": 2**31}
"""The whole numbers of a row, and below what they are."""


def read(source: Source) -> Generator[Trace, None, None]:
    """Yield the documents of a file.

    Raises:
        BadInputError: if its lines are of neither kind.
    """
    lines = source.lines()
    first = lines.first()
    if "experts" not in first:
        raise BadInputError(
            f"{source.path}: its first object has no 'experts' but {', '.join(list(first)[:8]) or 'nothing'}"
        )
    if "layer" in first and "token_idx" in first:
        yield from _read_rows(source, lines, first)
    else:
        yield from _read_prompts(source, lines)


def _read_prompts(source: Source, lines: JsonLines) -> Iterator[Trace]:
    for number, (line, fields) in enumerate(lines.plain_objects(pa.schema(_PROMPTS.items()), _are_plain), 1):
        yield _prompt(source, fields, number, f"{source.path}, line {line}")


def _are_plain(fields: dict[str, Any]) -> bool:
    """Say whether the fields of a prompt are of the types of `_PROMPTS`, its lists of numbers arrays."""
    weights, tokens = fields["weights"], fields["tokens"]
    return (
        is_whole(fields["experts"], 3)
        and all(fields[name] is None or is_whole(fields[name], 1) for name in ("layers", "token_ids"))
        and all(isinstance(fields[name], str | None) for name in ("name", "prompt", "text", "domain", "model"))
        and (weights is None or (isinstance(weights, np.ndarray) and weights.ndim == 3))
        and (tokens is None or (isinstance(tokens, list) and all(isinstance(each, str | None) for each in tokens)))
    )


def _prompt(source: Source, fields: dict[str, Any], number: int, where: str) -> Trace:
    if fields["experts"] is None:
        raise BadInputError(f"{where}: no 'experts'")
    experts = from_arrow(fields["experts"], 3, where)  # (layers, tokens, slots)
    weights = fields["weights"]
    if weights is not None:
        weights = from_arrow(weights, 3, where, 0.0).astype(np.float32, copy=False)
    layers = list(range(len(experts))) if fields["layers"] is None else fields["layers"].tolist()
    if None in layers:
        raise BadInputError(f"{where}: a layer is null")
    ids = None if fields["token_ids"] is None else from_arrow(fields["token_ids"], 1, where)
    pieces = fields["tokens"]
    return Trace(
        name=fields["name"] or source.name(number),
        where=where,
        layers=tuple(layers),
        experts=experts.transpose(0, 2, 1),
        weights=None if weights is None else weights.transpose(0, 2, 1),
        token_ids=ids,
        pieces=None if pieces is None else [piece or "" for piece in _listed(pieces)],
        text=fields["text"] or fields["prompt"],
        domain=fields["domain"] or None,
        model=fields["model"] or None,
    )


def _listed(values: list[str | None] | pa.Array) -> list[str | None]:
    return values if isinstance(values, list) else values.to_pylist()


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a file, a value a row: `experts` and `weights` are (rows, slots), the others (rows,)."""

    line: int
    document: npt.NDArray[Any] | None
    layer: npt.NDArray[np.int32]
    token: npt.NDArray[np.int32]
    experts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32] | None
    token_id: npt.NDArray[np.int32] | None
    piece: npt.NDArray[np.object_] | None

    def part(self, rows: slice) -> _Rows:
        """Return some of the rows."""
        cut = [None if array is None else array[rows] for array in self.arrays()]
        return _Rows(self.line + (rows.start or 0), *cut)  # type: ignore[arg-type]

    def arrays(self) -> tuple[npt.NDArray[Any] | None, ...]:
        """Return all columns."""
        return (self.document, self.layer, self.token, self.experts, self.weights, self.token_id, self.piece)


def _read_rows(source: Source, lines: JsonLines, first: dict[str, Any]) -> Iterator[Trace]:
    kinds = dict(_ROWS)
    if "document" in first:
        kinds["document"] = pa.int64() if isinstance(first["document"], int) else pa.string()
    else:
        source.findings.say(
            "the rows name no document: a new one is taken to begin where the first layer and token come again"
        )
    begin: tuple[int, int] | None = None
    number = 0
    held: list[_Rows] = []
    for chunk in lines.chunks():
        rows = _alike_rows(chunk, lines.reader, first)
        if rows is None:
            rows = _rows(source, chunk, lines.table(chunk, pa.schema(kinds.items())), first)
        if begin is None:
            begin = (int(rows.layer[0]), int(rows.token[0]))
        edges = _edges(rows, begin, held[-1] if held else None)
        for start, end in zip([0, *edges], [*edges, len(rows.layer)], strict=True):
            if held and start in edges:
                number += 1
                yield _joined(source, held, number)
                held = []
            if end > start:
                held.append(rows.part(slice(start, end)))
    if held:
        yield _joined(source, held, number + 1)


def _alike_rows(chunk: Chunk, reader: RegularReader, first: dict[str, Any]) -> _Rows | None:
    """Return the rows of a chunk, or None where its lines are not alike or have not what the first of the file has."""
    found = read_alike(chunk.data, reader)
    wanted = [name for name in (*_BOUNDS, "gating_probs", "weights") if name in first]
    if found is None or any(name not in found for name in wanted) or "token" in first:
        return None
    whole = {name: found[name] for name in wanted if name in _BOUNDS}
    if not all(column.dtype.kind == "i" and (np.abs(column) < _BOUNDS[name]).all() for name, column in whole.items()):
        return None
    weights = next((found[name] for name in ("gating_probs", "weights") if name in first), None)
    experts = whole["experts"]
    if experts.ndim != 2 or any(column.ndim != 1 for name, column in whole.items() if name != "experts"):
        return None
    if weights is not None and weights.shape != experts.shape:
        return None
    return _Rows(
        chunk.first,
        whole.get("document"),
        whole["layer"].astype(np.int32, copy=False),
        whole["token_idx"].astype(np.int32, copy=False),
        experts.astype(np.int32, copy=False),
        None if weights is None else weights.astype(np.float32),
        whole["token_id"].astype(np.int32, copy=False) if "token_id" in first else None,
        None,
    )


def _rows(source: Source, chunk: Chunk, table: pa.Table, first: dict[str, Any]) -> _Rows:
    where = f"{source.path}, lines from {chunk.first} on"
    name = next((name for name in ("gating_probs", "weights") if name in first), None)
    for needed in (
        "layer",
        "token_idx",
        "experts",
        *(key for key in ("document", "token", "token_id") if key in first),
    ):
        if table.column(needed).null_count:
            raise BadInputError(f"{where}: a row has no {needed!r}, which the first row has")
    column = {key: table.column(key).combine_chunks() for key in table.column_names}
    experts = from_arrow(column["experts"], 2, where)
    weights = None
    if name is not None:
        weights = from_arrow(column[name], 2, where, 0.0)
        if not column[name].value_lengths().equals(column["experts"].value_lengths()):
            raise BadInputError(f"{where}: a row has more {name} than experts, or fewer")
    return _Rows(
        chunk.first,
        column["document"].to_numpy(zero_copy_only=False) if "document" in first else None,
        column["layer"].to_numpy(),
        column["token_idx"].to_numpy(),
        experts,
        weights,
        column["token_id"].to_numpy() if "token_id" in first else None,
        column["token"].to_numpy(zero_copy_only=False) if "token" in first else None,
    )


def _edges(rows: _Rows, begin: tuple[int, int], before: _Rows | None) -> list[int]:
    """Return the rows at which another document begins."""
    if rows.document is None:
        edges: list[int] = np.flatnonzero((rows.layer == begin[0]) & (rows.token == begin[1])).tolist()
        return edges if before is not None else edges[1:]
    changed: list[int] = (np.flatnonzero(rows.document[1:] != rows.document[:-1]) + 1).tolist()
    if before is not None and before.document is not None and before.document[-1] != rows.document[0]:
        return [0, *changed]
    return changed


def _joined(source: Source, parts: list[_Rows], number: int) -> Trace:
    """Make one document of its rows, in whatever order they are."""
    where = f"{source.path}, document from line {parts[0].line} on"
    slots = max(part.experts.shape[1] for part in parts)
    experts = np.concatenate([_wide(part.experts, slots, ABSENT) for part in parts])
    layer, token = (np.concatenate([getattr(part, name) for part in parts]) for name in ("layer", "token"))
    layers, tokens = np.unique(layer), np.unique(token)
    places = np.searchsorted(layers, layer), np.searchsorted(tokens, token)
    if np.bincount(places[0] * len(tokens) + places[1]).max() > 1:
        raise BadInputError(f"{where}: a layer and a token are said twice; do rows of two documents stand mixed?")
    if tokens[0] < 0:
        raise BadInputError(f"{where}: token_idx {tokens[0]}; tokens are counted from 0")
    shape = (len(tokens), len(layers), slots)
    row = places[1] * len(layers) + places[0]
    given = [_wide(part.weights, slots, 0) for part in parts if part.weights is not None]
    ids = _of_tokens(parts, "token_id", places[1], len(tokens))
    pieces = _of_tokens(parts, "piece", places[1], len(tokens))
    name = None if parts[0].document is None else str(parts[0].document[0])
    return Trace(
        name=name or source.name(number),
        where=where,
        layers=tuple(layers.tolist()),
        experts=_placed(row, experts, shape, ABSENT),
        weights=_placed(row, np.concatenate(given), shape, 0) if given else None,
        token_ids=ids,
        pieces=None if pieces is None else pieces.tolist(),
        positions=tokens,
    )


def _placed(
    row: npt.NDArray[np.int64], values: npt.NDArray[Any], shape: tuple[int, int, int], missing: int
) -> npt.NDArray[Any]:
    """Bring rows (rows, slots) to their places in (tokens, layers), and return (layers, slots, tokens)."""
    if len(row) != shape[0] * shape[1]:
        full = np.full((shape[0] * shape[1], shape[2]), missing, values.dtype)
        full[row] = values
    elif (row[1:] > row[:-1]).all():
        full = values
    else:
        full = np.empty_like(values)
        full[row] = values
    return full.reshape(shape).transpose(1, 2, 0)


def _wide(array: npt.NDArray[Any], slots: int, missing: int) -> npt.NDArray[Any]:
    if array.shape[1] == slots:
        return array
    return np.pad(array, ((0, 0), (0, slots - array.shape[1])), constant_values=missing)


def _of_tokens(parts: list[_Rows], name: str, places: npt.NDArray[np.int64], n_tokens: int) -> npt.NDArray[Any] | None:
    values = [getattr(part, name) for part in parts]
    if values[0] is None:
        return None
    joined = np.concatenate(values)
    found = np.empty(n_tokens, joined.dtype)
    found[places] = joined
    return found
