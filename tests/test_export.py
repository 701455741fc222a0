from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.export import export_csv
from moe_probe.store import open_run
from moe_probe.tables import Column, Table, label_file, tables_of

HOSTILE = [
    "=1+1",
    '=HYPERLINK("http://x","y")',
    "+1",
    "-2",
    "@SUM(A1)",
    "a\nb",
    '"',
    "é🦊",
    "\t=1",
    "\u2028x",
    "",
    "plain",
    "1",
]
NUMBER = re.compile(r"-\d+(\.\d+)?(e[+-]?\d+)?", re.IGNORECASE)
EXPERTS = np.array([[number % 4, (number + 1) % 4] for number in range(len(HOSTILE))])
EXPERTS[3] = [2, -1]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def small_run(folder: Path, **more):
    given_labels = {
        "upos": ["NOUN", "VERB"] * 6 + ["NOUN"],
        "domain": ["=evil", "fine"] * 6 + ["=evil"],
        "kind": HOSTILE,
    }
    arguments = {
        "labels": given_labels,
        "token": HOSTILE,
        "documents": [0] * 7 + [1] * 6,
        "names": ["-rf.txt", "b"],
        "shard_rows": 5,
    }
    return write_run(folder, [EXPERTS, EXPERTS[:, :1]], **(arguments | more))


def test_every_table_is_written_and_the_manifest_copied(tmp_path):
    run = small_run(tmp_path / "run")
    paths = export_csv(run, tmp_path / "out")
    names = [path.name for path in paths]
    assert names == [*(f"{table.file}.csv" for table in tables_of(run)), "columns.csv", "run.json"]
    assert {"load.csv", "balance.csv", "syntax.csv", "domain.csv", "kind.csv"} <= set(names)
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    assert (tmp_path / "out/run.json").read_bytes() == (run.path / "run.json").read_bytes()


def test_each_table_is_announced_before_it_is_made(tmp_path):
    run = small_run(tmp_path / "run")
    heard = []
    export_csv(run, tmp_path / "out", tokens=True, on_table=lambda *said: heard.append(said))
    files = [table.file for table in tables_of(run)]
    total = len(files) + 1
    assert heard == [(name, done, total) for done, name in enumerate([*files, "tokens", "columns"])]


def test_a_csv_of_very_many_tests_holds_those_that_stand_and_says_so(tmp_path, monkeypatch):
    run = small_run(tmp_path / "run")
    q_values = [0.001, 0.0499, 0.05, 0.9, None]
    rows = pl.DataFrame({"label": list("abcde"), "q_value": q_values})
    columns = (Column("label", pl.String, "name", "A label."), Column("q_value", pl.Float64, "0 to 1", "Corrected."))
    plain = Table("plain", columns[:1], lambda: rows.select("label"))
    tables = [Table("many", columns, lambda: rows), Table("few", columns, lambda: rows.head(4)), plain]
    monkeypatch.setattr("moe_probe.export.tables_of", lambda run: tables)
    monkeypatch.setattr("moe_probe.export.MOST_CSV_ROWS", 4)
    export_csv(run, tmp_path / "out")
    assert [row["label"] for row in rows_of(tmp_path / "out/many.csv")] == ["a", "b"]
    assert [row["label"] for row in rows_of(tmp_path / "out/few.csv")] == list("abcd")
    assert [row["label"] for row in rows_of(tmp_path / "out/plain.csv")] == list("abcde")
    said = {(row["table"], row["name"]): row["definition"] for row in rows_of(tmp_path / "out/columns.csv")}
    assert said["many", "q_value"] == "Corrected. Of 5 rows this file holds those below 0.05; Parquet holds all."
    assert said["few", "q_value"] == "Corrected."
    assert said["many", "label"] == "A label."
    export_csv(run, tmp_path / "parquet", format="parquet")
    assert pl.read_parquet(tmp_path / "parquet/many.parquet").equals(rows)
    assert "Of 5 rows" not in "".join(pl.read_parquet(tmp_path / "parquet/columns.parquet")["definition"])


