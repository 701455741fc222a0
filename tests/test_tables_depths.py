from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.errors import BadInputError
from moe_probe.measures.cells import cell_estimates
from moe_probe.tables import depths
from moe_probe.tables.columns import schema_of
from moe_probe.tables.depths import PATH_COLUMNS, TRANSITION_COLUMNS, paths, transitions


def has_no_nan(frame: pl.DataFrame) -> bool:
    return not any(frame[name].is_nan().any() for name, dtype in frame.schema.items() if dtype == pl.Float64)


def chained(n_tokens: int = 3000, stay: float = 0.5) -> list[np.ndarray]:
    """Three routers of four experts; a token keeps its expert in half of the steps."""
    rng = np.random.default_rng(0)
    choices = [rng.integers(0, 4, n_tokens)]
    for _ in range(2):
        choices.append(np.where(rng.random(n_tokens) < stay, choices[-1], rng.integers(0, 4, n_tokens)))
    return [choice[:, None] for choice in choices]


def test_transitions_counted_by_hand(tmp_path):
    experts = [np.array([[0, 1], [0, 2], [1, 0], [-1, -1], [1, 3]]), np.array([[1, 0], [1, 2], [1, 0], [0, 1], [0, 3]])]
    frame = transitions(write_run(tmp_path / "run", experts, layers=[2, 5]))
    assert frame.columns == list(schema_of(TRANSITION_COLUMNS))
    assert frame.select("layer", "router", "next_layer", "next_router", "expert", "next_expert", "tokens").rows() == [
        (2, 0, 5, 1, 0, 1, 2), (2, 0, 5, 1, 1, 0, 1), (2, 0, 5, 1, 1, 1, 1),
    ]  # fmt: skip
    assert frame["p"].to_list() == [1, 0.5, 0.5]
    assert frame["expected"].to_list() == [1.5, 0.5, 1.5]
    assert frame["lift"].to_list() == [2 / 1.5, 2, 1 / 1.5]
    assert set(frame["n"]) == {4}


