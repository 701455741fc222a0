"""A real Ray cluster counts what this process counts, also where a worker dies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import ray
import torch
import traced_models
from cluster_workers import Mortal, attempts, local_cluster
from counted_documents import OPTIONS, documents
from traced_models import files_of

from moe_probe.cluster import crew
from moe_probe.cluster.crew import run_on_ray
from moe_probe.tracing import trace

pytestmark = pytest.mark.prove  # a minute on two cores


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with local_cluster() as address:
        yield address


def test_the_workers_counts_are_the_local_ones_byte_for_byte_also_where_one_dies(cluster, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    lm = traced_models.language_model(tmp_path / "model")
    local = trace(lm, documents(), tmp_path / "local", counts_only=True, **OPTIONS)
    by_ray = partial(trace, lm, documents(), counts_only=True, **OPTIONS)
    assert files_of(by_ray(tmp_path / "ray", engine="ray", workers=2).path) == files_of(local.path)
    (tmp_path / "dies_at").write_text("2 1")
    mortal = lambda shares: ray.remote(Mortal).options(num_cpus=shares.cpus).remote(str(tmp_path))  # noqa: E731
    monkeypatch.setattr(crew, "_start", mortal)
    run = by_ray(tmp_path / "again", engine=partial(run_on_ray, workers=2))
    assert files_of(run.path) == files_of(local.path)
    assert attempts(tmp_path)[2] == 2