def test_the_load_of_a_csv_is_that_of_the_rows(tmp_path):
    export_csv(small_run(tmp_path / "run"), tmp_path / "out")
    rows = rows_of(tmp_path / "out/load.csv")
    for expert in range(4):
        (row,) = [r for r in rows if (r["router"], r["expert"], r["slot"]) == ("0", str(expert), "any")]
        assert int(row["assignments"]) == int((expert == EXPERTS).sum())
        assert float(row["share"]) == pytest.approx((expert == EXPERTS).sum() / 25)
        assert row["tokens"] == "all"


def test_every_column_of_every_table_is_in_the_dictionary(tmp_path):
    paths = export_csv(small_run(tmp_path / "run"), tmp_path / "out", tokens=True)
    known = {(row["table"], row["name"]) for row in rows_of(tmp_path / "out/columns.csv")}
    used = set()
    for path in paths:
        if path.suffix == ".csv" and path.stem != "columns":
            with path.open(newline="") as file:
                used |= {(path.stem, name) for name in next(csv.reader(file))}
    assert used == known
    assert all(row["definition"] and row["unit"] for row in rows_of(tmp_path / "out/columns.csv"))


def test_every_table_has_the_columns_that_it_declares_and_no_cell_is_nan(tmp_path):
    run = small_run(tmp_path / "run")
    export_csv(run, tmp_path / "out")
    for table in tables_of(run):
        path = tmp_path / f"out/{table.file}.csv"
        with path.open(newline="", encoding="utf-8") as file:
            assert next(csv.reader(file)) == [column.name for column in table.columns]
        assert not {"nan", "NaN", "inf", "-inf"} & {cell for row in rows_of(path) for cell in row.values()}


def test_the_token_table_is_the_run_row_by_row(tmp_path):
    run = small_run(tmp_path / "run")
    export_csv(run, tmp_path / "out", tokens=True)
    rows = rows_of(tmp_path / "out/tokens.csv")
    assert [json.loads(row["token"]) for row in rows] == HOSTILE
    assert [json.loads(row["text"]) for row in rows] == HOSTILE
    assert [int(row["document"]) for row in rows] == [0] * 7 + [1] * 6
    assert [int(row["position"]) for row in rows] == [*range(7), *range(6)]
    assert [row["expert_0_0"] for row in rows] == [str(expert) for expert in EXPERTS[:, 0]]
    assert rows[3]["expert_0_1"] == ""
    assert np.array([row["weight_0_1"] for row in rows], np.float16).tolist() == run.weights(router=0)[:, 1].tolist()
    assert list(rows[0])[:8] == ["document", "document_name", "position", "token", "text", "phase", "upos", "domain"]
    assert rows[0]["document_name"] == '"-rf.txt"'


def test_no_cell_of_any_table_can_be_a_formula_or_break_a_line(tmp_path):
    out = tmp_path / "out"
    for path in export_csv(small_run(tmp_path / "run"), out, tokens=True):
        if path.suffix != ".csv":
            continue
        raw = path.read_bytes().decode()
        with path.open(newline="") as file:
            cells = [(name, cell) for row in csv.DictReader(file) for name, cell in row.items()]
        lines = len(rows_of(path)) + 1
        assert len(raw.splitlines()) == lines  # splitlines knows every line break there is
        for _, cell in cells:
            assert not cell.lstrip().startswith(("=", "+", "@"))
            assert not cell.startswith("-") or NUMBER.fullmatch(cell)
        if path.stem == "tokens":
            assert all(cell.startswith('"') and cell.endswith('"') for name, cell in cells if name in ("token", "text"))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=8))
