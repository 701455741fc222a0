"""Gives shards to workers, takes them back, and gives those of a worker that died to another.

Plain actors of Ray, not Ray Data: texts come from the spool of this machine, at most two a worker at a time, and a
shard is known by its number, so that what came back is committed once, whoever made it. A worker that dies costs the
shards that it had; each other attempt starts from the same text.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from moe_probe.cluster.connection import connected
from moe_probe.cluster.likeness import find_difference, likeness
from moe_probe.cluster.shares import Shares, share_out
from moe_probe.cluster.worker import Greeting, Worker, versions
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.models import LanguageModel
from moe_probe.models.fit import DeviceMap
from moe_probe.models.loading import Origin
from moe_probe.tracing.profile import IDLE, WRITE
from moe_probe.tracing.work import Work

_AHEAD = 2
"""Shards that a worker has at most: one that it makes, and the next, whose text is there when it begins."""

_MOST_LOSSES = 3
_GLANCE_SECONDS = 0.2
_PATIENCE_SECONDS = 600
_NOT_IMPORTED = "failed to import on the worker"  # so says Ray, of an actor whose module is not there
_DEATHS = (RayActorError, ObjectLostError, OutOfMemoryError)


def run_on_ray(
    work: Work, *, address: str | None = None, workers: int | None = None, gpus_per_worker: float | None = None
) -> None:
    """Make the shards that are to be made on a Ray cluster; an `Engine`, once the arguments after `work` are bound.

    A worker loads the model as this process did, and computes with as many threads; what it says of itself is compared
    before it gets a shard.

    Raises:
        MoeProbeError: the cluster cannot be joined, no worker started, a worker is not like this process or cannot load
            the model, or a shard's workers died three times.
    """
    todo = work.todo
    if not todo:
        return
    gpus = (gpus_per_worker or _n_gpus(work.lm)) if work.lm.device.type == "cuda" else 0
    with connected(address), ThreadPoolExecutor(1, "writer") as writing:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        shares = share_out(resources, len(todo), torch.get_num_threads(), gpus=gpus, workers=workers)
        crew = Crew(work, todo, shares.n_workers, partial(_start, shares), writing)
        try:
            crew.run()
        finally:
            crew.dismiss()


@dataclass(eq=False)
class _Member:
    """A worker, as the crew sees it: `greeting` is None until it has started, `ready` true once it has the model."""

    actor: Any
    greeting: Greeting | None = None
    ready: bool = False

    def __str__(self) -> str:
        return "a worker" if self.greeting is None else str(self.greeting)


@dataclass(frozen=True, eq=False)
class _Task:
    """What a member was asked: what to do with the answer, and the shard that it is about, if it is."""

    member: _Member
    receive: Callable[[_Member, Any], None]
    shard: int | None = None


@dataclass(eq=False)
class Crew:
    """The workers of one trace; `start` makes another one. All calls in one thread."""

    work: Work
    todo: list[int]
    n_workers: int
    start: Callable[[], Any]
    writing: ThreadPoolExecutor
    losses: Counter[int | None] = field(default_factory=Counter)
    _members: list[_Member] = field(default_factory=list)
    _tasks: dict[Any, _Task] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._queue = deque(self.todo)
        self._here = likeness(self.work.lm, self.work.recipe)
        self._hired_at = time.monotonic()

    @property
    def _n_left(self) -> int:
        """Shards that are not committed."""
        return len(self._queue) + sum(task.shard is not None for task in self._tasks.values())

    def run(self) -> None:
        """Make and commit every shard."""
        while self._n_left:
            self._hire()
            self._hand_out()
            with self.work.stopwatch.part(IDLE):
                answered, _ = ray.wait(list(self._tasks), timeout=_GLANCE_SECONDS)
            self.work.watch.step(self.work.rows_done)
            for answer in answered:
                self._take(answer)
            self._check_patience()

    def dismiss(self) -> None:
        """End all workers."""
        for member in self._members:
            _end(member)
        self._members.clear()

    def _hire(self) -> None:
        while len(self._members) < min(self.n_workers, self._n_left):
            member = _Member(self.start())
            self._members.append(member)
            self._hired_at = time.monotonic()
            self._tasks[member.actor.greet.remote()] = _Task(member, self._greeted)

    def _hand_out(self) -> None:
        # Near the end each takes one, so that nobody waits for a shard that lies before another.
        most = _AHEAD if len(self._queue) > len(self._members) else 1
        for depth in range(1, most + 1):
            for member in self._members:
                held = sum(task.member is member for task in self._tasks.values())
                if self._queue and member.ready and held < depth:
                    number = self._queue.popleft()
                    text = self.work.text(number)
                    self._tasks[member.actor.trace.remote(text)] = _Task(member, self._traced, number)

    def _take(self, answer: Any) -> None:
        task = self._tasks[answer]
        try:
            value = ray.get(answer)
        except _DEATHS as error:
            if _NOT_IMPORTED in str(error):
                raise BadInputError(
                    f"a worker cannot start: {str(error).strip().splitlines()[-1]}; install this version of moe_probe"
                    " with its extras trace and cluster wherever the cluster runs"
                ) from error
            self._lose(task.member, error)
        except RayTaskError as error:
            raise _failed(task.member, error) from error
        else:
            del self._tasks[answer]
            task.receive(task.member, value)

    def _greeted(self, member: _Member, greeting: Greeting) -> None:
        member.greeting = greeting
        for package, here in versions().items():
            there = greeting.versions.get(package)
            if there != here:
                raise BadInputError(
                    f"{member} has {package} {there or 'not at all'} where this process has {here or 'none'}, and "
                    "a run has one version of each; install the same"
                )
        origin = self.work.lm.origin
        assert origin is not None, "checked before"
        device_map = _device_map(origin, on_gpu=self.work.lm.device.type == "cuda")
        opening = member.actor.open.remote(origin, device_map, self.work.recipe, torch.get_num_threads())
        self._tasks[opening] = _Task(member, self._opened)

    def _opened(self, member: _Member, there: Any) -> None:
        difference = find_difference(self._here, there)
        if difference is not None:
            raise BadInputError(
                f"{member} has not what is here: {difference}; a worker loads the model anew: it must be as it was"
                " loaded, at the same place for all, on the same kind of device"
            )
        member.ready = True

    def _traced(self, member: _Member, shard: Any) -> None:
        # In a thread of its own: Ctrl-C, which comes to this one, cannot come between a shard's files.
        with self.work.stopwatch.part(IDLE):
            self.writing.submit(self._commit, shard).result()
        self.losses.clear()

    def _commit(self, shard: Any) -> None:
        with self.work.stopwatch.part(WRITE):
            self.work.commit(shard)

    def _lose(self, member: _Member, error: Exception) -> None:
        """Forget a member that died; what it had goes to the front of the queue."""
        lost = [task.shard for task in self._tasks.values() if task.member is member]
        self._tasks = {answer: task for answer, task in self._tasks.items() if task.member is not member}
        self._members.remove(member)
        _end(member)
        self._queue.extendleft(sorted((number for number in lost if number is not None), reverse=True))
        blamed = lost[0]  # the one that it was at
        self.losses[blamed] += 1
        if self.losses[blamed] >= _MOST_LOSSES:
            doing = "loaded the model" if blamed is None else f"made shard {blamed}"
            raise MoeProbeError(
                f"{_MOST_LOSSES} workers died, the last of them {member}, while they {doing}, as where memory runs"
                f" out: {_first_sentence(error)}; give fewer workers= or batch_tokens=. Whole shards are kept, resume"
                " goes on"
            ) from error

    def _check_patience(self) -> None:
        waited = time.monotonic() - self._hired_at
        if waited < _PATIENCE_SECONDS or any(member.greeting is not None for member in self._members):
            return
        available = ray.available_resources()  # type: ignore[no-untyped-call]
        free = {name: count for name, count in available.items() if name in ("CPU", "GPU")}
        raise MoeProbeError(
            f"no worker started in {_PATIENCE_SECONDS} s: the cluster has {free or 'nothing'} free; wait until others "
            "are done, or give fewer workers= or gpus_per_worker="
        )


def _start(shares: Shares) -> Any:
    options = {"num_cpus": shares.cpus, "num_gpus": shares.gpus, "max_restarts": 0, "max_task_retries": 0}
    return ray.remote(Worker).options(**options).remote()


def _end(member: _Member) -> None:
    with suppress(Exception):  # it may have ended by itself
        ray.kill(member.actor)


def _n_gpus(lm: LanguageModel) -> int:
    return max(1, len({parameter.device for parameter in lm.model.parameters() if parameter.device.type == "cuda"}))


def _device_map(origin: Origin, *, on_gpu: bool) -> DeviceMap:
    """Return where a worker loads the model to; Ray shows it the GPUs that are its own."""
    if not on_gpu:
        return "cpu"
    asked = origin.device_map
    if isinstance(asked, int | torch.device) or (isinstance(asked, str) and asked.startswith("cuda")):
        return "cuda"
    return asked


def _failed(member: _Member, error: RayTaskError) -> MoeProbeError:
    """Return what a worker raised, as if it had happened here."""
    cause = error.cause
    kind = type(cause) if isinstance(cause, MoeProbeError) else MoeProbeError
    what = str(cause) if isinstance(cause, MoeProbeError) else f"{type(cause).__name__}: {_first_sentence(cause)}"
    return kind(f"{member}: {what}")


def _first_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
