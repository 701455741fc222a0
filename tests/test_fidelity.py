from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
import torch
from hand_made_runs import write_run
from scipy import stats
from surprisal_runs import with_surprisal

import moe_probe as mp
import moe_probe_data
from moe_probe.counts import load_rows
from moe_probe.errors import BadInputError, ModelTooLargeError
from moe_probe.models.fit import estimate
from moe_probe.store import open_run
from moe_probe.tables.all_layers import ALL_LAYERS_COLUMNS, agreement_over_layers
from moe_probe.tables.between import agreement_table, training_step
from moe_probe.tables.columns import schema_of
from moe_probe.tables.paired import pair_runs
from moe_probe.tables.surprisal import SURPRISAL_COLUMNS, surprisal_difference

MEASURES = ("set_overlap", "first_choice", "exact_set")
ONE = np.zeros((6, 1), int)


def two_runs(folder, bits_a, bits_b, **facts):
    """Two runs of one router that differ in their surprisal alone."""
    experts = [np.zeros((len(bits_a), 1), int)]
    return [
        with_surprisal(write_run(folder / name, experts, **facts), bits)
        for name, bits in (("a", bits_a), ("b", bits_b))
    ]


# What quantisation costs in surprisal


def test_six_tokens_by_hand(tmp_path):
    runs = two_runs(tmp_path, [1, 2, 3, 4, 5, 6], [1.5, 2, 3, 5, 5, 6], labels={"upos": ["NOUN", "VERB"] * 3})
    frame = surprisal_difference(*runs, by="upos")
    assert frame.schema == schema_of(SURPRISAL_COLUMNS)
    rows = frame["label_set", "label", "tokens", "surprisal_a", "surprisal_b", "difference", "n"].rows()
    assert rows == [
        ("all", "all", "all", 3.5, 3.75, 0.25, 6),
        ("upos", "NOUN", "word_initial", 3.0, pytest.approx(19 / 6), pytest.approx(1 / 6), 3),
        ("upos", "VERB", "word_initial", 4.0, pytest.approx(13 / 3), pytest.approx(1 / 3), 3),
    ]
    assert set(frame["cluster_unit"]) == {"block"}
    assert frame["ci_low"].null_count() == 3  # one document: one block, which says nothing of others
    assert frame["q_value"].null_count() == 3


def test_the_interval_is_that_of_a_regression_with_errors_clustered_by_document(tmp_path):
    rng = np.random.default_rng(0)
    document = np.repeat(np.arange(40), 30)
    base = rng.exponential(5, 1200)
    change = rng.normal(0.05, 0.2, 1200) + rng.normal(0, 0.1, 40)[document]
    labels = {"domain": np.where(document % 3 == 0, "law", "prose")}
    runs = two_runs(tmp_path, base, base + change, documents=document, labels=labels, word_level=[])
    clusters = load_rows(runs[0]).frame["cluster"].to_numpy()
    frame = surprisal_difference(*runs, by="domain")
    assert frame["label"].to_list() == ["all", "law", "prose"]
    for row in frame.iter_rows(named=True):
        kept = np.ones(1200, bool) if row["label"] == "all" else labels["domain"] == row["label"]
        stored = (np.float32(base + change) - np.float32(base).astype(float))[kept]
        fit = sm.OLS(stored, np.ones(stored.size)).fit(cov_type="cluster", cov_kwds={"groups": clusters[kept]})
        sizes = np.array(list(Counter(clusters[kept].tolist()).values()))
        t = stats.t.ppf(0.975, sizes.sum() ** 2 / (sizes**2).sum() - 1)
        assert row["difference"] == pytest.approx(fit.params[0])
        assert row["ci_low"] == pytest.approx(fit.params[0] - t * fit.bse[0])
        assert row["ci_high"] == pytest.approx(fit.params[0] + t * fit.bse[0])
    # Tokens differ by 5 bits, which both runs share: unpaired, nothing could be said.
    assert (frame["ci_high"] - frame["ci_low"] < 0.2).all()