def test_any_text_comes_back_as_it_was_and_begins_harmlessly(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    run = write_run(
        folder / "run", [np.zeros((len(texts), 1), int)], token=texts, labels={"kind": texts}, word_level=()
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_probe.export.tables_of", lambda run: [])  # texts are those of the token table
        export_csv(run, folder / "out", tokens=True)
    rows = rows_of(folder / "out/tokens.csv")
    assert [json.loads(row["token"]) for row in rows] == texts
    labels = [row["kind"] for row in rows]
    assert [json.loads(label) if label.startswith('"') else label for label in labels] == texts
    assert not any(label.strip().startswith(tuple("=+-@＝＋－＠")) for label in labels)


def test_labels_that_look_quoted_stay_apart_from_those_that_are(tmp_path):
    kinds = ['"=x"', "=x", "plain"]
    run = write_run(tmp_path / "run", [np.zeros((3, 1), int)], labels={"kind": kinds}, word_level=())
    export_csv(run, tmp_path / "out")
    labels = {row["label"] for row in rows_of(tmp_path / "out/kind.csv")}
    assert labels == {json.dumps('"=x"'), json.dumps("=x"), "plain"}


def test_parquet_holds_the_same_tables_with_their_texts_as_they_are(tmp_path):
    run = small_run(tmp_path / "run")
    paths = export_csv(run, tmp_path / "out", tokens=True, format="parquet")
    assert {path.suffix for path in paths} == {".parquet", ".json"}
    tokens = pl.read_parquet(tmp_path / "out/tokens.parquet")
    assert tokens["token"].to_list() == HOSTILE
    assert tokens["kind"].to_list() == HOSTILE
    assert tokens["expert_0_1"].to_list()[3] is None
    assert tokens["document_name"].to_list() == ["-rf.txt"] * 7 + ["b"] * 6
    export_csv(run, tmp_path / "csv")
    load = pl.read_csv(tmp_path / "csv/load.csv", schema_overrides={"slot": pl.String})
    assert load.equals(pl.read_parquet(tmp_path / "out/load.parquet"))


@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_the_same_run_gives_the_same_bytes(tmp_path, format):
    run = small_run(tmp_path / "run")
    first = export_csv(run, tmp_path / "one", tokens=True, format=format)
    again = export_csv(open_run(run.path), tmp_path / "two", tokens=True, format=format)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def test_a_token_table_does_not_depend_on_how_it_was_cut(tmp_path, monkeypatch):
    whole = export_csv(small_run(tmp_path / "a", shard_rows=99), tmp_path / "one", tokens=True)
    monkeypatch.setattr("moe_probe.export._SLICE_ROWS", 2)
    cut = export_csv(small_run(tmp_path / "b", shard_rows=3), tmp_path / "two", tokens=True)
    assert [path.read_bytes() for path in whole[:-1]] == [path.read_bytes() for path in cut[:-1]]


def test_a_file_that_fails_leaves_the_old_one_whole(tmp_path, monkeypatch):
    run = small_run(tmp_path / "run")
    export_csv(run, tmp_path / "out")
    before = (tmp_path / "out/load.csv").read_bytes()

    def full(frame, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_csv", full)
    with pytest.raises(MoeProbeError, match=r"load.csv: cannot be written \(no space left\)"):
        export_csv(run, tmp_path / "out")
    assert (tmp_path / "out/load.csv").read_bytes() == before
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_label_never_overwrites_another_table(tmp_path):
    labels = {"load": list("ab"), "tokens": list("ab"), "syntax": list("ab"), "upos": ["NOUN", "VERB"]}
    run = write_run(tmp_path / "run", [np.array([[0], [1]])], labels=labels)
    names = [path.name for path in export_csv(run, tmp_path / "out", tokens=True)]
    assert len(set(names)) == len(names)
    assert {"load.csv", "label_load.csv", "label_tokens.csv", "label_syntax.csv", "syntax.csv"} <= set(names)
    assert label_file("label_load") != label_file("load")


def test_an_empty_run_gives_tables_with_headers_only(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((0, 2), int)], labels={"upos": []})
    paths = export_csv(run, tmp_path / "out", tokens=True)
    for path in paths:
        if path.suffix == ".csv" and path.stem != "columns":
            assert path.read_text().count("\n") == 1
    assert (
        (tmp_path / "out/tokens.csv").read_text().startswith("document,document_name,position,token,text,phase,upos,")
    )
    export_csv(run, tmp_path / "parquet", tokens=True, format="parquet")
    assert pl.read_parquet(tmp_path / "parquet/tokens.parquet").height == 0


def test_bad_arguments_are_refused_and_say_what_to_do(tmp_path):
    run = small_run(tmp_path / "run")
    with pytest.raises(BadInputError, match="format 'xlsx': choose csv or parquet"):
        export_csv(run, tmp_path / "out", format="xlsx")
    with pytest.raises(BadInputError, match="this is the run itself; choose another folder"):
        export_csv(run, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="this is a file; choose another name"):
        export_csv(run, tmp_path / "file")
    with pytest.raises(MoeProbeError, match="cannot be written"):
        export_csv(run, tmp_path / "file" / "below")
