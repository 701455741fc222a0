"""Runs with known values, written by the writer itself, for the tests of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from moe_probe.schema import LabelSet, Router
from moe_probe.store.plan import Windowing, lay_out, plan_json
from moe_probe.store.shards import RoutingBlock, tokens_table
from moe_probe.store.writer import RunWriter, ShardFacts

ROUTERS = (
    Router(0, "layers.1.attention", 1, n_experts=4, n_slots=2, kind="softmax top-k"),
    Router(1, "layers.1.mlp", 1, n_experts=300, n_slots=1, kind="softmax top-k"),
    Router(2, "layers.2.mlp", 2, n_experts=255, n_slots=3, kind="sigmoid top-k"),
)
SCORES = (True, False, True)
LABELS = (LabelSet("upos", "by hand", word_level=True),)
TAGS = np.array(["NOUN", "VERB", "continuation"])


class HandMade:
    """A run with known values, written to `path`; `experts[i]` and so on are what was put in, over all shards."""

    def __init__(
        self,
        path: Path,
        counts: list[int],
        shard_rows: int = 1000,
        seed: int = 0,
        written: int | None = None,
        drop: float = 0.2,
        weights: bool = True,
    ) -> None:
        self.path = path
        self.has_weights = weights
        draw = np.random.default_rng(seed)
        self.layout = lay_out(counts, Windowing(context=4), shard_rows)
        n = sum(counts)
        self.experts = [
            np.array([draw.permutation(r.n_experts)[: r.n_slots] for _ in range(n)], int).reshape(n, r.n_slots)
            for r in ROUTERS
        ]
        if drop:
            for experts in self.experts:
                experts[draw.random(experts.shape) < drop] = -1
        self.weights = [np.sort(draw.random((n, r.n_slots), np.float32))[:, ::-1] for r in ROUTERS]
        self.scores = draw.random((2, n), np.float32)
        self.document = np.repeat(np.arange(len(counts)), counts)
        self.position = np.concatenate([np.arange(count) for count in counts] or [[]]).astype(int)
        self.tags = TAGS[draw.integers(0, 3, n)]
        self.names = [f"d{d}" for d in range(len(counts))]
        self.write(written)

    def write(self, written: int | None) -> None:
        with RunWriter(self.path) as writer:
            writer.publish_plan(plan_json({"made": "by hand"}, self.layout))
            writer.write_documents([self.documents()])
            begin = 0
            shards = self.layout.shards if written is None else self.layout.shards[:written]
            for shard in shards:
                rows = slice(begin, begin + shard.rows)
                begin += shard.rows
                writer.write_shard(shard.number, self.tokens(rows), self.routing(rows), ShardFacts(SCORES, "passed"))
            complete = len(shards) == len(self.layout.shards)
            about = {"corpus": {"documents": len(self.names)}}
            writer.publish(about, ROUTERS, LABELS, complete=complete, weights=self.has_weights)

    def documents(self) -> pa.Table:
        counts = self.layout.rows
        return pa.table(
            {
                "document": pa.array(range(len(counts)), pa.int32()),
                "name": pa.array(self.names, pa.string()),
                "domain": pa.nulls(len(counts), pa.string()),
                "language": pa.nulls(len(counts), pa.string()),
                "first_shard": pa.array(self.layout.first_shard, pa.int32(), mask=counts == 0),
                "first_row": pa.array(self.layout.first_row, pa.int32(), mask=counts == 0),
                "tokens": pa.array(counts, pa.int64()),
                "characters": pa.array(counts, pa.int64()),
            }
        )

    def tokens(self, rows: slice) -> pa.Table:
        position = self.position[rows]
        texts = [f"t{p}" for p in position]
        return tokens_table(
            {
                "document": self.document[rows],
                "position": position,
                "window_position": position % 4,
                "token_id": position + 7,
                "token": texts,
                "text": texts,
                "char_start": position,
                "char_end": position + 1,
                "phase": ["prompt"] * len(position),
                "word_initial": position % 2 == 0,
            },
            {"upos": self.tags[rows].tolist()},
        )

    def routing(self, rows: slice) -> pa.Table:
        n = len(self.document[rows])
        block = RoutingBlock(ROUTERS, SCORES, n, weights=self.has_weights)
        half = np.arange(n // 2, n), np.arange(n // 2)  # the order of filling does not matter
        for index in range(len(ROUTERS)):
            for part in half:
                entropy, margin = (score[rows][part] if SCORES[index] else None for score in self.scores)
                experts, weights = self.experts[index][rows][part], self.weights[index][rows][part]
                block.fill(index, part, experts, weights if self.has_weights else None, entropy, margin)
        return block.to_table()
