"""What docs/scale.md shows: every snippet runs as it stands and counts what moe_probe counts."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from random_runs import is_counted, random_run, rows_of

from moe_probe.counts import load_counts
from moe_probe.store import Run

TEXT = (Path(__file__).parent.parent / "docs/scale.md").read_text(encoding="utf-8")
SNIPPETS = {
    re.search(r"import (duckdb|polars|ray)", code)[1]: code for code in re.findall(r"```python\n(.*?)```", TEXT, re.S)
}
ROUTER = 2


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    """A run where the snippets look for it; shards are missing in it, of which files are there."""
    monkeypatch.chdir(tmp_path)
    made = random_run(Path("runs/demo"), 1, missing=True)
    assert len(made.shards) >= 2
    for folder in ("tokens", "routing"):  # of a shard that was being written when the process was killed
        stray = Path("runs/demo") / folder / "part-000099.parquet"
        stray.write_bytes((Path("runs/demo") / folder / f"part-{made.shards[0]:06d}.parquet").read_bytes())
    return made


@pytest.fixture(scope="module")
def few_processes():
    ray.init(address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def counted_by_moe_probe(run: Run) -> list[tuple[str, int, int]]:
    counts = load_counts(run, "upos", slot=0)
    table = counts[ROUTER]
    return sorted(
        (label, expert, int(table[expert, place]))
        for place, label in enumerate(counts.labels)
        for expert in range(table.shape[0])
        if table[expert, place]
    )


def counted_row_by_row(run: Run) -> list[tuple[str, int, int]]:
    rows = [row for row in rows_of(run) if is_counted(row, "upos", "word_initial")]
    found = Counter((row["upos"], row["experts"][ROUTER][0]) for row in rows)
    return sorted((label, expert, n) for (label, expert), n in found.items() if expert >= 0)


def executed(code: str) -> list[tuple[str, int, int]]:
    names: dict[str, Any] = {}
    exec(compile(code, "docs/scale.md", "exec"), names)
    return [tuple(row) for row in names["counts"]]


def test_there_is_a_snippet_for_each():
    assert sorted(SNIPPETS) == ["duckdb", "polars", "ray"]


@pytest.mark.parametrize("library", ["duckdb", "polars"])
def test_it_counts_what_moe_probe_counts(run, library):
    wanted = counted_by_moe_probe(run)
    assert wanted == counted_row_by_row(run)
    assert len(wanted) > 10
    assert executed(SNIPPETS[library]) == wanted


def test_so_does_ray_data(run, few_processes):
    assert executed(SNIPPETS["ray"]) == counted_row_by_row(run)
