from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.measures.position import bucket_shares, octaves
from moe_probe.measures.shares import clustered_shares


def test_octaves_begin_at_powers_of_two():
    assert octaves(np.array([0, 1, 2, 3, 4, 7, 8, 15, 16, 4095, 4096])).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 11, 12]
    powers = 2 ** np.arange(1, 31)
    assert octaves(powers).tolist() == list(range(1, 31))
    assert octaves(powers - 1).tolist() == [0, *range(1, 30)]


def test_shares_by_bucket_counted_by_hand():
    buckets = np.array([2, 2, 2, 2, 4, 4])
    outcomes = np.array([0, 0, 0, 1, 2, 0])
    early, late = bucket_shares(buckets, outcomes, np.array([0, 0, 1, 1, 0, 1]), 3)
    assert (early.first, early.last, early.n) == (4, 7, 4)
    assert early.shares.share.tolist() == [0.75, 0.25, 0]
    assert (late.first, late.last, late.n) == (16, 31, 2)  # 8 to 15 hold nothing and have no entry
    assert late.shares.share.tolist() == [0.5, 0, 0.5]


def test_a_bucket_has_the_interval_of_its_own_tokens():
    rng = np.random.default_rng(0)
    buckets, outcomes, clusters = rng.integers(0, 4, 900), rng.integers(0, 5, 900), rng.integers(0, 20, 900)
    found = bucket_shares(buckets, outcomes, clusters, 5)[2]
    counts = np.zeros((20, 5), dtype=np.int64)
    np.add.at(counts, (clusters[buckets == 2], outcomes[buckets == 2]), 1)
    expected = clustered_shares(counts)
    assert found.shares.low.tolist() == expected.low.tolist()
    assert found.shares.high.tolist() == expected.high.tolist()


def test_drops_towards_the_end_are_seen():
    rng = np.random.default_rng(1)
    places = np.tile(np.arange(4, 512), 40)
    dropped = rng.random(places.size) < np.where(places >= 256, 0.3, 0.05)
    found = bucket_shares(octaves(places), (~dropped).astype(int), np.repeat(np.arange(40), 508), 2)
    assert [bucket.first for bucket in found] == [4, 8, 16, 32, 64, 128, 256]
    assert found[-1].shares.low[0] > 0.25
    assert all(bucket.shares.high[0] < 0.25 for bucket in found[:-1])


def test_nothing_gives_nothing():
    nothing = np.zeros(0, dtype=np.int64)
    assert bucket_shares(nothing, nothing, nothing, 3) == []


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 200))
def test_every_draw_is_in_one_bucket_and_shares_sum_to_one(seed, size):
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 3000, size)
    found = bucket_shares(octaves(places), rng.integers(0, 3, size), rng.integers(0, 5, size), 3)
    assert sum(bucket.n for bucket in found) == size
    assert all(bucket.shares.share.sum() == pytest.approx(1) for bucket in found)
    for bucket in found:
        assert bucket.n == np.count_nonzero((places >= bucket.first) & (places <= bucket.last))
