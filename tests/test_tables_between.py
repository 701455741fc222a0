from __future__ import annotations

import json
from functools import partial

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

import moe_probe as mp
import moe_probe_data
from moe_probe import schema
from moe_probe.counts import load_rows
from moe_probe.errors import BadInputError
from moe_probe.store import open_run
from moe_probe.tables import paired
from moe_probe.tables.between import (
    AGREEMENT_COLUMNS,
    LOAD_DIFFERENCE_COLUMNS,
    SATURATION_COLUMNS,
    agreement,
    comparison_warnings,
    load_difference,
    saturation,
)
from moe_probe.tables.columns import schema_of

A = np.array([[0, 1], [2, 3], [1, 2], [3, 0]])
B = np.array([[1, 0], [2, 1], [1, 2], [0, 3]])


def has_no_nan(frame):
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def two_runs(tmp_path, a, b, **facts):
    """Two runs of one router each that differ in nothing but the experts."""
    return write_run(tmp_path / "a", [a], **facts), write_run(tmp_path / "b", [b], **facts)


def routed(n_tokens, flips, seed=0, n_experts=8):
    """Two routings; in a share `flips` of the tokens, or where `flips` is true, the second slot differs."""
    rng = np.random.default_rng(seed)
    a = np.argsort(rng.random((n_tokens, n_experts)), axis=1)[:, :3]
    flipped = flips if isinstance(flips, np.ndarray) else rng.random(n_tokens) < flips
    return a[:, :2], np.stack([a[:, 0], np.where(flipped, a[:, 2], a[:, 1])], axis=1)


def test_four_tokens_by_hand(tmp_path):
    run_a, run_b = two_runs(tmp_path, A, B, layers=[3])
    frame = agreement(run_a, run_b)
    assert frame.schema == schema_of(AGREEMENT_COLUMNS)
    (row,) = frame.to_dicts()
    assert (row["layer"], row["router"], row["tokens"], row["n"]) == (3, 0, "all", 4)
    assert (row["label_set"], row["label"], row["decile"]) == ("all", "all", "all")
    assert (row["set_overlap"], row["first_choice"], row["exact_set"]) == (7 / 8, 1 / 2, 3 / 4)
    # Experts 0 to 3 are in 2, 2, 2, 2 of a's four sets and in 2, 3, 2, 1 of b's.
    assert row["set_overlap_chance"] == pytest.approx((4 + 6 + 4 + 2) / 16 / 2)
    assert row["first_choice_chance"] == pytest.approx((1 * 1 + 1 * 2 + 1 * 1) / 16)
    assert row["exact_set_chance"] == pytest.approx((1 * 1 + 1 * 2 + 1 * 1) / 16)  # {0,1}, {1,2} twice in b, {0,3}
    assert row["cluster_unit"] == "block"
    assert row["margin_low"] is None


def test_a_run_agrees_with_itself_in_every_layer_decile_and_label(tmp_path):
    rng = np.random.default_rng(1)
    a, b = routed(600, 0.3)
    run = write_run(
        tmp_path / "a",
        [a, b],
        n_experts=8,
        documents=np.arange(600) // 30,
        scores={0: (np.ones(600), rng.random(600)), 1: (np.ones(600), rng.random(600))},
        labels={"upos": np.array(["NOUN", "VERB"])[rng.integers(0, 2, 600)]},
    )
    frame = agreement(run, run, by="upos")
    assert frame.height == 2 * (1 + 10 + 2)
    for name in ("set_overlap", "first_choice", "exact_set"):
        assert set(frame[name]) == {1.0}
        assert set(frame[f"{name}_ci_high"]) == {1.0}
        assert (frame[f"{name}_ci_low"] < 1).all()
    assert has_no_nan(frame)
    moved = load_difference(run, run)
    assert set(moved["difference"]) == {0.0}
    assert set(moved["q_value"]) == {1.0}


def test_near_ties_that_flipped_are_found_in_the_first_decile(tmp_path):
    margins = np.random.default_rng(2).permutation(np.linspace(0.001, 1, 1000))
    a, b = routed(1000, margins < 0.1)
    run_a, run_b = two_runs(
        tmp_path, a, b, n_experts=8, documents=np.arange(1000) // 20, scores={0: (np.ones(1000), margins)}
    )
    frame = agreement(run_a, run_b)
    assert frame["decile"].to_list() == ["all", *map(str, range(1, 11))]
    assert frame["exact_set"].to_list() == pytest.approx([0.9, 0, *[1] * 9], abs=0.02)
    assert frame["n"].to_list() == pytest.approx([1000, *[100] * 10], abs=2)
    assert frame["n"][1:].sum() == 1000
    assert set(frame["first_choice"]) == {1.0}
    lows, highs = frame["margin_low"].to_list(), frame["margin_high"].to_list()
    assert lows[1] == lows[0]
    assert highs[10] == highs[0]
    assert all(high < low for high, low in zip(highs[1:], lows[2:], strict=False))


