from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hand_made_runs import write_run

from moe_probe import schema
from moe_probe.counts import clusters, document_clusters, load_counts
from moe_probe.errors import RoutingError
from moe_probe.schema import LabelSet, Router
from moe_probe.store import Run
from moe_probe.tracing import counting
from moe_probe.tracing.counting import Counter

ROUTER = Router(0, "layers.0.mlp", 0, n_experts=3, n_slots=2, kind="softmax top-k")
UPOS = LabelSet("upos", "test", word_level=True)
CODE = LabelSet("code", "test", word_level=False)


def _tokens(**columns: list[object]) -> pa.Table:
    """Return token rows far from their window's start, of document 0, at a word's start unless told otherwise."""
    n_rows = len(next(iter(columns.values())))
    usual = {"document": [0] * n_rows, "window_position": [9] * n_rows, "word_initial": [True] * n_rows}
    return pa.table(usual | columns)


def _experts(*tokens: list[int]) -> list[torch.Tensor]:
    """Return one router's experts, given token by token."""
    return [torch.tensor(tokens).T.contiguous()]


def test_hand_counted_labels_of_two_documents() -> None:
    counter = Counter([ROUTER], [UPOS, CODE], np.array([7, 40]))
    counter.add(
        _experts([0, 1], [1, 2], [2, -1], [0, 2]),
        _tokens(
            document=[0, 0, 1, 1],
            window_position=[4, 5, 6, 3],  # the last is one of the first four of its window
            word_initial=[True, False, True, True],
            upos=["NOUN", "continuation", "untagged", "NOUN"],
            code=["name", "name", "number", "name"],
        ),
    )
    words = counter.counted("upos")
    assert (words.labels, words.n, words.documents.tolist()) == (("NOUN", "untagged"), 2, [0])
    assert words.clustered[0].shape == (64, 3, 2)
    assert words.clustered[0][7].tolist() == [[1, 0], [1, 0], [0, 0]]
    assert words.clustered[0][40].tolist() == [[0, 0], [0, 0], [0, 1]]
    assert words.clustered[0].sum() == 3
    first = counter.counted("code", slot=0)
    assert (first.tokens, first.labels, first.n) == ("all", ("name", "number"), 3)
    assert first.clustered[0].sum(axis=0).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert counter.counted("code", tokens="word_initial").clustered[0].sum(axis=0).tolist() == [[1, 0], [1, 0], [0, 1]]
    assert counter.ran == "numpy"


