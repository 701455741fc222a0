"""How fast a run's shards are written, in tokens per second of processor time, and how large they are.

Two shapes: Mixtral's (32 routers, 2 of 8 experts) and a wide one (48 routers, 8 of 128). The rival is the obvious way
to write the same columns: pyarrow's defaults (dictionaries and snappy on everything). Filling the arrays batch by batch
is measured apart: a trace does it between two forwards.

Then whether memory stays flat while a run grows: peak memory of a process each that traces the sample corpus over and
over, from text to files with the labels shape and domain. Its decisions are drawn instead of the model's (`--model` has
the bundled model run), since the model's share is the same for each batch.

    python benchmarks/store_write.py [--tokens 500000] [--grow 100000 1000000 10000000] [--model]

Exits with 1 where a shape is written slower than its aim, or memory grows by more than a quarter.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import moe_probe as mp
import moe_probe_data
from moe_probe.schema import Router, routing_file, tokens_file
from moe_probe.store.plan import Windowing, lay_out, plan_json
from moe_probe.store.shards import RoutingBlock, tokens_table
from moe_probe.store.writer import RunWriter, ShardFacts
from moe_probe.tracing import Profile
from moe_probe.tracing.rows import RowMaker
from moe_probe.tracing.shard import TracedShard
from moe_probe.tracing.work import Work

BATCH = 4_096
GROWTH_LIMIT = 1.25


@dataclass(frozen=True)
class Shape:
    """A model's routers, how many tokens a second it should reach, and which share of the tokens to write."""

    name: str
    n_routers: int
    n_experts: int
    n_slots: int
    target: int
    share: float

    @property
    def routers(self) -> list[Router]:
        """As many equal routers as the shape has."""
        return [
            Router(index, f"layers.{index}.mlp", index, self.n_experts, self.n_slots, "softmax top-k")
            for index in range(self.n_routers)
        ]


SHAPES = (
    Shape("Mixtral: 32 routers, 2 of 8", 32, 8, 2, 500_000, 1.0),
    Shape("wide: 48 routers, 8 of 128", 48, 128, 8, 80_000, 0.25),
)


def decisions(shape: Shape, tokens: int) -> tuple[np.ndarray, ...]:
    """Return experts, weights, entropy and margin of one router as a softmax router gives them."""
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 1.5, (tokens, shape.n_experts)).astype(np.float32) + draw.normal(0, 0.5, shape.n_experts)
    order = np.argsort(-logits, axis=1)[:, : shape.n_slots + 1]
    chosen = np.take_along_axis(logits, order, 1)
    weights = np.exp(chosen[:, :-1] - chosen[:, :1])
    weights /= weights.sum(1, keepdims=True)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    entropy = -(probabilities * np.log2(probabilities)).sum(1)
    margin = chosen[:, -2] - chosen[:, -1]
    return order[:, :-1].astype(np.int32), weights.astype(np.float32), entropy.astype(np.float32), margin


def token_rows(tokens: int) -> pa.Table:
    draw = np.random.default_rng(1)
    vocabulary = [f"▁w{number}" for number in range(8_000)]
    ids = np.minimum(draw.zipf(1.2, tokens), 7_999).astype(np.int32)
    position = np.arange(tokens) % 512
    return tokens_table(
        {
            "document": np.arange(tokens) // 512,
            "position": position,
            "window_position": position + 1,
            "token_id": ids,
            "token": [vocabulary[token] for token in ids],
            "text": [vocabulary[token].replace("▁", " ") for token in ids],
            "char_start": position * 5,
            "char_end": position * 5 + 5,
            "phase": ["prompt"] * tokens,
            "word_initial": ids % 3 > 0,
        },
        {
            "upos": [f"TAG{token % 17}" for token in ids],
            "shape": [f"shape{token % 11}" for token in ids],
            "domain": ["prose"] * tokens,
        },
    )


def processor_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(shape: Shape, tokens: int, folder: Path) -> bool:
    """Print how fast a shape is written; return whether that is its aim."""
    print(f"\n{shape.name}: {tokens:,} tokens")
    routers = shape.routers
    one = decisions(shape, tokens)
    block = RoutingBlock(routers, [True] * shape.n_routers, tokens)

    def fill() -> None:
        for start in range(0, tokens, BATCH):
            rows = np.arange(start, min(start + BATCH, tokens))
            for router in range(shape.n_routers):
                block.fill(router, rows, *(values[start : start + BATCH] for values in one))

    rows = token_rows(tokens)
    seconds = {"fill": processor_seconds(fill)}
    with RunWriter(folder / "run") as writer:
        writer.publish_plan(plan_json({}, lay_out([tokens], Windowing(context=512), tokens)))
        facts = ShardFacts((True,) * shape.n_routers, "passed")
        seconds["write"] = processor_seconds(lambda: writer.write_shard(0, rows, block.to_table(), facts))
        seconds["rival"] = processor_seconds(lambda: _write_plainly(folder, rows, block.to_table()))
        _print_sizes(folder / "run", folder, tokens)
    rate = tokens / seconds["write"]
    print(f"  written             {rate:12,.0f} tokens per processor second (aim {shape.target:,})")
    print(f"  pyarrow's defaults  {tokens / seconds['rival']:12,.0f}, ratio {seconds['rival'] / seconds['write']:.2f}")
    print(f"  filled in batches   {tokens / seconds['fill']:12,.0f}")
    return rate >= shape.target


