"""The runs under one folder: what there is, and each opened once however many pages ask.

Only folders that really lie under the root are ever opened, whatever a link asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import streamlit as st

from moe_probe import tables
from moe_probe.schema import MANIFEST_FILE
from moe_probe.store import Run, open_run
from moe_probe.tokenview import content_key, pack

OPEN_RUNS = 8
PACKED_DOCUMENTS = 6
KEPT_TABLES = 40
DOCUMENT_LABELS = ("domain", "language")
"""Label sets of which a document has one value."""

_TABLES: dict[str, Callable[[Run], pl.DataFrame]] = {
    "load": tables.load_table,
    "balance": tables.balance,
    "affinity": tables.affinity,
    "divergence": tables.divergence,
    "repetition": tables.repetition,
    "coactivation": tables.coactivation,
    "transitions": tables.transitions,
}


@dataclass(frozen=True)
class PackedDocument:
    """A document's bytes for the browser and the short name under which the page keeps them."""

    key: str
    data: bytes


def run_names(root: Path) -> list[str]:
    """Return the runs under `root` and one folder further down, the newest first, as paths relative to it."""
    root = root.resolve()
    manifests = [*root.glob(f"*/{MANIFEST_FILE}"), *root.glob(f"*/*/{MANIFEST_FILE}")]
    inside = [path for path in manifests if path.resolve().is_relative_to(root) and path.is_file()]
    inside.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [path.parent.relative_to(root).as_posix() for path in inside]


def open_named(root: Path, name: str) -> Run:
    """Open a run that `run_names` listed; a run that was traced on or labelled since is opened anew."""
    manifest = root / name / MANIFEST_FILE
    return _open(str(manifest.parent), manifest.stat().st_mtime_ns)


@st.cache_resource(max_entries=OPEN_RUNS, show_spinner=False)
def _open(path: str, written: int) -> Run:
    return open_run(path)


def document_names(run: Run) -> list[str]:
    """Return the documents' names in their order."""
    return [str(name) for name in run.documents()["name"].to_list()]


def label_values(run: Run, label: str) -> list[str]:
    """Return the values that a label has in a run, sorted."""
    return _label_values(*identity(run), label, run)


@st.cache_resource(max_entries=64, show_spinner=False)
def _label_values(path: str, written: int, label: str, _run: Run) -> list[str]:
    return _run.label_values(label)


def identity(run: Run) -> tuple[str, int]:
    """Return what tells a run, as it is now on disk, from any other: the key of every cache."""
    return str(run.path), (run.path / MANIFEST_FILE).stat().st_mtime_ns


def packed_document(run: Run, document: int) -> PackedDocument:
    """Return a document as bytes for the browser; `document` is its place in `document_names`."""
    return _pack(*identity(run), document, run)


@st.cache_resource(max_entries=PACKED_DOCUMENTS, show_spinner=False)
def _pack(path: str, written: int, document: int, _run: Run) -> PackedDocument:
    data = pack(_run.document(_run.documents()["document"][document]))
    return PackedDocument(content_key(data), data)


def load_table(run: Run) -> pl.DataFrame:
    """Return the load of every expert; see `tables.load_table`."""
    return _table(*identity(run), "load", "", run)


def balance(run: Run) -> pl.DataFrame:
    """Return how evenly each router spreads its load; see `tables.balance`."""
    return _table(*identity(run), "balance", "", run)


def label_table(run: Run, label: str) -> pl.DataFrame:
    """Return how often each expert met each value of a label; see `tables.label_table`."""
    return _table(*identity(run), "label", label, run)


def affinity(run: Run) -> pl.DataFrame:
    """Return how much of each domain's work each expert does; see `tables.affinity`."""
    return _table(*identity(run), "affinity", "", run)


def divergence(run: Run) -> pl.DataFrame:
    """Return how far apart the loads of domains lie; see `tables.divergence`."""
    return _table(*identity(run), "divergence", "", run)


def repetition(run: Run) -> pl.DataFrame:
    """Return how often neighbours share an expert; see `tables.repetition`."""
    return _table(*identity(run), "repetition", "", run)


def coactivation(run: Run) -> pl.DataFrame:
    """Return how often each pair of experts was chosen for one token; see `tables.coactivation`."""
    return _table(*identity(run), "coactivation", "", run)


def transitions(run: Run) -> pl.DataFrame:
    """Return how often a first choice followed another in the next layer; see `tables.transitions`."""
    return _table(*identity(run), "transitions", "", run)


def paths(run: Run, layers: tuple[int, ...]) -> pl.DataFrame:
    """Return the paths of first choices through some layers that stand out; see `tables.paths`."""
    return _paths(*identity(run), layers, run)


@st.cache_resource(max_entries=KEPT_TABLES, show_spinner="Counting …")
def _paths(path: str, written: int, layers: tuple[int, ...], _run: Run) -> pl.DataFrame:
    return tables.paths(_run, layers=layers)


def expert_names(run: Run) -> pl.DataFrame:
    """Return what each expert is an expert in; see `tables.expert_names`."""
    return _table(*identity(run), "experts", "", run)


def document_with(run: Run, label: str, value: str, now: int) -> int:
    """Return the place of a document to show a label's value in.

    That is `now`, unless the label is one of whole documents and another one has the value.
    """
    documents = run.documents()
    if label not in DOCUMENT_LABELS or documents[label][now] == value:
        return now
    return next((place for place, name in enumerate(documents[label]) if name == value), now)


@st.cache_resource(max_entries=KEPT_TABLES, show_spinner="Counting …")
def _table(path: str, written: int, table: str, label: str, _run: Run) -> pl.DataFrame:
    if table == "label":
        return tables.label_table(_run, label)
    if table == "experts":
        return tables.expert_names(_run, tables={one.name: label_table(_run, one.name) for one in _run.labels})
    return _TABLES[table](_run)
