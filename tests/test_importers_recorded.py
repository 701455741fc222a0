"""write_run: a recording in memory becomes a run that holds the same."""

from __future__ import annotations

import numpy as np
import pytest

from moe_probe.errors import BadInputError, RunError
from moe_probe.importers import write_run
from moe_probe.recording.routing import Decisions, Routing
from moe_probe.schema import Router

ROUTERS = [Router(0, "a.0", 0, 4, 2, "by hand"), Router(1, "a.1", 1, 1_000_000, 1, "by hand")]


def recorded(sequences: list[int], positions: list[int], scored: bool = True) -> Routing:
    draw = np.random.default_rng(0)
    n = len(sequences)
    first = np.array([draw.permutation(4)[:2] for _ in range(n)], np.int32).reshape(n, 2).T
    if n:
        first[1, 0] = -1
    score = draw.integers(0, 9, (2, n)).astype(np.float32) if scored else (None, None)
    heavy = np.array([[0.75], [0.25]], np.float32).repeat(n, 1)
    decisions = [
        Decisions(first, heavy, score[0], score[1]),
        Decisions(draw.integers(0, 10**6, (1, n)).astype(np.int32), np.ones((1, n), np.float32), None, None),
    ]
    return Routing(ROUTERS, decisions, np.array(sequences, np.int32), np.array(positions, np.int32))


def test_a_document_is_a_sequence_whatever_the_order_of_the_forwards(tmp_path):
    routing = recorded([0, 0, 1, 0, 1, 1], [0, 1, 0, 2, 1, 2])
    texts = ["The", " cat", "A", " sat", " dog", " ran"]
    run = write_run(routing, tmp_path / "run", tokens=texts, documents=["cat", "dog"], model="mine")
    order = [0, 1, 3, 2, 4, 5]
    for router in ROUTERS:
        index = router.index
        np.testing.assert_array_equal(run.experts(router=index), routing.experts(index)[order])
        np.testing.assert_array_equal(run.weights(router=index), routing.weights(index)[order])
    np.testing.assert_array_equal(run.entropy(router=0), routing.entropy(0)[order])
    np.testing.assert_array_equal(run.margin(router=0), routing.margin(0)[order])
    assert (run.routers, run.with_scores, run.with_weights) == (ROUTERS, [True, False], [True, True])
    assert run.document("dog").tokens["text"].to_list() == ["A", " dog", " ran"]
    assert run.document("cat").tokens["position"].to_list() == [0, 1, 2]
    assert run.tokens()["word_initial"].all()
    assert run.manifest["model"]["name"] == "mine"
    assert run.document(0).experts(layer=0)[0, 1] == -1


def test_a_recording_of_many_shards_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_probe.importers.recorded.shard_rows_for", lambda tokens, width: 7)
    routing = recorded([n // 3 for n in range(30)], [n % 3 for n in range(30)], scored=False)
    run = write_run(routing, tmp_path / "run")
    assert len(run.shards) == 5
    np.testing.assert_array_equal(run.experts(router=1), routing.experts(1))
    assert run.documents()["tokens"].to_list() == [3] * 10
    assert run.entropy(router=0) is None
    assert any("without the tokens' texts" in warning for warning in run.warnings)


def test_tokens_of_one_text_are_one_type_and_those_without_none(tmp_path):
    routing = recorded([0, 1, 0, 1], [0, 0, 1, 1])
    run = write_run(routing, tmp_path / "run", tokens=[" a", " b", "", " a"])
    first, none, second, again = run.tokens()["token_id"].to_list()
    assert (none, again) == (-1, first)
    assert len({first, second, -1}) == 3
    assert any("numbered by their strings" in warning for warning in run.warnings)
    assert run.manifest["self_check"] == "as recorded: see the recording"


def test_what_does_not_fit_together_is_refused(tmp_path):
    routing = recorded([0, 0, 1], [0, 1, 0])
    for message, arguments in (
        ("tokens: 1 given for 3 recorded", {"tokens": ["a"]}),
        ("documents: 1 given for 2 recorded", {"documents": ["a"]}),
        ("a name is given twice", {"documents": ["a", "a"]}),
    ):
        with pytest.raises(BadInputError, match=message):
            write_run(routing, tmp_path / "run", **arguments)
    with pytest.raises(BadInputError, match="the routing has no token"):
        write_run(recorded([], []), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    write_run(routing, tmp_path / "run")
    with pytest.raises(RunError, match="a run is there already"):
        write_run(routing, tmp_path / "run")
