"""A second run beside the one that is looked at: which there are, which fit, and what was measured of the two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl
import streamlit as st

from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.schema import MANIFEST_FILE
from moe_probe.store import Run
from moe_probe.tables import comparison_warnings
from moe_probe.tables.between import agreement_table, load_difference_table
from moe_probe.tables.paired import pair_runs
from moe_probe.tables.surprisal import has_surprisal, surprisal_table
from moe_probe_app import library, soundness

KEPT = 6
KEPT_OUTLINES = 1_000
MOST_LOOKED_AT = 200
"""Of more runs than this, only the newest are looked at for one that fits."""

Outline = tuple[int, int, tuple[tuple[int, int, int], ...]]


@dataclass(frozen=True)
class Comparison:
    """What was measured of two runs over the same tokens; `surprisal` is None where either run has none."""

    agreement: pl.DataFrame
    load_difference: pl.DataFrame
    surprisal: pl.DataFrame | None
    warnings: tuple[str, ...]
    complete: bool


def fitting(root: Path, names: list[str], run: Run) -> list[str]:
    """Return those of the named runs that have as many tokens as `run`, and the same routers.

    Whether they are of the same text is seen when they are compared.
    """
    wanted = _outline_of(run)
    return [name for name in names[:MOST_LOOKED_AT] if _outline(root, name) == wanted]


def twin(run_a: Run, document: int, run_b: Run) -> int:
    """Return the place in run_b of a document of run_a, by its name; both are lists of `library.document_names`.

    Raises:
        BadInputError: it is not there, or is of other tokens there, or the runs have other routers.
        RunError: a run cannot be read.
    """
    return _twin(*library.identity(run_a), document, *library.identity(run_b), run_a, run_b)


@st.cache_resource(max_entries=KEPT_OUTLINES, show_spinner=False)
def _twin(path_a: str, written_a: int, document: int, path_b: str, written_b: int, _run_a: Run, _run_b: Run) -> int:
    if _outline_of(_run_a)[2] != _outline_of(_run_b)[2]:
        raise BadInputError("only runs of models with the same routers can be compared")
    name = library.document_names(_run_a)[document]
    places = [place for place, other in enumerate(library.document_names(_run_b)) if other == name]
    if len(places) != 1:
        raise BadInputError(f"the second run has {len(places)} documents of the name {name!r}")
    tokens = [
        run.document_tokens(int(run.documents()["document"][place]), ["position", "token_id", "text"])
        for run, place in ((_run_a, document), (_run_b, places[0]))
    ]
    if not tokens[0].equals(tokens[1]):
        raise BadInputError(f"document {name!r} is of other tokens in the second run")
    return places[0]


def compare(run_a: Run, run_b: Run) -> Comparison:
    """Compare two runs; labels and margins are those of the first.

    Raises:
        BadInputError: they are of different text, or of other routers.
        RunError: a run cannot be read.
    """
    return _compare(*library.identity(run_a), *library.identity(run_b), run_a, run_b)


@st.cache_resource(max_entries=KEPT, show_spinner="Comparing token by token …")
def _compare(path_a: str, written_a: int, path_b: str, written_b: int, _run_a: Run, _run_b: Run) -> Comparison:
    labels = [label_set.name for label_set in _run_a.labels]
    pair = pair_runs(_run_a, _run_b, labels)
    return Comparison(
        agreement_table(pair, labels),
        load_difference_table(pair),
        surprisal_table(pair, labels) if has_surprisal(_run_a) and has_surprisal(_run_b) else None,
        tuple(comparison_warnings(_run_a, _run_b)),
        pair.complete,
    )


def _outline_of(run: Run) -> Outline:
    routers = tuple((router.layer, router.n_experts, router.n_slots) for router in run.routers)
    return run.n_tokens, run.n_documents, routers


def _outline(root: Path, name: str) -> Outline | None:
    """Return what a run must share with another to be compared; None for one that cannot be opened."""
    manifest = root / name / MANIFEST_FILE
    try:
        soundness.check_links(root, manifest.parent)
        return _read_outline(str(manifest.parent), manifest.stat().st_mtime_ns)
    except (MoeProbeError, OSError):
        return None


@st.cache_data(max_entries=KEPT_OUTLINES, show_spinner=False)
def _read_outline(path: str, written: int) -> Outline:
    return _outline_of(soundness.open_sound(path, shards=False))