def test_a_run_beside_itself_costs_nothing_for_certain(tmp_path):
    run, _ = two_runs(tmp_path, np.arange(60.0), np.arange(60.0), documents=np.arange(60) // 6)
    (row,) = surprisal_difference(run, run).to_dicts()
    assert (row["difference"], row["ci_low"], row["ci_high"], row["q_value"]) == (0, 0, 0, 1)


def test_tokens_whose_surprisal_is_unknown_in_either_run_are_left_out(tmp_path):
    nan = np.nan
    runs = two_runs(tmp_path, [nan, 2, 3, 4, 5, 6], [9, nan, 4, 4, 5, 9], window_position=[5, 6, 7, 8, 9, 3])
    (row,) = surprisal_difference(*runs).to_dicts()
    assert (row["n"], row["difference"]) == (3, pytest.approx(1 / 3))
    nothing = two_runs(tmp_path / "nothing", [nan] * 6, [1] * 6)
    assert surprisal_difference(*nothing).is_empty()
    empty = two_runs(tmp_path / "empty", [], [])
    assert surprisal_difference(*empty).is_empty()


def test_a_label_of_one_document_has_no_interval_though_others_have(tmp_path):
    document = np.arange(300) // 30
    rng = np.random.default_rng(1)
    labels = {"domain": np.where(document == 4, "law", "prose")}
    runs = two_runs(tmp_path, np.ones(300), 1 + rng.random(300), documents=document, labels=labels, word_level=[])
    frame = surprisal_difference(*runs, by="domain")
    known = dict(frame.select("label", pl.col("ci_low").is_not_null() & pl.col("q_value").is_not_null()).rows())
    assert known == {"all": True, "law": False, "prose": True}
    assert not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def test_shards_of_other_sizes_cost_the_same(tmp_path):
    rng = np.random.default_rng(2)
    bits = rng.random((2, 300))
    facts = {"documents": np.arange(300) // 30}
    whole = surprisal_difference(*two_runs(tmp_path / "whole", *bits, **facts))
    cut_a, _ = two_runs(tmp_path / "cut a", *bits, **facts, shard_rows=70)
    _, cut_b = two_runs(tmp_path / "cut b", *bits, **facts, shard_rows=110)
    assert surprisal_difference(cut_a, cut_b).equals(whole)


def test_a_run_without_surprisal_is_refused_by_name(tmp_path):
    bare = write_run(tmp_path / "bare", [ONE])
    with pytest.raises(BadInputError, match=r"bare: has no surprisal; trace it again with surprisal=True"):
        surprisal_difference(bare, bare)


# All layers together


def layered(folder, n_tokens=800, seed=0):
    """Two runs of two routers, 3 of 6 and 1 of 4 experts, the second of which drops tokens; documents err together."""
    rng = np.random.default_rng(seed)
    document = np.arange(n_tokens) // 40
    orders = [np.argsort(rng.random((n_tokens, n)), axis=1) for n in (6, 4)]
    flipped = rng.random(n_tokens) < np.where(document % 4 == 0, 0.5, 0.05)
    a = [orders[0][:, :3], orders[1][:, :1]]
    b = [np.where(flipped[:, None], orders[0][:, [0, 1, 4]], a[0]), np.where(flipped[:, None], orders[1][:, 1:2], a[1])]
    dropped = rng.random(n_tokens) < 0.3
    for experts in (a[1], b[1]):
        experts[dropped] = -1
    facts = {
        "n_experts": [6, 4],
        "documents": document,
        "labels": {"upos": np.array(["NOUN", "VERB", "untagged"])[rng.integers(0, 3, n_tokens)]},
        "scores": {router: (np.ones(n_tokens), rng.random(n_tokens)) for router in (0, 1)},
    }
    return write_run(folder / "a", a, **facts), write_run(folder / "b", b, **facts)


def test_all_layers_together_are_what_counting_every_decision_gives(tmp_path):
    pair = pair_runs(*layered(tmp_path), ["upos"])
    by_layer = agreement_table(pair, ["upos"])
    frame = agreement_over_layers(pair, by_layer, ["upos"])
    assert frame.schema == schema_of(ALL_LAYERS_COLUMNS)
    assert frame["label", "decile"].rows() == [
        ("all", "all"),
        *(("all", str(decile)) for decile in range(1, 11)),
        ("NOUN", "all"),
        ("VERB", "all"),
    ]
    assert set(frame["routers"]) == {2}
    tags = pair.tokens["upos"].cast(pl.String).to_numpy()
    deciles = [np.ceil(stats.rankdata(pair.margins(router)) / 80) for router in pair.run_a.routers]
    for row in frame.iter_rows(named=True):
        shared = slots = first = exact = n = 0
        for router, decile in zip(pair.run_a.routers, deciles, strict=True):
            for token, (a, b) in enumerate(zip(*(one.tolist() for one in pair.experts(router)), strict=True)):
                if row["label"] not in ("all", tags[token]) or row["decile"] not in ("all", f"{decile[token]:.0f}"):
                    continue
                if a[0] < 0:
                    continue
                shared, slots, n = shared + len({*a} & {*b}), slots + len(a), n + 1
                first, exact = first + (a[0] == b[0]), exact + ({*a} == {*b})
        # Float16 margins tie at the ends of deciles, where one decision more or less is all that may differ.
        few = 0.02 if row["decile"] != "all" else 1e-12
        assert row["n"] == pytest.approx(n, abs=3 if row["decile"] != "all" else 0)
        found = [row[name] for name in MEASURES]
        assert found == pytest.approx([shared / slots, first / n, exact / n], abs=few)
        own = by_layer.filter(label=row["label"], decile=row["decile"], label_set=row["label_set"])
        for name in MEASURES:
            mean = np.average(own[f"{name}_chance"], weights=own["n"])
            assert row[f"{name}_chance"] == pytest.approx(mean)


def test_layers_that_err_together_do_not_narrow_the_interval(tmp_path):
    a, b = layered(tmp_path)
    experts = [run.experts(router=0) for run in (a, b)]
    facts = {"n_experts": 6, "documents": np.arange(800) // 40}
    frames = []
    for copies in (1, 4):
        runs = [write_run(tmp_path / f"{copies} {name}", [experts[name]] * copies, **facts) for name in (0, 1)]
        pair = pair_runs(*runs)
        frames.append(agreement_over_layers(pair, agreement_table(pair)))
    for name in ("set_overlap", "exact_set"):
        for end in ("", "_chance", "_ci_low", "_ci_high"):
            assert frames[0][f"{name}{end}"].item() == pytest.approx(frames[1][f"{name}{end}"].item())
    assert frames[1]["n"].item() == 4 * frames[0]["n"].item()


def test_runs_without_routers_or_tokens_have_no_rows_over_all_layers(tmp_path):
    empty = [write_run(tmp_path / name, [np.zeros((0, 2), int)]) for name in ("a", "b")]
    bare = [write_run(tmp_path / f"bare {name}", []) for name in ("a", "b")]
    for runs in (empty, bare):
        pair = pair_runs(*runs)
        assert agreement_over_layers(pair, agreement_table(pair)).is_empty()


@pytest.mark.parametrize(
    ("folder", "model", "revision", "step"),
    [
        ("step-000060", "step-000300", None, 60),
        ("run", "checkpoints/step_900", None, 900),
        ("run", "org/model", "step5000-tokens20B", 5000),
        ("run", "tiny-mixtral", None, None),
        ("footsteps", "org/model", "main", None),
    ],
)
def test_the_step_of_a_checkpoint_is_read_from_its_names(tmp_path, folder, model, revision, step):
    run = write_run(tmp_path / folder, [ONE])
    run.manifest["model"] = {"name": model, "revision": revision}
    assert training_step(run) == step


# The study itself


@pytest.fixture(scope="module")
def study():
    """The benchmark, as a module."""
    path = Path(__file__).parent.parent / "benchmarks/quantisation_fidelity.py"
    spec = importlib.util.spec_from_file_location("quantisation_fidelity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def studied(study, tmp_path_factory):
    """The folder of a study of the bundled model over 600 tokens of the sample."""
    out = tmp_path_factory.mktemp("study") / "out"
    study.main(
        ["tiny-mixtral", str(moe_probe_data.SAMPLE), "--max-tokens", "600", "--device-map", "cpu", "--out", str(out)]
    )
    return out


def test_the_study_writes_what_the_runs_that_it_kept_say(studied):
    full, eight, four = (open_run(studied / "runs" / name) for name in ("unquantised", "8bit", "4bit"))
    assert all(run.complete and run.n_tokens == 600 for run in (full, eight, four))
    agreed = pl.read_csv(studied / "agreement.csv")
    foretold = pl.read_csv(studied / "surprisal.csv")
    held = pl.read_csv(studied / "precision.csv").filter(part="experts")
    assert held["precision", "dtype"].rows() == [("unquantised", "float32"), ("8bit", "int8"), ("4bit", "nf4")]
    far = full.tokens(["window_position"])["window_position"].to_numpy() >= 4
    bits = full.tokens(["surprisal"])["surprisal"].to_numpy()[far]
    for name, run in (("8bit", eight), ("4bit", four)):
        rows = agreed.filter(precision=name)
        assert set(rows["expert_bits"]) == set(held.filter(precision=name)["bits_per_parameter"])
        assert rows["layer"].drop_nulls().n_unique() == len(full.routers)
        (total,) = rows.filter(pl.col("layer").is_null(), label_set="all", decile="all").to_dicts()
        same = [full.experts(router=r.index)[far, 0] == run.experts(router=r.index)[far, 0] for r in full.routers]
        assert total["first_choice"] == pytest.approx(np.mean(same))
        assert total["n"] == far.sum() * len(full.routers)
        assert {"all", "upos", "domain"} == set(rows["label_set"])
        assert total["set_overlap"] > total["set_overlap_chance"] + 0.4
        change = run.tokens(["surprisal"])["surprisal"].to_numpy()[far] - bits
        of_all = foretold.filter(precision=name, label="all").row(0, named=True)
        assert of_all["difference"] == pytest.approx(change.mean(), abs=1e-6)
        assert of_all["n"] == far.sum()
    eight_total, four_total = (
        agreed.filter(pl.col("layer").is_null(), precision=name, label_set="all", decile="all")["set_overlap"].item()
        for name in ("8bit", "4bit")
    )
    assert four_total < eight_total < 1
    told = pl.read_csv(studied / "columns.csv")
    for table, frame in (("agreement", agreed), ("surprisal", foretold)):
        assert set(told.filter(table=table)["name"]) == set(frame.columns)


def test_the_study_goes_on_with_runs_that_are_there_and_prints_every_part(study, studied, capsys):
    shards = sorted(studied.glob("runs/*/routing/*"))
    before = [path.stat().st_mtime_ns for path in shards]
    tables = {path.name: path.read_bytes() for path in studied.glob("*.csv")}
    study.main(
        [
            *("tiny-mixtral", str(moe_probe_data.SAMPLE)),
            *("--max-tokens", "600", "--device-map", "cpu", "--out", str(studied)),
        ]
    )
    assert [path.stat().st_mtime_ns for path in shards] == before
    assert {path.name: path.read_bytes() for path in studied.glob("*.csv")} == tables
    said = capsys.readouterr().out
    for part in ("by layer", "all layers", "by tenth of the margin", "by upos", "by domain", "surprisal that it costs"):
        assert said.count(f"  {part}") >= 2
    assert "8bit: experts int8, 8.22 bits a parameter" in said
    assert "4bit: experts nf4, 4.13 bits a parameter" in said
    total = pl.read_csv(studied / "agreement.csv").filter(pl.col("layer").is_null(), precision="4bit", decile="all")[0]
    row = total.row(0, named=True)
    assert f"{row['set_overlap']:.1%} ({row['set_overlap_ci_low']:.1%} to {row['set_overlap_ci_high']:.1%})" in said


def test_what_does_not_fit_the_gpu_lies_in_main_memory_layer_by_layer(study):
    bare = study.skeleton("tiny-mixtral", torch.float32)
    need = estimate(bare, None)
    gpu = torch.device("cpu")  # stands for one
    everything = study.shuttled(bare, need, 100 * need.peak_bytes, gpu)
    assert set(everything.values()) == {gpu}
    half = study.shuttled(bare, need, need.peak_bytes * 0.75, gpu)
    layers = [place for path, place in half.items() if ".layers." in path]
    assert 0 < layers.count("cpu") < len(layers)
    assert layers == sorted(layers, key=lambda place: place == "cpu")  # the last ones
    assert all(place == gpu for path, place in half.items() if ".layers." not in path)
    on_gpu = sum(held.bytes for held in need.held if half[study.layer_of(held.name)] == gpu)
    assert on_gpu + need.layer_bytes <= 0.75 * need.peak_bytes
    # Every weight has its place: the loader takes the map.
    assert mp.load("tiny-mixtral", device_map=half).parts[0].dtype == "float32"


def test_the_plan_says_what_each_precision_takes_and_leaves_out_what_cannot_be_done(study, monkeypatch, capsys):
    bare = study.skeleton("tiny-mixtral", torch.float32)
    full, eight, four = (estimate(bare, quantization) for quantization in (None, "8bit", "4bit"))
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(study, "accelerators", lambda: [gpu])
    monkeypatch.setattr(study, "is_on_gpu", lambda device_map: False)
    monkeypatch.setattr(study, "free_bytes", lambda device: (eight.peak_bytes + four.peak_bytes) // 2)
    maps = study.plan("tiny-mixtral", "auto")
    assert set(maps) == {"unquantised", "4bit"}
    assert maps["4bit"] == "auto"
    assert set(maps["unquantised"].values()) == {gpu, "cpu"}
    said = capsys.readouterr().out.splitlines()
    assert f"{full.weight_bytes / 1e9:.2g} GB" in said[0]
    assert "layers in main memory, the others on cuda:0" in said[0]
    assert "left out, for only" in said[1]
    monkeypatch.setattr(study, "free_bytes", lambda device: 10)
    with pytest.raises(ModelTooLargeError, match="tiny-mixtral: neither 8 nor 4 bits fit"):
        study.plan("tiny-mixtral", "auto")


def test_a_study_that_cannot_be_made_ends_in_one_line(study, capsys):
    with pytest.raises(SystemExit) as stopped:
        study.main(["no such/model here"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no such/model here" in line
