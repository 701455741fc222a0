"""Where there is little or nothing to say, tables say so: nulls and "not enough data", never nan, never a warning."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bad_runs import BAD_RUNS, ids, one_document, some_experts, some_tags
from hand_made_runs import write_run

from moe_probe.comparing import compare_runs
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.export import export_csv
from moe_probe.info import describe
from moe_probe.report import write_report
from moe_probe.schema import LabelSet
from moe_probe.store import Run
from moe_probe.tables.between import agreement, load_difference, saturation
from moe_probe.tables.columns import Column, schema_of
from moe_probe.tables.depths import paths, transitions
from moe_probe.tables.distances import divergence
from moe_probe.tables.imbalance import balance
from moe_probe.tables.information import specialisation
from moe_probe.tables.labels import label_table
from moe_probe.tables.load import load_table
from moe_probe.tables.names import expert_names
from moe_probe.tables.neighbours import repetition
from moe_probe.tables.pairs import coactivation
from moe_probe.tables.places import position
from moe_probe.tables.registry import tables_of
from moe_probe.tables.tasks import affinity
from moe_probe.tables.words import vocabulary, vocabulary_summary

NEARLY_NOTHING = (
    *("empty", "one token", "two tokens", "one document", "one document perfectly split"),
    *("all dropped", "only sinks"),
)
AT_THE_DOORS = ("empty", "one token", "one expert", "all dropped", "nan weights", "only sinks", "only untagged")
TABLES: dict[str, Callable[[Run], pl.DataFrame]] = {
    "load": load_table,
    "load, olmoe": partial(load_table, convention="olmoe"),
    "balance": balance,
    "repetition": repetition,
    "coactivation": coactivation,
    "coactivation, adjacent": partial(coactivation, adjacent=True),
    "transitions": transitions,
    "paths": paths,
    "position": position,
    "vocabulary": vocabulary,
    "vocabulary, no floor": partial(vocabulary, floor=1),
    "vocabulary summary": vocabulary_summary,
    "affinity": affinity,
    "experts": expert_names,
    "agreement": lambda run: agreement(run, run),
    "agreement by phase": lambda run: agreement(run, run, by="phase"),
    "saturation": lambda run: saturation([run, run], run),
    "load difference": lambda run: load_difference(run, run),
}
OF_LABELS: dict[str, Callable[[Run, str], pl.DataFrame]] = {
    "label table": label_table,
    "label table, all domains together": partial(label_table, within=False),
    "specialisation": specialisation,
    "divergence": divergence,
    "affinity by label": lambda run, label: affinity(run, by=label),
    "agreement by label": lambda run, label: agreement(run, run, by=label),
}


@pytest.fixture(params=BAD_RUNS, scope="module")
def named_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Run]:
    name: str = request.param
    return name, BAD_RUNS[name](tmp_path_factory.mktemp("bad") / "run")


def made(make: Callable[[], pl.DataFrame]) -> pl.DataFrame | None:
    """Make a table with warnings as errors; None where it was refused as it should be."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return make()
        except MoeProbeError as error:
            message = str(error)
    assert len(message.split()) >= 5, f"what is wrong, and what to do? {message!r}"
    return None


def check(frame: pl.DataFrame, what: str) -> None:
    """No nan, no infinity, no interval upside down, no share out of range, and fit for a CSV file."""
    for column, dtype in frame.schema.items():
        assert dtype != pl.Object, f"{what}: {column} holds objects"
        if dtype.is_float():
            numbers = frame[column].drop_nulls()
            assert numbers.is_finite().all(), f"{what}: {column} is not finite"
            if column == "share" or column.startswith("p_"):
                assert numbers.is_empty() or (numbers.min() >= 0 and numbers.max() <= 1), (
                    f"{what}: {column} out of range"
                )
        if column.endswith("ci_low"):
            ends = frame.select(column, column.replace("low", "high")).drop_nulls()
            assert (ends[:, 0] <= ends[:, 1]).all(), f"{what}: {column} above its other end"
            other = frame[column.replace("low", "high")]
            assert (frame[column].is_null() == other.is_null()).all(), f"{what}: {column} without its other end"
    written = list(csv.reader(io.StringIO(frame.write_csv())))
    assert len(written) == frame.height + 1, what
    assert not {"nan", "NaN", "inf", "-inf"} & {field for row in written[1:] for field in row}, what


def not_overconfident(name: str, frame: pl.DataFrame, what: str) -> None:
    """No expert of these runs is a specialist, and where there is nearly nothing no load is known either."""
    too_much = {"specialised", "dead"} | ({"above", "below"} if name in NEARLY_NOTHING else set())
    if "verdict" in frame.columns:
        assert not too_much & set(frame["verdict"].drop_nulls().to_list()), what


