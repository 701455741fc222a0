"""What a billion tokens take: bytes, GPU-hours, analysis; and how many tokens a claim needs.

Slopes are measured here, on synthetic runs of two sizes of each shape, so that what does not grow with the tokens drops
out: bytes a token on the disk, processor seconds a token to write and to count. Beside them two claims:

- experts by part of speech in all layers of 20 M tokens × 32 × 2 take at most 3 processor seconds, uncached (measured
  on --tokens and extrapolated, unless as many are asked for);
- a document of 4,096 tokens is read from a run of 48 routers, 8 of 128, in less than 0.1 s.

GPU-hours are *not* measured: they are operations a token, from the model's configuration, over an assumed share of a
GPU's peak. The tokens that a claim needs follow from the interval of the lift (`measures.cells`), with the design
effect of the sample corpus, and are checked by simulation against that measure itself.

    python benchmarks/scale.py [--tokens 4000000] [--part counts|document|plan|claims]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import counts as counting
import numpy as np
import pyarrow as pa
import store_write
from scipy.stats import norm

import moe_probe as mp
import moe_probe_data
from moe_probe import schema
from moe_probe.counts import load_counts
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.intervals import student_t
from moe_probe.store import Run, RunWriter, ShardFacts, open_run
from moe_probe.store.plan import Windowing, lay_out, plan_json
from moe_probe.store.shards import RoutingBlock

DOCUMENT = 512
LONG_DOCUMENT = 4_096
BILLION = 1_000_000_000
ASKED_TOKENS, ASKED_SECONDS = 20_000_000, 3.0
DOCUMENT_SECONDS = 0.1
PEAK_TFLOPS, UTILISATIONS = 989, (0.15, 0.30, 0.45)  # dense bfloat16 of an H100 SXM, by its maker


@dataclass(frozen=True)
class Model:
    """A model's shape and, by its published configuration, the parameters that a token is multiplied with."""

    shape: store_write.Shape
    tokens: int
    attention: int
    experts: int
    width: int

    def operations(self, context: int) -> float:
        """Floating-point operations of one token in a full window, without the head, which tracing does not need."""
        matrices = 2 * (self.attention + self.experts)
        scores = 4 * self.width * context / 2  # with itself and, on average, half of the window
        return self.shape.n_routers * (matrices + scores)


MIXTRAL = Model(
    store_write.Shape("Mixtral-8x7B: 32 routers, 2 of 8", 32, 8, 2, 0, 1.0),
    tokens=200_000,
    attention=2 * 4096 * 4096 + 2 * 4096 * 1024,
    experts=2 * 3 * 4096 * 14336,
    width=32 * 128,
)
LARGE = Model(
    store_write.Shape("256 experts: 61 routers, 8 of 256", 61, 256, 8, 0, 1.0),
    tokens=30_000,
    # DeepSeek-V3's latent attention; eight experts and the shared one
    attention=7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168,
    experts=9 * 3 * 7168 * 2048,
    width=128 * 192,
)
WIDE = store_write.Shape("128 experts: 48 routers, 8 of 128", 48, 128, 8, 0, 1.0)


@dataclass(frozen=True)
class Slopes:
    """What one more token takes."""

    bytes: float
    write_seconds: float
    count_seconds: float


