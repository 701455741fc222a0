from __future__ import annotations

import itertools

import numpy as np
import pytest

from moe_probe.palette import CONTEXT, EXPERT_COLOURS, INK, expert_colours

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deutan": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritan": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# Ottosson (2020), "A perceptual color space for image processing".
TO_LMS = np.array(
    [
        0.4122214708,
        0.5363325363,
        0.0514459929,
        0.2119034982,
        0.6806995451,
        0.1073969566,
        0.0883024619,
        0.2817188376,
        0.6299787005,
    ]
).reshape(3, 3)
TO_LAB = np.array(
    [
        0.2104542553,
        0.7936177850,
        -0.0040720468,
        1.9779984951,
        -2.4285922050,
        0.4505937099,
        0.0259040371,
        0.7827717662,
        -0.8086757660,
    ]
).reshape(3, 3)


def linear(colours) -> np.ndarray:
    values = np.array([[int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)] for colour in colours])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def least_difference(colours, sight: np.ndarray) -> float:
    seen = np.clip(linear(colours) @ sight.T, 0, 1)
    lab = np.cbrt(seen @ TO_LMS.T) @ TO_LAB.T
    return min(100 * np.linalg.norm(one - other) for one, other in itertools.combinations(lab, 2))


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted(linear([one, other]) @ np.array([0.2126, 0.7152, 0.0722]), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def test_the_contrast_formula_gives_the_known_extremes():
    assert contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("colour", [*EXPERT_COLOURS, CONTEXT])
def test_ink_is_readable_on_every_colour(colour):
    assert contrast(INK, colour) >= 4.5


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_stay_apart_for_every_sight(sight):
    assert least_difference(EXPERT_COLOURS, SIGHT[sight]) >= 12.4


def test_the_least_difference_is_the_one_that_was_promised():
    assert min(least_difference(EXPERT_COLOURS, sight) for sight in SIGHT.values()) == pytest.approx(12.4, abs=0.05)
    okabe_ito = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999"]
    assert min(least_difference(okabe_ito, sight) for sight in SIGHT.values()) == pytest.approx(1.9, abs=0.1)


def test_up_to_eight_experts_wear_their_own_colour_whatever_is_picked():
    assert list(expert_colours([0] * 8, focus=[5]).items()) == list(enumerate(EXPERT_COLOURS))
    assert expert_colours([]) == {}


def test_of_many_experts_the_most_used_wear_the_colours():
    loads = [1] * 64
    loads[50], loads[9] = 7, 7
    assert list(expert_colours(loads)) == [9, 50, 0, 1, 2, 3, 4, 5]
    assert list(expert_colours([0] * 64)) == []


def test_of_many_experts_the_picks_wear_the_colours_and_keep_them():
    assert expert_colours([1] * 64, focus=[30, 2, 30, 99, -1]) == {30: EXPERT_COLOURS[0], 2: EXPERT_COLOURS[1]}
    assert len(expert_colours([1] * 64, focus=range(20))) == 8
