"""Writes a run from documents that were checked and kept: shards, token rows, labels, manifest.

It does not know formats.
"""

from __future__ import annotations

import platform
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe import __version__
from moe_probe.corpus import Document
from moe_probe.importers.ahead import ahead
from moe_probe.importers.checking import Checker
from moe_probe.importers.columns import RoutingColumns
from moe_probe.importers.spool import Kept, Spool
from moe_probe.labels import Labeller
from moe_probe.labels.align import Pieces, word_initial
from moe_probe.labels.given import PROMPT
from moe_probe.schema import SPECIAL, UNTAGGED, Router, expert_bits
from moe_probe.store.plan import Layout, Windowing, lay_out, plan_json, shard_rows_for
from moe_probe.store.shards import tokens_table
from moe_probe.store.writer import RunWriter, ShardFacts
from moe_probe.watching import Watch

KIND = "imported"
GENERATED = "generated"

_SHARD_ROWS = 65_536
_SHARD_BYTES = 128 * 2**20


@dataclass
class Imported:
    """What is known of an import beside its rows; it grows by a few numbers a document."""

    format: str
    path: Path
    model: str | None
    language: str | None
    labellers: Mapping[str, Labeller]
    started: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)  # of a clock that nobody sets
    names: list[str] = field(default_factory=list)
    domains: list[str | None] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("q"))
    characters: array[int] = field(default_factory=lambda: array("q"))
    blanks: list[tuple[int, ...]] = field(default_factory=list)

    def note(self, kept: Kept) -> None:
        """Remember what the plan and the manifest need of a document."""
        self.names.append(kept.name)
        self.domains.append(kept.domain)
        self.rows.append(kept.n_tokens)
        self.characters.append(sum(map(len, kept.texts)))
        self.blanks.append(kept.blank)


