"""Runs are written so that nothing is lost but the open shard, by one process at a time."""

from __future__ import annotations

import fcntl

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from spawning import spawn_context
from written_runs import LABELS, ROUTERS, SCORES, HandMade

from moe_probe.errors import MoeProbeError, RoutingError, RunError
from moe_probe.schema import probabilities_file, routing_file, tokens_file
from moe_probe.store import RunWriter, ShardFacts, open_run
from moe_probe.store import writer as writer_module
from moe_probe.store.columns import probabilities_of
from moe_probe.store.files import new_file
from moe_probe.store.plan import plan_json
from moe_probe.store.shards import ProbabilityBlock, RoutingBlock


@pytest.fixture
def made(tmp_path):
    return HandMade(tmp_path / "run", [5, 0, 3, 9], shard_rows=6)


def test_a_second_run_into_a_folder_is_refused_unless_resumed(made):
    with pytest.raises(RunError, match="a run is there already; use --resume to go on, or choose another folder"):
        RunWriter(made.path)
    with RunWriter(made.path, resume=True) as writer:
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        assert writer.shards == [0, 1, 2, 3]
        with pytest.raises(RunError, match='made was "by hand" and is "otherwise"'):
            writer.publish_plan(plan_json({"made": "otherwise"}, made.layout))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path):
    for name in ("thesis.tex", "draft.tmp", "plan.json.tmp"):
        (tmp_path / name).write_text("x")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"no run and holds 'draft.tmp'; choose a new or empty folder"):
            RunWriter(tmp_path, resume=resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["draft.tmp", "plan.json.tmp", "thesis.tex"]
    with pytest.raises(RunError, match="a run is a folder, and this is a file"):
        RunWriter(tmp_path / "thesis.tex")


def _try_to_write(path, answers):
    try:
        RunWriter(path, resume=True).close()
        answers.put("opened")
    except RunError as error:
        answers.put(str(error))


def test_two_writers_of_one_run_are_one_too_many(tmp_path, monkeypatch):
    spawn = spawn_context(monkeypatch)
    answers = spawn.Queue()
    with RunWriter(tmp_path / "run"):
        other = spawn.Process(target=_try_to_write, args=(tmp_path / "run", answers))
        other.start()
        assert "another process is writing to this run; wait for it" in answers.get(timeout=60)
        other.join()
        with pytest.raises(RunError, match="another process is writing"):
            RunWriter(tmp_path / "run", resume=True)
    RunWriter(tmp_path / "run", resume=True).close()
    assert not (tmp_path / "run" / "writer.lock").exists()


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    lock, removed = fcntl.flock, []

    def too_late(descriptor: int, operation: int) -> None:
        if not removed:  # the process before us goes, between our opening and our locking the file
            removed.append((tmp_path / "writer.lock").unlink())
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", too_late)
    with RunWriter(tmp_path, resume=True):
        monkeypatch.undo()
        with pytest.raises(RunError, match="another process is writing"):
            RunWriter(tmp_path, resume=True)


def _write_half(path, error):
    with new_file(path) as temporary:
        temporary.write_text("half")
        raise error


def test_a_file_that_fails_half_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "old").write_text("old")
    for error, seen, message in (
        (KeyError("x"), KeyError, "x"),
        (
            OSError(28, "No space"),
            MoeProbeError,
            r"old: cannot be written \(no space left\); make room or choose another",
        ),
    ):
        with pytest.raises(seen, match=message):
            _write_half(tmp_path / "old", error)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_what_a_kill_left_half_written_is_swept_away(made):
    (made.path / "tokens" / "part-000009.parquet.tmp").write_text("half")
    (made.path / "run.json.tmp").write_text("half")
    RunWriter(made.path, resume=True).close()
    assert not list(made.path.rglob("*.tmp"))


def test_a_full_disk_is_one_line_and_costs_the_open_shard_only(tmp_path, monkeypatch):
    made = HandMade(tmp_path / "run", [5, 3, 9], shard_rows=6, written=2)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with RunWriter(made.path, resume=True) as writer:
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        monkeypatch.setattr(pq, "ParquetWriter", full)
        rows = slice(*np.cumsum([shard.rows for shard in made.layout.shards])[1:3])
        with pytest.raises(MoeProbeError, match=r"cannot be written \(no space left\); whole shards kept: 2") as caught:
            writer.write_shard(2, made.tokens(rows), made.routing(rows), ShardFacts(SCORES, "passed"))
    assert caught.value.exit_status == 1
    assert "\n" not in str(caught.value)
    assert not list(made.path.rglob("*.tmp"))
    assert open_run(made.path).n_tokens == sum(shard.rows for shard in made.layout.shards[:2])


