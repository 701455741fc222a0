"""Runs that hold counts only: they say what the run with tokens says, lose one shard at most, and refuse the rest."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import traced_models
from counted_documents import LABELS, OPTIONS, documents
from killed_counts import NAMES
from rich.console import Console
from spawning import execute, warm_context
from traced_models import files_of

import moe_probe as mp
from moe_probe import tables
from moe_probe.counts import load_counts, load_rows
from moe_probe.errors import BadInputError, MoeProbeError, RunError
from moe_probe.export import export_csv
from moe_probe.info import describe
from moe_probe.models import LanguageModel
from moe_probe.relabelling import relabel
from moe_probe.schema import Router
from moe_probe.store import Run, ShardFacts, open_run
from moe_probe.store import clusters as hashes
from moe_probe.store import totals as store_totals
from moe_probe.store.counted import CountsWriter
from moe_probe.store.totals import TOTALS_FILE, LabelTotals, Totals, read_totals, write_totals
from moe_probe.tables.registry import tables_left_out
from moe_probe.tracing import trace
from moe_probe.tracing.shard import open_shard_tracer
from moe_probe.tracing.work import Work

COUNTED = ("upos", "shape", "domain", "phase")
FACTS = ShardFacts((False,), "passed")
ROUTER = Router(0, "layers.0.mlp", 0, n_experts=2, n_slots=3, kind="softmax top-k")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> LanguageModel:
    return traced_models.language_model(tmp_path_factory.mktemp("model"), "olmoe")


@pytest.fixture(scope="module")
def full(lm, tmp_path_factory) -> Run:
    return trace(lm, documents(), tmp_path_factory.mktemp("full") / "run", **OPTIONS)


@pytest.fixture(scope="module")
def counted(lm, tmp_path_factory) -> Run:
    return trace(lm, documents(), tmp_path_factory.mktemp("counted") / "run", counts_only=True, **OPTIONS)


def same_counts(one: Run, other: Run, label: str, slot: str | int, tokens: str | None) -> None:
    expected, found = load_counts(one, label, slot, tokens), load_counts(other, label, slot, tokens)
    for fact in ("label_set", "labels", "slot", "tokens", "sinks", "n", "cluster_unit", "documents", "domains"):
        assert getattr(found, fact) == getattr(expected, fact), fact
    for ours, theirs in zip(found.clustered, expected.clustered, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.int64


# What it says


def test_the_counts_are_those_of_the_run_with_tokens(full, counted):
    assert len(counted.shards) > 3, "sums of several shards"
    assert counted.shards == full.shards
    assert (counted.n_tokens, counted.n_documents, counted.complete) == (full.n_tokens, 12, True)
    for label in COUNTED:
        for slot in ("any", 0):
            for which in (None, "all", "word_initial"):
                same_counts(full, counted, label, slot, which)
    for slot in range(1, 4):
        same_counts(full, counted, "phase", slot, None)
    assert counted.label_values("upos") == full.label_values("upos")


def test_the_loads_are_what_numpy_counts_of_the_experts(full, counted):
    beyond = full.tokens(["window_position"])["window_position"].to_numpy() >= 4
    for router in counted.routers:
        executed = full.experts(router=router.index)[beyond]
        for slot in range(router.n_slots):
            expected = np.bincount(executed[:, slot], minlength=router.n_experts)
            found = load_counts(counted, "phase", slot)[router.index].sum(axis=1)
            np.testing.assert_array_equal(found, expected)


def test_tables_of_counts_are_the_same(full, counted):
    assert tables.load_table(counted).equals(tables.load_table(full))
    assert tables.divergence(counted).equals(tables.divergence(full))
    scores = ("mean_token_entropy_bits", "mean_margin")
    assert tables.balance(counted).drop(scores).equals(tables.balance(full).drop(scores))
    assert tables.balance(full)["mean_margin"].null_count() == 0
    assert tables.balance(counted).select(scores).null_count().row(0) == (counted.routers[-1].index + 1,) * 2


def test_what_needs_word_types_is_null_and_nothing_is_called_specialised(full, counted):
    of_types = ("type_q_value", "verdict")
    ours, theirs = tables.label_table(counted, "upos"), tables.label_table(full, "upos", within=False)
    q_value = theirs["q_value"]
    assert ours.drop(of_types).equals(theirs.drop(of_types))
    assert q_value.null_count() < len(q_value)
    assert ours["type_q_value"].null_count() == len(ours)
    assert set(ours["verdict"]) <= {"not shown", "not enough data"}
    over_occurrences = ["router", "slot", "tokens", "domain", "mutual_information_bits", "null_mean_bits", "n"]
    over_occurrences += ["above_null_bits", "above_null_ci_low", "above_null_ci_high", "cramers_v", "cluster_unit"]
    ours, theirs = tables.specialisation(counted, "upos"), tables.specialisation(full, "upos", within=False)
    assert ours.select(over_occurrences).equals(theirs.select(over_occurrences))
    for column in ("type_level_bits", "held_out_bits", "given_token_bits", "without_punct_bits", "types"):
        assert ours[column].null_count() == len(ours) > 0


def test_it_holds_no_token_and_does_not_grow_with_tokens(lm, counted, tmp_path):
    names = {path.relative_to(counted.path).as_posix() for path in counted.path.rglob("*")}
    assert names == {"plan.json", "run.json", "documents.parquet", "counted", TOTALS_FILE}
    long = trace(lm, documents(n_words=400), tmp_path / "long", counts_only=True, **(OPTIONS | {"shard_rows": 2500}))
    assert long.n_tokens > 6 * counted.n_tokens
    numbers = sum(
        (router.n_slots if label == "phase" else 2) * 2 * 64 * router.n_experts * len(long.totals(label).labels)
        for router in long.routers
        for label in (*LABELS, "phase")
    )
    assert (long.path / TOTALS_FILE).stat().st_size < 2 * numbers, "bytes, of counts that fit into 16 bits"
    assert (long.path / TOTALS_FILE).stat().st_size < 2.5 * (counted.path / TOTALS_FILE).stat().st_size


# Interruptions


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    folder, said = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("said")
    code = "import killed_counts; killed_counts.main(folder)"
    with pytest.MonkeyPatch.context() as monkeypatch:
        child = warm_context(monkeypatch).Process(
            target=execute, args=(code, {"folder": folder}, dict(os.environ), said)
        )
        child.start()
    child.join()
    assert child.exitcode == 0, (said / "err").read_text()
    ended = [line for line in (said / "out").read_text().splitlines() if line.startswith(NAMES)]
    assert ended == ["whole 0", "before -9", "between -9", "end -9"]
    return folder


@pytest.mark.parametrize(("name", "n_whole"), [("before", 2), ("between", 3), ("end", 6)])
def test_killed_and_resumed_it_is_byte_for_byte_what_it_would_have_been(killed, lm, full, name, n_whole):
    interrupted = open_run(killed / name)
    assert (interrupted.shards, interrupted.complete) == (list(range(n_whole)), False)
    rows = sum(shard.rows for shard in list(full.iter_shards())[:n_whole])
    beyond = sum(
        int((shard.tokens(["window_position"])["window_position"] >= 4).sum())
        for shard in list(full.iter_shards())[:n_whole]
    )
    assert (interrupted.n_tokens, load_counts(interrupted, "phase").n) == (rows, beyond), (
        "each shard is in both or none"
    )
    again = traced_models.language_model(killed / "model", "olmoe")
    run = trace(again, documents(), killed / name, counts_only=True, resume=True, **OPTIONS)
    assert run.complete
    assert files_of(run.path) == files_of(killed / "whole")


def test_a_kill_between_the_last_shard_and_the_manifest_is_made_good_by_resuming(lm, full, tmp_path):
    shutil.copytree(full.path, tmp_path / "run")
    manifest = json.loads((tmp_path / "run/run.json").read_text())
    behind = manifest | {"complete": False, "shards": manifest["shards"][:-1]}
    (tmp_path / "run/run.json").write_text(json.dumps(behind))
    assert not open_run(tmp_path / "run").complete
    run = trace(lm, documents(), tmp_path / "run", resume=True, **OPTIONS)
    assert run.complete
    assert files_of(run.path) == files_of(full.path)


def test_shards_made_elsewhere_in_another_order_give_the_same_bytes(lm, counted, tmp_path):
    def engine(work: Work) -> None:
        with open_shard_tracer(work.lm, work.encoder, work.recipe) as tracer:
            for number in reversed(work.todo):
                work.commit(pickle.loads(pickle.dumps(tracer.trace(work.text(number)))))

    run = trace(lm, documents(), tmp_path / "run", counts_only=True, engine=engine, **OPTIONS)
    assert files_of(run.path) == files_of(counted.path)


def test_a_shard_that_is_counted_in_parts_is_counted_whole(lm, counted, tmp_path, monkeypatch):
    monkeypatch.setattr("moe_probe.tracing.counted._ROWS_AT_ONCE", 100)
    run = trace(lm, documents(), tmp_path / "run", counts_only=True, **OPTIONS)
    assert files_of(run.path) == files_of(counted.path)


def test_a_trace_that_was_stopped_tells_of_what_it_counted(lm, full, tmp_path):
    cancel = threading.Event()

    def stop(progress: mp.Progress) -> None:
        if progress.phase == "tracing" and progress.tokens_done > 500:
            cancel.set()

    run = trace(lm, documents(), tmp_path / "run", counts_only=True, on_progress=stop, cancel=cancel, **OPTIONS)
    assert not run.complete
    assert 0 < len(run.shards) < len(full.shards)
    assert run.n_documents == run.documents().height < 12
    assert load_counts(run, "phase").documents == run.n_documents


def test_a_shard_is_never_counted_twice(tmp_path):
    one = _totals([[3, 1]])
    totals = Totals({}, {}).plus(4, 10, FACTS, {"kind": one})
    with pytest.raises(ValueError, match="shard 4 is counted already"):
        totals.plus(4, 10, FACTS, {"kind": one})
    with pytest.raises(ValueError, match="shard 5: counted by phase, the others by kind"):
        totals.plus(5, 10, FACTS, {"phase": one})


def test_a_run_of_the_other_kind_is_not_gone_on_with(lm, full, counted):
    with pytest.raises(RunError, match="counts_only was null and is true"):
        trace(lm, documents(), full.path, counts_only=True, resume=True, **OPTIONS)
    with pytest.raises(RunError, match="counts_only was true and is null"):
        trace(lm, documents(), counted.path, resume=True, **OPTIONS)
    with pytest.raises(RunError, match="a run is there already"):
        trace(lm, documents(), counted.path, counts_only=True, **OPTIONS)


def test_a_disk_that_is_full_leaves_what_was_counted_before(lm, tmp_path, monkeypatch):
    written = store_totals.np.save

    def full_disk(stream, array, **options) -> None:
        if "_3" in full.get("shards", ""):
            raise OSError(28, "No space left on device")
        written(stream, array, **options)

    full: dict[str, str] = {}
    plus = Totals.plus

    def third(self, number, *more):
        full["shards"] = f"_{number}"
        return plus(self, number, *more)

    monkeypatch.setattr(Totals, "plus", third)
    monkeypatch.setattr(store_totals.np, "save", full_disk)
    with pytest.raises(MoeProbeError, match=r"totals\.npz: cannot be written \(no space left\); whole shards kept: 3"):
        trace(lm, documents(), tmp_path / "run", counts_only=True, **OPTIONS)
    assert open_run(tmp_path / "run").shards == [0, 1, 2]
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_nothing_is_left_of_a_trace_that_failed_before_its_first_shard(lm, tmp_path):
    def fail(work: Work) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        trace(lm, documents(), tmp_path / "run", counts_only=True, engine=fail, **OPTIONS)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


# The file of counts


def _totals(
    by_slot: list[list[int]], label: str = "a", documents: tuple[int, ...] = (0,), others: tuple[int, ...] = ()
) -> LabelTotals:
    """Return word-initial counts in cluster 1: for each plane, one of each expert."""
    table = np.zeros((len(by_slot), 2, 64, 2, 1), dtype=np.int64)
    table[:, 1, 1, :, 0] = by_slot
    return LabelTotals((label,), (table,), np.array([[0], [5]]), (np.array(others, np.int64), np.array(documents)))


def test_sums_hold_the_labels_and_documents_of_both(tmp_path):
    both = _totals([[3, 1]], "b", (2, 9)) + _totals([[300, 0]], "a", (0, 2), (7,)) + _totals([[1, 1]], "b")
    assert both.labels == ("a", "b")
    found = both.select("any", word_initial=True)
    assert found.clustered[0][1].tolist() == [[300, 4], [0, 2]]
    assert (found.n, found.documents.tolist()) == (15, [0, 2, 9])
    every = both.select("any", word_initial=False)
    assert (every.n, every.documents.tolist()) == (15, [0, 2, 7, 9])
    write_totals(_folder(tmp_path), Totals({0: (9, FACTS)}, {"kind": both}))
    again = read_totals(tmp_path, [ROUTER])
    assert again.shards == {0: (9, FACTS)}
    np.testing.assert_array_equal(again.sets["kind"].tables[0], both.tables[0])
    assert again.sets["kind"].tables[0].dtype == np.uint16


def _folder(path: Path) -> Path:
    (path / "counted").mkdir()
    return path


@pytest.mark.parametrize(
    ("n_planes", "n_slots", "slots"),
    [(1, 1, ["any", 0]), (2, 2, ["any", 0, 1]), (2, 3, ["any", 0]), (3, 3, ["any", 0, 1, 2])],
)
def test_a_slot_is_told_only_where_it_was_counted_apart(n_planes, n_slots, slots):
    assert _totals([[1, 1]] * n_planes).slots([replace(ROUTER, n_slots=n_slots)]) == slots


def test_a_router_without_a_slot_has_no_assignment_there():
    totals = _totals([[4, 4]])
    pair = LabelTotals(
        totals.labels, (totals.tables[0], *_totals([[1, 0], [0, 1]]).tables), totals.rows, totals.documents
    )
    routers = [replace(ROUTER, n_slots=1), replace(ROUTER, index=1, n_slots=2)]
    assert pair.slots(routers) == ["any", 0, 1]
    assert [int(table.sum()) for table in pair.select(1, word_initial=True).clustered] == [0, 1]


def test_the_same_counts_are_the_same_bytes_in_whatever_order_they_came(tmp_path):
    parts = {0: _totals([[3, 1]], "b"), 1: _totals([[2, 2]], "a")}
    for name, order in (("one", [0, 1]), ("other", [1, 0])):
        (tmp_path / name / "counted").mkdir(parents=True)
        totals = Totals({}, {})
        for number in order:
            totals = totals.plus(number, 9, replace(FACTS, warnings=(f"of {number}",)), {"kind": parts[number]})
        write_totals(tmp_path / name, totals)
    one, other = ((tmp_path / name / TOTALS_FILE).read_bytes() for name in ("one", "other"))
    assert one == other


def test_warnings_of_shards_reach_the_manifest_once(tmp_path):
    plan = {"fingerprint": "x", "made_from": {}, "shards": [[0, 0, 9], [1, 0, 9]]}
    with CountsWriter(tmp_path / "run") as writer:
        writer.publish_plan(plan, [ROUTER])
        facts = replace(FACTS, warnings=("halved",))
        for number in (0, 1):
            writer.add_shard(number, 9, facts, {"phase": _totals([[1, 1]] * 3)})
        writer.publish({"corpus": {"documents": 2}}, [ROUTER], [], complete=True)
    run = open_run(tmp_path / "run")
    assert (run.warnings, run.n_tokens, run.manifest["self_check"]) == (["halved"], 18, "passed")


# What is refused


def _spoilt(run: Run, folder: Path, spoil: Callable[[Path], object]) -> Path:
    shutil.copytree(run.path, folder)
    spoil(folder / TOTALS_FILE)
    return folder


def test_damaged_missing_or_other_counts_are_refused(counted, tmp_path):
    cut = _spoilt(counted, tmp_path / "cut", lambda path: path.write_bytes(path.read_bytes()[:-99]))
    with pytest.raises(RunError, match=r"totals\.npz: missing or damaged .*delete the folder counted"):
        open_run(cut)
    gone = _spoilt(counted, tmp_path / "gone", Path.unlink)
    with pytest.raises(RunError, match=r"shard\(s\) were counted, and the counts are of 0; trace again with --resume"):
        open_run(gone)
    stale = open_run(_spoilt(counted, tmp_path / "stale", lambda path: None))
    totals = read_totals(stale.path, stale.routers)
    write_totals(stale.path, Totals(dict(list(totals.shards.items())[:-1]), totals.sets))
    with pytest.raises(RunError, match="open the run again"):
        load_counts(stale, "phase")

    def other_shape(path: Path) -> None:
        with zipfile.ZipFile(path) as file:
            members = {name: file.read(name) for name in file.namelist()}
        members["phase/router_0.npy"] = members["phase/rows.npy"]
        with zipfile.ZipFile(path, "w") as file:
            for name, content in members.items():
                file.writestr(name, content)

    with pytest.raises(RunError, match=r"phase/router_0 has counts of shape \(2, "):
        load_counts(open_run(_spoilt(counted, tmp_path / "shape", other_shape)), "phase")


@pytest.mark.parametrize(
    "ask",
    [
        lambda run: run.tokens(),
        lambda run: run.experts(router=0),
        lambda run: run.weights(router=0),
        lambda run: run.entropy(router=0),
        lambda run: run.margin(router=0),
        lambda run: run.probabilities(router=0),
        lambda run: run.document(0),
        lambda run: run.document_tokens("d1"),
        lambda run: run.sql("select 1"),
        lambda run: next(run.iter_shards()),
        lambda run: load_rows(run),
        lambda run: load_counts(run, "phase", sinks=True),
        lambda run: load_counts(run, "phase", domain="a"),
        lambda run: load_counts(run, "phase", documents=[0]),
        lambda run: load_counts(run, "upos", phase="prompt"),
        lambda run: load_counts(run, "upos", positions=(0, 9)),
        lambda run: tables.label_table(run, "upos", domain="a"),
        lambda run: tables.agreement(run, run),
        lambda run: tables.surprisal_difference(run, run),
        lambda run: relabel(run.path, ["shape"]),
        lambda run: mp.write_report(run, run.path.parent / "report.html"),
        *(
            lambda run, name=name: getattr(tables, name)(run)
            for name in ("vocabulary", "vocabulary_summary", "expert_names", "repetition", "position", "coactivation")
        ),
        *(lambda run, name=name: getattr(tables, name)(run) for name in ("transitions", "paths", "affinity")),
    ],
)
def test_whatever_needs_a_token_is_refused_by_name(counted, ask):
    before = files_of(counted.path)
    with pytest.raises(RunError, match=r"cannot be had, for the run holds counts only, .*; trace again without"):
        ask(counted)
    assert files_of(counted.path) == before


def test_slots_and_labels_that_were_not_counted_are_refused_by_name(counted):
    with pytest.raises(RunError, match="counts by upos of slot 1, which was not counted apart from others, cannot"):
        load_counts(counted, "upos", 1)
    with pytest.raises(RunError, match=r"counts by kind of 3 document.s. with a all token .* fewer than 5, cannot"):
        load_counts(counted, "kind")
    with pytest.raises(BadInputError, match="label 'code': the run has no such label"):
        load_counts(counted, "code")


def test_an_export_has_the_tables_that_there_are_and_names_the_others(counted, tmp_path):
    names = [path.name for path in export_csv(counted, tmp_path / "out")]
    assert names == [
        *("load.csv", "balance.csv", "syntax.csv", "shape.csv", "domain.csv", "specialisation.csv", "divergence.csv"),
        *("columns.csv", "run.json"),
    ]
    with (tmp_path / "out/columns.csv").open(newline="") as file:
        said = {row["table"]: row["definition"] for row in csv.DictReader(file) if not row["name"]}
    assert set(said) == set(tables_left_out(counted)) >= {"vocabulary", "paths", "experts", "kind"}
    assert all("holds counts only" in text for text in said.values())
    with pytest.raises(RunError, match="the token-to-expert table cannot be had"):
        export_csv(counted, tmp_path / "out", tokens=True)


def test_an_export_of_a_run_with_tokens_leaves_nothing_out(full):
    assert tables_left_out(full) == ()


def test_info_says_that_there_are_counts_only(counted, full):
    for run, is_said in ((counted, True), (full, False)):
        console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
        describe(run, console)
        printed = console.export_text()
        assert ("counts only, no tokens" in printed) == is_said
        assert ("left out of an export: experts, repetition" in printed) == is_said
        assert "effective experts" in printed


def test_what_cannot_be_traced_so_is_refused_before_anything_is_read(lm, tmp_path):
    for more, what in (({"surprisal": True}, "surprisal=True"), ({"probabilities": True}, "probabilities=True")):
        with pytest.raises(BadInputError, match=f"counts_only=True with {what}"):
            trace(lm, documents(), tmp_path / "run", counts_only=True, **more)
    few = documents(4)
    with pytest.raises(BadInputError, match=r"4 document\(s\) with a token, .* need 5 or more"):
        trace(lm, few, tmp_path / "run", counts_only=True, **OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_document_has_the_cluster_that_the_counts_give_it():
    from moe_probe.counts import clusters

    for name in ("a.txt", "ü\ud800", ""):
        assert hashes.name_hash(name) == clusters.name_hash(name)
        assert hashes.name_hash(name, 3) == clusters.name_hash(name, 3)
    assert (hashes.N_CLUSTERS, hashes.FEWEST_DOCUMENTS) == (clusters.N_CLUSTERS, clusters.FEWEST_DOCUMENTS)