def _write_plainly(folder: Path, tokens: pa.Table, routing: pa.Table) -> None:
    pq.write_table(tokens, folder / "tokens.parquet")
    pq.write_table(routing, folder / "routing.parquet")


def _print_sizes(run: Path, folder: Path, tokens: int) -> None:
    sizes: dict[str, int] = {}
    for name in (tokens_file(0), routing_file(0)):
        footer = pq.read_metadata(run / name)
        for group in range(footer.num_row_groups):
            for column in range(footer.num_columns):
                chunk = footer.row_group(group).column(column)
                kind = chunk.path_in_schema.split("_")[0] if name == routing_file(0) else "tokens"
                sizes[kind] = sizes.get(kind, 0) + chunk.total_compressed_size
        sizes["footers"] = sizes.get("footers", 0) + footer.serialized_size
    parts = ", ".join(f"{kind} {size / tokens:.1f}" for kind, size in sizes.items())
    plain = sum((folder / name).stat().st_size for name in ("tokens.parquet", "routing.parquet"))
    print(f"  bytes a token: {sum(sizes.values()) / tokens:.1f} ({parts}); pyarrow's defaults {plain / tokens:.1f}")


def draw_shards(work: Work) -> None:
    """Make shards with the texts' own rows and labels, and decisions drawn at random: an engine without a model."""
    rows_of = RowMaker(work.encoder, work.recipe.windowing, work.recipe.open_labellers())
    first = work.routers[0]
    shape = Shape("", len(work.routers), first.n_experts, first.n_slots, 0, 0)
    drawn = decisions(shape, 2 * BATCH)
    facts = ShardFacts((True,) * len(work.routers), "not run: the decisions were drawn")
    for number in work.todo:
        rows = work.layout.shards[number].rows
        block = RoutingBlock(work.routers, [True] * len(work.routers), rows)
        for start in range(0, rows, BATCH):
            places = np.arange(start, min(start + BATCH, rows))
            for router in range(len(work.routers)):
                block.fill(router, places, *(values[: len(places)] for values in drawn))
        tokens = rows_of.make(work.text(number), threading.Event())
        work.commit(TracedShard(number, tokens, block.to_table(), facts))


def sample_without_end() -> Iterator[mp.Document]:
    sample = list(mp.read_documents([moe_probe_data.SAMPLE], language="en"))
    number = 0
    while True:
        for document in sample:
            yield mp.Document(f"{number}/{document.name}", document.text, domain=document.domain)
        number += 1


def trace_so_many(tokens: int, *, with_model: bool) -> None:
    """Trace so many tokens and print the peak memory in MiB, of the process and above what it was before."""
    lm = mp.load("tiny-mixtral", device_map="cpu")
    profiles: list[Profile] = []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        mp.trace(
            lm,
            sample_without_end(),
            Path(folder) / "run",
            labels=("shape", "domain"),
            max_tokens=tokens,
            engine=None if with_model else draw_shards,
            on_profile=profiles.append,
        )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(after / 1024, (after - before) / 1024, profiles[0].wall_seconds, profiles[0].processor_seconds)


def grow(sizes: list[int], *, with_model: bool) -> bool:
    """Print how memory grows with a run; return whether it stays flat."""
    print(
        f"\ntraces of the sample corpus, {'the bundled model' if with_model else 'decisions drawn'}, shape and domain"
    )
    peaks: list[float] = []
    for size in sizes:
        command = [sys.executable, __file__, "--one", str(size), *(["--model"] if with_model else [])]
        # What goes wrong there is said on standard error: it is not captured.
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peak, above, wall, processor = map(float, done.stdout.split()[-4:])
        peaks.append(peak)
        print(
            f"  {size:12,} tokens: peak {peak:,.0f} MiB, {above:,.0f} above the loaded model; {wall:,.0f} s,"
            f" {size / processor:,.0f} tokens per processor second",
            flush=True,
        )
    print(f"  largest ÷ smallest: {peaks[-1] / peaks[0]:.2f} (at most {GROWTH_LIMIT})")
    return peaks[-1] / peaks[0] <= GROWTH_LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=500_000, help="in the shapes that are written")
    parser.add_argument("--grow", type=int, nargs="*", default=[100_000, 1_000_000], help="tokens of the traces")
    parser.add_argument("--model", action="store_true", help="with the bundled model instead of drawn decisions")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        trace_so_many(options.one, with_model=options.model)
        return 0
    held = []
    for shape in SHAPES if options.tokens else ():
        with tempfile.TemporaryDirectory() as folder:
            held.append(measure(shape, int(options.tokens * shape.share), Path(folder)))
    if options.grow:
        held.append(grow(options.grow, with_model=options.model))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
