"""The runs under one folder: what there is, and each opened once however many pages ask.

Only folders that really lie under the root are ever opened, whatever a link asks for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import streamlit as st

from moe_probe import tables
from moe_probe.errors import RunError
from moe_probe.schema import MANIFEST_FILE
from moe_probe.store import Run
from moe_probe.store.document import DocumentRouting
from moe_probe.store.excerpt import read_routing
from moe_probe.tokenview import content_key, pack, pack_routing, routing_bytes
from moe_probe_app.soundness import check_links, open_sound

OPEN_RUNS = 8
PACKED_DOCUMENTS = 6
SENT_BYTES = 10_000_000
"""A document whose routing takes more is sent without it; the page asks for one layer at a time."""
KNOWN_DOCUMENTS = 1_000
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
    """A document's bytes for the browser and the short name under which the page keeps them.

    Of a document that is `partly` sent, the routing comes layer by layer; see `packed_layer`.
    """

    key: str
    data: bytes
    partly: bool = False


@dataclass(frozen=True)
class _Known:
    """A document that was sent in part: where it lies, and the manifest's time when it did."""

    run: str
    written: int
    document: int
    tokens: int


_known: dict[str, _Known] = {}
_lock = threading.Lock()


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
    check_links(root, manifest.parent)
    return _open(str(manifest.parent), manifest.stat().st_mtime_ns)


@st.cache_resource(max_entries=OPEN_RUNS, show_spinner=False)
def _open(path: str, written: int) -> Run:
    return open_sound(path)


def document_names(run: Run) -> list[str]:
    """Return the documents' names in their order."""
    return [str(name) for name in run.documents()["name"].to_list()]


def has_text(run: Run) -> bool:
    """Say whether a run holds its text; one of counts does not, nor may one imported from a trace of numbers."""
    return not run.counts_only and bool(run.documents()["characters"].sum())


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
    row = _run.documents().row(document, named=True)
    size = routing_bytes(_run.routers, row["tokens"], weights=_run.with_weights, scores=_run.with_scores)
    if size <= SENT_BYTES:
        data = pack(_run.document(row["document"]))
        return PackedDocument(content_key(data), data)
    tokens = _run.document_tokens(row["document"])
    head = DocumentRouting(row["document"], row["name"], tuple(_run.routers), tokens, pl.DataFrame())
    data = pack(head, routing=False)
    key = content_key(data, path.encode(), str(written).encode())
    with _lock:
        _known[key] = _Known(path, written, row["document"], row["tokens"])
        while len(_known) > KNOWN_DOCUMENTS:
            del _known[next(iter(_known))]
    return PackedDocument(key, data, partly=True)


def packed_layer(root: Path, key: str, router: int) -> bytes | None:
    """Return what one router did with a document that was sent in part; None where there is no such document or router.

    Args:
        root: of the runs.
        key: the document's, as `packed_document` named it.
        router: the router's index.
    """
    found = _known_run(root, key)
    if found is None or not 0 <= router < len(found[1].routers):
        return None
    known, run = found
    return pack_routing(read_routing(run, known.document, routers=[router]), [router])


def packed_path(root: Path, key: str, token: int) -> bytes | None:
    """Return what all routers did with one token of such a document; None for what is not there.

    Args:
        root: of the runs.
        key: the document's.
        token: counted within the document.
    """
    found = _known_run(root, key)
    if found is None or not 0 <= token < found[0].tokens:
        return None
    known, run = found
    stretch = read_routing(run, known.document, start=token, stop=token + 1)
    return pack_routing(stretch, [router.index for router in run.routers])


def _known_run(root: Path, key: str) -> tuple[_Known, Run] | None:
    """Return the run of a document's key if it still lies under the root and is what it was."""
    known = _known.get(key)
    if known is None:
        return None
    root = root.resolve()
    folder = Path(known.run)
    if not folder.resolve().is_relative_to(root):
        return None
    try:
        run = open_named(root, folder.relative_to(root).as_posix())
        written = identity(run)[1]
    except (RunError, OSError, ValueError):
        return None
    return (known, run) if written == known.written else None


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
