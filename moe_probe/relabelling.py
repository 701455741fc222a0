"""Adds labels to a run, or replaces them, without tracing again.

The texts come from the run itself. Gold tags and labels that documents once brought along are not in a run, so they
cannot be given anew. Needs no model: it knows labels and the store.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError, RunError
from moe_probe.labels import TAXONOMIES, Labeller, open_labeller
from moe_probe.labels.align import Pieces
from moe_probe.schema import SPECIAL, LabelSet, tokens_file
from moe_probe.store import Run, RunWriter, open_run
from moe_probe.store.shards import with_label
from moe_probe.watching import OnProgress, Watch

_TOKENS_AT_ONCE = 5_000
_DOCUMENTS_AT_ONCE = 64
_GOLD = "gold tags, else "
_Labels: TypeAlias = Mapping[str, Sequence[str]]
_NEEDED = ("document", "text", "char_start", "char_end", "phase")


def relabel(
    run_path: str | Path,
    names: Sequence[str],
    *,
    language: str | None = None,
    tagger: str | None = None,
    on_progress: OnProgress | None = None,
) -> Run:
    """Give every token of a run new labels.

    All files are written anew before the first takes its place, and the manifest changes last. Killed before that, the
    run is as it was; killed while the files take their places, a label that was being replaced is refused until it is
    made again, and everything else can be read.

    Args:
        run_path: the run's folder.
        names: taxonomies (`moe_probe.labels.TAXONOMIES`); a label that is there is replaced.
        language: of documents that do not say theirs; also the language of the tagger (English without it).
        tagger: the spaCy pipeline for `upos`.
        on_progress: called as the work goes on.

    Returns:
        The run with its new labels.

    Raises:
        BadInputError: a label is unknown, came with the documents, or needs what is not installed.
        RunError: the run is not complete, or is being written by another process.
    """
    if not names:
        raise BadInputError(f"no label named; give one or more of {', '.join(TAXONOMIES)}")
    for place, name in enumerate(names):
        if name not in TAXONOMIES:
            raise BadInputError(
                f"label {name!r}: a run can be given {', '.join(TAXONOMIES)}; a label of your own comes with the"
                " documents, so trace them again"
            )
        if name in names[:place]:
            raise BadInputError(f"label {name!r}: named twice")
    open_run(run_path)  # a clear error if there is none
    labellers = {name: open_labeller(name, language=language or "en", tagger=tagger) for name in names}
    with RunWriter(run_path, resume=True) as writer:
        run = open_run(run_path)
        if "phase" in labellers and run.manifest.get("generation"):
            raise BadInputError(
                f"label 'phase': {run.path} was generated, and only its trace knows what was prompt; trace it again"
            )
        if not run.complete:
            raise RunError(f"{run.path}: the run is not complete; trace again with --resume, then label it")
        watch = Watch(on_progress, threading.Event())
        watch.begin("labelling", 0, run.n_tokens)
        writer.replace_tokens(_Relabelling(run, labellers, language, watch).shards())
        made = [_label_set(labeller) for labeller in labellers.values()]
        kept = [label for label in run.labels if label.name not in labellers]
        writer.replace_manifest(run.manifest | {"labels": [label.as_dict() for label in (*kept, *made)]})
    return open_run(run_path)


def _label_set(labeller: Labeller) -> LabelSet:
    """Return what made the labels: a run holds no gold tags."""
    return replace(labeller.label_set, source=labeller.label_set.source.removeprefix(_GOLD))


class _Relabelling:
    """Walks through a run and makes its tokens anew, shard by shard; no document is labelled twice."""

    def __init__(self, run: Run, labellers: Mapping[str, Labeller], language: str | None, watch: Watch) -> None:
        self._run = run
        self._labellers = labellers
        self._language = language
        self._watch = watch
        documents = run.documents().select("document", "name", "domain", "language", "tokens")
        self._documents = {row["document"]: row for row in documents.iter_rows(named=True)}
        self._last: dict[int, _Labels] = {}
        self._seen: dict[int, int] = {}

    def shards(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield the number and the tokens of each shard."""
        done = 0
        for shard in self._run.iter_shards():
            frame = shard.tokens(_NEEDED)
            columns: dict[str, list[str]] = {name: [] for name in self._labellers}
            for labels, rows in self._label(frame):
                for name, values in labels.items():
                    columns[name] += values[rows]
                done += rows.stop - rows.start
                self._watch.step(done)
            tokens = pq.read_table(self._run.path / tokens_file(shard.number))
            for name, labeller in self._labellers.items():
                tokens = with_label(tokens, name, columns[name], _label_set(labeller).source)
            yield shard.number, tokens

    def _label(self, frame: pl.DataFrame) -> Iterator[tuple[_Labels, slice]]:
        """Yield, document by document, all its labels and which of its rows are the shard's."""
        for parts in _grouped(frame.partition_by("document", maintain_order=True)):
            numbers = [int(part["document"][0]) for part in parts]
            new = {
                number: self._whole(number, part)
                for number, part in zip(numbers, parts, strict=True)
                if number not in self._last
            }
            documents = [self._document(number, tokens) for number, tokens in new.items()]
            pieces = [_pieces(tokens) for tokens in new.values()]
            for labeller in self._labellers.values():
                labeller.prepare(documents)
            made = {name: labeller(documents, pieces) for name, labeller in self._labellers.items()}
            known = self._last | {
                number: {name: values[place] for name, values in made.items()} for place, number in enumerate(new)
            }
            for number, part in zip(numbers, parts, strict=True):
                first = self._seen.get(number, 0)
                self._seen = {number: first + part.height}
                yield known[number], slice(first, first + part.height)
            self._last = {numbers[-1]: known[numbers[-1]]}

    def _whole(self, number: int, part: pl.DataFrame) -> pl.DataFrame:
        """Return all tokens of a document of which the shard holds a part."""
        if part.height == self._documents[number]["tokens"]:
            return part
        return self._run.document_tokens(number, _NEEDED)

    def _document(self, number: int, tokens: pl.DataFrame) -> Document:
        known = self._documents[number]
        text = "".join(tokens["text"])
        return Document(known["name"], text, known["domain"], known["language"] or self._language)


def _grouped(parts: Sequence[pl.DataFrame]) -> Iterator[list[pl.DataFrame]]:
    """Yield documents in groups of about so many tokens as a labeller likes to see at once."""
    group: list[pl.DataFrame] = []
    held = 0
    for part in parts:
        group.append(part)
        held += part.height
        if held >= _TOKENS_AT_ONCE or len(group) >= _DOCUMENTS_AT_ONCE:
            yield group
            group, held = [], 0
    if group:
        yield group


def _pieces(tokens: pl.DataFrame) -> Pieces:
    starts, ends = (tokens[name].to_numpy() for name in ("char_start", "char_end"))
    return Pieces(starts, ends, (tokens["phase"] == SPECIAL).to_numpy())