def test_tokens_that_were_staged_are_those_of_the_shard_only_if_they_are_the_same_table(tmp_path, monkeypatch):
    made = HandMade(tmp_path / "run", [5, 3], shard_rows=5, written=0)
    expected = HandMade(tmp_path / "other", [5, 3], shard_rows=5)
    rows = [slice(0, 5), slice(5, 8)]
    tokens = [made.tokens(one) for one in rows]
    with RunWriter(made.path, resume=True) as writer:
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        writer.stage_tokens(0, tokens[0])
        writer.stage_tokens(1, tokens[0])  # of another shard by mistake
        assert not (made.path / tokens_file(0)).exists()
        assert writer.shards == []
        written: list[str] = []
        write_tokens = writer_module.write_tokens
        monkeypatch.setattr(
            writer_module, "write_tokens", lambda path, table: written.append(path.name) or write_tokens(path, table)
        )
        for number, one in enumerate(rows):
            writer.write_shard(number, tokens[number], made.routing(one), ShardFacts(SCORES, "passed"))
    assert written == ["part-000001.parquet.tmp"]
    for number in (0, 1):
        assert (made.path / tokens_file(number)).read_bytes() == (expected.path / tokens_file(number)).read_bytes()


def test_tokens_that_were_staged_are_swept_away_where_no_shard_came_of_them(made):
    with RunWriter(made.path, resume=True) as writer:
        writer.stage_tokens(7, made.tokens(slice(0, 5)))
        assert list(made.path.rglob("*.tmp"))
    assert not list(made.path.rglob("*.tmp"))
    assert not (made.path / tokens_file(7)).exists()


def test_shards_that_were_staged_before_their_plan_exist_when_they_are_committed(tmp_path):
    expected = HandMade(tmp_path / "other", [5, 3], shard_rows=5)
    made = HandMade(tmp_path / "made", [5, 3], shard_rows=5, written=0)
    facts = ShardFacts(SCORES, "passed")
    with RunWriter(tmp_path / "run") as writer:
        for number, rows in enumerate((slice(0, 5), slice(5, 8))):
            writer.stage_routing(number, made.routing(rows), facts)
            writer.stage_rest(number, made.tokens(rows))
        files = {file.suffix for file in writer.path.rglob("part-*")}
        assert (writer.shards, files) == ([], {".tmp"})
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        writer.write_documents([made.documents()])
        assert writer.shards == []
        writer.commit_staged()
        assert writer.shards == [0, 1]
        writer.publish({"corpus": {"documents": 2}}, ROUTERS, LABELS, complete=True)
    for file in expected.path.rglob("*"):
        if file.is_file():
            assert (tmp_path / "run" / file.relative_to(expected.path)).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_staged_shards_without_a_plan_leave_nothing(made, tmp_path):
    for kept in (False, True):
        path = tmp_path / f"run {kept}"
        if kept:
            path.mkdir()
        with RunWriter(path) as writer:
            writer.stage_routing(0, made.routing(slice(0, 5)), ShardFacts(SCORES, "passed"))
            with pytest.raises(ValueError, match="shard 0: 4 token rows, 5 routing rows"):
                writer.stage_rest(0, made.tokens(slice(0, 4)))
        assert path.exists() == kept
        assert not kept or not list(path.iterdir())


def test_staged_shards_that_were_dropped_are_not_committed(made, tmp_path):
    with RunWriter(tmp_path / "new") as writer:
        writer.stage_routing(0, made.routing(slice(0, 5)), ShardFacts(SCORES, "passed"))
        writer.stage_rest(0, made.tokens(slice(0, 5)))
        writer.drop_staged()
        assert not list((tmp_path / "new").rglob("part-*"))
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        writer.commit_staged()
        assert writer.shards == []


def test_a_folder_of_the_users_own_files_is_left_as_it_was(made, tmp_path):
    (tmp_path / "new" / "tokens").mkdir(parents=True)
    (tmp_path / "new" / "tokens" / "mine").write_text("x")
    with RunWriter(tmp_path / "new") as writer:
        writer.stage_routing(0, made.routing(slice(0, 5)), ShardFacts(SCORES, "passed"))
    assert [file.name for file in (tmp_path / "new").rglob("*")] == ["tokens", "mine"]


def test_a_damaged_shard_is_not_resumed_over(made):
    path = made.path / routing_file(1)
    path.write_bytes(path.read_bytes()[:-9])
    with (
        RunWriter(made.path, resume=True) as writer,
        pytest.raises(RunError, match=r"part-000001\.parquet: is damaged"),
    ):
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))


