"""Runs made to do harm: values of wrong types, damaged files, links out of the folder, and markup in every name."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import Shape, make_run

MARKUP = "<script>window.hacked=1</script><img src=x onerror=window.hacked=2> :red[r] $x^2$ **b** ![i](http://evil.example/i)"
"""What would run, or ask another machine, wherever text is taken for markup."""
LONG = "Donaudampfschiff " * 20_000
SHAPE = Shape(n_layers=2, n_experts=4)
TEXT = "The river bends twice before it reaches the town.\n" * 8
Harm = Callable[[Path], None]


def manifest_with(**changes: Any) -> Harm:
    """Return what sets fields of a manifest."""

    def harm(path: Path) -> None:
        file = path / "run.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return harm


def _manifest_at(*where: str | int, value: Any) -> Harm:
    """Return what sets one value deep in a manifest."""

    def harm(path: Path) -> None:
        file = path / "run.json"
        manifest = part = json.loads(file.read_text())
        for step in where[:-1]:
            part = part[step]
        part[where[-1]] = value
        file.write_text(json.dumps(manifest))

    return harm


def _column(file: str, name: str, change: Callable[[pa.ChunkedArray], pa.Array] | None) -> Harm:
    """Return what changes, or drops, a column of a file."""

    def harm(path: Path) -> None:
        table = pq.read_table(path / file)
        place = table.schema.get_field_index(name)
        table = table.drop([name]) if change is None else table.set_column(place, name, change(table[name]))
        pq.write_table(table, path / file)

    return harm


def _cut(file: str) -> Harm:
    def harm(path: Path) -> None:
        whole = (path / file).read_bytes()
        (path / file).write_bytes(whole[: len(whole) // 2])

    return harm


def _removed(file: str) -> Harm:
    return lambda path: (path / file).unlink()


def _replaced(file: str, data: bytes) -> Harm:
    def harm(path: Path) -> None:
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_bytes(data)

    return harm


def _as(kind: pa.DataType) -> Callable[[pa.ChunkedArray], pa.Array]:
    return lambda column: pa.array([1] * len(column)).cast(kind)


def _link_out(file: str) -> Harm:
    """Return what puts a file outside the folder of all runs and a link in its place."""

    def harm(path: Path) -> None:
        outside = path.parent.parent / f"outside-{file.replace('/', '-')}"
        (path / file).rename(outside)
        (path / file).symlink_to(outside)

    return harm


def _folder_link_out(path: Path) -> None:
    outside = path.parent.parent / "outside-routing"
    (path / "routing").rename(outside)
    (path / "routing").symlink_to(outside, target_is_directory=True)


TOKENS, ROUTING = "tokens/part-000000.parquet", "routing/part-000000.parquet"
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

REFUSED: dict[str, tuple[Harm, str]] = {
    "no json": (_replaced("run.json", b"\xff\xfe<script>"), "cannot be read"),
    "deep json": (_replaced("run.json", DEEP), "damaged|cannot be read"),
    "a list": (_replaced("run.json", b"[]"), "holds no JSON object"),
    "a version that is text": (manifest_with(schema_version="1"), "schema version"),
    "routers of numbers": (manifest_with(routers=[1, 2]), r"routers\[0\] is 1"),
    "no routers": (manifest_with(routers=[]), "routers is"),
    "routers of text": (manifest_with(routers="<b>"), "routers is"),
    "negative layer": (_manifest_at("routers", 1, "layer", value=-3), r"routers\[1\].layer is -3"),
    "so many experts": (_manifest_at("routers", 0, "n_experts", value=10**12), r"n_experts is 10{12}"),
    "more slots than experts": (_manifest_at("routers", 0, "n_slots", value=5), r"n_slots is 5"),
    "an index that is not its place": (_manifest_at("routers", 0, "index", value=7), r"index is 7"),
    "a fraction of experts": (_manifest_at("routers", 0, "n_experts", value=4.0), r"n_experts is 4.0"),
    "a name that is a number": (_manifest_at("routers", 0, "name", value=7), r"routers\[0\].name is 7"),
    "a label of markup": (_manifest_at("labels", 0, "name", value=MARKUP), r"labels\[0\].name is "),
    "a label that is a number": (_manifest_at("labels", 0, "name", value=3), r"labels\[0\].name is 3"),
    "a label that is not there": (_manifest_at("labels", 0, "name", value="mood"), "column 'mood' is missing"),
    "a label twice": (_manifest_at("labels", 1, "name", value="upos"), r"labels\[1\].name is 'upos'"),
    "shards of text": (manifest_with(shards={"a": 1}), "shards is"),
    "a shard of no rows": (_manifest_at("shards", 0, "rows", value=-5), r"shards\[0\].rows is -5"),
    "a shard elsewhere": (_manifest_at("shards", 0, "number", value="../../x"), r"shards\[0\].number is"),
    "another shard": (_manifest_at("shards", 0, "number", value=77), "missing"),
    "a corpus of nothing": (manifest_with(corpus=None), "corpus is None"),
    "complete by word": (manifest_with(complete="yes"), "complete is 'yes'"),
    "fewer rows than said": (_manifest_at("shards", 0, "rows", value=3), "documents of"),
    "a precision of text": (manifest_with(precision=[{"part": "x"}]), r"precision\[0\]"),
    "bits that are text": (_manifest_at("precision", 0, "bits_per_parameter", value="4"), "bits_per_parameter is '4'"),
    "times of text": (manifest_with(times={"seconds": "long"}), "times.seconds is 'long'"),
    "a model of text": (manifest_with(model="gpt"), "model is 'gpt'"),
    "warnings of numbers": (manifest_with(warnings=[1]), r"warnings\[0\] is 1"),
    "no documents": (_removed("documents.parquet"), "documents.parquet: is missing"),
    "half of the documents": (_cut("documents.parquet"), "documents.parquet: is damaged or cut short"),
    "documents without names": (_column("documents.parquet", "name", None), "column 'name'"),
    "names that are numbers": (_column("documents.parquet", "name", _as(pa.int64())), "column 'name' is of type Int64"),
    "tokens that are text": (_column("documents.parquet", "tokens", _as(pa.string())), "column 'tokens'"),
    "no tokens": (_removed(TOKENS), "missing"),
    "half of the tokens": (_cut(TOKENS), "damaged or cut short"),
    "half of the routing": (_cut(ROUTING), "damaged or cut short"),
    "experts that are text": (_column(ROUTING, "expert_0_0", _as(pa.string())), "'expert_0_0' is of type String"),
    "wide experts": (_column(ROUTING, "expert_1_1", _as(pa.int64())), "'expert_1_1' is of type Int64"),
    "experts missing": (_column(ROUTING, "expert_1_0", None), "'expert_1_0' is missing"),
    "weights that are text": (_column(ROUTING, "weight_0_0", _as(pa.string())), "'weight_0_0' is of type String"),
    "words that are numbers": (_column(TOKENS, "text", _as(pa.int32())), "column 'text' is of type Int32"),
    "tags that are numbers": (_column(TOKENS, "upos", _as(pa.int32())), "column 'upos' is of type Int32"),
    "tokens elsewhere": (_link_out(TOKENS), "a link out of"),
    "documents elsewhere": (_link_out("documents.parquet"), "a link out of"),
    "routing elsewhere": (_folder_link_out, "a link out of"),
}
"""Runs that are not opened, and what is said of them (a pattern)."""


def _say(name: str) -> Callable[[pa.ChunkedArray], pa.Array]:
    return lambda column: pa.array([name] * len(column)).dictionary_encode()


def _markup_everywhere(path: Path) -> None:
    for where in (("model", "name"), ("model", "revision"), ("versions", "torch"), ("routers", 0, "kind")):
        _manifest_at(*where, value=MARKUP)(path)
    _manifest_at("routers", 0, "name", value=f"model.{MARKUP}.mlp")(path)
    _manifest_at("labels", 0, "source", value=MARKUP)(path)
    _manifest_at("precision", 0, "part", value=MARKUP)(path)
    manifest_with(warnings=[MARKUP], self_check=MARKUP)(path)
    for column in ("name", "domain", "language"):
        _column("documents.parquet", column, lambda names: pa.array([MARKUP + str(n) for n in range(len(names))]))(path)
    for column in ("upos", "domain", "phase"):
        _column(TOKENS, column, lambda held: pa.array([MARKUP + str(n % 3) for n in range(len(held))]))(path)
    _column(TOKENS, "token", _say(MARKUP))(path)


def _long_everywhere(path: Path) -> None:
    _manifest_at("model", "name", value=LONG)(path)
    manifest_with(warnings=[LONG])(path)
    _column("documents.parquet", "name", lambda names: pa.array([LONG + str(n) for n in range(len(names))]))(path)
    _column(TOKENS, "upos", lambda held: pa.array([LONG + str(n % 3) for n in range(len(held))]))(path)


def _experts_out_of_range(path: Path) -> None:
    for name in ("expert_0_0", "expert_0_1", "expert_1_0"):
        _column(ROUTING, name, _as(pa.uint8()))(path)
    table = pl.read_parquet(path / ROUTING)
    table.with_columns(pl.lit(250, pl.UInt8).alias("expert_0_0")).write_parquet(path / ROUTING)


def _damaged_counts(path: Path) -> None:
    for name in ("counts/part-000000.parquet", "counts/part-000000.npz", "counts/upos.npy"):
        _replaced(name, b"\x80\x04cos\nsystem\n(S'touch hacked'\ntR.")(path)


def _all_at_once(path: Path) -> None:
    _markup_everywhere(path)
    _column(ROUTING, "weight_0_0", _as(pa.float64()))(path)
    _damaged_counts(path)


SHOWN: dict[str, Harm] = {
    "markup everywhere": _all_at_once,
    "long everywhere": _long_everywhere,
    "experts out of range": _experts_out_of_range,
}
"""Runs that are opened, or of which a page says what is wrong."""


def make_plain(path: Path) -> Path:
    """Write the run that hostile ones are made of."""
    return make_run(path, {"prose/a.txt": TEXT, "code/b.txt": TEXT}, SHAPE)


def make_hostile(root: Path, name: str, plain: Path) -> Path:
    """Make the hostile run of a name in `root`, of a copy of `plain`."""
    path = shutil.copytree(plain, root / name.replace(" ", "-"))
    (SHOWN[name] if name in SHOWN else REFUSED[name][0])(path)
    return path
