"""Bits of information are called above chance as seldom as they say, on routers whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import calibration_draws as draws
import pytest
from calibration_figures import Bounds, as_table
from calibration_studies import STUDIES, figures_of

PROOFS = [group for group in STUDIES if group.startswith(("bits", "given"))]
GROUPS = [group for group in PROOFS if any(study.quick for study in STUDIES[group])]
QUICK_SEEDS, PROOF_SEEDS = 20, 200


@pytest.mark.parametrize("group", GROUPS)
def test_twenty_seeds_lie_where_they_should(group: str):
    assert not [str(figure) for figure in figures_of(group, QUICK_SEEDS, only_quick=True) if not figure.held]


@pytest.mark.prove
@pytest.mark.parametrize("group", PROOFS)
def test_two_hundred_seeds_lie_where_they_should(group: str):
    found = figures_of(group, PROOF_SEEDS)
    print(as_table(found))
    assert not [str(figure) for figure in found if not figure.held]


def test_what_is_usually_published_is_seen_to_be_wrong():
    # If these were held, the figures above would hold anything.
    hashed = figures_of("bits, hash", QUICK_SEEDS, only_quick=True)
    by_frequency = {figure.name: figure for figure in hashed if figure.router == "hash + frequency"}
    assert not replace(by_frequency[draws.BITS_UNSTRATIFIED], should_be=Bounds(None, 0.06)).held
    given = figures_of("given the token, hash + documents", QUICK_SEEDS, only_quick=True)
    by_document = {figure.name: figure for figure in given}
    assert not replace(by_document[draws.GIVEN_NAIVE], should_be=Bounds(None, 0.0005)).held
    assert replace(by_document[draws.GIVEN_BITS], should_be=Bounds(-0.0005, 0.0005)).held
