from __future__ import annotations

import csv
import hashlib

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run
from surprisal_runs import with_surprisal

import moe_probe as mp
import moe_probe_data
from moe_probe.comparing import compare_runs, write_saturation
from moe_probe.errors import BadInputError
from moe_probe.store import open_run
from moe_probe.tables.between import agreement, load_difference, saturation
from moe_probe.tables.surprisal import surprisal_difference

HOSTILE = "=1+1<script>alert(1)</script>"


def two_runs(folder, n_tokens=600, **facts):
    """Two runs of two routers that disagree on a tenth of the second slots."""
    rng = np.random.default_rng(0)
    orders = [np.argsort(rng.random((n_tokens, 6)), axis=1) for _ in range(2)]
    flipped = rng.random((n_tokens, 1)) < 0.1
    a = [order[:, :2] for order in orders]
    b = [np.where(flipped, order[:, [0, 2]], order[:, :2]) for order in orders]
    facts = {
        "n_experts": 6,
        "documents": np.arange(n_tokens) // 30,
        "labels": {
            "upos": np.array(["NOUN", "VERB"])[rng.integers(0, 2, n_tokens)],
            "domain": np.array([HOSTILE, "law"])[np.arange(n_tokens) // 300],
        },
        "word_level": ["upos"],
        "scores": {router: (np.ones(n_tokens), rng.random(n_tokens)) for router in range(2)},
    } | facts
    return write_run(folder / "full", a, **facts), write_run(folder / "quantised", b, **facts)


def test_a_comparison_is_tables_their_dictionary_and_a_page(tmp_path):
    run_a, run_b = two_runs(tmp_path)
    paths = compare_runs(run_a, run_b, tmp_path / "new" / "out")
    names = [path.name for path in paths]
    assert names == [
        "agreement.csv",
        "agreement_by_upos.csv",
        "agreement_by_domain.csv",
        "load_difference.csv",
        "columns.csv",
        "compare.html",
    ]
    assert all(path.parent == tmp_path / "new" / "out" for path in paths)
    whole = pl.read_csv(paths[0])
    expected = agreement(run_a, run_b, by="upos")
    assert whole.height == 2 * 11
    assert whole["set_overlap"].to_list() == pytest.approx(expected.filter(label_set="all")["set_overlap"].to_list())
    by_tag = pl.read_csv(paths[1])
    assert by_tag["label"].to_list() == ["NOUN", "VERB"] * 2
    assert by_tag["n"].to_list() == expected.filter(label_set="upos")["n"].to_list()
    moved = pl.read_csv(paths[3])
    assert moved["difference"].to_list() == pytest.approx(load_difference(run_a, run_b)["difference"].to_list())
    dictionary = pl.read_csv(paths[4])
    for path in paths[:4]:
        told = dictionary.filter(table=path.stem)
        assert told["name"].to_list() == pl.read_csv(path).columns
        assert told["definition"].null_count() == 0


def test_a_label_acts_neither_in_a_spreadsheet_nor_on_the_page(tmp_path):
    *_, by_domain, _, _, page = compare_runs(*two_runs(tmp_path), tmp_path / "out")
    with by_domain.open(newline="") as file:
        labels = {row["label"] for row in csv.DictReader(file)}
    assert labels == {f'"{HOSTILE}"', "law"}
    text = page.read_text()
    assert "<script>alert" not in text
    assert "=1+1&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_the_page_says_what_was_compared_how_much_and_how_sure(tmp_path):
    run_a, run_b = two_runs(tmp_path)
    text = compare_runs(run_a, run_b, tmp_path / "out")[-1].read_text()
    worst = agreement(run_a, run_b).filter(decile="all").sort("set_overlap").row(0, named=True)
    said = f"{worst['set_overlap']:.1%} ({worst['set_overlap_ci_low']:.1%} to {worst['set_overlap_ci_high']:.1%})"
    assert said in text
    assert f"(chance {worst['set_overlap_chance']:.1%})" in text
    assert "600 tokens" in text
    for title in ("Agreement by layer", "Agreement by margin", "Agreement by upos", "Agreement by domain", "Load"):
        assert f"<h2>{title}</h2>" in text
    assert "Expert indices of different models" not in text
    assert len(text) < 5 * 2**20


def test_the_same_runs_give_the_same_bytes(tmp_path):
    runs = two_runs(tmp_path)
    digests = [
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in compare_runs(*runs, tmp_path / name)]
        for name in ("one", "two", "one")
    ]
    assert digests[0] == digests[1] == digests[2]


def test_runs_with_few_documents_without_margins_and_labels_say_so(tmp_path):
    run_a, run_b = two_runs(tmp_path, n_tokens=40, scores={}, labels={})
    paths = compare_runs(run_a, run_b, tmp_path / "out")
    assert [path.name for path in paths] == ["agreement.csv", "load_difference.csv", "columns.csv", "compare.html"]
    text = paths[-1].read_text()
    assert "fewer than 5 documents" in text
    assert "The first run has no margins" in text


def test_runs_without_a_token_say_that_there_is_not_enough_data(tmp_path):
    run_a, run_b = two_runs(tmp_path, n_tokens=0)
    paths = compare_runs(run_a, run_b, tmp_path / "out")
    assert "Not enough data" in paths[-1].read_text()
    assert pl.read_csv(paths[0]).is_empty()


