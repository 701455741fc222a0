"""A real Ray cluster on this machine makes the run that this process makes, whatever dies on the way."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import torch
import traced_models
from cluster_workers import Mortal, attempts, begun, local_cluster
from traced_models import files_of

import moe_probe as mp
from moe_probe.cluster import choose_engine, choosing, crew
from moe_probe.cluster.choosing import check_reachable
from moe_probe.cluster.connection import connected
from moe_probe.cluster.crew import run_on_ray
from moe_probe.cluster.likeness import find_difference, likeness
from moe_probe.cluster.shares import Shares, share_out
from moe_probe.cluster.worker import Worker
from moe_probe.corpus import Document
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.models import LanguageModel, load
from moe_probe.store import open_run
from moe_probe.store.plan import Windowing
from moe_probe.tracing import trace
from moe_probe.tracing.shard import Recipe
from moe_probe.tracing.work import Work

pytestmark = pytest.mark.prove  # minutes on two cores

DOCUMENTS = [Document(f"d{n}", traced_models.text(20 + 13 * (n % 7), seed=n)) for n in range(16)]
OPTIONS = {"labels": ("shape",), "context": 64, "shard_rows": 150, "batch_tokens": 128}
OPTIONS |= {"surprisal": True, "probabilities": True}
RECIPE = Recipe(Windowing(context=8), (1,), ("shape",), None, None, 8, False)
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return traced_models.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def lm(folder) -> LanguageModel:
    return load(folder, device_map="cpu")


@pytest.fixture(scope="module")
def undisturbed(lm, tmp_path_factory) -> Path:
    run = trace(lm, DOCUMENTS, tmp_path_factory.mktemp("runs") / "run", **OPTIONS)
    assert len(run.shards) > 8
    return run.path


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_cluster() as address:
        yield address


def workers() -> list[psutil.Process]:
    """Return the processes that hold an actor."""
    return [process for process in psutil.Process().children(recursive=True) if is_worker(process)]


def is_worker(process: psutil.Process) -> bool:
    """Say whether a process holds an actor; not if it ended since it was listed."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).startswith("ray::Worker")
    except psutil.NoSuchProcess:
        return False


def all_end(processes: list[psutil.Process]) -> bool:
    """Say whether they end within a while."""
    _, alive = psutil.wait_procs(processes, timeout=30)
    return not alive


def mortal(folder: Path, dies_at: int, times: int) -> Callable[[Shares], object]:
    (folder / "dies_at").write_text(f"{dies_at} {times}")
    return lambda shares: ray.remote(Mortal).options(num_cpus=shares.cpus).remote(str(folder))


def test_the_workers_run_is_the_local_one_byte_for_byte(cluster, lm, undisturbed, tmp_path):
    steps = []
    run = trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", workers=2, on_progress=steps.append, **OPTIONS)
    assert run.complete
    assert files_of(run.path) == files_of(undisturbed)
    done = [step.tokens_done for step in steps if step.phase == "tracing"]
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert ray.is_initialized()  # the connection was there before
    assert all_end(workers())


