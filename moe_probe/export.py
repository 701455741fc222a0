"""Write the tables of a run to a folder, with a dictionary of their columns.

In a CSV nothing from a text can act: tokens are JSON strings, so that they hold no newline and always begin with `"`,
which no spreadsheet takes for a formula; so is a label or a name that a spreadsheet might take for one. A table of
hundreds of thousands of tests is cut to those that stand (q_value below .05) in a CSV, and is whole in Parquet. It does
not know how a number comes about (tables/).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import polars as pl
import pyarrow.parquet as pq

from moe_probe import schema
from moe_probe.effects import EFFECT_COLUMNS, EffectFolder, effect_table
from moe_probe.errors import BadInputError
from moe_probe.store.files import new_file, writing
from moe_probe.tables import columns_table, tables_of
from moe_probe.tables.registry import tables_left_out

if TYPE_CHECKING:
    from moe_probe.store import Run

_FORMULA_STARTS = tuple("=+-@＝＋－＠")
_LINE_BREAKS = {0x7F: "\\u007f", 0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_SLICE_ROWS = 65_536

MOST_CSV_ROWS = 100_000
"""A table of tests with more rows than this is cut in a CSV to the rows whose `q_value` is below `LEVEL`."""

LEVEL = 0.05

OnTable = Callable[[str, int, int], None]
"""Hears of each file before it is made: its name, how many are done, how many there will be."""


def export_csv(
    run: Run,
    out: str | Path,
    *,
    tokens: bool = False,
    format: Literal["csv", "parquet"] = "csv",
    on_table: OnTable | None = None,
) -> list[Path]:
    """Write all tables of a run to a folder, and what their columns mean.

    `upos` becomes syntax.csv, every other label set a file of its own name. run.json is copied beside them. The same
    run gives the same bytes. Files that are there are replaced, each only when the new one is whole.

    Of a run that holds counts only, tables that need tokens are left out, and columns.csv has a row for each that says
    so.

    A CSV holds a table of more than 100,000 rows with a `q_value` only where that is below .05, and columns.csv says
    so at that column; Parquet holds every row.

    Args:
        run: an open run.
        out: a folder, made if it is not there.
        tokens: write the token-to-expert table too: a row a token, with labels and all routers' experts and weights.
        format: "csv", or "parquet", in which texts need no protection and have none.
        on_table: called with each file's name before it is made, how many are done, and how many there will be.

    Returns:
        The files, in the order in which they were written.

    Raises:
        BadInputError: `format` is neither, or `out` is a file or the run's own folder.
        RunError: `tokens` are asked for of a run that holds counts only.
        MoeProbeError: a file cannot be written, for example because the disk is full.
    """
    if format not in ("csv", "parquet"):
        raise BadInputError(f"format {format!r}: choose csv or parquet")
    if tokens:
        run.need_tokens("the token-to-expert table")
    folder = _new_folder(run, Path(out))
    tables = tables_of(run)
    names = [*(table.file for table in tables), *(["tokens"] if tokens else [])]
    say = on_table or (lambda name, done, total: None)
    paths: list[Path] = []
    cut: dict[str, int] = {}
    for done, table in enumerate(tables):
        say(table.file, done, len(names))
        frame = table.make()
        if format == "csv" and "q_value" in frame.columns and len(frame) > MOST_CSV_ROWS:
            cut[table.file] = len(frame)
            frame = frame.filter(pl.col("q_value") < LEVEL)
        paths.append(write_table(frame, folder / f"{table.file}.{format}"))
    dictionary = _with_cuts(columns_table({table.file: table.columns for table in tables}), cut)
    dictionary = _with_left_out(dictionary, tables_left_out(run))
    if tokens:
        say("tokens", len(tables), len(names))
        paths.append(_write_tokens(run, folder / f"tokens.{format}"))
        dictionary = pl.concat([dictionary, _token_dictionary(run)])
    say("columns", len(names), len(names))
    paths.append(write_table(dictionary, folder / f"columns.{format}"))
    paths.append(folder / schema.MANIFEST_FILE)
    with new_file(paths[-1]) as temporary:
        temporary.write_bytes((Path(run.path) / schema.MANIFEST_FILE).read_bytes())
    return paths


def export_effects(folder: EffectFolder, out: str | Path) -> list[Path]:
    """Write what switching experts off did: effect.csv, by the token routed and by the one predicted, and columns.csv.

    Args:
        folder: from `effect_map` or `open_effects`.
        out: a folder, made if it is not there.

    Returns:
        The files.

    Raises:
        RunError: nothing is measured yet.
    """
    tables = [effect_table(folder, carried_by=carrier) for carrier in folder.manifest["carriers"]]
    path = Path(out)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return [
        write_table(pl.concat(tables), path / "effect.csv"),
        write_table(columns_table({"effect": EFFECT_COLUMNS}), path / "columns.csv"),
    ]


def _new_folder(run: Run, folder: Path) -> Path:
    if folder.exists() and not folder.is_dir():
        raise BadInputError(f"{folder}: tables are written to a folder, and this is a file; choose another name")
    if folder.resolve() == Path(run.path).resolve():
        raise BadInputError(f"{folder}: this is the run itself; choose another folder for its tables")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _with_cuts(dictionary: pl.DataFrame, cut: dict[str, int]) -> pl.DataFrame:
    """Say at the `q_value` of each table that was cut which of how many rows are there."""
    notes = {
        file: f" Of {rows:,} rows this file holds those below {LEVEL:g}; Parquet holds all."
        for file, rows in cut.items()
    }
    note = pl.col("table").replace_strict(notes, default="", return_dtype=pl.String)
    definition = pl.when(pl.col("name") == "q_value").then(pl.col("definition") + note).otherwise("definition")
    return dictionary.with_columns(definition=definition) if notes else dictionary


def _with_left_out(dictionary: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Say of each table that could not be made that it is left out, in a row without a column's name."""
    why = "Left out: the run holds counts only, and this table needs tokens, or more documents than have the label."
    rows = [{"name": "", "table": name, "unit": "", "definition": why, "source": ""} for name in names]
    return pl.concat([dictionary, pl.DataFrame(rows, schema=dictionary.schema)]) if rows else dictionary


