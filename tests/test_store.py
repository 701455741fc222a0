"""Runs on disk: what is written is what is read, and nothing else is."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_runs import LABELS, ROUTERS, SCORES, HandMade

from moe_probe.errors import BadInputError, RunError
from moe_probe.schema import check_label_name, routing_file, tokens_file
from moe_probe.store import open_run


@pytest.fixture
def made(tmp_path):
    return HandMade(tmp_path / "run", [5, 0, 3, 9], shard_rows=6)


def test_what_was_written_is_read_back(made):
    run = open_run(made.path)
    assert (run.n_tokens, run.n_documents, run.complete, run.shards) == (17, 4, True, [0, 1, 2, 3])
    assert run.routers == list(ROUTERS)
    assert run.with_scores == list(SCORES)
    assert run.labels == list(LABELS)
    for index, (experts, weights) in enumerate(zip(made.experts, made.weights, strict=True)):
        assert run.experts(router=index).dtype == np.int32
        np.testing.assert_array_equal(run.experts(router=index), experts)
        assert run.weights(router=index).dtype == np.float32
        np.testing.assert_array_equal(run.weights(router=index), weights.astype(np.float16).astype(np.float32))
    assert run.entropy(router=1) is None
    assert run.margin(router=1) is None
    for found, expected in ((run.entropy(layer=2), made.scores[0]), (run.margin(layer=2), made.scores[1])):
        np.testing.assert_array_equal(found, expected.astype(np.float16).astype(np.float32))
    tokens = run.tokens()
    assert tokens.columns[:4] == ["document", "position", "window_position", "token_id"]
    assert tokens["upos"].to_list() == made.tags.tolist()
    assert tokens["document"].to_list() == made.document.tolist()
    assert run.label_values("upos") == sorted(set(made.tags.tolist()))
    assert run.label_values("phase") == ["prompt"]


def test_ids_lie_on_disk_as_small_as_they_can_be_and_weights_as_float16(made):
    table = pq.read_schema(made.path / routing_file(0))
    assert [str(table.field(name).type) for name in ("expert_0_0", "expert_1_0", "expert_2_2")] == [
        "uint8",
        "uint16",
        "uint8",
    ]
    assert {str(table.field(name).type) for name in table.names if not name.startswith("expert")} == {"halffloat"}
    footer = pq.read_metadata(made.path / routing_file(0)).row_group(0)
    encodings = {footer.column(c).path_in_schema: footer.column(c).encodings for c in range(footer.num_columns)}
    assert "RLE_DICTIONARY" in encodings["expert_0_0"]
    assert "RLE_DICTIONARY" not in encodings["weight_0_0"]


def test_a_document_is_read_alone_by_number_or_name_also_across_shards(made):
    run = open_run(made.path)
    last = run.document("d3")
    rows = made.document == 3
    assert (last.number, last.name, last.tokens.height) == (3, "d3", 9)
    assert last.tokens["position"].to_list() == list(range(9))
    np.testing.assert_array_equal(last.experts(layer=2), made.experts[2][rows])
    np.testing.assert_array_equal(last.weights(router=1), made.weights[1][rows].astype(np.float16))
    np.testing.assert_array_equal(last.entropy(router=0), made.scores[0][rows].astype(np.float16))
    assert last.margin(router=1) is None
    assert run.document(0).tokens["document"].to_list() == [0] * 5
    empty = run.document(1)
    assert empty.tokens.height == 0
    assert empty.experts(router=2).shape == (0, 3)


def test_a_run_that_is_not_complete_shows_what_is_there(tmp_path):
    made = HandMade(tmp_path / "run", [5, 0, 3, 9], shard_rows=6, written=3)
    run = open_run(made.path)
    assert (run.complete, run.n_tokens) == (False, sum(shard.rows for shard in made.layout.shards[:3]))
    documents = run.documents()
    assert documents["name"].to_list() == ["d0", "d2", "d3"]
    assert documents["tokens"].to_list() == [5, 3, run.n_tokens - 8]
    assert run.document("d3").tokens.height == run.n_tokens - 8
    np.testing.assert_array_equal(run.experts(router=0), made.experts[0][: run.n_tokens])


@pytest.mark.parametrize("written", range(5))
def test_the_documents_of_a_part_of_a_run_are_those_with_rows_in_it(tmp_path, written):
    counts = [3, 2, 3, 1, 9, 4]
    run = open_run(HandMade(tmp_path / "run", counts, shard_rows=9, written=written).path)
    there = np.repeat(np.arange(len(counts)), counts)[: run.n_tokens]
    expected = {f"d{number}": int((there == number).sum()) for number in sorted(set(there.tolist()))}
    assert dict(run.documents().select("name", "tokens").iter_rows()) == expected
    for name, n_tokens in expected.items():
        assert run.document(name).tokens["position"].to_list() == list(range(n_tokens))


def test_a_run_without_a_whole_shard_opens_and_is_empty(tmp_path):
    run = open_run(HandMade(tmp_path / "run", [5], written=0).path)
    assert (run.n_tokens, run.n_documents, run.complete) == (0, 0, False)
    assert run.experts(router=2).shape == (0, 3)
    assert run.tokens().columns == run.token_columns
    with pytest.raises(RunError, match="no shard is whole yet"):
        run.sql("select 1")


def test_a_corpus_without_tokens_is_a_run(tmp_path):
    run = open_run(HandMade(tmp_path / "run", [0, 0]).path)
    assert (run.n_tokens, run.n_documents, run.complete) == (0, 2, True)
    assert run.document("d1").tokens.height == 0


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(0, 13), min_size=1, max_size=6).filter(any), st.integers(4, 30), st.integers(0, 99))
def test_sql_rows_are_the_rows_of_python(tmp_path_factory, counts, shard_rows, seed):
    made = HandMade(tmp_path_factory.mktemp("sql") / "run", counts, shard_rows, seed)
    run = open_run(made.path)
    routing = run.sql("select * from routing")
    assert routing.select(run.token_columns).equals(run.tokens())
    assert run.sql("select * from tokens").equals(run.tokens())
    assert run.sql("select * from documents").equals(run.documents())
    for router in ROUTERS:
        for slot in range(router.n_slots):
            ids = routing[f"expert_{router.index}_{slot}"].cast(pl.Int64).fill_null(-1).to_list()
            assert ids == run.experts(router=router.index)[:, slot].tolist()
            assert (
                routing[f"weight_{router.index}_{slot}"].to_list() == run.weights(router=router.index)[:, slot].tolist()
            )
    long = run.sql("select document, position, layer, router, slot, expert, weight, upos from assignments")
    expected = {
        (made.document[t], made.position[t], r.layer, r.index, s, made.experts[r.index][t, s], made.tags[t])
        for r in ROUTERS
        for s in range(r.n_slots)
        for t in range(len(made.document))
        if made.experts[r.index][t, s] >= 0
    }
    assert long.height == len(expected)
    assert set(long.drop("weight").iter_rows()) == expected


def test_sql_that_filters_both_sides_stays_aligned(made):
    run = open_run(made.path)
    found = run.sql("select position, expert_0_0 from routing where document = 3 and expert_0_0 = 2 order by position")
    rows = (made.document == 3) & (made.experts[0][:, 0] == 2)
    assert found["position"].to_list() == made.position[rows].tolist()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("copy tokens to 'x.csv'", "give one SELECT"),
        ("select 1; select 2", "give one SELECT"),
        ("create table x as select 1", "give one SELECT"),
        ("set enable_external_access = true", "give one SELECT"),
        ("select nothing from routing", "Binder Error"),
        ("selec 1", "Parser Error"),
        ("select * from '/etc/hostname'", "/etc/hostname"),
        ("select * from read_text('/etc/hostname')", "Permission Error"),
    ],
)
def test_sql_reads_the_run_and_nothing_else(made, query, message):
    with pytest.raises(BadInputError, match=message) as caught:
        open_run(made.path).sql(query)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["it's", "a [b]", "x*y?", "ü 🙂"])
def test_a_run_may_have_any_name(tmp_path, name):
    run = open_run(HandMade(tmp_path / name / name, [5, 6], shard_rows=4).path)
    assert run.sql("select count(*) as n from assignments where slot = 0")["n"][0] > 0
    assert run.document(1).tokens.height == 6
    assert run.tokens(["text"]).columns == ["text"]


def test_no_run_no_manifest_and_no_folder_are_told_apart(tmp_path, made):
    with pytest.raises(RunError, match="nowhere: no such run"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"no run, for it has no run\.json"):
        open_run(tmp_path / "empty")
    (made.path / "run.json").unlink()
    with pytest.raises(RunError, match="interrupted before its first shard was whole; trace again with --resume"):
        open_run(made.path)


def test_a_run_of_a_newer_version_is_refused(made):
    manifest = json.loads((made.path / "run.json").read_text())
    (made.path / "run.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(RunError, match="schema version 99, this moe_probe reads up to 1; upgrade moe_probe"):
        open_run(made.path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[]", "no JSON object"), ("{}", "version None")]
)
def test_a_damaged_manifest_is_refused(made, text, message):
    (made.path / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        open_run(made.path)


@pytest.mark.parametrize("file", [tokens_file(2), routing_file(2)])
def test_a_truncated_shard_is_named_by_every_way_to_read(made, file):
    path = made.path / file
    path.write_bytes(path.read_bytes()[:-9])
    for read in (
        lambda run: run.tokens(),
        lambda run: run.experts(router=0),
        lambda run: run.sql("select 1 from routing"),
        lambda run: run.document("d3"),
    ):
        with pytest.raises(RunError, match=f"{file}: is damaged or cut short; delete the shard's files"):
            read(open_run(made.path))


def test_a_missing_shard_is_named(made):
    (made.path / routing_file(2)).unlink()
    with pytest.raises(RunError, match=r"part-000002.parquet: is missing"):
        open_run(made.path).weights(router=0)


def test_shards_of_unequal_row_counts_are_refused(made):
    path = made.path / tokens_file(1)
    pq.write_table(pq.read_table(path).slice(1), path)
    rows = made.layout.shards[1].rows
    with pytest.raises(RunError, match=rf"tokens/part-000001.parquet: {rows - 1} rows where run.json says {rows}"):
        open_run(made.path).tokens()


def test_shards_that_the_manifest_does_not_list_are_not_read(made):
    manifest = json.loads((made.path / "run.json").read_text())
    manifest |= {"shards": manifest["shards"][:1], "complete": False}
    (made.path / "run.json").write_text(json.dumps(manifest))
    run = open_run(made.path)
    first = made.layout.shards[0].rows
    assert run.n_tokens == run.tokens().height == run.sql("select count(*) as n from routing")["n"][0] == first


def test_a_router_is_named_by_layer_where_that_is_clear(made):
    run = open_run(made.path)
    assert run.router_index(layer=2) == 2
    assert run.router_index(router=1) == 1
    for arguments, message in (
        ({"layer": 1}, "layer 1: it has routers 0, 1; give router= instead"),
        ({"layer": 0}, "layer 0: the run has routers in layers 1, 2"),
        ({"router": 3}, "router 3: the run has routers 0 to 2"),
        ({}, "give layer= or router=, one of them"),
        ({"layer": 1, "router": 0}, "give layer= or router=, one of them"),
    ):
        with pytest.raises(BadInputError, match=message):
            run.experts(**arguments)


def test_unknown_documents_labels_and_columns_are_named(made):
    run = open_run(made.path)
    with pytest.raises(BadInputError, match="document 'nobody': the run has no such document; it has 4"):
        run.document("nobody")
    with pytest.raises(BadInputError, match="label 'shape': the run has upos, phase"):
        run.label_values("shape")
    with pytest.raises(BadInputError, match="column 'colour': the tokens have document, position"):
        run.tokens(["colour"])


def test_a_run_without_weights_is_read_and_says_what_it_lacks(tmp_path):
    made = HandMade(tmp_path / "run", [5, 3], shard_rows=6, weights=False)
    run = open_run(made.path)
    assert run.with_weights == [False, False, False]
    assert [router["weights"] for router in run.manifest["routers"]] == [False, False, False]
    assert not any(name.startswith("weight") for name in pq.read_schema(made.path / routing_file(0)).names)
    document = run.document(1)
    for index, experts in enumerate(made.experts):
        np.testing.assert_array_equal(run.experts(router=index), experts)
        np.testing.assert_array_equal(document.experts(router=index), experts[5:])
        for ask in (run.weights, document.weights):
            with pytest.raises(RunError, match=f"router {index} has no weights, for the run was imported"):
                ask(router=index)
    np.testing.assert_array_equal(run.entropy(layer=2), made.scores[0].astype(np.float16))
    long = run.sql("select * from assignments")
    assert long["weight"].to_list() == [None] * sum(int((experts >= 0).sum()) for experts in made.experts)
    assert long["weight"].dtype == pl.Float32
    assert run.sql("select * from routing").columns == [*run.token_columns, *document.routing.columns]


def test_a_run_that_was_traced_says_nothing_of_weights_and_has_them(made):
    run = open_run(made.path)
    assert run.with_weights == [True, True, True]
    assert not any("weights" in router for router in run.manifest["routers"])


@pytest.mark.parametrize("name", ["cluster", "domain_of_document", "row", "token_id", "expert_0_1"])
def test_a_label_cannot_have_the_name_of_a_column_that_is_made_beside_it(name):
    with pytest.raises(BadInputError, match="every run has a column of that name already"):
        check_label_name(name)
