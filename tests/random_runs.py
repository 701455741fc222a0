"""Random small runs in several shards, and what a loop over their rows says: an oracle that counts row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from hand_made_runs import write_run

from moe_probe.store import Run

N_EXPERTS = (4, 1, 9)
N_SLOTS = (2, 1, 3)
TAGS = ("NOUN", "VERB", "untagged", "continuation", "whitespace", "special")
NOT_WORDS = ("continuation", "whitespace", "newline", "special")
DOMAINS = ("code", "law", None)


def random_experts(rng: np.random.Generator, n_tokens: int, n_experts: int, n_slots: int) -> np.ndarray:
    """(tokens, slots): different experts in every token, about one slot in six dropped."""
    order = rng.permuted(np.tile(np.arange(n_experts), (n_tokens, 1)), axis=1)[:, :n_slots]
    return np.where(rng.random(order.shape) < 1 / 6, -1, order)


def random_run(folder: Path, seed: int, *, n_documents: int = 7, missing: bool = False) -> Run:
    """Write a run of three routers and some forty tokens a document, cut into shards that do not care for documents."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 40, n_documents)
    # The last document is long enough for several blocks.
    lengths[-1] = 600
    n_tokens = int(lengths.sum())
    shard_rows = int(rng.integers(50, 300))
    n_shards = -(-n_tokens // shard_rows)
    gone = set(rng.choice(n_shards, size=n_shards // 3, replace=False).tolist()) if missing else set()
    return write_run(
        folder,
        [random_experts(rng, n_tokens, experts, slots) for experts, slots in zip(N_EXPERTS, N_SLOTS, strict=True)],
        n_experts=N_EXPERTS,
        documents=np.repeat(np.arange(n_documents), lengths),
        names=[f"text {number}" for number in range(n_documents)],
        domains=[DOMAINS[number % len(DOMAINS)] for number in range(n_documents)],
        labels={"upos": rng.choice(TAGS, n_tokens), "kind": rng.choice(["x", "y", "untagged"], n_tokens)},
        window_position=rng.integers(0, 12, n_tokens),
        word_initial=(rng.random(n_tokens) < 0.5).tolist(),
        token_id=rng.integers(0, 30, n_tokens),
        phase=rng.choice(["prompt", "generated"], n_tokens),
        weights=[rng.random((n_tokens, slots)) for slots in N_SLOTS],
        shard_rows=shard_rows,
        missing_shards=gone,
    )


def rows_of(run: Run) -> Iterator[dict[str, Any]]:
    """Yield each token row as a dict, with its document's `name` and `domain` and, by router, its `experts`."""
    documents = {row["document"]: row for row in run.documents().iter_rows(named=True)}
    experts = [run.experts(router=router.index).tolist() for router in run.routers]
    weights = [run.weights(router=router.index).tolist() for router in run.routers]
    for number, row in enumerate(run.tokens().iter_rows(named=True)):
        about = documents[row["document"]]
        yield row | {
            "name": about["name"],
            "domain": about["domain"],
            "experts": [of_router[number] for of_router in experts],
            "weights": [of_router[number] for of_router in weights],
        }


def is_counted(row: dict[str, Any], label: str | None, tokens: str, *, sinks: bool = False) -> bool:
    """Say whether a row counts."""
    if row["window_position"] < 4 and not sinks:
        return False
    if tokens == "all":
        return True
    return row["upos"] not in NOT_WORDS if label == "upos" else bool(row["word_initial"])


def clusters_of(rows: list[dict[str, Any]], documents: int) -> list[int]:
    """Return each row's cluster, given how many documents have a row that counts."""
    return [_hash(row["name"] if documents >= 5 else f"{row['name']}\0{row['position'] // 256}") % 64 for row in rows]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