def write_table(frame: pl.DataFrame, path: Path) -> Path:
    """Write one table as what its path's suffix says, `.csv` or `.parquet`, and return the path.

    Raises:
        MoeProbeError: it cannot be written.
    """
    with new_file(path) as temporary:
        if path.suffix == ".parquet":
            frame.write_parquet(temporary)
        else:
            _protected(frame).write_csv(temporary)
    return path


def _protected(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn texts that a spreadsheet might take for a formula into JSON strings, and those that look like one."""
    texts = [name for name, dtype in frame.schema.items() if dtype == pl.String]
    return frame.with_columns(_map_texts(frame[name], _harmless) for name in texts)


def _harmless(text: str) -> str:
    """Return a text that neither acts in a spreadsheet nor breaks a line; unchanged if it is such already.

    What begins with `"` is a JSON string, always: that is why a text which begins so becomes one too.
    """
    risky = text.lstrip().startswith(_FORMULA_STARTS) or text.startswith('"') or not text.isprintable()
    return _json(text) if risky else text


def _json(text: str) -> str:
    """Return a text as a JSON string on one line, also for those who break lines at U+0085, U+2028 and U+2029."""
    return json.dumps(text, ensure_ascii=False).translate(_LINE_BREAKS)


def _map_texts(column: pl.Series, change: Callable[[str], str]) -> pl.Series:
    """Change every text of a column; each different one is changed once."""
    different = column.unique().drop_nulls().to_list()
    changed = [change(text) for text in different]
    return column.replace_strict(different, changed, default=None, return_dtype=pl.String)


def _token_columns(run: Run) -> dict[str, str]:
    """The columns of the token table and their meaning."""
    columns = {
        "document": "The document's number in the run.",
        "document_name": "The document's name.",
        "position": "Place of the token in its document, counted from 0.",
        "token": "The tokenizer's piece; in a CSV a JSON string.",
        "text": "The characters that belong to the token, '' for later bytes of one; in a CSV a JSON string.",
    }
    labels = ["phase", *(label_set.name for label_set in run.labels if label_set.name != "phase")]
    columns |= {name: f"The token's {name}." for name in labels}
    for router in run.routers:
        of = f"of router {router.index} ({router.name}), slot"
        for slot in range(router.n_slots):
            columns[schema.expert_column(router.index, slot)] = f"The expert {of} {slot}; empty where it was dropped."
        for slot in range(router.n_slots if run.with_weights[router.index] else 0):
            columns[schema.weight_column(router.index, slot)] = (
                f"What the expert's output was multiplied by, {of} {slot}."
            )
    return columns


def _token_dictionary(run: Run) -> pl.DataFrame:
    units = {"document": "index", "position": "index", "expert": "index", "weight": "factor, float16"}
    rows = [
        {
            "name": name,
            "table": "tokens",
            "unit": units.get(name.split("_")[0], "text"),
            "definition": meaning,
            "source": "",
        }
        for name, meaning in _token_columns(run).items()
    ]
    rows[1]["unit"] = "text"
    return pl.DataFrame(rows)


def _token_frames(run: Run) -> Iterator[pl.DataFrame]:
    """Yield the token table slice by slice; an empty run yields one without rows."""
    columns = list(_token_columns(run))
    names = run.documents().select("document", document_name="name")
    own = [name for name in columns if name in run.token_columns]
    routed = [name for name in columns if name not in own and name != "document_name"]
    for shard in run.iter_shards():
        tokens, routing = shard.tokens(own), shard.routing(routed)
        for start in range(0, len(tokens), _SLICE_ROWS):
            part = pl.concat(
                [tokens[start : start + _SLICE_ROWS], routing[start : start + _SLICE_ROWS]], how="horizontal"
            )
            joined = part.join(names, on="document", how="left", maintain_order="left")
            yield joined.select(columns).cast({pl.Categorical: pl.String})
    if not run.shards:
        yield pl.DataFrame(schema=dict.fromkeys(columns, pl.String))


def _write_tokens(run: Run, path: Path) -> Path:
    with new_file(path) as temporary:
        if path.suffix == ".parquet":
            writer: pq.ParquetWriter | None = None
            for frame in _token_frames(run):
                table = frame.to_arrow()
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
            if writer is not None:
                writer.close()
        else:
            with temporary.open("wb") as file:
                for index, frame in enumerate(_token_frames(run)):
                    quoted = frame.with_columns(_map_texts(frame[name], _json) for name in ("token", "text"))
                    others = _protected(quoted.drop("token", "text")).with_columns(quoted["token"], quoted["text"])
                    others.select(frame.columns).write_csv(file, include_header=index == 0)
    return path