def _random_run(folder, *, seed: int) -> Run:
    """Write a run of routers unlike each other, with empty slots, many labels, and positions of all kinds."""
    random = np.random.default_rng(seed)
    n_tokens = 600
    sizes, slots = [4, 70, 4, 9], [2, 3, 2, 1]
    experts = [
        np.array([random.choice(size, n_slots, replace=False) for _ in range(n_tokens)])
        for size, n_slots in zip(sizes, slots, strict=True)
    ]
    experts[1][random.random(experts[1].shape) < 0.2] = -1
    tags = ["NOUN", "VERB", "continuation", "whitespace", "untagged", *(f"X{number}" for number in range(50))]
    return write_run(
        folder,
        experts,
        n_experts=sizes,
        labels={
            "upos": random.choice(tags, n_tokens).tolist(),
            "domain": random.choice(["a", "b", "untagged"], n_tokens).tolist(),
        },
        documents=np.sort(random.integers(0, 40, n_tokens)).tolist(),
        window_position=random.integers(0, 12, n_tokens).tolist(),
        word_initial=(random.random(n_tokens) < 0.6).tolist(),
        phase=random.choice(["prompt", "generated"], n_tokens).tolist(),
        shard_rows=250,
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_counted_on_the_way_is_what_is_counted_of_the_run(tmp_path, seed: int) -> None:
    run = _random_run(tmp_path / "run", seed=seed)
    phase = LabelSet("phase", "trace", word_level=False)
    counter = Counter(run.routers, [*run.labels, phase], document_clusters(run))
    tokens = run.tokens().to_arrow()
    experts = [torch.from_numpy(run.experts(router=router.index).T.copy()) for router in run.routers]
    order = np.random.default_rng(seed).permutation(run.n_tokens)
    for rows in np.array_split(order, 7):  # batches come in any order
        counter.add([ids[:, rows] for ids in experts], tokens.take(pa.array(rows)))
    for label in ("upos", "domain", "phase"):
        for slot in ("any", 0):
            for which in (None, "all", "word_initial"):
                expected, found = load_counts(run, label, slot, which), counter.counted(label, slot, which)
                assert expected.cluster_unit == clusters.DOCUMENT
                assert (found.labels, found.n, found.tokens) == (expected.labels, expected.n, expected.tokens)
                assert len(found.documents) == expected.documents
                for ours, theirs in zip(found.clustered, expected.clustered, strict=True):
                    np.testing.assert_array_equal(ours, theirs)
                    assert ours.dtype == theirs.dtype


def test_more_labels_than_there_was_room_for_lose_nothing() -> None:
    counter = Counter([ROUTER], [CODE], np.array([0]))
    names = [f"label{number:03d}" for number in range(100)]
    for name in [*names, *names]:
        counter.add(_experts([1, 2]), _tokens(code=[name]))
    found = counter.counted("code")
    assert found.labels == tuple(names)
    assert found.clustered[0][0].tolist() == [[0] * 100, [2] * 100, [2] * 100]


def test_an_expert_that_does_not_exist_is_refused_when_the_counts_are_asked_for() -> None:
    counter = Counter([ROUTER], [CODE], np.array([0]))
    counter.add(_experts([1, 3], [1, -1]), _tokens(code=["name", "name"]))
    with pytest.raises(
        RoutingError, match=r"layers\.0\.mlp: 1 assignments went to experts that do not exist, it has 3"
    ):
        counter.counted("code")


def test_of_many_tokens_at_once_empty_slots_are_counted_nowhere_and_strays_are_refused() -> None:
    random = np.random.default_rng(3)
    experts = random.integers(-1, 3, (2, 700))
    names = random.choice(["name", "number", "word"], 700)
    clusters = np.array([0, 9, 63])
    documents = np.sort(random.integers(0, 3, 700))
    counter = Counter([ROUTER], [CODE], clusters)
    counter.add([torch.from_numpy(experts)], _tokens(code=names.tolist(), document=documents.tolist()))
    for slot, planes in (("any", (0, 1)), (0, (0,)), (1, (1,))):
        found = counter.counted("code", slot)
        assert found.labels == ("name", "number", "word")
        for (cluster, expert, label), count in np.ndenumerate(found.clustered[0]):
            rows = (clusters[documents] == cluster) & (names == found.labels[label])
            assert count == sum(int((experts[plane][rows] == expert).sum()) for plane in planes)
    experts[1, 5] = 3
    counter.add([torch.from_numpy(experts)], _tokens(code=names.tolist(), document=documents.tolist()))
    with pytest.raises(RoutingError, match="1 assignments went to experts that do not exist"):
        counter.counted("code")


def test_strays_outlive_the_room_for_labels() -> None:
    counter = Counter([ROUTER], [CODE], np.array([0]))
    counter.add(_experts([1, 3]), _tokens(code=["name"]))
    for number in range(40):
        counter.add(_experts([1, 2]), _tokens(code=[f"label{number}"]))
    with pytest.raises(RoutingError, match="1 assignments"):
        counter.counted("code")


def test_nothing_counted_is_no_label_and_no_number() -> None:
    counter = Counter([ROUTER], [CODE], np.array([0]))
    counter.add([torch.zeros(2, 0, dtype=torch.int64)], _tokens(code=[]))
    counter.add(_experts([0, 1]), _tokens(code=["name"], window_position=[0]))
    found = counter.counted("code")
    assert (found.labels, found.n, found.clustered[0].shape) == ((), 0, (64, 3, 0))


def test_what_was_not_counted_is_refused_by_name() -> None:
    counter = Counter([ROUTER], [CODE], np.array([0]))
    for label, slot, tokens in (("upos", "any", None), ("code", 2, None), ("code", "any", "some")):
        with pytest.raises(ValueError, match=r"counted were code, slots any(, 0, 1)?, tokens all and word_initial"):
            counter.counted(label, slot, tokens)
    with pytest.raises(ValueError, match=r"experts \(2, 1\) must be \(slots, tokens\), \(2, 2\)"):
        counter.add(_experts([0, 1]), _tokens(code=["name", "name"]))
    with pytest.raises(ValueError, match="experts of 0 routers: the model has 1"):
        counter.add([], _tokens(code=["name"]))
    with pytest.raises(ValueError, match="clusters from 3 to 64"):
        Counter([ROUTER], [CODE], np.array([3, 64]))


def test_each_slot_of_a_set_that_asks_for_it_is_counted_apart() -> None:
    router = Router(0, "layers.0.mlp", 0, n_experts=4, n_slots=3, kind="softmax top-k")
    counter = Counter([router], [UPOS, CODE], np.array([5]), first=7, apart=["code"])
    tokens = _tokens(document=[7, 7], upos=["NOUN", "VERB"], code=["name", "name"])
    counter.add(_experts([0, 1, 2], [3, 2, -1]), tokens)
    for slot, expected in ((0, [1, 0, 0, 1]), (1, [0, 1, 1, 0]), (2, [0, 0, 1, 0]), ("any", [1, 1, 2, 1])):
        found = counter.counted("code", slot)
        assert found.clustered[0][5, :, 0].tolist() == expected
        assert found.documents.tolist() == [7]
    with pytest.raises(ValueError, match="slots any, 0, tokens"):
        counter.counted("upos", 1)


def test_the_clusters_and_the_words_are_those_of_the_counts() -> None:
    assert counting.N_CLUSTERS == clusters.N_CLUSTERS
    assert schema.SINK_POSITIONS == 4
