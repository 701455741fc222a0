"""Writes small runs by hand, column by column, so that tests of counts need no model and no writer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe import schema
from moe_probe.store import Run, open_run

FAR_FROM_SINKS = 100


def write_run(
    folder: Path,
    experts: Sequence[np.ndarray],
    *,
    labels: Mapping[str, Sequence[str]] | None = None,
    word_level: Sequence[str] = ("upos",),
    n_experts: int | Sequence[int] = 4,
    documents: Sequence[int] | None = None,
    window_position: Sequence[int] | None = None,
    word_initial: Sequence[bool] | None = None,
    token: Sequence[str] | None = None,
    token_id: Sequence[int] | None = None,
    scores: Mapping[int, tuple[Sequence[float], Sequence[float]]] | None = None,
    layers: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    domains: Sequence[str | None] | None = None,
    languages: Sequence[str | None] | None = None,
    shard_rows: int | None = None,
    weights: Sequence[np.ndarray] | None = None,
    phase: Sequence[str] | None = None,
    position: Sequence[int] | None = None,
    missing_shards: Collection[int] = (),
) -> Run:
    """Write a run and open it.

    `experts` holds (tokens, slots) for each router, -1 for dropped, and `weights` the same shape, by default the same
    falling numbers for all; `n_experts` is one number or one a router. `documents` is the number of each token's
    document, ascending; `scores` maps a router to its entropies and margins. Every token lies far from its window's
    start unless `window_position` says otherwise. With `missing_shards` the run is one that was interrupted.
    """
    sizes = [n_experts] * len(experts) if isinstance(n_experts, int) else list(n_experts)
    n_tokens = len(experts[0]) if experts else len(window_position or [])
    document = np.zeros(n_tokens, np.int32) if documents is None else np.asarray(documents, np.int32)
    counted_on = np.arange(n_tokens) - np.searchsorted(document, document)
    where = counted_on + FAR_FROM_SINKS if window_position is None else np.asarray(window_position)
    pieces = [f"t{number}" for number in range(n_tokens)] if token is None else list(token)
    ids = range(n_tokens) if token_id is None else token_id
    columns: dict[str, pa.Array] = {
        "document": pa.array(document, pa.int32()),
        "position": pa.array(counted_on if position is None else position, pa.int32()),
        "window_position": pa.array(where, pa.int32()),
        "token_id": pa.array(ids, pa.int32()),
        "token": pa.array(pieces, pa.string()),
        "text": pa.array(pieces, pa.string()),
        "char_start": pa.array(range(n_tokens), pa.int32()),
        "char_end": pa.array(range(1, n_tokens + 1), pa.int32()),
        "phase": pa.array(["prompt"] * n_tokens if phase is None else list(phase), pa.string()).dictionary_encode(),
        "word_initial": pa.array([True] * n_tokens if word_initial is None else list(word_initial), pa.bool_()),
    }
    labels = labels or {}
    columns |= {name: pa.array(values, pa.string()).dictionary_encode() for name, values in labels.items()}
    tokens = pa.table(columns)
    routing = _routing(experts, sizes, scores or {}, weights)
    size = shard_rows or max(n_tokens, 1)
    shards = []
    planned = []
    for number, start in enumerate(range(0, n_tokens, size)):
        planned.append([int(document[start]), 0, min(size, n_tokens - start)])
        if number in missing_shards:
            continue
        for name, table in ((schema.tokens_file(number), tokens), (schema.routing_file(number), routing)):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.slice(start, size), folder / name)
        shards.append({"number": number, "rows": min(size, n_tokens - start)})
    folder.mkdir(parents=True, exist_ok=True)
    _write_documents(folder, document, size, names, domains, languages)
    (folder / schema.PLAN_FILE).write_text(json.dumps({"shards": planned}))
    manifest = {
        "schema_version": schema.SCHEMA_VERSION,
        "complete": not missing_shards,
        "corpus": {"documents": len(names or [0] * (int(document.max(initial=0)) + 1))},
        "model": {"name": "by hand", "quantization": None},
        "precision": [],
        "routers": [
            {
                "index": index,
                "name": f"model.layers.{index}.mlp",
                "layer": layers[index] if layers else index,
                "n_experts": sizes[index],
                "n_slots": array.shape[1],
                "kind": "softmax top-k",
                "scores": index in (scores or {}),
            }
            for index, array in enumerate(experts)
        ],
        "labels": [{"name": name, "source": "by hand", "word_level": name in word_level} for name in labels],
        "self_check": "passed",
        "warnings": [],
        "shards": shards,
    }
    (folder / schema.MANIFEST_FILE).write_text(json.dumps(manifest))
    return open_run(folder)


def _routing(
    experts: Sequence[np.ndarray],
    n_experts: Sequence[int],
    scores: Mapping[int, tuple[Sequence[float], Sequence[float]]],
    weights: Sequence[np.ndarray] | None,
) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for router, array in enumerate(experts):
        width = {8: pa.uint8(), 16: pa.uint16(), 32: pa.uint32()}[schema.expert_bits(n_experts[router])]
        for slot, values in enumerate(array.T):
            columns[schema.expert_column(router, slot)] = pa.array(
                [None if value < 0 else int(value) for value in values], width
            )
        for slot in range(array.shape[1]):
            of_slot = np.full(len(array), 1 / (slot + 2)) if weights is None else weights[router][:, slot]
            columns[schema.weight_column(router, slot)] = pa.array(of_slot.astype(np.float16))
        if router in scores:
            entropy, margin = scores[router]
            columns[schema.entropy_column(router)] = pa.array(np.asarray(entropy, np.float16))
            columns[schema.margin_column(router)] = pa.array(np.asarray(margin, np.float16))
    return pa.table(columns)


def _write_documents(
    folder: Path,
    document: np.ndarray,
    shard_rows: int,
    names: Sequence[str] | None,
    domains: Sequence[str | None] | None,
    languages: Sequence[str | None] | None,
) -> None:
    n_documents = len(names) if names else int(document.max(initial=0)) + 1
    starts = np.searchsorted(document, np.arange(n_documents))
    lengths = np.bincount(document, minlength=n_documents)
    table = pa.table(
        {
            "document": pa.array(range(n_documents), pa.int32()),
            "name": pa.array(names or [f"document {number}" for number in range(n_documents)], pa.string()),
            "domain": pa.array(domains or [None] * n_documents, pa.string()),
            "language": pa.array(languages or [None] * n_documents, pa.string()),
            "first_shard": pa.array(starts // shard_rows, pa.int32()),
            "first_row": pa.array(starts % shard_rows, pa.int64()),
            "tokens": pa.array(lengths, pa.int64()),
            "characters": pa.array(lengths, pa.int64()),
        }
    )
    pq.write_table(table, folder / schema.DOCUMENTS_FILE)
