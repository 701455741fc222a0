from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hand_made_runs import write_run

from moe_probe.charts import depth_lines
from moe_probe.errors import BadInputError
from moe_probe.tables.information import specialisation
from moe_probe.tables.words import vocabulary_summary


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 100, 3000)
    own = rng.integers(0, 3, 100)
    documents = np.arange(3000) // 150
    return write_run(
        tmp_path_factory.mktemp("depth") / "run",
        [np.where(rng.random(3000) < share, own[ids], 3)[:, None] for share in (0.3, 0.9)],
        labels={"upos": np.array(["NOUN", "VERB", "PUNCT"])[own[ids]]},
        token_id=ids,
        token=[f"w{number}" for number in ids],
        documents=documents,
        domains=["<b>prose</b>", "code"] * 10,
    )


def lines(figure):
    return [trace for trace in figure.data if trace.mode == "lines+markers"]


def test_only_the_rows_over_all_documents_are_drawn_unless_a_domain_is_asked_for(run):
    frame = specialisation(run)
    columns = ["type_level_bits", "without_punct_bits", "held_out_bits", "above_null_bits"]
    figure = depth_lines(frame, columns)
    assert [list(line.x) for line in lines(figure)] == [[0, 1]] * 4
    assert len(figure.data) == 8  # each with its band
    assert list(lines(figure)[1].y) == frame.filter(domain="all")["without_punct_bits"].to_list()
    within = depth_lines(frame, ["type_level_bits"], domain="code")
    assert list(lines(within)[0].y) == frame.filter(domain="code")["type_level_bits"].to_list()
    assert "within code" in within.layout.title.text
    assert "within" not in figure.layout.title.text


def test_a_domain_is_escaped_and_one_without_rows_says_so(run):
    frame = specialisation(run)
    assert "&lt;b&gt;prose" in depth_lines(frame, ["type_level_bits"], domain="<b>prose</b>").layout.title.text
    assert "Not enough data" in depth_lines(frame, ["type_level_bits"], domain="law").to_json()


def test_of_the_vocabulary_the_routers_are_drawn_and_not_their_experts(run):
    frame = vocabulary_summary(run)
    figure = depth_lines(frame, ["mean_share", "null_mean_share"])
    assert [list(line.x) for line in lines(figure)] == [[0, 1]] * 2
    whole = frame.filter(pl.col("expert").is_null())
    assert list(lines(figure)[0].y) == whole["mean_share"].to_list()
    assert len(depth_lines(frame, ["context_independence"]).data) == 2  # a line and its band
    assert len(depth_lines(frame, ["excess"]).data) == 2


def test_given_token_bits_are_drawn_beside_the_others_in_bits(run):
    figure = depth_lines(specialisation(run), ["given_token_bits", "type_level_bits"])
    assert figure.layout.yaxis.title.text == "bits"
    assert "only words are known" in figure.layout.title.subtitle.text


def test_shares_and_bits_are_not_drawn_on_one_axis(run):
    with pytest.raises(BadInputError, match="draw one unit"):
        depth_lines(specialisation(run), ["normalised", "type_level_bits"])
