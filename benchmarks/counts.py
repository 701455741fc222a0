"""How fast a run is counted: experts by part of speech, all layers of the Mixtral shape (32 × 8 experts × 2 slots).

Claims:

- the first count takes at most 1.5 × a plain numpy read-and-bincount of the same Parquet columns;
- the next, from the cache, takes at most 1/100 of it;
- time grows no faster than the tokens, from a tenth of them to all;
- memory stays flat: it grows by less than a quarter of what the columns read grow by.

Beside them: DuckDB, one GROUP BY a layer, and pandas, one groupby a column. All of them count the same tokens and must
agree on every cell. Times are wall-clock medians in one process, numpy and moe_probe in turns, so that a busy machine
slows both; the ratio is the median of the turns' ratios. Growth and memory are of a fresh process for each size.

    python benchmarks/counts.py [--tokens 5000000] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
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
            "domain": pa.nulls(n_documents, pa.string()),
            "language": pa.nulls(n_documents, pa.string()),
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


def count_with_pandas(run: Run) -> list[NDArray[np.int64]]:
    """One groupby a column, over a frame of the whole run."""
    columns = ["window_position", "upos"]
    tokens = pd.concat([pd.read_parquet(run.path / schema.tokens_file(shard), columns=columns) for shard in run.shards])
    slots = [[schema.expert_column(router.index, slot) for slot in range(SLOTS)] for router in ROUTERS]
    names = [name for of_router in slots for name in of_router]
    experts = pd.concat([pd.read_parquet(run.path / schema.routing_file(shard), columns=names) for shard in run.shards])
    frame = pd.concat([tokens.astype({"upos": "category"}), experts], axis=1)
    frame = frame[(frame["window_position"] >= schema.SINK_POSITIONS) & (frame["upos"] != "continuation")]
    totals = []
    for of_router in slots:
        total = np.zeros((EXPERTS, len(TAGS)), dtype=np.int64)
        for name in of_router:
            for (tag, expert), count in frame.groupby(["upos", name], observed=True).size().items():
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


def seconds(count: Callable[[Run], object], run: Run) -> float:
    """Return how long `count` takes."""
    start = time.perf_counter()
    count(run)
    return time.perf_counter() - start


def forget(run: Run) -> None:
    """Delete what was counted."""
    shutil.rmtree(run.path / schema.COUNTS_FOLDER, ignore_errors=True)


def peak_bytes() -> int:
    """Return the most memory that this process ever held; unlike getrusage, not what its parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def count_afresh(path: Path, repeats: int) -> None:
    """Count a run, print the median time and by how much the peak of memory grew meanwhile, in bytes."""
    run = open_run(path)
    run.documents()
    before = peak_bytes()
    times = []
    for _ in range(repeats):
        forget(run)
        times.append(seconds(count_with_moe_probe, run))
    print(json.dumps({"seconds": statistics.median(times), "bytes": peak_bytes() - before}))


def in_a_process_of_its_own(run: Run, repeats: int) -> dict[str, float]:
    """Return what `count_afresh` says."""
    asked = [sys.executable, __file__, "--count", str(run.path), "--repeats", str(repeats)]
    found: dict[str, float] = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    return found


def compare(run: Run, repeats: int) -> dict[str, bool]:
    """Time everyone on one run, print, and say which claims held."""
    everyone = {
        "numpy": count_with_numpy,
        "DuckDB": count_with_duckdb,
        "pandas": count_with_pandas,
        "moe_probe": count_with_moe_probe,
    }
    counted = {name: count(run) for name, count in everyone.items()}
    for name, totals in counted.items():
        agree = all((one == other).all() for one, other in zip(counted["numpy"], totals, strict=True))
        assert agree, f"{name} and numpy disagree"
    plain, first, again = [], [], []
    for _ in range(repeats):
        forget(run)
        plain.append(seconds(count_with_numpy, run))
        first.append(seconds(count_with_moe_probe, run))
        again.append(statistics.median(seconds(count_with_moe_probe, run) for _ in range(5)))
    others = {name: [seconds(everyone[name], run)] for name in ("DuckDB", "pandas")}
    rows = {"numpy": plain, "first": first, "cached": again} | others
    ratios = {name: statistics.median(np.divide(times, plain[: len(times)])) for name, times in rows.items()}
    for name, times in rows.items():
        print(f"{name:8} {statistics.median(times) * 1000:10.1f} ms   {ratios[name]:8.4f} × numpy")
    return {"first ≤ 1.5 × numpy": ratios["first"] <= 1.5, "cached ≤ numpy / 100": ratios["cached"] <= 0.01}


def grow(small: Run, large: Run, repeats: int) -> dict[str, bool]:
    """Count two runs, each in a process of its own, print, and say which claims held."""
    found = {run.n_tokens: in_a_process_of_its_own(run, repeats) for run in (small, large)}
    for n_tokens, of_run in found.items():
        each = of_run["seconds"] / n_tokens * 1e9
        peak = of_run["bytes"] / 1e6
        print(f"{n_tokens:>9,} tokens: {of_run['seconds'] * 1000:8.1f} ms, {each:.0f} ns each, memory +{peak:.0f} MB")
    (n_small, of_small), (n_large, of_large) = found.items()
    columns = (n_large - n_small) * LAYERS * SLOTS
    return {
        "time grows no faster than tokens (+ 20 %)": of_large["seconds"] / of_small["seconds"]
        <= 1.2 * n_large / n_small,
        f"memory grows by ≤ a quarter of the columns' {columns / 1e6:.0f} MB": of_large["bytes"] - of_small["bytes"]
        <= columns / 4,
    }


def main() -> None:
    """Make two runs, let everyone count, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=5_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.count:
        count_afresh(asked.count, asked.repeats)
        return
    with tempfile.TemporaryDirectory() as folder:
        small = make_run(Path(folder) / "small", asked.tokens // 10)
        large = make_run(Path(folder) / "large", asked.tokens)
        print(f"{asked.tokens:,} tokens, {LAYERS} layers, {len(large.shards)} shards")
        claims = compare(large, asked.repeats) | grow(small, large, asked.repeats)
    for claim, held in claims.items():
        print(f"{claim}: {'held' if held else 'MISSED'}")
    sys.exit(not all(claims.values()))


if __name__ == "__main__":
    main()
