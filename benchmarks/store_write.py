"""How fast a run's shards are written, in tokens per second of processor time, and how large they are.

Two shapes: Mixtral's (32 routers, 2 of 8 experts) and a wide one (48 routers, 8 of 128). The rival is the obvious way
to write the same columns: pyarrow's defaults (dictionaries and snappy on everything). Filling the arrays batch by batch
is measured apart: a trace does it between two forwards. Run: python benchmarks/store_write.py [tokens]
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from moe_probe.schema import Router, routing_file, tokens_file
from moe_probe.store.plan import Windowing, lay_out, plan_json
from moe_probe.store.shards import RoutingBlock, tokens_table
from moe_probe.store.writer import RunWriter, ShardFacts

BATCH = 4_096


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


def measure(shape: Shape, tokens: int, folder: Path) -> None:
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


def main() -> None:
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else 500_000
    for shape in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            measure(shape, int(asked * shape.share), Path(folder))


if __name__ == "__main__":
    main()
