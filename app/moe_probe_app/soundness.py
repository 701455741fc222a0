"""Is a folder a run that can be shown? Asked before anything of it is, since a run may come from anywhere.

What is refused here is named; what is let through can be counted and drawn without surprises of type or size. It reads
no row of a run, only its manifest, its documents and the types of its columns.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from polars.datatypes import DataTypeClass

from moe_probe.errors import BadInputError, RunError
from moe_probe.schema import (
    DOCUMENTS_FILE,
    MANIFEST_FILE,
    Router,
    check_label_name,
    entropy_column,
    expert_bits,
    expert_column,
    margin_column,
    routing_file,
    tokens_file,
    weight_column,
)
from moe_probe.store import Run, open_run
from moe_probe.store.files import read_json

MANIFEST_BYTES = 64 << 20
MOST_EXPERTS = 4_096
"""Experts of a router; a table of their pairs has the square of it."""
MOST_ROUTERS = 1_024
_UNSIGNED = {8: pl.UInt8, 16: pl.UInt16, 32: pl.UInt32}
_NUMBERS = ("document", "position", "window_position", "token_id", "char_start", "char_end")
_WORDS = ("token", "text", "phase")
_DOCUMENTS = {"document": int, "name": str, "domain": str, "language": str, "first_shard": int, "first_row": int}
_DOCUMENTS |= {"tokens": int, "characters": int}


def check_links(root: Path, folder: Path) -> None:
    """Refuse a run of which a link, or the folder itself, leads out of the root.

    Raises:
        RunError: naming the link.
    """
    root = root.resolve()
    for place, folders, names in os.walk(folder, onerror=_cannot_list):
        for path in (Path(place), *(Path(place) / name for name in (*folders, *names))):
            if (path == folder or path.is_symlink()) and not path.resolve().is_relative_to(root):
                raise RunError(f"{path}: a link out of {root}; only what really lies there is opened")


def open_sound(folder: str | Path, *, shards: bool = True) -> Run:
    """Open a run and check that it is what `moe_probe` writes.

    Args:
        folder: the run's.
        shards: look at the columns of every shard too; not needed by who reads none of them.

    Raises:
        RunError: naming the file and what in it is wrong.
    """
    folder = Path(folder)
    manifest_file = folder / MANIFEST_FILE
    if manifest_file.is_file() and manifest_file.stat().st_size > MANIFEST_BYTES:
        raise RunError(
            f"{manifest_file}: {manifest_file.stat().st_size:,} bytes, where no run needs {MANIFEST_BYTES:,}"
        )
    try:
        run = open_run(_checked(folder))
        _check_documents(run)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise RunError(f"{folder}: damaged ({type(error).__name__}: {str(error)[:200]}); write it again") from error
    for number in run.shards if shards and not run.counts_only else ():
        _check_shard(run, number)
    return run


def _checked(folder: Path) -> Path:
    """Return the folder if its manifest, where there is one, holds values of the right types."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        return folder  # open_run says what is missing
    manifest = read_json(path)
    if not {"routers", "labels", "shards", "complete", "corpus"} <= manifest.keys():
        return folder
    check = _Checker(path)
    check.routers(manifest["routers"])
    check.labels(manifest["labels"])
    for number, shard in enumerate(check.a_list("shards", manifest["shards"])):
        where = f"shards[{number}]"
        check.whole(f"{where}.number", check.field(shard, where, "number"), most=999_999)
        check.whole(f"{where}.rows", check.field(shard, where, "rows"), least=1, most=10**9)
    check.that("counts_only", isinstance(manifest.get("counts_only", False), bool), manifest.get("counts_only"))
    check.that("complete", isinstance(manifest["complete"], bool), manifest["complete"])
    check.whole("corpus.documents", check.field(manifest["corpus"], "corpus", "documents"), most=10**9)
    for name in ("model", "settings", "versions", "times"):
        check.that(name, isinstance(manifest.get(name, {}), dict), manifest.get(name))
    for name, value in manifest.get("versions", {}).items():
        check.that(f"versions.{name}", value is None or isinstance(value, str), value)
    for name in ("name", "revision", "quantization", "dtype", "device", "fingerprint"):
        value = manifest.get("model", {}).get(name)
        check.that(f"model.{name}", value is None or isinstance(value, str), value)
    check.precision(manifest.get("precision", []))
    for number, warning in enumerate(check.a_list("warnings", manifest.get("warnings", []))):
        check.that(f"warnings[{number}]", isinstance(warning, str), warning)
    seconds = manifest.get("times", {}).get("seconds", 0)
    check.that("times.seconds", _is_number(seconds), seconds)
    return folder


