"""What a thread makes ahead comes in order, its errors where they belong, and the thread never outlives the import."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from contextvars import ContextVar

import pytest
from foreign_traces import (
    olmoe_object,
    prompt_object,
    routing,
    row_objects,
    sglang_response,
    vllm_response,
    weights_of,
    write_esft,
    write_lines,
)

from moe_probe.errors import BadInputError
from moe_probe.importers import import_run
from moe_probe.importers.ahead import ahead

SIZES = {"n_experts": 8, "n_slots": 2, "n_layers": 3}


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@contextmanager
def not_ahead(items, most=2):
    """Give the items with no thread at all."""
    yield iter(items)


def test_things_come_in_order_and_few_wait():
    made = []

    def numbers():
        for number in range(50):
            made.append(number)
            yield number

    with ahead(numbers(), 3) as taken:
        for number in taken:
            assert made[number] == number
            assert len(made) <= number + 1 + 3 + 1  # three wait, and one is in the thread's hand
    assert made == list(range(50))
    assert not threads()


def test_an_error_comes_after_the_things_before_it():
    def numbers():
        yield 1
        yield 2
        raise BadInputError("line 3")

    seen = []

    def take_all():
        with ahead(numbers()) as taken:
            for number in taken:
                seen.append(number)

    with pytest.raises(BadInputError, match="line 3"):
        take_all()
    assert seen == [1, 2]
    assert not threads()


def test_whoever_leaves_early_ends_the_thread_and_closes_what_it_read():
    closed = []

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.append(True)

    zeros = endless()  # held here too, so that nothing but an explicit end closes it

    def take_one():
        with ahead(zeros) as taken:
            next(taken)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_one()
    assert closed == [True]
    assert not threads()


def test_the_thread_sees_the_callers_context():
    most = ContextVar("most", default=0)
    most.set(7)
    with ahead(most.get() for _ in range(2)) as taken:
        assert list(taken) == [7, 7]


def traces(folder):
    """Return a trace of each format, of documents enough for several shards."""
    parts = [routing(20, seed) for seed in range(6)]
    weighted = [(part, weights_of(part)) for part in parts]
    rows = [row for n, pair in enumerate(weighted) for row in row_objects(*pair, document=n)]
    return {
        "prompts": ("jsonl", write_lines(folder / "p.jsonl", [prompt_object(*pair) for pair in weighted])),
        "rows": ("jsonl", write_lines(folder / "r.jsonl", rows)),
        "vllm lists": ("vllm", write_lines(folder / "l.jsonl", [vllm_response(part, 4, "lists") for part in parts])),
        "vllm npy": ("vllm", write_lines(folder / "n.jsonl", [vllm_response(part, 4, "npy") for part in parts])),
        "sglang": ("sglang", write_lines(folder / "s.jsonl", [sglang_response(part, 4) for part in parts])),
        "olmoe": ("olmoe", write_lines(folder / "o.jsonl", [olmoe_object(part) for part in parts])),
        "esft": ("esft", write_esft(folder / "esft", weighted)),
    }


def bytes_of(run):
    """Return every file of a run but for the times in its manifest."""
    files = {path.relative_to(run.path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    manifest = {key: value for key, value in run.manifest.items() if key != "times"}
    return {str(name): data for name, data in files.items() if name.name != "run.json"} | {"run.json": manifest}


@pytest.mark.parametrize("name", ["prompts", "rows", "vllm lists", "vllm npy", "sglang", "olmoe", "esft"])
def test_a_run_has_the_same_bytes_with_and_without_threads(tmp_path, monkeypatch, name):
    kind, path = traces(tmp_path)[name]
    monkeypatch.setattr("moe_probe.importers.cutting._SHARD_ROWS", 40)
    monkeypatch.setattr("moe_probe.corpus.opening._BLOCK_BYTES", 300)
    usual = bytes_of(import_run(kind, path, tmp_path / "usual", **SIZES))
    assert len([file for file in usual if file.startswith("routing")]) == 3
    monkeypatch.setattr("moe_probe.importers.lines.ahead", not_ahead)
    assert bytes_of(import_run(kind, path, tmp_path / "plain", **SIZES)) == usual


def test_an_error_within_a_trace_leaves_no_run_and_no_thread(tmp_path):
    lines = [prompt_object(routing(9, seed)) for seed in range(9)]
    lines[5]["experts"] = [[[0, 99]]]
    with pytest.raises(BadInputError, match="line 6"):
        import_run("jsonl", write_lines(tmp_path / "a.jsonl", lines), tmp_path / "run", n_experts=8)
    assert not (tmp_path / "run").exists()
    assert not threads()


def test_a_shard_of_narrow_and_wide_experts_holds_both(tmp_path):
    narrow, wide = routing(9, 0), routing(9, 1, experts=300)
    path = write_lines(tmp_path / "a.jsonl", [prompt_object(narrow), prompt_object(wide)])
    run = import_run("jsonl", path, tmp_path / "run", n_experts=300)
    for router in run.routers:
        found = run.experts(router=router.index)
        assert found.tolist() == [*narrow[:, router.index].tolist(), *wide[:, router.index].tolist()]