def test_impossible_experts_and_weights_are_refused():
    block = RoutingBlock(ROUTERS, SCORES, 2)
    one = np.ones((1, 2))
    rows = np.array([0])
    for wrong in (4, -2):
        with pytest.raises(RoutingError, match=f"layers.1.attention: expert {wrong} was recorded of 4"):
            block.fill(0, rows, np.array([[0, wrong]]), one, one[0, :1], one[0, :1])
    for wrong in (np.nan, np.inf, 1e9):
        with pytest.raises(RoutingError, match=r"layers.1.attention: a weight of .* cannot be stored in float16"):
            block.fill(0, rows, np.array([[0, 1]]), np.array([[wrong, 0.5]]), one[0, :1], one[0, :1])


def test_warnings_and_the_self_check_come_from_the_shards(tmp_path):
    made = HandMade(tmp_path / "run", [9], shard_rows=4, written=0)
    with RunWriter(made.path, resume=True) as writer:
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        for shard, warnings in zip(made.layout.shards, (("a",), ("a", "b"), ()), strict=True):
            rows = slice(4 * shard.number, 4 * shard.number + shard.rows)
            facts = ShardFacts(SCORES, "passed", warnings)
            writer.write_shard(shard.number, made.tokens(rows), made.routing(rows), facts)
    with RunWriter(made.path, resume=True) as writer:  # another process, which saw no batch
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        writer.publish({"corpus": {"documents": 1}}, ROUTERS, LABELS, complete=True)
    run = open_run(made.path)
    assert (run.warnings, run.manifest["self_check"], run.with_scores) == (["a", "b"], "passed", list(SCORES))


def test_probabilities_are_written_before_the_routing_that_makes_a_shard_be_there(tmp_path, monkeypatch):
    made = HandMade(tmp_path / "run", [5, 3, 9], shard_rows=6, written=2)
    rows = slice(*np.cumsum([shard.rows for shard in made.layout.shards])[1:3])
    tokens, routing = made.tokens(rows), made.routing(rows)
    known = (True, False, False)
    block = ProbabilityBlock(ROUTERS, known, tokens.num_rows)
    block.fill(0, slice(0, tokens.num_rows), np.full((tokens.num_rows, 4), 0.25))
    facts = ShardFacts(SCORES, "passed", (), known)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    with RunWriter(made.path, resume=True) as writer:
        writer.publish_plan(plan_json({"made": "by hand"}, made.layout))
        for tables, told, message in (
            ((tokens, routing, facts), None, "differ in whether there are probabilities"),
            ((tokens, routing, ShardFacts(SCORES, "passed")), block.to_table(), "differ in whether there are"),
            ((tokens, routing, facts), block.to_table().slice(1), "token rows, .* of probabilities"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.write_shard(2, *tables, told)
        monkeypatch.setattr("moe_probe.store.writer.write_probabilities", full)
        with pytest.raises(MoeProbeError, match=r"probabilities/part-000002\.parquet: cannot be written \(no space"):
            writer.write_shard(2, tokens, routing, facts, block.to_table())
        assert not (made.path / routing_file(2)).exists()
        assert not list(made.path.rglob("*.tmp"))
        monkeypatch.undo()
        monkeypatch.setattr("moe_probe.store.writer.write_routing", full)
        with pytest.raises(MoeProbeError, match=r"routing/part-000002\.parquet: cannot be written"):
            writer.write_shard(2, tokens, routing, facts, block.to_table())
        assert (made.path / probabilities_file(2)).exists()
        assert not writer.has_shard(2)


def test_a_block_takes_the_probabilities_that_were_promised_alone():
    block = ProbabilityBlock(ROUTERS, (True, False, False), 1)
    with pytest.raises(ValueError, match="router 0: its probabilities were promised"):
        block.fill(0, slice(0, 1), None)
    with pytest.raises(ValueError, match="router 1: its probabilities were not promised"):
        block.fill(1, slice(0, 1), np.ones((1, 300)))


def test_probabilities_of_another_width_are_refused():
    lists = pa.chunked_array([pa.array([[0.5, 0.25, 0.25], None], pa.list_(pa.float16()))])
    with pytest.raises(RunError, match="router 0: its probabilities are 3 numbers for 1 tokens and 4 experts"):
        probabilities_of(lists, ROUTERS[0])
    none = pa.chunked_array([pa.array([None, None], pa.list_(pa.float16()))])
    assert np.isnan(probabilities_of(none, ROUTERS[0])).all()
