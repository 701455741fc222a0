"""Runs of which hardly anything can be said: empty, tiny, one-sided, dropped, unlabelled, with weights that are NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hand_made_runs import write_run

from moe_probe.store import Run

TAGS = ("NOUN", "VERB", "DET", "ADP", "PUNCT", "continuation")
NAN = float("nan")


def some_experts(n_tokens: int, n_experts: int = 4, n_slots: int = 2, *, routers: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.argsort(rng.random((n_tokens, n_experts)), axis=1)[:, : min(n_slots, n_experts)] for _ in range(routers)]


def some_tags(n_tokens: int) -> list[str]:
    return [TAGS[number] for number in np.random.default_rng(1).integers(0, len(TAGS), n_tokens)]


def ids(n_tokens: int) -> list[int]:
    return (np.random.default_rng(2).zipf(1.5, n_tokens) % 50).tolist()


def empty(path: Path) -> Run:
    return write_run(path, [np.zeros((0, 2), int)] * 2, labels={"upos": []}, window_position=[])


def without_labels(path: Path) -> Run:
    return write_run(path, some_experts(300), documents=np.arange(300) // 30, token_id=ids(300))


def one_token(path: Path) -> Run:
    return write_run(path, some_experts(1), labels={"upos": ["NOUN"]}, domains=["prose"])


def two_tokens(path: Path) -> Run:
    return write_run(path, some_experts(2), labels={"upos": ["NOUN", "VERB"]}, token_id=[7, 7])


def one_document(path: Path) -> Run:
    return write_run(path, some_experts(700), labels={"upos": some_tags(700)}, token_id=ids(700), domains=["prose"])


def one_document_perfectly_split(path: Path) -> Run:
    """What could be called specialised, if there were more than one text."""
    tags = ["NOUN", "VERB"] * 600
    experts = np.array([[0, 2], [1, 3]] * 600)
    return write_run(path, [experts], labels={"upos": tags}, token_id=[n % 40 for n in range(1200)])


def one_expert(path: Path) -> Run:
    return write_run(
        path,
        [np.zeros((400, 1), int)],
        n_experts=1,
        labels={"upos": some_tags(400), "domain": ["prose"] * 200 + ["code"] * 200},
        documents=np.arange(400) // 20,
        domains=["prose"] * 10 + ["code"] * 10,
        token_id=ids(400),
    )


def as_many_slots_as_experts(path: Path) -> Run:
    return write_run(
        path,
        some_experts(400, 2, 2),
        n_experts=2,
        labels={"upos": some_tags(400)},
        documents=np.arange(400) // 20,
        token_id=ids(400),
    )


def one_label_value(path: Path) -> Run:
    return write_run(
        path,
        some_experts(400),
        labels={"upos": ["NOUN"] * 400, "domain": ["prose"] * 400, "shape": ["word"] * 400},
        documents=np.arange(400) // 20,
        domains=["prose"] * 20,
        token_id=ids(400),
    )


def all_dropped(path: Path) -> Run:
    return write_run(
        path,
        [np.full((300, 2), -1)] * 2,
        labels={"upos": some_tags(300)},
        documents=np.arange(300) // 30,
        domains=["prose"] * 5 + ["code"] * 5,
        token_id=ids(300),
        scores={0: ([1.0] * 300, [0.1] * 300)},
    )


def one_router_all_dropped(path: Path) -> Run:
    experts = some_experts(300)
    experts[1][:] = -1
    return write_run(path, experts, labels={"upos": some_tags(300)}, documents=np.arange(300) // 30, token_id=ids(300))


def nan_weights(path: Path) -> Run:
    return write_run(
        path,
        some_experts(300),
        weights=[np.full((300, 2), NAN), np.where(np.arange(600).reshape(300, 2) % 3, 0.5, NAN)],
        scores={0: ([NAN] * 300, [NAN] * 300), 1: ([NAN, 1.0] * 150, [0.2, NAN] * 150)},
        labels={"upos": some_tags(300), "domain": ["prose"] * 150 + ["code"] * 150},
        documents=np.arange(300) // 15,
        domains=["prose"] * 10 + ["code"] * 10,
        token_id=ids(300),
    )


def only_sinks(path: Path) -> Run:
    return write_run(
        path,
        some_experts(80),
        labels={"upos": some_tags(80), "domain": ["prose"] * 40 + ["code"] * 40},
        documents=np.arange(80) // 4,
        domains=["prose"] * 10 + ["code"] * 10,
        window_position=(np.arange(80) % 4).tolist(),
        token_id=ids(80),
        scores={0: ([1.0] * 80, [0.1] * 80)},
    )


def only_untagged(path: Path) -> Run:
    return write_run(
        path,
        some_experts(400),
        labels={"upos": ["untagged"] * 400, "domain": ["untagged"] * 400},
        documents=np.arange(400) // 20,
        token_id=ids(400),
    )


def only_pieces_of_words(path: Path) -> Run:
    return write_run(
        path,
        some_experts(400),
        labels={"upos": ["continuation"] * 400},
        documents=np.arange(400) // 20,
        word_initial=[False] * 400,
        token_id=ids(400),
    )


def a_domain_of_one_token(path: Path) -> Run:
    return write_run(
        path,
        some_experts(401),
        labels={"upos": some_tags(401), "domain": ["prose"] * 400 + ["code"]},
        documents=[*(np.arange(400) // 20).tolist(), 20],
        domains=["prose"] * 20 + ["code"],
        token_id=ids(401),
    )


def more_experts_than_tokens(path: Path) -> Run:
    return write_run(
        path,
        some_experts(60, 100, 8),
        n_experts=100,
        labels={"upos": some_tags(60)},
        documents=np.arange(60) // 6,
        token_id=ids(60),
    )


def interrupted(path: Path) -> Run:
    return write_run(
        path,
        some_experts(200),
        labels={"upos": some_tags(200)},
        documents=np.arange(200) // 20,
        token_id=ids(200),
        shard_rows=50,
        missing_shards=[1, 3],
    )


BAD_RUNS: dict[str, Callable[[Path], Run]] = {
    make.__name__.replace("_", " "): make
    for make in (
        empty,
        without_labels,
        one_token,
        two_tokens,
        one_document,
        one_document_perfectly_split,
        one_expert,
        as_many_slots_as_experts,
        one_label_value,
        all_dropped,
        one_router_all_dropped,
        nan_weights,
        only_sinks,
        only_untagged,
        only_pieces_of_words,
        a_domain_of_one_token,
        more_experts_than_tokens,
        interrupted,
    )
}
