from __future__ import annotations

import numpy as np
import pytest

from moe_probe.measures.shares import clustered_shares
from moe_probe.measures.verdicts import LABEL_VERDICTS, LOAD_VERDICTS, label_verdicts, load_verdicts, share_verdicts

PASSES = {"lift": 1.3, "expected": 5.0, "geff": 5.0, "q_value": 0.049, "type_q_value": 0.049, "type_z": 2.5}
NAN = float("nan")


def verdict(of_documents=True, **changes):
    (one,) = label_verdicts(
        **{name: np.array([value]) for name, value in (PASSES | changes).items()}, of_documents=of_documents
    )
    assert one in LABEL_VERDICTS
    return one


def test_a_cell_that_passes_every_threshold_is_specialised():
    assert verdict() == "specialised"
    assert verdict(lift=1.2) == "specialised"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"lift": 1.19}, "not shown"),
        ({"lift": 0.4, "type_z": -3.0}, "not shown"),
        ({"q_value": 0.05}, "not shown"),
        ({"type_q_value": 0.05}, "not shown"),
        ({"type_z": -2.5}, "not shown"),
        ({"q_value": 0.5, "type_q_value": NAN, "type_z": NAN}, "not shown"),
        ({"lift": 0.0, "q_value": NAN, "type_q_value": NAN, "type_z": NAN}, "not shown"),
        ({"expected": 4.9}, "not enough data"),
        ({"geff": 4.9}, "not enough data"),
        ({"q_value": NAN}, "not enough data"),
        ({"type_q_value": NAN, "type_z": NAN}, "not enough data"),
        ({"lift": 1.0, "q_value": NAN, "type_q_value": NAN, "type_z": NAN}, "not enough data"),
        (dict.fromkeys(PASSES, NAN), "not enough data"),
    ],
)
def test_each_threshold_counts(changes, expected):
    assert verdict(**changes) == expected


def test_what_holds_over_pieces_of_a_text_is_said_of_that_text_only():
    assert verdict(of_documents=False) == "this text only"
    assert verdict(of_documents=False, q_value=0.5) == "not shown"
    assert verdict(of_documents=False, expected=1.0) == "not enough data"
    both = label_verdicts(*(np.full(2, value) for value in PASSES.values()), of_documents=np.array([True, False]))
    assert both.tolist() == ["specialised", "this text only"]


def said(counts, documents=40, domains=2, of_documents=True):
    found = load_verdicts(
        clustered_shares(counts),
        int(counts.sum()),
        documents=documents,
        domains=domains,
        of_documents=of_documents,
    ).tolist()
    assert set(found) <= set(LOAD_VERDICTS)
    return found


COUNTS = np.array([[50, 20, 31, 0], [49, 21, 30, 0]] * 20)


def test_load_lies_above_below_or_at_even_use():
    even = np.random.default_rng(0).multinomial(100, [0.4, 0.25, 0.1, 0.25], 40)
    assert said(even)[0::2] == ["above", "below"]
    assert said(np.array([[26, 24], [24, 26]] * 20)) == ["at chance", "at chance"]


def test_an_expert_is_dead_only_over_enough_documents_domains_and_tokens():
    assert said(COUNTS)[3] == "dead"
    assert said(COUNTS, documents=29)[3] == "unseen"
    assert said(COUNTS, domains=1)[3] == "unseen"
    assert said(COUNTS, of_documents=False)[3] == "unseen"
    few = COUNTS // 10  # 400 assignments: 3/400 is below a tenth of 1/4, yet not after the design effect
    assert said(few)[3] == "dead"
    lumps = np.zeros((40, 4), int)
    lumps[np.arange(40), np.arange(40) % 3] = 10
    assert said(lumps)[3] == "unseen"
    assert said(COUNTS[:2])[3] == "dead"  # 3/201 is below .025
    assert said(COUNTS[:1] // 2)[3] == "unseen"


def test_one_expert_that_takes_everything_leaves_the_others_dead():
    assert said(np.array([[500, 0]] * 40)) == ["above", "dead"]


def test_without_five_draws_or_documents_there_is_not_enough_data_to_speak_of_load():
    assert said(COUNTS, of_documents=False)[:3] == ["not enough data"] * 3
    assert said(COUNTS[:4], documents=4)[:3] == ["not enough data"] * 3
    assert said(np.zeros((64, 3), int)) == ["unseen"] * 3
    shares = clustered_shares(COUNTS)
    assert share_verdicts(shares, of_documents=True).tolist() == ["above", "below", "above", "below"]