class _Checker:
    """Says which value of a manifest cannot be."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def that(self, name: str, holds: bool, value: object) -> None:
        if not holds:
            raise RunError(f"{self._path}: {name[:100]} is {repr(value)[:60]}, which no run has; write the run again")

    def a_list(self, name: str, value: object) -> list[Any]:
        self.that(name, isinstance(value, list), value)
        assert isinstance(value, list)
        return value

    def field(self, value: object, where: str, name: str) -> Any:
        self.that(where, isinstance(value, dict) and name in value, value)
        assert isinstance(value, dict)
        return value[name]

    def whole(self, name: str, value: object, *, least: int = 0, most: int) -> None:
        self.that(name, type(value) is int and least <= value <= most, value)

    def text(self, name: str, value: object) -> None:
        self.that(name, isinstance(value, str), value)

    def routers(self, value: object) -> None:
        routers = self.a_list("routers", value)
        self.that("routers", 1 <= len(routers) <= MOST_ROUTERS, f"a list of {len(routers)}")
        for number, router in enumerate(routers):
            where = f"routers[{number}]"
            field = {name: self.field(router, where, name) for name in (*Router.__dataclass_fields__, "scores")}
            self.that(f"{where}.index", type(field["index"]) is int and field["index"] == number, field["index"])
            self.whole(f"{where}.layer", field["layer"], most=10**6)
            self.whole(f"{where}.n_experts", field["n_experts"], least=1, most=MOST_EXPERTS)
            self.whole(f"{where}.n_slots", field["n_slots"], least=1, most=field["n_experts"])
            self.text(f"{where}.name", field["name"])
            self.text(f"{where}.kind", field["kind"])
            for name in ("scores", "weights"):
                self.that(f"{where}.{name}", isinstance(router.get(name, True), bool), router.get(name))

    def labels(self, value: object) -> None:
        names = set()
        for number, label in enumerate(self.a_list("labels", value)):
            where = f"labels[{number}]"
            name = self.field(label, where, "name")
            self.text(f"{where}.name", name)
            try:
                check_label_name(name[:200])
            except BadInputError:
                self.that(f"{where}.name", False, name)
            self.that(f"{where}.name", name not in names, name)
            names.add(name)
            self.text(f"{where}.source", self.field(label, where, "source"))
            word_level = self.field(label, where, "word_level")
            self.that(f"{where}.word_level", isinstance(word_level, bool), word_level)

    def precision(self, value: object) -> None:
        for number, row in enumerate(self.a_list("precision", value)):
            where = f"precision[{number}]"
            for name in ("part", "dtype"):
                self.text(f"{where}.{name}", self.field(row, where, name))
            for name in ("bits_per_parameter", "bytes", "parameters"):
                number_of = self.field(row, where, name)
                self.that(f"{where}.{name}", _is_number(number_of), number_of)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _check_documents(run: Run) -> None:
    """Refuse documents whose columns are of other types, or that lie where no row is."""
    path = run.path / DOCUMENTS_FILE
    types = _types_of(path)
    for name, kind in _DOCUMENTS.items():
        held = types.get(name)
        fits = held is not None and (_is_text(held) if kind is str else held.is_integer())
        if not fits and not (held == pl.Null and name in ("domain", "language")):
            raise RunError(f"{path}: column {name!r} is of type {held}, which no run has; write the run again")
    frame = run.documents()
    numbers = frame.select("document", "tokens", "characters")
    if frame.height and (numbers.null_count().sum_horizontal()[0] or numbers.min().min_horizontal()[0] < 0):
        raise RunError(f"{path}: a number is missing or negative; write the run again")
    if frame["name"].null_count() or frame["document"].n_unique() != frame.height:
        raise RunError(f"{path}: a document has no name, or the number of another; write the run again")
    if run.complete and (frame.height != run.n_documents or frame["tokens"].sum() != run.n_tokens):
        raise RunError(
            f"{path}: {frame.height} documents of {frame['tokens'].sum():,} tokens, where {MANIFEST_FILE} says"
            f" {run.n_documents} of {run.n_tokens:,}; write the run again"
        )


def _check_shard(run: Run, number: int) -> None:
    """Refuse columns of other types than the manifest's: a value of them could not be an expert of it."""
    wanted: dict[str, Callable[[_Type], bool]] = dict.fromkeys(_NUMBERS, lambda held: held.is_integer())
    wanted |= dict.fromkeys((*_WORDS, *(label.name for label in run.labels)), _is_text)
    wanted["word_initial"] = _is(pl.Boolean)
    _check_types(run.path / tokens_file(number), wanted)
    routed: dict[str, Callable[[_Type], bool]] = {}
    for router, scored, weighted in zip(run.routers, run.with_scores, run.with_weights, strict=True):
        unsigned = _is(_UNSIGNED[expert_bits(router.n_experts)])
        for slot in range(router.n_slots):
            routed[expert_column(router.index, slot)] = unsigned
            if weighted:
                routed[weight_column(router.index, slot)] = _is_float
        if scored:
            routed |= dict.fromkeys((entropy_column(router.index), margin_column(router.index)), _is_float)
    _check_types(run.path / routing_file(number), routed)


_Type = pl.DataType | DataTypeClass


def _check_types(path: Path, wanted: Mapping[str, Callable[[_Type], bool]]) -> None:
    types = _types_of(path)
    for name, fits in wanted.items():
        held = types.get(name)
        if held is None or not fits(held):
            said = "is missing" if held is None else f"is of type {held}, which no run has"
            raise RunError(f"{path}: column {name!r} {said}; write the run again")


def _types_of(path: Path) -> Mapping[str, _Type]:
    try:
        return pl.scan_parquet(path, glob=False).collect_schema()  # a name may hold brackets and stars
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else "is damaged or cut short"
        raise RunError(f"{path}: {reason}; write the run again") from error


def _is(kind: _Type) -> Callable[[_Type], bool]:
    return lambda held: held == kind


def _is_text(held: _Type) -> bool:
    return held in (pl.String, pl.Categorical, pl.Enum)


def _is_float(held: _Type) -> bool:
    return held.is_float()


def _cannot_list(error: OSError) -> None:
    raise error
