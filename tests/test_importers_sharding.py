"""Shards are written while the trace is read: what comes late, fails late or changes meanwhile does not show."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from foreign_traces import prompt_object, routing, vllm_response, weights_of, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import BadInputError, MoeProbeError, RunError
from moe_probe.importers import cutting, import_run, importing
from moe_probe.schema import TOKEN_COLUMNS
from moe_probe.store import Run
from moe_probe.store import writer as writer_module
from moe_probe.store.writer import RunWriter

LATE = {
    "a layer": ([routing(9, 0), routing(9, 1), routing(9, 2)], 1),
    "a slot": ([routing(9, 0)[:, :, :1], routing(9, 1), routing(9, 2)], None),
    "a wide expert": ([routing(9, 0), routing(9, 1), routing(9, 2, experts=3_000)], None),
    "nothing": ([routing(9, 0), routing(9, 1), routing(9, 2)], None),
}


def lines(documents, blank=None):
    """Return the lines of some documents; layer `blank` holds nothing in the first."""
    made = []
    for number, chosen in enumerate(documents):
        chosen = chosen.copy()
        if blank is not None and number == 0:
            chosen[:, blank] = 0
        made.append(prompt_object(chosen))
    return made


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(cutting, "_SHARD_ROWS", 9)


@pytest.fixture
def readings(monkeypatch) -> list[int | None]:
    """What is known of the number of tokens at the beginning of each reading."""
    seen: list[int | None] = []
    begin = importing.Watch.begin

    def noted(self, phase, before, total):
        seen.append(total)
        begin(self, phase, before, total)

    monkeypatch.setattr(importing.Watch, "begin", noted)
    return seen


def told(run: Run) -> dict[str, object]:
    """Return what a run says of its documents, whatever its shards."""
    tokens = run.sql(f"select {', '.join(TOKEN_COLUMNS)} from tokens order by document, position").rows()
    experts = {router.index: run.experts(router=router.index).tolist() for router in run.routers}
    manifest = {key: value for key, value in run.manifest.items() if key not in ("times", "shards")}
    documents = run.sql("select document, name, tokens, characters from documents order by document").rows()
    return {"tokens": tokens, "experts": experts, "manifest": manifest, "documents": documents}


@pytest.mark.parametrize("late", LATE)
def test_what_shows_late_is_as_if_it_had_been_known(tmp_path, monkeypatch, readings, late):
    documents, blank = LATE[late]
    path = write_lines(tmp_path / "a.jsonl", lines(documents, blank))
    whole = told(import_run("jsonl", path, tmp_path / "whole"))
    assert readings == [None]
    monkeypatch.setattr(cutting, "_SHARD_ROWS", 9)
    run = import_run("jsonl", path, tmp_path / "cut")
    assert readings[1:] == ([None] if late == "nothing" else [None, 27])
    assert told(run) == whole
    assert len(run.shards) == (2 if late == "a layer" else 3)
    assert not list(run.path.rglob("*.tmp"))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_run_does_not_depend_on_where_it_is_cut(tmp_path_factory, data):
    draw = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    weighted, known = data.draw(st.booleans()), data.draw(st.booleans())
    documents = []
    for _ in range(data.draw(st.integers(1, 12))):
        tokens, slots, experts = draw.integers(1, 12), int(draw.integers(1, 4)), int(draw.choice([8, 300]))
        chosen = routing(int(tokens), int(draw.integers(1_000)), slots=slots, experts=experts)
        if draw.random() < 0.2:
            chosen[:, draw.integers(3)] = draw.choice([-1, 0])  # a layer that is blank
        if draw.random() < 0.2:
            chosen[draw.integers(tokens)] = -1  # a row that was not recorded
        documents.append(prompt_object(chosen, weights_of(chosen) if weighted else None))
    folder = tmp_path_factory.mktemp("cut")
    path = write_lines(folder / "a.jsonl", documents)
    sizes = {"n_experts": 300} if known else {}
    try:
        whole = told(import_run("jsonl", path, folder / "whole", **sizes))
    except MoeProbeError as error:
        whole = str(error)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "_SHARD_ROWS", data.draw(st.integers(1, 30)))
        try:
            found = told(import_run("jsonl", path, folder / "cut", **sizes))
        except MoeProbeError as error:
            found = str(error)
    assert found == whole


def test_a_trace_of_which_no_token_is_left_says_so(tmp_path):
    chosen = routing(8)
    chosen[2:] = -1  # not recorded, which is no fault
    chosen[0, 1] = chosen[1, 0] = -1  # ragged, but less than half
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(chosen)])
    with pytest.raises(
        BadInputError, match=r"a\.jsonl: none of its 8 tokens can be used; 6 of 8 tokens have no expert"
    ):
        import_run("jsonl", path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_trace_that_changes_between_two_readings_is_no_run(tmp_path, monkeypatch, small_shards):
    documents, blank = LATE["a layer"]
    path = write_lines(tmp_path / "a.jsonl", lines(documents, blank))
    drop = RunWriter.drop_staged

    def changing(self):
        drop(self)
        write_lines(path, lines([*documents, routing(3)], blank))

    monkeypatch.setattr(RunWriter, "drop_staged", changing)
    with pytest.raises(BadInputError, match="was changed while it was read; import it when it is whole"):
        import_run("jsonl", path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("late", [True, False])
def test_a_pipe_can_be_read_once_only(tmp_path, monkeypatch, late):
    documents = [routing(9, seed) for seed in range(3)]
    if late:
        documents[0][:, 1] = 0
    responses = [vllm_response(chosen, 4, "lists") for chosen in documents]
    data = write_lines(tmp_path / "a.jsonl", responses).read_bytes()
    whole = import_run("vllm", tmp_path / "a.jsonl", tmp_path / "whole")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(data,))
    monkeypatch.setattr(cutting, "_SHARD_ROWS", 9)
    feeder.start()
    if late:
        with pytest.raises(BadInputError, match=r"pipe: later documents .* read twice; save it as a file first"):
            import_run("vllm", pipe, tmp_path / "run")
        assert not (tmp_path / "run").exists()
    else:
        run = import_run("vllm", pipe, tmp_path / "run")
        assert (run.n_tokens, len(run.shards)) == (27, 3)
        assert run.experts(router=1).tolist() == whole.experts(router=1).tolist()
    feeder.join()


def test_a_disk_that_fails_while_shards_are_written_leaves_no_run_and_no_thread(tmp_path, monkeypatch, small_shards):
    path = write_lines(tmp_path / "a.jsonl", lines([routing(9, seed) for seed in range(6)]))
    rest = RunWriter.stage_rest

    def failing(self, number, tokens):
        if number == 2:
            raise MoeProbeError("no space")
        rest(self, number, tokens)

    monkeypatch.setattr(RunWriter, "stage_rest", failing)
    with pytest.raises(MoeProbeError, match="no space"):
        import_run("jsonl", path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("ahead", "behind"))]
    (tmp_path / "other").mkdir()
    with pytest.raises(MoeProbeError, match="no space"):
        import_run("jsonl", path, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("file", ["tokens", "routing"])
def test_a_full_disk_is_said_in_one_line_with_what_to_do(tmp_path, monkeypatch, small_shards, file):
    path = write_lines(tmp_path / "a.jsonl", lines([routing(9, seed) for seed in range(6)]))
    write = getattr(writer_module, f"write_{file}")

    def full(temporary, *rest):
        if "000003" in temporary.name:
            raise OSError(28, "No space left on device")
        write(temporary, *rest)

    monkeypatch.setattr(writer_module, f"write_{file}", full)
    said = rf"{file}/part-000003.parquet: cannot be written \(no space left\); make room or choose another folder"
    with pytest.raises(MoeProbeError, match=said):
        import_run("jsonl", path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("renamed", [0, 1, 3, 4, 5])
def test_an_import_that_ended_while_shards_were_renamed_is_done_again(tmp_path, monkeypatch, small_shards, renamed):
    path = write_lines(tmp_path / "a.jsonl", lines([routing(9, seed) for seed in range(3)]))
    whole = import_run("jsonl", path, tmp_path / "whole")
    rename = Path.rename
    left = [renamed + 2]  # the plan and the documents come before

    def failing(self, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        import_run("jsonl", path, tmp_path / "run")
    monkeypatch.setattr(Path, "rename", rename)
    assert not (tmp_path / "run" / "run.json").exists()
    run = import_run("jsonl", path, tmp_path / "run", resume=True)
    files = [file.relative_to(run.path) for file in run.path.rglob("*.parquet")]
    assert len(files) == 7
    for file in files:
        assert (run.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_what_a_killed_import_left_is_in_nobodys_way(tmp_path, small_shards):
    path = write_lines(tmp_path / "a.jsonl", lines([routing(9, seed) for seed in range(3)]))
    whole = import_run("jsonl", path, tmp_path / "whole")
    for folder in ("tokens", "routing"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        for number in (0, 7):
            (tmp_path / "run" / folder / f"part-{number:06}.parquet.tmp").write_text("half")
    (tmp_path / "run" / "writer.lock").touch()
    run = import_run("jsonl", path, tmp_path / "run")
    assert told(run) == told(whole)
    assert not list(run.path.rglob("*.tmp"))


def test_another_trace_is_not_taken_for_the_one_that_was_begun(tmp_path, monkeypatch, small_shards):
    path = write_lines(tmp_path / "a.jsonl", lines([routing(9, seed) for seed in range(3)]))

    def failing(self):
        self._facts |= self._staged_shards  # as if a shard were there
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "commit_staged", failing)
        with pytest.raises(KeyboardInterrupt):
            import_run("jsonl", path, tmp_path / "run")
    other = write_lines(tmp_path / "b.jsonl", lines([routing(9, seed) for seed in range(4)]))
    with pytest.raises(RunError, match="made from something else"):
        import_run("jsonl", other, tmp_path / "run", resume=True)