def test_a_comparison_is_refused_before_anything_is_written(tmp_path):
    run_a, run_b = two_runs(tmp_path)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(BadInputError, match="file: a comparison is written to a folder, and this is a file"):
        compare_runs(run_a, run_b, file)
    with pytest.raises(BadInputError, match="quantised: this is one of the runs; choose another folder"):
        compare_runs(run_a, run_b, run_b.path)
    other = write_run(tmp_path / "other", [np.zeros((600, 2), int)] * 2, n_experts=6)
    with pytest.raises(BadInputError, match="of different text"):
        compare_runs(run_a, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert file.read_text() == "mine"


def test_where_both_runs_have_surprisal_its_change_is_written_and_shown(tmp_path):
    run_a, run_b = two_runs(tmp_path)
    rng = np.random.default_rng(1)
    bits = rng.exponential(4, 600)
    run_a = with_surprisal(run_a, bits)
    one_sided = compare_runs(run_a, run_b, tmp_path / "one-sided")
    assert "surprisal.csv" not in [path.name for path in one_sided]
    assert "<h2>Surprisal</h2>" not in one_sided[-1].read_text()
    run_b = with_surprisal(run_b, bits + rng.normal(0.2, 0.1, 600))
    paths = compare_runs(run_a, run_b, tmp_path / "out")
    assert [path.name for path in paths[-4:]] == ["load_difference.csv", "surprisal.csv", "columns.csv", "compare.html"]
    written = pl.read_csv(paths[-3])
    expected = surprisal_difference(run_a, run_b, by=["upos", "domain"])
    assert written["n"].to_list() == expected["n"].to_list()
    assert written["difference"].to_list() == pytest.approx(expected["difference"].to_list())
    assert written["label"].to_list() == ["all", "NOUN", "VERB", f'"{HOSTILE}"', "law"]
    assert pl.read_csv(paths[-2]).filter(table="surprisal")["name"].to_list() == written.columns
    text = paths[-1].read_text()
    assert "<h2>Surprisal</h2>" in text
    assert "<script>alert" not in text
    row = expected.row(0, named=True)
    assert row["ci_low"] > 0.18
    assert f"{row['difference']:+.4f}" in text
    assert f"{row['ci_low']:+.4f}" in text


def test_surprisal_without_labels_is_one_row_on_the_page(tmp_path):
    run_a, run_b = two_runs(tmp_path, labels={})
    runs = [with_surprisal(run, np.full(600, bits)) for run, bits in ((run_a, 1.0), (run_b, 1.5))]
    *_, table, _, page = compare_runs(*runs, tmp_path / "out")
    assert pl.read_csv(table)["difference"].to_list() == [0.5]
    assert "+0.5000" in page.read_text()


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """The committed runs of the bundled model's earlier checkpoints, and a run of the model itself."""
    lm = mp.load("tiny-mixtral", dtype="float32", device_map="cpu")
    last = mp.trace(lm, [moe_probe_data.SAMPLE], tmp_path_factory.mktemp("training") / "last", labels=("domain",))
    return [open_run(path) for path in sorted(moe_probe_data.CHECKPOINT_RUNS.iterdir())], last


def test_saturation_over_training_is_a_table_its_dictionary_and_a_page(tmp_path, training):
    runs, last = training
    paths = write_saturation(runs, last, tmp_path / "new" / "out")
    assert [path.name for path in paths] == ["saturation.csv", "columns.csv", "saturation.html"]
    frame = pl.read_csv(paths[0])
    expected = saturation(runs, last)
    assert frame["set_overlap"].to_list() == pytest.approx(expected["set_overlap"].to_list())
    assert frame["step"].unique(maintain_order=True).to_list() == [60, 300, 900, 1800]
    assert pl.read_csv(paths[1])["name"].to_list() == frame.columns
    for (_,), layer in frame.group_by("layer"):
        overlap = layer.sort("step")["set_overlap"].to_list()
        assert overlap == sorted(overlap)
    text = paths[2].read_text()
    first = frame.filter(step=60).sort("set_overlap").row(0, named=True)
    assert "At step 60, the first checkpoint given" in text
    assert f"{first['set_overlap']:.1%} (layer {first['layer']}, chance {first['set_overlap_chance']:.1%})" in text
    assert "right for checkpoints of one training" in text
    again = write_saturation(runs, last, tmp_path / "again")
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_saturation_of_runs_without_steps_tokens_or_many_documents_says_so(tmp_path):
    experts = np.array([[0], [1], [2], [3], [0], [1]])
    runs = [write_run(tmp_path / name, [experts]) for name in ("early", "late")]
    *_, page = write_saturation(runs[:1], runs[1], tmp_path / "out")
    text = page.read_text()
    assert "At early, the first checkpoint given" in text
    assert "fewer than 5 documents" in text
    assert "windows differ" not in text
    for run, context in zip(runs, (512, 1024), strict=True):
        run.manifest["settings"] = {"context": context}
        run.manifest["warnings"] = ["read me"]
    text = write_saturation(runs[:1], runs[1], tmp_path / "out")[-1].read_text()
    assert "The windows differ (1024, 512 tokens)" in text
    assert "early: read me" in text
    empty = [write_run(tmp_path / f"empty {name}", [experts[:0]]) for name in ("early", "late")]
    table, _, page = write_saturation(empty[:1], empty[1], tmp_path / "empty out")
    assert pl.read_csv(table).is_empty()
    assert "Not enough data" in page.read_text()


def test_saturation_is_refused_before_anything_is_written(tmp_path):
    run = write_run(tmp_path / "run", [np.zeros((9, 1), int)])
    with pytest.raises(BadInputError, match="at least one run"):
        write_saturation([], run, tmp_path / "out")
    other = write_run(tmp_path / "other", [np.zeros((9, 1), int)])
    for out in (run, other):
        with pytest.raises(BadInputError, match=f"{out.path.name}: this is one of the runs"):
            write_saturation([run], other, out.path)
    assert not (tmp_path / "out").exists()
