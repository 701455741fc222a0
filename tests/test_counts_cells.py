from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe import schema
from moe_probe.counts.cells import Cells, find_cells
from moe_probe.counts.clusters import BLOCK, DOCUMENT, Clusters, document_clusters
from moe_probe.counts.experts import SlotExperts
from moe_probe.counts.selection import Rows, Selection, find_label
from moe_probe.errors import BadInputError, RunError
from moe_probe.relabelling import relabel
from moe_probe.store import open_run
from moe_probe.store.clusters import name_hash
from moe_probe.store.part import Texts


def cells_of(of_rows: np.ndarray, n_clusters: int, n_labels: int) -> Cells:
    labels = [f"label {number}" for number in range(n_labels)]
    none = np.zeros(0, np.int32)
    return Cells(len(of_rows), labels, list(range(n_clusters)), none, of_rows.astype(np.int32), None)


def slots_of(experts: np.ndarray, n_experts: int) -> list[SlotExperts]:
    """(tokens, slots), -1 dropped, in the numbers that a run holds them in."""
    kind = f"uint{schema.expert_bits(n_experts)}"
    return [
        SlotExperts(np.where(column < 0, 0, column).astype(kind), column < 0 if (column < 0).any() else None)
        for column in experts.T
    ]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_rows=st.integers(0, 300),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    n_experts=st.sampled_from([1, 2, 3, 15, 16, 255, 256, 300]),
    n_slots=st.integers(0, 5),
    dropped=st.sampled_from([0.0, 0.0, 0.01, 0.5, 1.0]),
)
def test_counts_by_cell_equal_a_loop_over_assignments(seed, n_rows, shape, n_experts, n_slots, dropped):
    rng = np.random.default_rng(seed)
    n_cells = shape[0] * shape[1]
    of_rows = rng.integers(0, n_cells + 1, n_rows)  # the last is of rows that do not count
    experts = rng.integers(0, n_experts, (n_rows, n_slots))
    experts[rng.random(experts.shape) < dropped] = -1
    found = cells_of(of_rows, *shape).count(n_experts, slots_of(experts, n_experts))
    assert found.shape == (shape[0], n_experts, shape[1])
    expected = Counter(
        (int(cell) // shape[1], int(expert), int(cell) % shape[1])
        for cell, of_token in zip(of_rows, experts, strict=True)
        for expert in of_token
        if expert >= 0 and cell < n_cells
    )
    assert {place: int(found[place]) for place in zip(*map(np.ndarray.tolist, np.nonzero(found)), strict=True)} == (
        dict(expected)
    )


@pytest.mark.parametrize("n_slots", [1, 2, 3, 4])
def test_slots_counted_as_pairs_and_one_by_one_give_the_same(n_slots):
    rng = np.random.default_rng(n_slots)
    many, few = 5_000, 30
    for n_rows in (many, few):  # 8 × 8 pairs in 6 cells: more than 30 rows, less than 5,000
        of_rows, experts = rng.integers(0, 7, n_rows), rng.integers(0, 8, (n_rows, n_slots))
        found = cells_of(of_rows, 3, 2).count(8, slots_of(experts, 8))
        expected = np.zeros((3, 8, 2), np.int64)
        for slot in range(n_slots):
            kept = of_rows < 6
            np.add.at(expected, (of_rows[kept] // 2, experts[kept, slot], of_rows[kept] % 2), 1)
        assert (found == expected).all()


def test_routers_of_one_shard_are_counted_each_for_itself():
    cells = cells_of(np.array([0, 1, 1, 0]), 2, 1)
    first = np.array([[0, 1], [1, 0], [0, 1], [0, 1]])
    for experts, n_experts in ((first, 2), (1 - first, 2), (first, 3), (np.where(first == 1, -1, first), 2)):
        expected = [[int((experts[rows] == expert).sum()) for expert in range(n_experts)] for rows in ([0, 3], [1, 2])]
        assert cells.count(n_experts, slots_of(experts, n_experts))[:, :, 0].tolist() == expected


TAGS = ["NOUN", "VERB", "untagged", "VERB", "continuation", "ADJ", "NOUN"]


def cells_by_hand(tmp_path, unit: str, **more) -> tuple[Cells, dict]:
    asked = {"labels": {"upos": TAGS}, "documents": [0, 0, 1, 2, 2, 0, 3], "position": [0, 255, 0, -1, 0, 256, 0]}
    run = write_run(tmp_path / "run", [np.zeros((7, 1), int)], **(asked | more))
    rows = Selection(find_label(run, "upos"), "word_initial")
    return find_cells(next(run.iter_shards()), rows, Clusters(run, unit)), {
        number: int(cluster) for number, cluster in enumerate(document_clusters(run))
    }


def test_cells_of_documents_that_come_back_are_those_of_their_cluster(tmp_path):
    cells, cluster = cells_by_hand(tmp_path, DOCUMENT)
    assert (cells.n, cells.labels, cells.rows) == (6, ["ADJ", "NOUN", "VERB", "untagged"], None)
    assert cells.clusters == sorted(set(cluster.values()))
    assert cells.documents.tolist() == [0, 2, 3]  # document 1 has nothing that is tagged
    places = [cells.clusters.index(cluster[number]) * 4 for number in (0, 0, 1, 2, 0, 0, 3)]
    labels = [1, 2, 3, 2, None, 0, 1]
    expected = [16 if label is None else place + label for place, label in zip(places, labels, strict=True)]
    expected = [len(cells.clusters) * 4 if label is None else at for at, label in zip(expected, labels, strict=True)]
    assert cells.of_rows.tolist() == expected


def test_cells_of_blocks_begin_anew_every_256_positions(tmp_path):
    cells, _ = cells_by_hand(tmp_path, BLOCK)
    blocks = [(0, 0), (0, 0), (1, 0), (2, -1), (2, 0), (0, 1), (3, 0)]
    cluster = [name_hash(f"document {number}", block) % 64 for number, block in blocks]
    assert cells.clusters == sorted(set(cluster))
    labels = [1, 2, 3, 2, None, 0, 1]
    expected = [
        len(cells.clusters) * 4 if label is None else cells.clusters.index(one) * 4 + label
        for one, label in zip(cluster, labels, strict=True)
    ]
    assert cells.of_rows.tolist() == expected


def test_where_few_rows_count_only_these_are_held(tmp_path):
    cells, _ = cells_by_hand(tmp_path, DOCUMENT, window_position=[9, 0, 1, 2, 9, 3, 9])
    assert cells.rows.tolist() == [0, 6]
    assert (cells.n, cells.labels, len(cells.of_rows)) == (2, ["NOUN"], 2)


def test_the_places_of_labels_are_of_those_that_count_in_the_order_of_their_names():
    kept = np.array([True, True, False, False, True, False, True])
    labels = Texts(("z", "a", "q", "ä", "no", "a"), np.array([0, 1, 2, 0, 3, 5, 4], np.int32))
    rows = Rows({}, kept, labels, np.array([True, True, True, True, False, True]))
    assert rows.n_counted.tolist() == [1, 1, 0, 1, 0, 0]
    assert rows.counted.tolist() == [True, True, False, False, True, False, False]
    names, places = rows.label_places()
    assert names == ["a", "z", "ä"]
    assert places.tolist() == [1, 0, 3, 2, 3, 3]
    few = rows.take(np.array([4, 0]))
    assert (few.counted.tolist(), few.n_counted.tolist()) == ([True, True], [1, 0, 0, 1, 0, 0])
    nothing = Rows({}, kept[:0], Texts((), labels.places[:0]), np.zeros(0, bool))
    assert nothing.label_places()[0] == []


def test_columns_of_texts_are_read_from_a_file_in_any_form(tmp_path):
    values = [f"value {number % 700}" for number in range(2_000)]
    run = write_run(tmp_path / "run", [np.zeros((2_000, 1), int)], labels={"kind": values})
    path = run.path / schema.tokens_file(0)
    table = pq.read_table(path)
    plain = table.set_column(table.column_names.index("kind"), "kind", pa.array(values, pa.string()))
    for options in ({}, {"use_dictionary": False}, {"row_group_size": 300}, {"dictionary_pagesize_limit": 500}):
        pq.write_table(plain, path, **options)
        numbers, texts = next(open_run(run.path).iter_shards()).columns(["token_id"], ["kind", "phase"])
        assert numbers["token_id"].tolist() == list(range(2_000))
        assert texts["phase"].different == ("prompt",)
        assert [texts["kind"].different[place] for place in texts["kind"].places] == values
        assert np.flatnonzero(texts["kind"].are(["value 3", "value 699"])).tolist() == [3, 699, 703, 1399, 1403]


def test_a_row_without_a_text_has_none_of_them(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((3, 1), int)], labels={"kind": ["b", "a", "b"]})
    path = run.path / schema.tokens_file(0)
    table = pq.read_table(path)
    some = table.set_column(table.column_names.index("kind"), "kind", pa.array(["b", None, "b"]))
    pq.write_table(some, path)
    shard = next(open_run(run.path).iter_shards())
    kinds = shard.columns([], ["kind"])[1]["kind"]
    assert kinds.places.tolist() == [0, -1, 0]
    assert kinds.are(["b"]).tolist() == [True, False, True]
    assert kinds.are([]).tolist() == [False] * 3
    assert shard.columns([]) == ({}, {})


def test_columns_that_cannot_be_had_are_refused(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((4, 1), int)], labels={"shape": ["x"] * 4}, shard_rows=2)
    shard = next(run.iter_shards())
    with pytest.raises(BadInputError, match="column 'xpos': the tokens have document, position"):
        shard.columns([], ["xpos"])
    relabel(run.path, ["shape"])
    half = pq.read_table(run.path / schema.tokens_file(1))
    made = half.replace_schema_metadata({b"moe_probe": b'{"labels": {"shape": "another making"}}'})
    pq.write_table(made, run.path / schema.tokens_file(1))
    stale = open_run(run.path)
    shards = list(stale.iter_shards())
    with pytest.raises(RunError, match="label 'shape' is of two makings"):
        shards[0].columns([], ["shape"])
    assert shards[0].columns([], ["phase"])[1]["phase"].are(["prompt"]).all()
    (run.path / schema.tokens_file(0)).write_bytes(b"PAR1 and nothing else")
    with pytest.raises(RunError, match=r"tokens/part-000000\.parquet: "):
        shards[0].columns(["document"])