def test_every_table_of_the_registry_says_that_it_does_not_know(named_run: tuple[str, Run]):
    name, run = named_run
    tables = tables_of(run)
    assert {table.file for table in tables} >= {"load", "balance"}
    for table in tables:
        frame = made(table.make)
        assert frame is not None, f"{name}: {table.file} is part of an export and must not be refused"
        assert dict(frame.schema) == schema_of(table.columns), f"{name}: {table.file}"
        check(frame, f"{name}: {table.file}")
        not_overconfident(name, frame, f"{name}: {table.file}")


@pytest.mark.parametrize("table", TABLES)
def test_every_function_gives_a_table_or_a_clear_message(named_run: tuple[str, Run], table: str):
    name, run = named_run
    frame = made(lambda: TABLES[table](run))
    if frame is not None:
        check(frame, f"{name}: {table}")
        not_overconfident(name, frame, f"{name}: {table}")


@pytest.mark.parametrize("table", OF_LABELS)
def test_every_function_of_a_label_gives_a_table_or_a_clear_message(named_run: tuple[str, Run], table: str):
    name, run = named_run
    for label in [*run.labels, LabelSet("phase", "trace", False), LabelSet("none", "nobody", False)]:
        frame = made(lambda label=label: OF_LABELS[table](run, label.name))
        if label.name == "none":
            assert frame is None, f"{table}: a label that the run has not"
        elif frame is not None:
            check(frame, f"{name}: {table} of {label.name}")
            not_overconfident(name, frame, f"{name}: {table} of {label.name}")


@pytest.mark.parametrize("name", AT_THE_DOORS)
def test_an_export_a_report_a_comparison_and_a_description_come_out_or_say_why(name: str, tmp_path: Path):
    run = BAD_RUNS[name](tmp_path / "run")
    page = tmp_path / "report.html"
    doors: list[Callable[[], object]] = [
        lambda: export_csv(run, tmp_path / "export"),
        lambda: write_report(run, page),
        lambda: compare_runs(run, run, tmp_path / "compared"),
        lambda: describe(run),
    ]
    for door in doors:
        made(door)
    for file in [*tmp_path.rglob("*.csv")]:
        fields = {field for row in csv.reader(file.open(encoding="utf-8")) for field in row}
        assert not {"nan", "NaN", "inf", "-inf"} & fields, file.name
    for file in tmp_path.rglob("*.html"):
        assert ">nan<" not in file.read_text(encoding="utf-8").lower(), file.name


@pytest.mark.parametrize("compare", [agreement, load_difference, lambda a, b: saturation([a], b)])
def test_runs_over_different_text_are_refused_by_name_and_place(tmp_path: Path, compare: Callable):
    one = one_document(tmp_path / "one")
    changed = ids(700)
    changed[41] = 999
    other = write_run(tmp_path / "other", some_experts(700), labels={"upos": some_tags(700)}, token_id=changed)
    with pytest.raises(BadInputError, match=r"41|document") as caught:
        compare(one, other)
    assert "999" in str(caught.value) or "41" in str(caught.value)
    shorter = write_run(tmp_path / "shorter", some_experts(699), labels={"upos": some_tags(699)}, token_id=ids(699))
    with pytest.raises(BadInputError):
        compare(one, shorter)
    with pytest.raises(BadInputError):
        compare_runs(one, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_check_sees_what_it_is_there_to_see():
    good = pl.DataFrame({"share": [0.5, None], "ci_low": [0.4, None], "ci_high": [0.6, None]})
    check(good, "good")
    for bad in (
        good.with_columns(share=pl.lit(float("nan"))),
        good.with_columns(share=pl.lit(float("inf"))),
        good.with_columns(share=pl.lit(1.5)),
        good.with_columns(ci_low=pl.lit(0.7)),
        good.with_columns(ci_low=pl.lit(None, pl.Float64)),
        good.with_columns(name=pl.lit("nan")),
    ):
        with pytest.raises(AssertionError):
            check(bad, "bad")
    with pytest.raises(RuntimeWarning):
        made(lambda: pl.DataFrame({"x": np.zeros(1) / np.zeros(1)}))


def test_columns_that_a_table_declares_have_a_meaning(tmp_path: Path):
    for table in tables_of(one_document(tmp_path / "run")):
        for column in table.columns:
            assert isinstance(column, Column)
            assert column.definition.strip().endswith("."), f"{table.file}: {column.name}"
            assert column.unit, f"{table.file}: {column.name}"
