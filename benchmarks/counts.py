"""How fast a run is counted: experts by part of speech, all layers of the Mixtral shape (32 × 8 experts × 2 slots).

Claim: the first count takes at most 1.5 × a plain numpy read-and-bincount of the same Parquet columns, and the next,
from the cache, at most 1/100 of it. Beside them: DuckDB, one GROUP BY a layer. All of them count the same tokens and
must agree on every cell; times are wall-clock medians in one process.

    python benchmarks/counts.py [--tokens 5000000] [--repeats 3]
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import load_counts
from moe_probe.store import Run, RunWriter, ShardFacts, open_run
from moe_probe.store.plan import shard_rows_for
from moe_probe.store.shards import tokens_table

LAYERS, EXPERTS, SLOTS = 32, 8, 2
WINDOW = 4096
TAGS = ["ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT"]
TAGS += ["SCONJ", "SYM", "VERB", "X", "continuation"]
ROUTERS = [schema.Router(i, f"model.layers.{i}.mlp", i, EXPERTS, SLOTS, "softmax top-k") for i in range(LAYERS)]


def make_run(path: Path, n_tokens: int) -> Run:
    """Write a run of documents of one window each, in as many shards as a trace of that size would have."""
    rng = np.random.default_rng(0)
    size = shard_rows_for(n_tokens, 24 + 4 * LAYERS * SLOTS) // WINDOW * WINDOW
    starts = range(0, n_tokens, size)
    with RunWriter(path) as writer:
        writer.publish_plan({"shards": [[0, 0, min(size, n_tokens - start)] for start in starts]})
        n_documents = -(-n_tokens // WINDOW)
        first = np.arange(n_documents) * WINDOW
        documents = {
            "document": np.arange(n_documents),
            "name": [f"text {number}" for number in range(n_documents)],
            "first_shard": first // size,
            "first_row": first % size,
            "tokens": np.minimum(WINDOW, n_tokens - first),
        }
        writer.write_documents([pa.table(documents)])
        for number, start in enumerate(starts):
            rows = np.arange(start, min(start + size, n_tokens))
            writer.write_shard(
                number, _tokens(rng, rows), _routing(rng, len(rows)), ShardFacts((False,) * LAYERS, "made up")
            )
        about = {"model": {"name": "made up"}, "precision": [], "corpus": {"documents": n_documents}}
        writer.publish(about, ROUTERS, [schema.LabelSet("upos", "made up", True)], complete=True)
    return open_run(path)


def _tokens(rng: np.random.Generator, rows: NDArray[np.int64]) -> pa.Table:
    place = rows % WINDOW
    texts = ["word"] * len(rows)
    columns = {
        "document": rows // WINDOW,
        "position": place,
        "window_position": place,
        "token_id": rng.integers(0, 32_000, len(rows)),
        "token": texts,
        "text": texts,
        "char_start": 4 * place,
        "char_end": 4 * place + 4,
        "phase": ["prompt"] * len(rows),
        "word_initial": np.ones(len(rows), dtype=np.bool_),
    }
    tags = pa.DictionaryArray.from_arrays(rng.integers(0, len(TAGS), len(rows), dtype=np.int8), TAGS)
    return tokens_table(columns, {"upos": tags})


def _routing(rng: np.random.Generator, n_rows: int) -> pa.Table:
    columns: dict[str, NDArray[np.generic]] = {}
    for router in ROUTERS:
        first = rng.integers(0, EXPERTS, n_rows, dtype=np.uint8)
        second = (first + rng.integers(1, EXPERTS, n_rows, dtype=np.uint8)) % EXPERTS
        weight = rng.uniform(0.5, 1, n_rows).astype(np.float16)
        columns[schema.expert_column(router.index, 0)] = first
        columns[schema.expert_column(router.index, 1)] = second
        columns[schema.weight_column(router.index, 0)] = weight
        columns[schema.weight_column(router.index, 1)] = 1 - weight
    return pa.table(columns)


def count_with_numpy(run: Run) -> list[NDArray[np.int64]]:
    """What one would write by hand: read the columns with pyarrow, bincount expert × label."""
    totals = [np.zeros((EXPERTS, len(TAGS)), dtype=np.int64) for _ in ROUTERS]
    for shard in run.shards:
        columns = ["window_position", "upos"]
        tokens = pq.read_table(run.path / schema.tokens_file(shard), columns=columns, read_dictionary=["upos"])
        tags = tokens["upos"].combine_chunks()
        place = np.array([TAGS.index(tag) for tag in tags.dictionary.to_pylist()])
        labels = place[tags.indices.to_numpy()]
        kept = (tokens["window_position"].to_numpy() >= schema.SINK_POSITIONS) & (labels != TAGS.index("continuation"))
        labels = labels[kept]
        names = [[schema.expert_column(router.index, slot) for slot in range(SLOTS)] for router in ROUTERS]
        experts = pq.read_table(run.path / schema.routing_file(shard), columns=[name for of in names for name in of])
        for of_router, total in zip(names, totals, strict=True):
            for name in of_router:
                codes = experts[name].to_numpy()[kept].astype(np.int64) * len(TAGS) + labels
                total += np.bincount(codes, minlength=total.size).reshape(total.shape)
    return totals


def count_with_duckdb(run: Run) -> list[NDArray[np.int64]]:
    """One GROUP BY a layer over label and both slots."""
    totals = []
    for router in ROUTERS:
        total = np.zeros((EXPERTS, len(TAGS)), dtype=np.int64)
        slots = ", ".join(schema.expert_column(router.index, slot) for slot in range(SLOTS))
        found = run.sql(
            f"SELECT upos, {slots}, count(*) FROM routing"
            f" WHERE window_position >= {schema.SINK_POSITIONS} AND upos <> 'continuation' GROUP BY ALL"
        )
        for tag, *experts, count in found.rows():
            for expert in experts:
                total[expert, TAGS.index(tag)] += count
        totals.append(total)
    return totals


def count_with_moe_probe(run: Run) -> list[NDArray[np.int64]]:
    """The public call; what TAGS has more than the run is a column of zeros."""
    counts = load_counts(run, "upos")
    place = [TAGS.index(label) for label in counts.labels]
    totals = [np.zeros((EXPERTS, len(TAGS)), dtype=np.int64) for _ in ROUTERS]
    for total, array in zip(totals, counts, strict=True):
        total[:, place] = array
    return totals


def seconds(
    repeats: int, before: Callable[[], None], count: Callable[[Run], list[NDArray[np.int64]]], run: Run
) -> float:
    """Return the median time of `count`, with `before` before each."""
    times = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        count(run)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Make a run, let everyone count it, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", asked.tokens)
        cache = run.path / schema.COUNTS_FOLDER
        print(f"{asked.tokens:,} tokens, {LAYERS} layers, {len(run.shards)} shards")

        def forget() -> None:
            shutil.rmtree(cache, ignore_errors=True)

        def keep() -> None:
            pass

        everyone = [count(run) for count in (count_with_numpy, count_with_duckdb, count_with_moe_probe)]
        for totals in everyone[1:]:
            assert all((one == other).all() for one, other in zip(everyone[0], totals, strict=True)), "they disagree"
        plain = seconds(asked.repeats, keep, count_with_numpy, run)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        first = seconds(asked.repeats, forget, count_with_moe_probe, run)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        again = seconds(max(asked.repeats, 11), keep, count_with_moe_probe, run)
        sql = seconds(1, keep, count_with_duckdb, run)
    for name, value in (("numpy", plain), ("first", first), ("cached", again), ("DuckDB", sql)):
        print(f"{name:8} {value * 1000:10.1f} ms   {value / plain:8.4f} × numpy")
    print(f"memory beyond numpy's peak while counting: {grown:.0f} MB")
    claims = {"first ≤ 1.5 × numpy": first <= 1.5 * plain, "cached ≤ numpy / 100": again <= plain / 100}
    for claim, held in claims.items():
        print(f"{claim}: {'held' if held else 'MISSED'}")
    sys.exit(not all(claims.values()))


if __name__ == "__main__":
    main()
