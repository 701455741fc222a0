"""Labels are added to a run and replaced in it without tracing again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import traced_models
from traced_models import files_of

from moe_probe.corpus import Document
from moe_probe.errors import BadInputError, MoeProbeError, RunError
from moe_probe.relabelling import relabel
from moe_probe.store import RunWriter, open_run
from moe_probe.store.shards import METADATA_KEY, with_label
from moe_probe.tracing import trace

DOCUMENTS = [
    Document("a", "the sea\n\n" + traced_models.text(40, seed=1), language="en"),
    Document("b", traced_models.text(12, seed=2), domain="salt"),
    Document("c", "def x(y): return y", language="python"),
    Document("d", traced_models.text(70, seed=3), language="en", labels={"mood": "calm"}),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return traced_models.language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run_folder(lm, tmp_path) -> Path:
    trace(lm, DOCUMENTS, tmp_path / "run", labels=("domain", "mood"), context=16, shard_rows=40, special=True)
    return tmp_path / "run"


def test_labels_added_later_are_those_that_a_trace_gives(lm, run_folder, tmp_path):
    names = ("shape", "code", "language", "upos")
    expected = trace(
        lm, DOCUMENTS, tmp_path / "expected", labels=("domain", "mood", *names), context=16, shard_rows=40, special=True
    )
    routing = {name: digest for name, digest in files_of(run_folder).items() if name.startswith("routing")}
    seen = []
    run = relabel(run_folder, names, on_progress=seen.append)
    assert run.tokens().equals(expected.tokens())
    assert [label.name for label in run.labels] == [label.name for label in expected.labels]
    assert {name: digest for name, digest in files_of(run_folder).items() if name.startswith("routing")} == routing
    assert (seen[-1].phase, seen[-1].tokens_done, seen[-1].tokens_total) == ("labelling", run.n_tokens, run.n_tokens)
    assert {label.name: label.source for label in run.labels}["upos"].startswith("spaCy")  # a run holds no gold tags


def test_a_label_that_is_there_is_replaced(run_folder):
    before = relabel(run_folder, ("language",)).label_values("language")
    run = relabel(run_folder, ("language", "phase"), language="fr")
    assert before == ["en", "python", "special", "untagged"]
    assert run.label_values("language") == ["en", "fr", "python", "special"]
    assert [label.name for label in run.labels] == ["domain", "mood", "language", "phase"]
    assert run.tokens().columns.count("phase") == 1


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ((), {}, "no label named; give one or more of upos, shape"),
        (("mood",), {}, "label 'mood': a run can be given upos, .* a label of your own comes with the documents"),
        (("shape", "shape"), {}, "label 'shape': named twice"),
        (("upos",), {"tagger": "no_such_tagger"}, "tagger 'no_such_tagger'"),
    ],
)
def test_labels_that_cannot_be_given_are_refused(run_folder, names, options, message):
    before = files_of(run_folder)
    with pytest.raises(BadInputError, match=message):
        relabel(run_folder, names, **options)
    assert files_of(run_folder) == before


def test_only_a_whole_run_that_nobody_writes_is_labelled(run_folder, tmp_path):
    with pytest.raises(RunError, match="nowhere: no such run"):
        relabel(tmp_path / "nowhere", ("shape",))
    assert not (tmp_path / "nowhere").exists()
    with RunWriter(run_folder, resume=True), pytest.raises(RunError, match="another process is writing to this run"):
        relabel(run_folder, ("shape",))
    manifest = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps(manifest | {"complete": False}))
    with pytest.raises(RunError, match="the run is not complete; trace again with --resume, then label it"):
        relabel(run_folder, ("shape",))


def test_a_labelling_that_fails_before_its_end_changes_nothing(run_folder, monkeypatch):
    before = files_of(run_folder)
    monkeypatch.setattr("moe_probe.relabelling.with_label", _fails_at_the_third())
    with pytest.raises(MoeProbeError, match="third"):
        relabel(run_folder, ("shape",))
    assert files_of(run_folder) == before


def _fails_at_the_third():
    calls = iter(range(99))

    def fail(*arguments):
        if next(calls) == 2:
            raise MoeProbeError("third")
        return with_label(*arguments)

    return fail


def _stop_renaming_after(monkeypatch, count: int) -> None:
    rename = Path.rename
    calls = iter(range(99))

    def limited(path: Path, target: Path):
        if next(calls) == count:
            raise SystemExit("killed")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", limited)


def test_a_run_killed_while_a_label_is_added_reads_as_before(run_folder, monkeypatch):
    before = open_run(run_folder).tokens()
    with monkeypatch.context() as patch:
        _stop_renaming_after(patch, 2)
        with pytest.raises(SystemExit):
            relabel(run_folder, ("shape",))
    run = open_run(run_folder)
    assert run.tokens().equals(before)
    assert run.sql("select * from tokens").equals(before)
    assert run.document("d").tokens.height > 0
    assert "word" in relabel(run_folder, ("shape",)).label_values("shape")


def test_a_run_killed_while_a_label_is_replaced_refuses_that_label_alone(run_folder):
    relabel(run_folder, ("language",))
    manifest = json.loads((run_folder / "run.json").read_text())
    next(label for label in manifest["labels"] if label["name"] == "language")["source"] = "an older maker"
    (run_folder / "run.json").write_text(json.dumps(manifest))
    run = open_run(run_folder)
    message = r"label 'language' is of two makings, for a relabelling was cut short; finish it with moe-probe label"
    for read in (
        lambda: run.tokens(["text", "language"]),
        lambda: run.label_values("language"),
        lambda: run.sql("select 1 from tokens"),
        lambda: run.document("d"),
    ):
        with pytest.raises(RunError, match=message):
            read()
    assert run.experts(layer=0).shape[0] == run.n_tokens
    assert run.tokens(["text"]).height == run.n_tokens
    relabel(run_folder, ("language",))
    assert open_run(run_folder).label_values("language") == ["en", "python", "special", "untagged"]


def test_the_metadata_of_a_labelled_file_names_every_maker(run_folder):
    import pyarrow.parquet as pq

    relabel(run_folder, ("shape",))
    facts = json.loads(pq.read_metadata(run_folder / "tokens/part-000001.parquet").metadata[METADATA_KEY])
    assert facts["labels"] == {
        "phase": "the documents",
        "domain": "the documents",
        "mood": "the documents",
        "shape": "rules",
    }