def write(path: Path, shape: store_write.Shape, tokens: int, *, document: int = DOCUMENT) -> float:
    """Write a run, 131,072 rows a shard at most, and return the processor seconds of writing alone."""
    routers = shape.routers
    layout = lay_out([document] * (tokens // document), Windowing(context=document), 131_072)
    largest = max(shard.rows for shard in layout.shards)
    decided, rows = store_write.decisions(shape, largest), store_write.token_rows(largest)
    seconds, done = 0.0, 0
    with RunWriter(path) as writer:
        writer.publish_plan(plan_json({}, layout))
        writer.write_documents([_documents(layout)])
        for shard in layout.shards:
            block = RoutingBlock(routers, [True] * len(routers), shard.rows)
            for router in range(len(routers)):
                block.fill(router, np.arange(shard.rows), *(values[: shard.rows] for values in decided))
            numbers = pa.array((done + np.arange(shard.rows)) // document, pa.int32())
            here = rows.slice(0, shard.rows)
            here = here.set_column(here.column_names.index("document"), "document", numbers)
            facts = ShardFacts((True,) * len(routers), "made up")
            began = time.process_time()
            writer.write_shard(shard.number, here, block.to_table(), facts)
            seconds += time.process_time() - began
            done += shard.rows
        about = {"model": {"name": "made up"}, "precision": [], "corpus": {"documents": len(layout.rows)}}
        labels = [schema.LabelSet("upos", "made up", True), schema.LabelSet("shape", "made up", True)]
        labels.append(schema.LabelSet("domain", "made up", False))
        writer.publish(about, routers, labels, complete=True)
    return seconds


def _documents(layout) -> pa.Table:
    n = len(layout.rows)
    return pa.table(
        {
            "document": pa.array(range(n), pa.int32()),
            "name": [f"text {number}" for number in range(n)],
            "domain": pa.array(["prose"] * n),
            "language": pa.nulls(n, pa.string()),
            "first_shard": pa.array(layout.first_shard, pa.int32()),
            "first_row": pa.array(layout.first_row, pa.int32()),
            "tokens": pa.array(layout.rows, pa.int64()),
            "characters": pa.array(layout.rows, pa.int64()),
        }
    )


def processor_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the median of some runs, of all threads."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return statistics.median(times)


def count_seconds(run: Run) -> float:
    """Return the processor seconds of a count by part of speech of all layers, with nothing kept from before."""

    def count() -> None:
        shutil.rmtree(run.path / schema.COUNTS_FOLDER, ignore_errors=True)
        load_counts(run, "upos")

    return processor_seconds(count)


def size_of(run: Run) -> int:
    files = [path for folder in ("tokens", "routing") for path in (run.path / folder).iterdir()]
    return sum(path.stat().st_size for path in files)


def measure_slopes(model: Model) -> Slopes:
    """Write a run and one of twice as many tokens, count both, and return the differences."""
    found = []
    for tokens in (model.tokens, 2 * model.tokens):
        with tempfile.TemporaryDirectory() as folder:
            wrote = write(Path(folder) / "run", model.shape, tokens)
            run = open_run(Path(folder) / "run")
            found.append((run.n_tokens, size_of(run), wrote, count_seconds(run)))
    (n_small, *small), (n_large, *large) = found
    slopes = Slopes(*((more - less) / (n_large - n_small) for less, more in zip(small, large, strict=True)))
    print(f"{model.shape.name}, from {n_small:,} to {n_large:,} tokens")
    print(f"  bytes a token                  {slopes.bytes:12,.1f}")
    print(f"  processor µs a token, written  {slopes.write_seconds * 1e6:12,.2f}")
    print(f"  processor µs a token, counted  {slopes.count_seconds * 1e6:12,.2f}")
    return slopes


def check_counts(tokens: int) -> bool:
    """Count `tokens` of Mixtral's shape, and half of them, beside reading alone; say whether the aim is met."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for size in (tokens // 2, tokens):
            run = counting.make_run(Path(folder) / str(size), size)
            names = [schema.expert_column(r, s) for r in range(counting.LAYERS) for s in range(counting.SLOTS)]

            def read(run: Run = run, names: list[str] = names) -> None:
                for shard in run.iter_shards():
                    shard.routing(names)

            found.append((count_seconds(run), processor_seconds(read), size))
    (small, small_read, few), (large, large_read, many) = found
    whole = large + (large - small) / (many - few) * (ASKED_TOKENS - many)
    reading = large_read + (large_read - small_read) / (many - few) * (ASKED_TOKENS - many)
    held = whole <= ASKED_SECONDS
    print(f"Experts by part of speech, 32 × 2, uncached: {large:.2f} processor seconds for {many:,} tokens")
    print(f"  for {ASKED_TOKENS:,}: {whole:.1f} s, of which reading the columns {reading:.1f} s")
    print(f"  at most {ASKED_SECONDS:.0f} s: {'held' if held else 'MISSED'}")
    return held


def check_document() -> bool:
    """Read documents of a wide run, one after the other, each once; say whether the aim is met."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "run", WIDE, 15 * LONG_DOCUMENT, document=LONG_DOCUMENT)
        run = open_run(Path(folder) / "run")
        times, processor = [], []
        for number in range(run.n_documents):
            began, at_processor = time.perf_counter(), time.process_time()
            document = run.document(number)
            times.append(time.perf_counter() - began)
            processor.append(time.process_time() - at_processor)
            assert document.tokens.height == LONG_DOCUMENT
    median = statistics.median(times)
    held = median < DOCUMENT_SECONDS
    print(
        f"A document of {LONG_DOCUMENT:,} tokens of a run of {WIDE.name}: {median:.3f} s, slowest {max(times):.3f} s,"
    )
    print(f"  {statistics.median(processor):.3f} s of the processor; less than {DOCUMENT_SECONDS} s: ", end="")
    print("held" if held else "MISSED")
    return held


def plan(models: dict[str, tuple[Model, Slopes]], context: int = 4_096) -> None:
    """Print what a billion tokens take; GPU-hours by the formula alone."""
    print(f"\n10⁹ tokens, windows of {context:,}:")
    for name, (model, slopes) in models.items():
        operations = model.operations(context)
        rates = [PEAK_TFLOPS * 1e12 * share / operations for share in UTILISATIONS]
        hours = [BILLION / rate / 3600 for rate in rates]
        print(f"  {name}: {model.shape.n_routers * (model.attention + model.experts) / 1e9:.1f} G parameters a token")
        print(f"    disk                    {slopes.bytes * BILLION / 1e9:8,.0f} GB")
        print(f"    writing                 {slopes.write_seconds * BILLION / 3600:8,.1f} processor hours")
        print(f"    counting, uncached      {slopes.count_seconds * BILLION:8,.0f} processor seconds a label set")
        for share, rate, hour in zip(UTILISATIONS, rates, hours, strict=True):
            print(f"    at {share:.0%} of the peak      {hour:8,.0f} GPU-hours ({rate:,.0f} tokens/s a GPU)")


def design_effects() -> list[float]:
    """Return, of each cell of the sample corpus with 5 expected or more, its variance over that of single tokens."""
    with tempfile.TemporaryDirectory() as folder:
        lm = mp.load("tiny-mixtral", device_map="cpu")
        run = mp.trace(lm, [moe_probe_data.SAMPLE], Path(folder) / "run", labels=("upos",), language="en")
        effects = []
        for clustered in load_counts(run, "upos", slot=0).clustered:
            cells, table = cell_estimates(clustered), clustered.sum(axis=0).astype(float)
            half = np.log(cells.high / cells.lift)
            freedom = np.maximum(cells.geff - 1, 1)
            error = half / np.vectorize(student_t)(freedom)
            with np.errstate(divide="ignore", invalid="ignore"):  # of cells that are not wanted
                single = 1 / table - 1 / table.sum(1, keepdims=True) - 1 / table.sum(0, keepdims=True) + 1 / table.sum()
            wanted = (cells.expected >= 5) & (cells.geff >= 5) & np.isfinite(error) & (single > 0)
            effects += (error[wanted] ** 2 / single[wanted]).tolist()
    return effects


def cell_share(lift: float, label_share: float, experts: int) -> tuple[float, float]:
    """Return the share of all tokens that a cell has, and how often the variance of ln(lift) of one token it takes.

    The variance for N single tokens is (1/cell - 1/expert - 1/label + 1) / N, in shares.
    """
    cell = lift * label_share / experts
    return cell, 1 / cell - experts - 1 / label_share + 1


def tokens_needed(
    lift: float, label_share: float, experts: int, design_effect: float, tests: int, power: float = 0.8
) -> float:
    """Return how many tokens it takes to find a lift with this power.

    ln(lift) is found where it is `student_t` of its errors from 0, with 63 degrees of freedom and 0.05 over all tests
    for a level; its variance is that of single tokens times the design effect.
    """
    least = student_t(63, 1 - 0.05 / tests) + float(norm.ppf(power))
    _, variance = cell_share(lift, label_share, experts)
    return design_effect * variance * (least / np.log(lift)) ** 2


def power_found(lift: float, label_share: float, experts: int, design_effect: float, tests: int) -> float:
    """Return how often `cell_estimates` finds a lift in simulated counts of as many tokens as it is said to need."""
    draw = np.random.default_rng(0)
    found, rounds, clusters = 0, 400, 64
    tokens = tokens_needed(lift, label_share, experts, design_effect, tests)
    cell, variance = cell_share(lift, label_share, experts)
    shares = np.array([[cell, 1 / experts - cell], [label_share - cell, 1 - 1 / experts - label_share + cell]])
    # The cell's rate differs from cluster to cluster, by so much that ln(lift) has the design effect.
    spread = (design_effect - 1) / (cell * variance) / (cell * tokens / clusters)
    for _ in range(rounds):
        means = np.broadcast_to(shares * tokens / clusters, (clusters, 2, 2)).copy()
        means[:, 0, 0] *= draw.gamma(1 / spread, spread, clusters) if spread > 0 else 1
        found += cell_estimates(draw.poisson(means)).p[0, 0] < 0.05 / tests
    return found / rounds


def claims() -> None:
    """Print how many tokens a claim needs, and how often it is then found."""
    effects = design_effects()
    low, middle, high = statistics.quantiles(effects, n=4)
    print(
        f"\nDesign effect of {len(effects)} cells of the sample: median {middle:.1f}, quartiles {low:.1f} to {high:.1f}"
    )
    print("Tokens needed to find a lift with a power of 0.8, first choice, and (found in simulated counts):")
    for experts, layers in ((8, 32), (256, 61)):
        tests = experts * layers * 17
        for label_share in (0.2, 0.05, 0.01):
            line = f"  {experts:3} experts, a label of {label_share:4.0%} of the tokens:"
            for lift in (1.2, 1.5, 2.0):
                tokens = tokens_needed(lift, label_share, experts, middle, tests)
                found = power_found(lift, label_share, experts, middle, tests)
                line += f"   × {lift}: {tokens:12,.0f} ({found:.2f})"
            print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4_000_000)
    parser.add_argument("--part", choices=("counts", "document", "plan", "claims"))
    asked = parser.parse_args()
    held = []
    if asked.part in (None, "counts"):
        held.append(check_counts(asked.tokens))
    if asked.part in (None, "document"):
        held.append(check_document())
    if asked.part in (None, "plan"):
        plan(
            {
                name: (model, measure_slopes(model))
                for name, model in (("Mixtral-8x7B", MIXTRAL), ("256 experts", LARGE))
            }
        )
    if asked.part in (None, "claims"):
        claims()
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
