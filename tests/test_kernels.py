from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_cases
import pytest
import torch

from moe_probe_kernels import Ring, Scoring, Tally, pack, summarise, which
from moe_probe_kernels.choosing import has_triton

needs_triton = pytest.mark.skipif(not has_triton(), reason="Triton is not installed: there is none for this system")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", kernel_cases.CASES)
def test_the_reference_is_right(name: str) -> None:
    kernel_cases.CASES[name]("cpu", "torch")


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str | None]:
    """What the kernels did under Triton's interpreter, in a process of its own: it is switched on before the import."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(kernel_cases.__file__)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    said: dict[str, str | None] = json.loads(done.stdout)
    return said


@needs_triton
@pytest.mark.parametrize("name", kernel_cases.CASES)
def test_the_kernel_is_right_under_the_interpreter(name: str, interpreted: dict[str, str | None]) -> None:
    assert interpreted[name] is None, interpreted[name]


if torch.cuda.is_available() and has_triton():

    @pytest.mark.parametrize("way", ["triton", "torch"])
    @pytest.mark.parametrize("name", kernel_cases.CASES)
    def test_both_ways_are_right_on_a_gpu(name: str, way: str) -> None:
        kernel_cases.CASES[name]("cuda", "triton" if way == "triton" else "torch")

    @pytest.mark.parametrize("way", ["triton", "torch"])
    def test_a_captured_graph_goes_on_writing_to_the_ring(way: str) -> None:
        chosen = "triton" if way == "triton" else "torch"
        ring = Ring(1, 2, 8, "cuda")
        ids, weights = torch.zeros(1, 3, 2, dtype=torch.int64).cuda(), torch.zeros(1, 3, 2).cuda()
        keep = torch.ones(3, dtype=torch.bool).cuda()
        ring.append(ids, weights, keep, way=chosen)  # compiles what is captured below
        ring.take()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ring.append(ids, weights, keep, way=chosen)
        for step in range(5):
            ids.copy_(torch.tensor([[[step, 9], [step, 8], [step, 7]]]))
            weights.copy_(torch.tensor([[[0.25, 0.75]] * 3]))
            keep.copy_(torch.tensor([True, False, True]))
            graph.replay()
            assert ring.take().ids.tolist() == [[[9, 7], [step, step]]]


def test_it_says_which_way_it_goes() -> None:
    assert which("cpu") == "torch"
    assert which("cuda") == ("triton" if has_triton() else "torch")
    assert which() == which("cuda" if torch.cuda.is_available() else "cpu")
    ids, weights = torch.tensor([[[0]]]), torch.tensor([[[1.0]]])
    ring, tally = Ring(1, 1, 1, "cpu"), Tally(1, 1, 1, 1, "cpu")
    assert pack(ids, weights).ran == "torch"
    assert ring.append(ids, weights) == "torch"
    assert summarise(torch.zeros(1, 1, 1), ids, Scoring()).ran == "torch"
    assert tally.add(ids, torch.tensor([[0]])) == "torch"


def test_a_kernel_that_cannot_run_is_refused_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ids, weights = torch.tensor([[[0]]]), torch.tensor([[[1.0]]])
    with pytest.raises(ValueError, match="'triton': "):
        pack(ids, weights, way="triton")
    monkeypatch.setattr("moe_probe_kernels.choosing.has_triton", lambda: False)
    with pytest.raises(ValueError, match="Triton is not installed"):
        pack(ids, weights, way="triton")
    assert which("cuda") == "torch"
    with pytest.raises(ValueError, match="way 'cuda': choose"):
        pack(ids, weights, way="cuda")  # type: ignore[arg-type]


def test_the_package_does_not_load_triton() -> None:
    code = (
        "import sys, torch; before = 'triton' in sys.modules\n"
        "import moe_probe_kernels; print(before, 'triton' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == said[1]


def test_of_equally_heavy_slots_the_lower_expert_comes_first_though_nothing_else_is_to_be_sorted() -> None:
    for ids in ([1, 0], [0, 1]):
        assert pack(torch.tensor([[ids]]), torch.full((1, 1, 2), 0.5)).ids.tolist() == [[[0], [1]]]


def test_executed_experts_are_counted_where_that_is_asked_for() -> None:
    logits, ids = torch.zeros(1, 1, 2), torch.tensor([[[1]]])
    assert summarise(logits, ids, Scoring()).histogram.tolist() == [[0, 1]]
    assert summarise(logits, ids, Scoring(), count=False).histogram is None


def test_a_ring_that_was_not_taken_from_in_time_says_so_once() -> None:
    ring = Ring(1, 1, 4, "cpu")
    for expert in range(3):
        ring.append(torch.full((1, 2, 1), expert), torch.ones(1, 2, 1))
    with pytest.raises(RuntimeError, match="6 tokens came since the last take, and the ring holds 4"):
        ring.take()
    ring.append(torch.full((1, 3, 1), 9), torch.ones(1, 3, 1))
    assert ring.take().ids.tolist() == [[[9, 9, 9]]]
    assert ring.take().ids.shape == (1, 1, 0)


def test_what_does_not_fit_is_refused() -> None:
    ids, weights = torch.zeros(1, 2, 2, dtype=torch.int64), torch.zeros(1, 2, 2)
    logits = torch.zeros(1, 2, 6)
    ring, tally = Ring(1, 2, 1, "cpu"), Tally(1, 2, 3, 4, "cpu")
    with pytest.raises(ValueError, match="2 tokens at once: the ring holds 1"):
        ring.append(ids, weights)
    with pytest.raises(ValueError, match=r"the ring is for \(layers, slots\) \(1, 2\)"):
        ring.append(ids[..., :1], weights[..., :1])
    with pytest.raises(ValueError, match="capacity 0"):
        Ring(1, 2, 0, "cpu")
    with pytest.raises(ValueError, match="1 layers, 2 slots or more"):
        tally.add(torch.zeros(1, 1, 5, dtype=torch.int64), torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"cells \(1, 4\) must be"):
        tally.add(torch.zeros(1, 2, 5, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="4 groups, 1 of them kept: cannot be made of 6 experts"):
        summarise(logits, ids, Scoring(n_groups=4))
    with pytest.raises(ValueError, match="2 groups, 3 of them kept"):
        summarise(logits, ids, Scoring(n_groups=2, n_kept_groups=3))
    with pytest.raises(ValueError, match="best_of_group 0"):
        summarise(logits, ids, Scoring(best_of_group=0))
    with pytest.raises(ValueError, match=r"bias \(6,\) must be \(1, 6\)"):
        summarise(logits, ids, Scoring(), bias=torch.zeros(6))
    with pytest.raises(ValueError, match=r"ids \(1, 2, 2\): 2 slots of 1 experts"):
        summarise(logits[..., :1], ids, Scoring())
    with pytest.raises(ValueError, match=r"logits \(1, 1, 6\) must be \(layers, tokens, experts\)"):
        summarise(logits[:, :1], ids, Scoring())