def test_transitions_have_the_interval_of_their_table(tmp_path):
    experts = chained()
    places = np.arange(3000) % 50
    run = write_run(tmp_path / "run", experts, documents=np.arange(3000) // 50, window_position=places)
    frame = transitions(run)
    assert frame.height == 2 * 16
    clusters = depths.load_rows(run).frame["cluster"].to_numpy()
    kept = places >= 4
    table = np.zeros((64, 4, 4), dtype=np.int64)
    np.add.at(table, (clusters[kept], experts[1][kept, 0], experts[2][kept, 0]), 1)
    cells = cell_estimates(table)
    second = frame.filter(router=1)
    assert second["tokens"].to_list() == table.sum(axis=0).ravel().tolist()
    assert second["ci_low"].to_list() == pytest.approx(cells.low.ravel().tolist())
    assert second["ci_high"].to_list() == pytest.approx(cells.high.ravel().tolist())
    stays = frame.filter(pl.col("expert") == pl.col("next_expert"))
    assert (stays["ci_low"] > 1.5).all()
    assert (stays["q_value"] < 1e-6).all()


def test_cells_with_nothing_seen_and_little_expected_are_left_out(tmp_path):
    first = np.array([0] * 90 + [1] * 10)[:, None]
    second = np.array([0] * 85 + [1] * 5 + [0] * 10)[:, None]
    frame = transitions(write_run(tmp_path / "run", [first, second]))
    # 1 to 1 was never seen and half a token is expected.
    assert frame.select("expert", "next_expert").rows() == [(0, 0), (0, 1), (1, 0)]
    repelled = np.array([0] * 50 + [1] * 50)[:, None]
    kept = transitions(write_run(tmp_path / "apart", [repelled, 1 - repelled]))
    assert kept.filter(tokens=0)["expected"].to_list() == [25.0, 25.0]
    assert kept.filter(tokens=0)["lift"].to_list() == [0.0, 0.0]


def test_large_routers_have_counts_without_intervals(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", chained(), documents=np.arange(3000) // 50)
    whole = transitions(run)
    monkeypatch.setattr(depths, "MOST_CELLS", 15)
    bare = transitions(run)
    assert bare["tokens"].to_list() == whole["tokens"].to_list()
    for name in ("ci_low", "ci_high", "q_value"):
        assert bare[name].null_count() == bare.height
        assert whole[name].null_count() == 0


def test_of_a_long_run_all_is_counted_and_intervals_are_of_a_part(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", chained(), documents=np.arange(3000) // 50)
    whole = transitions(run)
    load_rows = depths.load_rows
    monkeypatch.setattr(depths, "load_rows", lambda run, *columns: load_rows(run, *columns, most_tokens=1000))
    part = transitions(run)
    assert part.select("tokens", "lift", "n").equals(whole.select("tokens", "lift", "n"))
    widths = [np.log(frame["ci_high"] / frame["ci_low"]).mean() for frame in (part, whole)]
    assert widths[0] > 1.3 * widths[1]
    middle = np.sqrt(part["ci_low"] * part["ci_high"])
    assert middle.to_list() == pytest.approx(whole["lift"].to_list())


def test_paths_counted_by_hand_with_their_text(tmp_path):
    experts = [np.array([[0], [0], [1], [1], [0]]), np.array([[2], [2], [3], [3], [3]])]
    words = ["The", " cat", " sat", "\n", " on⟦it"]
    frame = paths(write_run(tmp_path / "run", experts, token=words, layers=[4, 6]))
    assert frame.columns == list(schema_of(PATH_COLUMNS))
    assert frame.select("first_layer", "last_layer", "path", "tokens", "share", "n").rows() == [
        (4, 6, "0>2", 2, 0.4, 5), (4, 6, "1>3", 2, 0.4, 5), (4, 6, "0>3", 1, 0.2, 5),
    ]  # fmt: skip
    assert frame["expected_if_independent"].to_list() == pytest.approx([5 * 0.6 * 0.4, 5 * 0.4 * 0.6, 5 * 0.6 * 0.6])
    assert frame["rank_by_count"].to_list() == [1, 2, 3]
    assert frame["rank_by_lift"].to_list() == [None] * 3  # none has ten tokens
    assert frame["example"].to_list() == ["⟦The⟧ cat sat on[it", "The cat ⟦sat⟧ on[it", "The cat sat ⟦on[it⟧"]


def test_an_example_stays_in_its_document_and_is_short(tmp_path):
    words = [f" w{number}" for number in range(60)]
    experts = [np.array([[0]] * 30 + [[1]] + [[2]] * 29)]
    run = write_run(tmp_path / "run", experts, token=words, documents=[0] * 30 + [1] * 30)
    examples = dict(paths(run).select("path", "example").rows())
    assert examples["1"].startswith("⟦w30⟧ w31")
    assert all(len(text) < 90 for text in examples.values())
    space = write_run(tmp_path / "space", [np.array([[0], [1], [2]])], token=["a", "\n", "b"])
    assert dict(paths(space).select("path", "example").rows())["1"] == "a⟦⏎⟧b"


def test_the_top_by_count_and_by_lift(tmp_path):
    rng = np.random.default_rng(0)
    usual = np.where(rng.random((2000, 2)) < 0.95, 0, 1)
    choices = np.concatenate([usual, np.full((15, 2), 2)])
    run = write_run(tmp_path / "run", [choices[:, :1], choices[:, 1:]], documents=np.sort(rng.integers(0, 40, 2015)))
    frame = paths(run, top=1)
    assert frame.select("path", "rank_by_count", "rank_by_lift").rows() == [("0>0", 1, None), ("2>2", None, 1)]
    assert frame["lift"][1] == pytest.approx(2015 / 15)
    assert (frame["share_ci_low"] < frame["share"]).all()
    assert (frame["share"] < frame["share_ci_high"]).all()


def test_paths_through_some_layers(tmp_path):
    run = write_run(tmp_path / "run", chained(), layers=[1, 3, 5])
    whole, part, one = paths(run), paths(run, layers=[3, 5]), paths(run, layers=[5])
    assert (whole["path"][0].count(">"), part["path"][0].count(">"), one["path"][0]) == (2, 1, one["path"][0][0])
    assert set(part["first_layer"]) | set(part["last_layer"]) == {3, 5}
    assert one["lift"].to_list() == pytest.approx([1.0] * 4)
    for layers, message in (
        ([], r"layers \[\]: choose from those that the run has a router in: \[1, 3, 5\]"),
        ([2], r"layers \[2\]: choose from"),
        ([1, 5], r"layers \[1, 5\]: a path leaves out no router on its way; add the layers \[3\]"),
    ):
        with pytest.raises(BadInputError, match=message):
            paths(run, layers=layers)
    with pytest.raises(BadInputError, match="top 0: keep 1 path or more"):
        paths(run, top=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("experts", "heights"),
    [
        ([], (0, 0)),
        ([np.zeros((0, 2), int)] * 2, (0, 0)),
        ([np.array([[1, 0]])] * 2, (1, 1)),
        ([np.full((9, 2), -1)] * 2, (0, 0)),
        ([np.zeros((9, 1), int)] * 2, (1, 1)),
        ([np.array([[0, 1]] * 9)], (0, 1)),
    ],
    ids=["no router", "empty", "one token", "all dropped", "one expert", "one router"],
)
def test_runs_with_little_in_them_have_nulls_or_no_rows(tmp_path, experts, heights):
    run = write_run(tmp_path / "run", experts)
    frames = transitions(run), paths(run)
    assert tuple(frame.height for frame in frames) == heights
    assert all(has_no_nan(frame) for frame in frames)
    for frame in frames:
        assert frame["ci_low"].null_count() == frame.height
        assert frame["lift"].to_list() == pytest.approx([1.0] * frame.height)
