"""Writes what a run needs beside its shards: plan, documents, manifest.

It does not know formats.
"""

from __future__ import annotations

import platform
import time
from array import array
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_probe import __version__
from moe_probe.errors import BadInputError
from moe_probe.importers.checking import Checker
from moe_probe.importers.findings import Findings
from moe_probe.importers.kept import Kept
from moe_probe.importers.sharding import Shards
from moe_probe.labels import Labeller
from moe_probe.schema import Router
from moe_probe.store.plan import Layout, plan_json
from moe_probe.store.writer import RunWriter, ShardFacts

KIND = "imported"


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

    def afresh(self) -> Imported:
        """Return the same before the first document, as of the time when all began."""
        return Imported(
            self.format, self.path, self.model, self.language, self.labellers, started=self.started, began=self.began
        )

    def note(self, kept: Kept) -> None:
        """Remember what the plan and the manifest need of a document."""
        self.names.append(kept.name)
        self.domains.append(kept.domain)
        self.rows.append(kept.n_tokens)
        self.characters.append(sum(map(len, kept.texts)))
        self.blanks.append(kept.blank)

    def leave_out(self, places: Collection[int], findings: Findings) -> None:
        """Leave out the documents in which a layer holds nothing that has experts in others."""
        for document, blank in enumerate(self.blanks):
            if set(blank) & set(places):
                findings.add("blank", self.rows[document], self.names[document])
                self.rows[document] = self.characters[document] = 0


@dataclass(frozen=True)
class Reading:
    """What became of a trace when it was read to its end; `digest` is that of its bytes."""

    shards: Shards
    checker: Checker
    imported: Imported
    digest: str


def write_imported(writer: RunWriter, reading: Reading) -> None:
    """Write all that is not written yet of a trace whose documents are in shards; afterwards the folder is a run.

    Raises:
        BadInputError: if not one token is left.
        RunError: if something else was begun in the folder.
        MoeProbeError: if the disk is full.
    """
    checker, imported, form = reading.checker, reading.imported, reading.checker.form
    facts = shard_facts(imported.format, len(form.places), checker.findings)
    layout = reading.shards.finish(form, facts)
    if not layout.shards:
        raise BadInputError(
            f"{imported.path}: none of its {checker.findings.rows:,} tokens can be used; " + facts.warnings[0]
        )
    assert layout.rows.tolist() == list(imported.rows), "documents are left out for the same reasons in both places"
    n_experts = checker.n_experts or checker.highest + 1
    routers = [
        Router(index, f"layers.{checker.layers[place]}", checker.layers[place], n_experts, form.n_slots, KIND)
        for index, place in enumerate(form.places)
    ]
    made_from = {
        "inputs": reading.digest,
        "format": imported.format,
        "model": imported.model,
        "routers": [router.as_dict() for router in routers],
        "labels": {name: labeller.label_set.source for name, labeller in imported.labellers.items()},
    }
    writer.publish_plan(plan_json(made_from, layout))
    writer.write_documents([document_table(imported, layout)])
    writer.commit_staged()
    labels = [labeller.label_set for labeller in imported.labellers.values()]
    tokenizer = checker.words.tokenizer
    about = about_import(
        imported, layout, reading.digest, checker.model, type(tokenizer).__name__ if tokenizer else None
    )
    writer.publish(about, routers, labels, complete=True, weights=form.weighted)


def shard_facts(format: str, n_routers: int, findings: Findings | None = None) -> ShardFacts:
    """Return what is known about a shard of an import; what was found in the trace is said by the last shard alone."""
    said = () if findings is None else tuple(findings.sentences())
    return ShardFacts((False,) * n_routers, f"not run: imported from {format}", said)


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