def test_margins_that_are_unknown_or_beyond_float16_are_null(tmp_path):
    margins = np.array([0.5, np.nan, np.inf, 0.25])
    run_a, run_b = two_runs(tmp_path, A, B, scores={0: (np.ones(4), margins)})
    rows = agreement(run_a, run_b).to_dicts()
    assert rows[0]["n"] == 4
    assert sum(row["n"] for row in rows[1:]) == 3
    assert (rows[0]["margin_low"], rows[0]["margin_high"]) == (0.25, None)


def test_every_value_of_a_label_has_a_row_but_no_token_without_one(tmp_path):
    labels = {
        "upos": ["NOUN", "continuation", "untagged", "NOUN"],
        "kind": ["x", "=1+1", "x", "untagged"],
    }
    run_a, run_b = two_runs(tmp_path, A, B, labels=labels)
    frame = agreement(run_a, run_b, by=["upos", "kind"]).filter(pl.col("label_set") != "all")
    rows = frame["label_set", "label", "tokens", "decile", "n", "set_overlap"].rows()
    assert rows == [
        ("upos", "NOUN", "word_initial", "all", 2, 1.0),
        ("kind", "=1+1", "all", "all", 1, 0.5),
        ("kind", "x", "all", "all", 2, 1.0),
    ]
    assert agreement(run_a, run_b, by="phase").filter(label_set="phase")["label", "n"].rows() == [("prompt", 4)]
    with pytest.raises(BadInputError, match="label 'colour': the run has no such label"):
        agreement(run_a, run_b, by="colour")


def test_a_few_documents_disagree_more_and_the_interval_knows(tmp_path):
    document = np.arange(2000) // 50
    a, b = routed(2000, np.isin(document, [3, 17]))
    run_a, run_b = two_runs(tmp_path, a, b, n_experts=8, documents=document)
    frame = agreement(run_a, run_b)
    assert frame["exact_set"].item() == 0.95
    assert frame["cluster_unit"].item() == "document"
    naive = 1.96 * np.sqrt(0.95 * 0.05 / 2000)
    assert frame["exact_set_ci_high"].item() - frame["exact_set_ci_low"].item() > 4 * naive


def test_where_all_agree_the_interval_is_as_wide_as_clusters_elsewhere_make_it(tmp_path):
    document = np.arange(4000) // 50
    margins = np.random.default_rng(5).random(4000)
    a, b = routed(4000, (margins < 0.3) & (document % 10 == 0))
    sure = np.where(margins > 0.9, "sure", "untagged")
    facts = {"n_experts": 8, "documents": document, "labels": {"kind": sure}}
    scored = two_runs(tmp_path, a, b, **facts, scores={0: (np.ones(4000), margins)})
    clear = agreement(*scored).filter(decile="10").row(0, named=True)
    by_label = agreement(*two_runs(tmp_path / "bare", a, b, **facts), by="kind").filter(label="sure").row(0, named=True)
    for row in (clear, by_label):  # the deciles lend it their design effect; without deciles the total does
        independent = row["n"] / (row["n"] + 2.0**2)
        assert row["exact_set"] == 1
        assert row["exact_set_ci_low"] < independent - 0.01
    # In a decile a document has few tokens, which make less of a cluster than all of them.
    assert clear["exact_set_ci_low"] > by_label["exact_set_ci_low"] + 0.01