def test_a_worker_that_dies_costs_the_shards_that_it_had(cluster, lm, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_start", mortal(tmp_path, dies_at=3, times=1))
    committed = []

    def engine(work: Work) -> None:
        commit = work.commit
        work.commit = lambda shard: committed.append(shard.number) or commit(shard)
        run_on_ray(work, workers=2)

    run = trace(lm, DOCUMENTS, tmp_path / "run", engine=engine, **OPTIONS)
    assert files_of(run.path) == files_of(undisturbed)
    assert sorted(committed) == run.shards  # each once
    assert attempts(tmp_path)[3] == 2
    dead = dict(reversed(begun(tmp_path)))[3]
    of_the_dead = [number for number, process in begun(tmp_path) if process == dead]
    again = {number for number, times in attempts(tmp_path).items() if times > 1}
    assert again <= set(of_the_dead[-2:])  # the one before may have been on its way back


def test_workers_may_be_killed_from_outside(cluster, lm, undisturbed, tmp_path, monkeypatch):
    lost, killed = [], []
    lose = crew.Crew._lose
    monkeypatch.setattr(crew.Crew, "_lose", lambda *arguments: lost.append(1) or lose(*arguments))

    def kill_one(step) -> None:
        there = workers()
        if step.tokens_done > 200 * (len(killed) + 1) and len(killed) < 2 and there:
            there[0].send_signal(signal.SIGKILL)
            killed.append(there[0].pid)

    run = trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", workers=2, on_progress=kill_one, **OPTIONS)
    assert len(set(killed)) == 2
    assert lost  # the other may have been killed when nothing was left
    assert files_of(run.path) == files_of(undisturbed)
    assert not run.tokens(["document", "position"]).is_duplicated().any()


def test_a_shard_that_kills_every_worker_ends_the_trace_and_the_rest_is_kept(
    cluster, lm, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(crew, "_start", mortal(tmp_path, dies_at=3, times=99))
    monkeypatch.setattr(crew, "_MOST_LOSSES", 2)
    said = r"2 workers died, the last of them worker \d+ on .*, while they made shard 3, .*batch_tokens"
    with pytest.raises(MoeProbeError, match=said):
        trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", workers=1, **OPTIONS)
    assert open_run(tmp_path / "run").shards == [0, 1, 2]
    run = trace(lm, DOCUMENTS, tmp_path / "run", resume=True, **OPTIONS)  # in this process
    assert files_of(run.path) == files_of(undisturbed)


def test_a_cancelled_trace_keeps_whole_shards_and_goes_on(cluster, lm, undisturbed, tmp_path):
    cancel = threading.Event()

    def stop(step) -> None:
        if step.phase == "tracing" and step.tokens_done > 0:
            cancel.set()

    options = OPTIONS | {"engine": "ray", "workers": 1}
    partial_run = trace(lm, DOCUMENTS, tmp_path / "run", on_progress=stop, cancel=cancel, **options)
    assert not partial_run.complete
    assert 0 < len(partial_run.shards) < len(open_run(undisturbed).shards)
    assert all_end(workers())
    run = trace(lm, DOCUMENTS, tmp_path / "run", resume=True, **options)
    assert files_of(run.path) == files_of(undisturbed)


_ELSEWHERE = """
import os, signal, sys, torch
import moe_probe as mp
import test_cluster as here

killed = []

def wait_for_the_end(step):
    if step.phase != "tracing" or step.tokens_done == 0:
        return
    if not killed:
        killed.append(step.tokens_done)
        for worker in here.workers():
            os.kill(worker.pid, signal.SIGKILL)
    elif step.tokens_done > killed[0]:  # another worker went on
        print("begun", flush=True)
        signal.pause()

torch.set_num_threads(1)
lm = mp.load(sys.argv[1], device_map="cpu")
address = sys.argv[3] if len(sys.argv) > 3 else None
watch = None if address else wait_for_the_end
options = here.OPTIONS | {"engine": "ray", "ray_address": address, "workers": 1, "on_progress": watch}
mp.trace(lm, here.DOCUMENTS, sys.argv[2], **options)
"""


def start_elsewhere(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    tests = Path(__file__).parent
    return subprocess.Popen(
        [sys.executable, "-c", _ELSEWHERE, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{tests.parent}:{tests}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_another_process_joins_the_cluster_by_its_address_and_says_nothing(cluster, folder, undisturbed, tmp_path):
    """The model's folder is given relative to where that process is, which is not where the workers are."""
    process = start_elsewhere(folder.name, tmp_path / "run", cluster, cwd=folder.parent)
    printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, printed, errors) == (0, "", "")
    made, wanted = (json.loads((run / "run.json").read_text()) for run in (tmp_path / "run", undisturbed))
    assert made["model"].pop("name") == folder.name
    assert wanted["model"].pop("name") == str(folder)
    assert made | {"times": None} == wanted | {"times": None}
    there = files_of(tmp_path / "run") | {"run.json": ""}
    assert there == files_of(undisturbed) | {"run.json": ""}
    assert ray.cluster_resources()["CPU"] == 3  # still there


def test_ray_of_its_own_ends_with_an_interrupted_trace_and_says_nothing_of_dead_workers(folder, tmp_path):
    process = start_elsewhere(folder, tmp_path / "run", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    of_ray = psutil.Process(process.pid).children(recursive=True)
    assert any("raylet" in child.name() for child in of_ray)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    printed, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert printed == ""
    assert errors.startswith("Traceback")
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "ray::" not in errors
    assert "raylet" not in errors
    assert all_end(of_ray)
    assert open_run(tmp_path / "run").shards


def test_a_worker_of_another_version_is_refused(cluster, lm, tmp_path, monkeypatch):
    mine = crew.versions()
    monkeypatch.setattr(crew, "versions", lambda: mine | {"torch": "1.0"})
    with pytest.raises(BadInputError, match=rf"worker \d+ on .* has torch {mine['torch'][:4]}.* where .* has 1\.0"):
        trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", workers=1, **OPTIONS)


def test_a_machine_without_moe_probe_is_told_of(cluster, lm, tmp_path, monkeypatch):
    (tmp_path / "not_installed.py").write_text("class Worker:\n    def greet(self): ...\n")
    monkeypatch.syspath_prepend(tmp_path)  # here alone
    monkeypatch.setattr(crew, "Worker", importlib.import_module("not_installed").Worker)
    with pytest.raises(BadInputError, match=r"a worker cannot start: .*No module named 'not_installed'; install this"):
        trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", workers=1, **OPTIONS)


def test_a_model_that_was_changed_after_loading_is_refused(cluster, folder, tmp_path):
    changed = load(folder, device_map="cpu")
    with torch.no_grad():
        changed.model.get_output_embeddings().weight[0, 0] += 1
    with pytest.raises(BadInputError, match=r"worker .* weights of lm_head\.weight: \w+ where this process has \w+"):
        trace(changed, DOCUMENTS, tmp_path / "run", engine="ray", workers=1, **OPTIONS)


def test_a_model_that_a_worker_cannot_load_is_named(cluster, folder, tmp_path):
    gone = shutil.copytree(folder, tmp_path / "gone")
    lm = load(gone, device_map="cpu")
    shutil.rmtree(gone)
    with pytest.raises(BadInputError, match=r"worker \d+ on .*: .*/gone: no such folder"):
        trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", workers=1, **OPTIONS)


def test_a_cluster_without_room_is_not_waited_for_for_ever(cluster, lm, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "_PATIENCE_SECONDS", 1)
    monkeypatch.setattr(crew, "share_out", lambda *arguments, **options: Shares(1, 1000, 0))
    with pytest.raises(MoeProbeError, match=r"no worker started in 1 s: the cluster has \{'CPU': 3\.0\} free"):
        trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", **OPTIONS)


def test_a_process_is_on_one_cluster_at_a_time(cluster, lm, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(BadInputError, match=rf"{address}.*connected to the cluster {cluster} already"):
            trace(lm, DOCUMENTS, tmp_path / "run", engine="ray", ray_address=address, **OPTIONS)


def test_nothing_is_started_for_a_run_that_is_complete(lm, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "connected", lambda address: pytest.fail("connected"))
    copy = shutil.copytree(undisturbed, tmp_path / "run")
    assert trace(lm, DOCUMENTS, copy, resume=True, engine="ray", **OPTIONS).complete


def test_what_cannot_be_meant_is_refused(lm):
    for options, said in (
        ({"engine": "dask"}, "'dask': use 'local', 'ray'"),
        ({"engine": "local", "workers": 2}, r"workers=2: it needs engine='ray'"),
        ({"engine": "local", "ray_address": "auto"}, r"ray_address='auto': it needs"),
        ({"engine": "ray", "workers": 0}, r"workers=0: use 1 or more"),
        ({"engine": "ray", "gpus_per_worker": 1.5}, r"gpus_per_worker=1\.5: use a whole number"),
        ({"engine": "ray", "gpus_per_worker": 1}, r"the model is on no GPU here"),
        ({"engine": "ray", "ray_address": "somewhere"}, r"ray_address='somewhere': use 'auto' or 'host:port'"),
        ({"engine": "ray", "ray_address": "ray://10.0.0.1:10001"}, r"ray_address='ray://10.0.0.1:10001': use 'auto'"),
    ):
        with pytest.raises(BadInputError, match=said):
            choose_engine(**options, lm=lm)


def test_an_address_where_nothing_answers_is_refused_at_once(lm):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        check_reachable(address)
    with pytest.raises(MoeProbeError, match=f"{address}': no cluster answers there .*refused") as caught:
        choose_engine("ray", lm, ray_address=address)
    assert caught.value.exit_status == 1


def test_a_cluster_of_another_version_is_told_in_a_line(monkeypatch):
    def refuse(**options: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.0.0\n")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    said = r"ray_address='10\.0\.0\.1:6379': cannot be joined: Version mismatch: .* started with: Ray: 2\.0\.0$"
    with pytest.raises(MoeProbeError, match=said), connected("10.0.0.1:6379"):
        pass


def test_a_worker_computes_with_the_threads_that_it_is_told(lm):
    Worker().open(lm.origin, "cpu", RECIPE, 2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_without_ray_it_says_what_to_install(lm, monkeypatch):
    monkeypatch.setattr(choosing, "find_spec", lambda name: None)
    with pytest.raises(MoeProbeError, match=r"pip install 'moe-probe\[cluster\]'"):
        choose_engine("ray", lm)


def test_a_model_with_an_intervention_on_it_is_refused(lm):
    with (
        mp.ablate(lm.model, layer=0, experts=[0]),
        pytest.raises(BadInputError, match=r"a hook is on model\.layers\.0"),
    ):
        choose_engine("ray", lm)
    assert isinstance(choose_engine("ray", lm), partial)  # the hook is gone
    with pytest.raises(BadInputError, match=r"did not come from moe_probe\.load"):
        choose_engine("ray", replace(lm, origin=None))


def test_a_model_remembers_how_it_was_loaded(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    lm = load(folder.name, quantization="4bit", dtype="bfloat16", device_map="cpu")
    assert (lm.name, lm.origin.model) == (folder.name, str(folder))
    monkeypatch.chdir("/")
    again = lm.origin.load("cpu")
    assert (again.fingerprint(), again.quantization) == (lm.fingerprint(), "4bit")
    assert again.model.dtype == torch.bfloat16
    assert load("tiny-mixtral", device_map="cpu").origin.model == "tiny-mixtral"


def test_every_part_of_a_likeness_is_compared(lm):
    here = likeness(lm, RECIPE)
    assert find_difference(here, likeness(lm, RECIPE)) is None
    for changed in (
        {"torch": "1.0"},
        {"device": "cuda"},
        {"fingerprint": "f"},
        {"weights": {**here.weights, "lm_head.weight": "w"}},
        {"labels": {**here.labels, "shape": "mine"}},
    ):
        (name,) = changed
        assert find_difference(here, replace(here, **changed)).startswith(name)


def test_workers_share_what_the_cluster_has():
    assert share_out({"CPU": 64.0}, 3, 8, gpus=0, workers=None) == Shares(3, 8, 0)  # no more than shards
    assert share_out({"CPU": 1.0}, 9, 4, gpus=0, workers=None) == Shares(1, 0.5, 0)
    assert share_out({"CPU": 8.0}, 9, 4, gpus=0, workers=2) == Shares(2, 3, 0)  # 7 for two: one stays free
    assert share_out({"CPU": 8.0, "GPU": 2.0}, 9, 4, gpus=0.5, workers=None) == Shares(4, 1, 0.5)
    with pytest.raises(BadInputError, match=r"the cluster has 1 GPUs, and a worker asks for 2"):
        share_out({"CPU": 8.0, "GPU": 1.0}, 9, 4, gpus=2, workers=None)


def test_a_worker_loads_to_the_gpus_that_it_is_shown(lm):
    for asked, meant in (("auto", "auto"), ("cuda:3", "cuda"), (3, "cuda"), (torch.device("cuda:3"), "cuda")):
        assert crew._device_map(replace(lm.origin, device_map=asked), on_gpu=True) == meant
    spread = {"model": 0, "lm_head": 1}
    assert crew._device_map(replace(lm.origin, device_map=spread), on_gpu=True) == spread
    assert crew._device_map(replace(lm.origin, device_map="auto"), on_gpu=False) == "cpu"