def write_imported(
    writer: RunWriter, spool: Spool, checker: Checker, imported: Imported, digest: str, watch: Watch
) -> None:
    """Write everything; afterwards the folder is a run.

    Raises:
        BadInputError: if too much of the trace cannot be so.
    """
    places = checker.finish()
    _leave_out(imported, checker, places)
    checker.refuse_if_mostly_bad()
    n_experts = checker.n_experts or checker.highest + 1
    routers = [
        Router(index, f"layers.{checker.layers[place]}", checker.layers[place], n_experts, checker.n_slots, KIND)
        for index, place in enumerate(places)
    ]
    weighted = bool(checker.weighted)
    width = len(routers) * checker.n_slots * (expert_bits(n_experts) // 8 + 2 * weighted)
    layout = lay_out(imported.rows, Windowing(max(1, max(imported.rows))), _shard_rows(sum(imported.rows), width))
    made_from = {
        "inputs": digest,
        "format": imported.format,
        "model": imported.model,
        "routers": [router.as_dict() for router in routers],
        "labels": {name: labeller.label_set.source for name, labeller in imported.labellers.items()},
    }
    writer.publish_plan(plan_json(made_from, layout))
    writer.write_documents([document_table(imported, layout)])
    facts = ShardFacts(
        (False,) * len(routers), f"not run: imported from {imported.format}", tuple(checker.findings.sentences())
    )
    watch.begin("writing", 0, int(layout.rows.sum()))
    there = frozenset(writer.shards)
    most = max(shard.rows for shard in layout.shards)
    written: list[RoutingColumns] = []  # to be filled again

    def tables(number: int, documents: Iterator[tuple[int, Kept]]) -> tuple[pa.Table, pa.Table, RoutingColumns]:
        routing = written.pop() if written else RoutingColumns(routers, places, most, weights=weighted)
        others: list[tuple[int, Kept]] = []
        for document, kept in documents:
            routing.add(kept)
            others.append((document, kept.without_routing()))
        tokens = token_table(others, imported)
        writer.stage_tokens(number, tokens)  # beside the shard before it, which is being written meanwhile
        return tokens, routing.to_table(), routing

    made = ((number, None if number in there else tables(number, some)) for number, some in _shards(spool, layout))
    done = 0
    with ahead(made, 1) as shards:
        for number, shard in shards:
            if shard:
                tokens, table, routing = shard
                writer.write_shard(number, tokens, table, facts)
                routing.clear()
                written.append(routing)
            done += layout.shards[number].rows
            watch.step(done)
    labels = [labeller.label_set for labeller in imported.labellers.values()]
    tokenizer = checker.words.tokenizer
    about = about_import(imported, layout, digest, checker.model, type(tokenizer).__name__ if tokenizer else None)
    writer.publish(about, routers, labels, complete=True, weights=weighted)


def _leave_out(imported: Imported, checker: Checker, places: tuple[int, ...]) -> None:
    """Leave out the documents in which a layer holds nothing that has experts in others."""
    for document, blank in enumerate(imported.blanks):
        if set(blank) & set(places):
            checker.findings.add("blank", imported.rows[document], imported.names[document])
            imported.rows[document] = imported.characters[document] = 0


def _shard_rows(n_tokens: int, bytes_per_row: int) -> int:
    """Return the number of rows of a shard: of a small trace more than of a small corpus, of a wide one fewer.

    To lose a small shard is worth little here, for an import that was cut short reads the whole trace again; but three
    shards are in memory at once.
    """
    wanted = max(shard_rows_for(n_tokens, bytes_per_row), _SHARD_ROWS)
    return max(1, min(wanted, _SHARD_BYTES // bytes_per_row))


def _shards(spool: Spool, layout: Layout) -> Iterator[tuple[int, Iterator[tuple[int, Kept]]]]:
    """Yield the number of each shard and its documents, which are to be taken before the next shard is.

    Every document is a window, so that shards end with one.
    """
    documents = ((number, kept) for number, kept in enumerate(spool.read()) if layout.rows[number])
    firsts = [int(np.count_nonzero(layout.rows[: shard.document])) for shard in layout.shards]
    total = int(np.count_nonzero(layout.rows))
    for shard, (begin, end) in zip(layout.shards, zip(firsts, [*firsts[1:], total], strict=True), strict=True):
        some = islice(documents, end - begin)
        yield shard.number, some
        for _ in some:  # those of a shard that is there already
            pass


def token_table(documents: Sequence[tuple[int, Kept]], imported: Imported) -> pa.Table:
    """Return the token rows of some documents, each with its number."""
    columns: dict[str, list[npt.NDArray[np.generic]]] = {name: [] for name in _NUMBERS}
    phases: list[npt.NDArray[np.int8]] = []
    labels: dict[str, list[str]] = {name: [] for name in imported.labellers}
    for number, kept in documents:
        lengths = np.fromiter(map(len, kept.texts), np.int32) if kept.texts else np.zeros(kept.n_tokens, np.int32)
        ends = np.cumsum(lengths, dtype=np.int32)
        owned = Pieces(ends - lengths, ends, kept.special)
        text = "".join(kept.texts)
        values = {
            "document": np.full(kept.n_tokens, number, np.int32),
            "position": kept.positions,
            "window_position": kept.places,
            "token_id": kept.token_ids,
            "char_start": owned.starts,
            "char_end": owned.ends,
            "word_initial": word_initial(text, owned) if text else np.zeros(kept.n_tokens, np.bool_),
        }
        for name, value in values.items():
            columns[name].append(value)
        phases.append(np.where(kept.special, 2, kept.generated).astype(np.int8))
        for name, labeller in imported.labellers.items():
            labels[name] += _label(labeller, kept, text, owned, imported.language)
    joined: dict[str, object] = {name: np.concatenate(parts) for name, parts in columns.items()}
    ordered = {name: joined[name] for name in _NUMBERS[:4]}
    ordered |= {
        "token": _strings([(kept.pieces, kept.n_tokens) for _, kept in documents]),
        "text": _strings([(kept.texts, kept.n_tokens) for _, kept in documents]),
    }
    ordered |= {name: joined[name] for name in ("char_start", "char_end")}
    ordered |= {
        "phase": pa.array(_PHASES).take(pa.array(np.concatenate(phases))),
        "word_initial": joined["word_initial"],
    }
    sources = {name: labeller.label_set.source for name, labeller in imported.labellers.items()}
    return tokens_table(ordered, labels, sources)


_NUMBERS = ("document", "position", "window_position", "token_id", "char_start", "char_end", "word_initial")
_PHASES = (PROMPT, GENERATED, SPECIAL)


def _strings(documents: Sequence[tuple[list[str], int]]) -> pa.Array:
    """Return the strings of the rows of some documents, given how many rows each has: '' where they are unknown."""
    if not any(values for values, _ in documents):
        return pa.repeat(pa.scalar("", pa.string()), sum(rows for _, rows in documents))
    return pa.array(chain.from_iterable(values or [""] * rows for values, rows in documents), pa.string())


def _label(labeller: Labeller, kept: Kept, text: str, owned: Pieces, language: str | None) -> list[str]:
    if not text:
        given = {"domain": kept.domain, "language": language}.get(labeller.label_set.name) or UNTAGGED
        return [given] * kept.n_tokens
    documents = [Document(kept.name, text, kept.domain, language)]
    labeller.prepare(documents)
    return labeller(documents, [owned])[0]


def document_table(imported: Imported, layout: Layout) -> pa.Table:
    """Return documents.parquet."""
    n = len(imported.names)
    empty = layout.rows == 0
    return pa.table(
        {
            "document": pa.array(np.arange(n), pa.int32()),
            "name": pa.array(imported.names, pa.string()),
            "domain": pa.array(imported.domains, pa.string()),
            "language": pa.array([imported.language] * n, pa.string()),
            "first_shard": pa.array(layout.first_shard, pa.int32(), mask=empty),
            "first_row": pa.array(layout.first_row, pa.int32(), mask=empty),
            "tokens": pa.array(layout.rows, pa.int64()),
            "characters": pa.array(np.array(imported.characters, np.int64)),
        }
    )


def about_import(
    imported: Imported, layout: Layout, digest: str, model: str | None, tokenizer: str | None
) -> dict[str, object]:
    """Return what the manifest says of the making; `model` is what the file calls it."""
    n_tokens = int(layout.rows.sum())
    domains: Counter[str] = Counter()
    for domain, rows in zip(imported.domains, layout.rows.tolist(), strict=True):
        domains[domain or ""] += rows
    seconds = time.perf_counter() - imported.began
    return {
        "model": {"name": imported.model or model or "unknown", "quantization": "unknown"},
        "precision": [],
        "tokenizer": {"class": tokenizer},
        "imported": {"format": imported.format, "file": imported.path.name},
        "corpus": {
            "documents": len(imported.names),
            "tokens": n_tokens,
            "characters": int(sum(imported.characters)),
            "tokens_by_domain": dict(sorted(domains.items())),
            "tokens_by_language": {imported.language or "": n_tokens},
            "digest": digest,
        },
        "settings": {"labels": {name: each.label_set.source for name, each in imported.labellers.items()}},
        "seed": None,
        "versions": {"moe-probe": __version__, "python": platform.python_version()},
        "times": {
            "started": datetime.fromtimestamp(imported.started, UTC).isoformat(timespec="seconds"),
            "finished": datetime.fromtimestamp(imported.started + seconds, UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        },
    }