def test_shards_of_other_sizes_change_nothing(tmp_path):
    a, b = routed(300, 0.2)
    margins = np.random.default_rng(3).random(300)
    facts = {"n_experts": 8, "documents": np.arange(300) // 40, "scores": {0: (np.ones(300), margins)}}
    whole = [write_run(tmp_path / f"whole {name}", [one], **facts) for name, one in (("a", a), ("b", b))]
    cut_a = write_run(tmp_path / "cut a", [a], **facts, shard_rows=70)
    cut_b = write_run(tmp_path / "cut b", [b], **facts, shard_rows=110)
    assert agreement(cut_a, cut_b).equals(agreement(*whole))
    assert load_difference(cut_a, cut_b).equals(load_difference(*whole))


def test_what_stands_first_in_a_window_of_either_run_is_left_out(tmp_path):
    run_a = write_run(tmp_path / "a", [A], window_position=[3, 4, 5, 6])
    run_b = write_run(tmp_path / "b", [B], window_position=[9, 10, 11, 0])
    row = agreement(run_a, run_b).row(0, named=True)
    assert row["n"] == 2
    assert row["set_overlap"] == 3 / 4


def test_another_token_is_refused_with_its_place_and_both_ids(tmp_path):
    documents, names = [0, 0, 1, 1], ["one.txt", "two.txt"]
    run_a = write_run(tmp_path / "a", [A], documents=documents, names=names, token_id=[5, 6, 7, 8], shard_rows=3)
    run_b = write_run(tmp_path / "b", [B], documents=documents, names=names, token_id=[5, 6, 7, 9])
    message = r"document 'two.txt', position 1 has token id 8 in .*a and 9 in .*b;"
    for measure in (agreement, load_difference):
        with pytest.raises(BadInputError, match=message):
            measure(run_a, run_b)
    with pytest.raises(BadInputError, match="of different text"):
        saturation([run_a], run_b)


def test_a_text_that_ends_sooner_or_is_cut_otherwise_is_refused(tmp_path):
    ids = [5, 6, 7, 8]
    run_a = write_run(tmp_path / "a", [A], token_id=ids, names=["one.txt"])
    shorter = write_run(tmp_path / "b", [B[:3]], token_id=ids[:3], names=["one.txt"])
    with pytest.raises(
        BadInputError, match=r"a has document 'one.txt', position 3, token id 8, where .*b has no more tokens;"
    ):
        agreement(run_a, shorter)
    with pytest.raises(
        BadInputError, match=r"b has no more tokens, where .*c has document 'one.txt', position 3, token"
    ):
        agreement(shorter, write_run(tmp_path / "c", [B], token_id=ids, names=["one.txt"]))
    cut = write_run(tmp_path / "d", [B], token_id=ids, documents=[0, 0, 1, 1], names=["one.txt", "two.txt"])
    with pytest.raises(
        BadInputError, match=r"'one.txt', position 2, token id 7, where .*'two.txt', position 0, token id 7"
    ):
        agreement(run_a, cut)


def test_a_run_that_was_interrupted_is_refused_by_name(tmp_path):
    documents = [0, 0, 1, 1]
    run_a = write_run(tmp_path / "a", [A], documents=documents)
    run_b = write_run(tmp_path / "b", [B], documents=documents, shard_rows=2, missing_shards=[1])
    with pytest.raises(BadInputError, match="b has no more tokens, for it is not complete"):
        agreement(run_a, run_b)


@pytest.mark.parametrize(
    ("other", "facts", "message"),
    [
        ([B, B], {}, "a has 1 routers, .*b has 2"),
        ([B], {"n_experts": 5}, "router 0: layer 0, 2 of 4 experts in .*a, layer 0, 2 of 5 experts in .*b"),
        ([B[:, :1]], {}, "layer 0, 1 of 4 experts in .*b"),
        ([B], {"layers": [1]}, "layer 1, 2 of 4 experts in .*b"),
    ],
)
def test_other_routers_are_refused(tmp_path, other, facts, message):
    with pytest.raises(BadInputError, match=message):
        agreement(write_run(tmp_path / "a", [A]), write_run(tmp_path / "b", other, **facts))


def test_documents_of_other_names_are_the_same_text_unless_they_must_be_drawn_by_name(tmp_path, monkeypatch):
    documents = np.arange(40) // 4
    a, b = routed(40, 0.5)
    facts = {"documents": documents, "n_experts": 8}
    run_a = write_run(tmp_path / "a", [a], **facts)
    run_b = write_run(tmp_path / "b", [b], **facts, names=[f"other {number}" for number in range(10)])
    assert agreement(run_a, run_b)["n"].to_list() == [40]
    monkeypatch.setattr(paired, "load_rows", partial(load_rows, most_tokens=20))
    same = write_run(tmp_path / "c", [b], **facts)
    assert agreement(run_a, same)["n"].to_list() == [20]
    assert not paired.pair_runs(run_a, same).complete
    with pytest.raises(BadInputError, match="drawn by name, and the two runs name theirs differently"):
        agreement(run_a, run_b)


def test_a_label_missing_on_a_token_is_refused(tmp_path):
    run_a, run_b = two_runs(tmp_path, A, B, labels={"kind": ["x", None, "y", "x"]})
    with pytest.raises(mp.RunError, match="tokens without a value of the label 'kind'; make it anew"):
        agreement(run_a, run_b, by="kind")


@pytest.mark.parametrize("n_tokens", [0, 1])
def test_no_token_or_one_gives_no_rows_or_no_interval(tmp_path, n_tokens):
    run_a, run_b = two_runs(tmp_path, A[:n_tokens], B[:n_tokens], labels={"upos": ["NOUN"][:n_tokens]})
    frame = agreement(run_a, run_b, by="upos")
    assert frame.schema == schema_of(AGREEMENT_COLUMNS)
    assert frame.height == 2 * n_tokens
    assert frame["set_overlap_ci_low"].null_count() == frame.height
    moved = load_difference(run_a, run_b)
    assert moved.schema == schema_of(LOAD_DIFFERENCE_COLUMNS)
    assert moved.height == 8 * n_tokens
    assert moved["ci_low"].null_count() == moved["q_value"].null_count() == moved.height
    assert has_no_nan(frame)
    assert has_no_nan(moved)


def test_where_every_slot_was_dropped_there_is_nothing_to_say(tmp_path):
    nothing = np.full((4, 2), -1)
    run_a, run_b = two_runs(tmp_path, nothing, nothing)
    assert agreement(run_a, run_b).is_empty()
    assert load_difference(run_a, run_b).is_empty()
    half_a, half_b = two_runs(tmp_path / "half", A, nothing)
    row = agreement(half_a, half_b).row(0, named=True)
    assert (row["set_overlap"], row["set_overlap_chance"], row["n"]) == (0, 0, 4)
    assert load_difference(half_a, half_b).is_empty()


def test_one_expert_agrees_with_itself(tmp_path):
    one = np.zeros((50, 1), int)
    run_a, run_b = two_runs(tmp_path, one, one, n_experts=1, documents=np.arange(50) // 5)
    row = agreement(run_a, run_b).row(0, named=True)
    assert row["set_overlap"] == row["set_overlap_chance"] == 1
    assert load_difference(run_a, run_b)["share_a", "share_b", "q_value"].unique().rows() == [(1, 1, 1)]


def test_loads_that_moved_by_hand(tmp_path):
    run_a, run_b = two_runs(tmp_path, A, B)
    frame = load_difference(run_a, run_b)
    first = frame.filter(slot="0").sort("expert")
    assert first["assignments_a"].to_list() == [1, 1, 1, 1]
    assert first["assignments_b"].to_list() == [1, 2, 1, 0]
    assert first["difference"].to_list() == [0, 0.25, 0, -0.25]
    assert frame.filter(slot="any")["assignments_b"].to_list() == [2, 3, 2, 1]
    assert set(frame["uniform"]) == {0.25}
    assert set(frame["n"]) == {4}


def test_an_expert_that_takes_over_is_told_from_those_that_do_not_move(tmp_path):
    rng = np.random.default_rng(4)
    a = rng.integers(0, 3, (4000, 1))
    b = np.where((a == 0) & (rng.random((4000, 1)) < 0.2), 3, a)
    run_a, run_b = two_runs(tmp_path, a, b, documents=np.arange(4000) // 50)
    frame = load_difference(run_a, run_b).filter(slot="0")
    assert (frame["q_value"] < 0.05).to_list() == [True, False, False, True]
    assert frame["ci_low"][3] > 0
    assert frame["ci_high"][0] < 0
    few_a, few_b = two_runs(tmp_path / "few", a, b, documents=np.arange(4000) // 1000)
    few = load_difference(few_a, few_b)
    assert set(few["cluster_unit"]) == {"block"}
    assert few["q_value"].null_count() == few.height
    assert few["ci_low"].null_count() == 0


def _manifest(run, **facts):
    manifest = json.loads((run.path / schema.MANIFEST_FILE).read_text())
    (run.path / schema.MANIFEST_FILE).write_text(json.dumps(manifest | facts))
    return open_run(run.path)


def test_what_a_reader_must_know_is_said(tmp_path):
    many = {"documents": [0, 1, 2, 3, 4, 5], "scores": {0: (np.ones(6), np.ones(6))}}
    a = np.array([[0], [1], [2], [3], [0], [1]])
    run_a, run_b = two_runs(tmp_path, a, a, **many)
    assert comparison_warnings(run_a, run_b) == []
    other = _manifest(
        run_b,
        model={"name": "other", "revision": "main", "quantization": "4bit"},
        settings={"context": 8, "stride": 0},
    )
    models, windows = comparison_warnings(run_a, other)
    assert "by hand and other at main. Expert indices of different models cannot be compared" in models
    assert "unknown tokens with a stride of 0 and 8 tokens with a stride of 0" in windows
    quantised = _manifest(run_b, model={"name": "by hand", "quantization": "4bit"}, settings={})
    assert comparison_warnings(run_a, quantised) == []
    few_a, few_b = two_runs(tmp_path / "few", a, a)
    few, unscored = comparison_warnings(few_a, few_b)
    assert "fewer than 5 documents" in few
    assert "1 of 1 routers" in unscored


@pytest.fixture(scope="module")
def two_documents():
    """Two documents of the sample corpus."""
    return [
        mp.Document(name, (moe_probe_data.SAMPLE / name).read_text())
        for name in ("english/the_clock_on_the_stairs.txt", "python/word_count.py")
    ]


@pytest.fixture(scope="module")
def precisions(tmp_path_factory, two_documents):
    """The bundled model in 16 and in 4 bits over two documents."""
    folder = tmp_path_factory.mktemp("precisions")
    return [
        mp.trace(
            mp.load("tiny-mixtral", quantization=bits, device_map="cpu"),
            two_documents,
            folder / (bits or "16bit"),
            labels=(),
        )
        for bits in (None, "4bit")
    ]


def test_four_bits_turn_near_ties_of_the_bundled_model_and_leave_clear_decisions_alone(precisions):
    full, quantised = precisions
    frame = agreement(full, quantised)
    layers = frame.filter(decile="all")
    assert layers.height == len(full.routers) == 6
    assert (layers["set_overlap"] > 0.9).all()
    assert (layers["set_overlap"] < 1).any()
    assert (layers["set_overlap_ci_low"] > layers["set_overlap_chance"] + 0.4).all()
    near = frame.filter(decile="1").select("layer", near="set_overlap")
    clear = frame.filter(decile="10").select("layer", clear="set_overlap")
    both = near.join(clear, on="layer")
    assert (both["clear"] > both["near"]).all()
    assert (both["clear"] > 0.98).all()
    assert comparison_warnings(full, quantised) == [
        "There are fewer than 5 documents: intervals are over blocks of 256 tokens and hold for this text only."
    ]


def test_the_agreement_is_that_of_the_raw_experts(precisions):
    full, quantised = precisions
    far = full.tokens(["window_position"])["window_position"].to_numpy() >= 4
    for row in agreement(full, quantised).filter(decile="all").iter_rows(named=True):
        a, b = (run.experts(router=row["router"])[far] for run in precisions)
        shared = np.mean([len({*x} & {*y}) / 2 for x, y in zip(a.tolist(), b.tolist(), strict=True)])
        assert row["set_overlap"] == pytest.approx(shared)
        assert row["first_choice"] == pytest.approx(np.mean(a[:, 0] == b[:, 0]))
        assert row["n"] == far.sum()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bundled model over the sample corpus, as the earlier checkpoints were traced."""
    lm = mp.load("tiny-mixtral", dtype="float32", device_map="cpu")
    return mp.trace(lm, [moe_probe_data.SAMPLE], tmp_path_factory.mktemp("trained") / "run", labels=("domain",))


def test_routers_saturate_while_the_bundled_model_is_trained(trained):
    earlier = [open_run(path) for path in sorted(moe_probe_data.CHECKPOINT_RUNS.iterdir())]
    frame = saturation(earlier, trained)
    assert frame.schema == schema_of(SATURATION_COLUMNS)
    assert frame["run"].unique(maintain_order=True).to_list() == [run.path.name for run in earlier]
    assert set(frame["cluster_unit"]) == {"document"}
    assert has_no_nan(frame)
    by_layer = frame.sort("checkpoint").group_by("layer").agg("set_overlap", "set_overlap_chance")
    for row in by_layer.iter_rows(named=True):
        assert row["set_overlap"] == sorted(row["set_overlap"])
        assert row["set_overlap"][0] > row["set_overlap_chance"][0]
    last = agreement(earlier[-1], trained).filter(decile="all")
    assert last["set_overlap"].to_list() == frame.filter(checkpoint=3)["set_overlap"].to_list()
    (warning,) = comparison_warnings(earlier[0], trained)
    assert "step-000060 and tiny-mixtral" in warning
    with pytest.raises(BadInputError, match="at least one run"):
        saturation([], trained)
