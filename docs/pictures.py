"""Draw the pictures of measures.md from simulated routers, with the measures themselves.

    python docs/pictures.py          # writes docs/images/measures/*.svg

The same numbers every time. Grey text and no background, so that a page in light or dark can show them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from moe_probe.measures.balance import load_balance
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.coactivation import expected_pairs
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.repetition import repetition
from moe_probe.measures.shares import clustered_shares
from moe_probe.measures.specialisation import (
    count_pairs,
    held_out_bits,
    mutual_information_bits,
    type_folds,
    type_level_bits,
)
from moe_probe.measures.type_test import type_test
from moe_probe.palette import EXPERT_COLOURS

FOLDER = Path(__file__).parent / "images/measures"
GREY = "#767676"
FAINT = "#b8b8b8"
ORANGE, BLUE = "#c8660b", "#5a5ae0"
EXPERTS, LABELS, DOCUMENTS, TYPES, TOKENS = 8, 5, 60, 1_500, 60_000
LABEL_NAMES = ("NOUN", "VERB", "DET", "ADJ", "PUNCT")


class Picture:
    """Shapes and texts on a canvas, in pixels from the upper left."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def bar(self, x: float, y: float, width: float, height: float, fill: str, opacity: float = 1.0) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"'
            f' fill-opacity="{opacity:g}"/>'
        )

    def line(
        self, points: Sequence[tuple[float, float]], stroke: str = GREY, width: float = 1.5, dash: str = ""
    ) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}"{dashed}/>')

    def dot(self, x: float, y: float, fill: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}"/>')

    def text(self, x: float, y: float, words: str, anchor: str = "start", size: int = 12, fill: str = GREY) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
        self.parts.append(f"<text {place}>{escape(words)}</text>")

    def svg(self) -> str:
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}"'
            f' font-family="system-ui, sans-serif" role="img"><title>{escape(self.title)}</title>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


class Routed:
    """Words in documents and the first choice of a simulated router for each."""

    def __init__(self, kind: str, seed: int = 1) -> None:
        rng = np.random.default_rng(seed)
        shares = 1 / np.arange(1, TYPES + 1)
        self.type = rng.choice(TYPES, TOKENS, p=shares / shares.sum())
        self.label_of = rng.choice(LABELS, TYPES, p=[0.4, 0.25, 0.05, 0.2, 0.1])
        self.label = self.label_of[self.type]
        self.document = np.sort(rng.integers(0, DOCUMENTS, TOKENS))
        hashed = rng.dirichlet(np.full(EXPERTS, 0.35), TYPES)
        if kind == "planted":
            wanted = np.full((LABELS, EXPERTS), 1.0)
            wanted[1, 2] = wanted[2, 5] = wanted[4, 5] = 4.0
            hashed *= wanted[self.label_of]
            hashed /= hashed.sum(axis=1, keepdims=True)
        cumulated = hashed.cumsum(axis=1)[self.type]
        self.expert = np.minimum((rng.random((TOKENS, 1)) > cumulated).sum(axis=1), EXPERTS - 1)

    def clustered(self) -> NDArray[np.int64]:
        """Counts by document, expert and label."""
        cells = count_pairs(self.document, self.expert * LABELS + self.label, (DOCUMENTS, EXPERTS * LABELS))
        return cells.reshape(DOCUMENTS, EXPERTS, LABELS)

    def by_type(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Counts by type and expert, by type and label, and the fold of each type."""
        experts = count_pairs(self.type, self.expert, (TYPES, EXPERTS))
        labels = count_pairs(self.type, self.label, (TYPES, LABELS))
        return experts, labels, type_folds([f"word{number}" for number in range(TYPES)])


def draw_load() -> Picture:
    picture = Picture(640, 230, "The share of each of eight experts with its interval, against one eighth")
    shares = clustered_shares(Routed("planted").clustered().sum(axis=2))
    top, bottom, scale = 20, 190, 170 / 0.26
    for expert in range(EXPERTS):
        x = 50 + 70 * expert
        y = bottom - scale * float(shares.share[expert])
        picture.bar(x, y, 46, bottom - y, EXPERT_COLOURS[expert])
        low, high = bottom - scale * float(shares.low[expert]), bottom - scale * float(shares.high[expert])
        picture.line([(x + 23, low), (x + 23, high)], GREY, 2)
        picture.text(x + 23, bottom + 18, f"expert {expert}", "middle")
    even = bottom - scale / EXPERTS
    picture.line([(40, even), (610, even)], GREY, 1.5, "5 4")
    picture.text(612, even - 6, "1/8", "end")
    picture.text(40, top, "share of all assignments")
    return picture


def draw_balance() -> Picture:
    picture = Picture(640, 270, "Lorenz curve of an uneven router")
    load = Routed("planted").clustered().sum(axis=(0, 2))
    found = load_balance(load)
    assert found is not None
    left, bottom, size = 60, 240, 210
    cumulated = np.concatenate([[0], np.sort(load).cumsum() / load.sum()])
    points = [(left + size * i / EXPERTS, bottom - size * float(c)) for i, c in enumerate(cumulated)]
    picture.line([(left, bottom), (left + size, bottom - size)], GREY, 1.5, "5 4")
    picture.line([(left, bottom), (left + size, bottom), (left + size, bottom - size)], FAINT, 1)
    picture.line(points, ORANGE, 2.5)
    picture.text(left + size / 2, bottom + 20, "experts, from the least used", "middle")
    picture.text(left + 70, bottom - 110, "even", "end")
    facts = [
        f"Gini {found.gini:.3f}: twice the area between the lines",
        f"busiest expert {found.max_violation:+.0%} over the mean",
        f"coefficient of variation {found.coefficient_of_variation:.2f}",
        f"load entropy {found.load_entropy_bits:.2f} of {np.log2(EXPERTS):.0f} bits",
        f"effective experts {found.effective_experts:.1f} of {EXPERTS}",
    ]
    for row, fact in enumerate(facts):
        picture.text(330, 70 + 28 * row, fact, size=14)
    return picture


def draw_lift() -> Picture:
    picture = Picture(640, 300, "Lift of eight experts for five labels; faint cells were not shown to be above chance")
    routed = Routed("planted")
    cells = cell_estimates(routed.clustered())
    by_type = type_test(*routed.by_type()[:2])
    shown = (q_values(cells.p) < 0.05) & (q_values(by_type.p) < 0.05) & (cells.lift >= 1.2)
    for expert in range(EXPERTS):
        picture.text(70, 52 + 28 * expert, f"expert {expert}", "end")
        for label in range(LABELS):
            x, y, lift = 80 + 108 * label, 32 + 28 * expert, float(cells.lift[expert, label])
            strength = min(abs(np.log2(lift)) / 1.6, 1.0)
            colour = ORANGE if lift > 1 else "#2c6bb3"
            held = bool(shown[expert, label])
            picture.bar(x, y, 102, 24, colour, (0.25 + 0.75 * strength) if held else 0.10)
            low, high = float(cells.low[expert, label]), float(cells.high[expert, label])
            words = f"{lift:.1f}× ({low:.1f}–{high:.1f})" if held else f"{lift:.1f}×"
            picture.text(x + 51, y + 16, words, "middle", 11, "#111" if held and strength > 0.3 else GREY)
    for label, name in enumerate(LABEL_NAMES):
        picture.text(80 + 108 * label + 51, 22, name, "middle")
    picture.text(
        80, 280, "planted: verbs in expert 2, punctuation and determiners in expert 5 (too few determiners to be sure)"
    )
    return picture


def draw_two_tests() -> Picture:
    picture = Picture(
        640, 200, "How many of 40 cells each test calls significant, for a hash of the token and a planted router"
    )
    for row, (kind, name) in enumerate((("hash", "a hash of the token"), ("planted", "planted in 3 cells"))):
        routed = Routed(kind)
        p_document = cell_estimates(routed.clustered()).p
        p_type = type_test(*routed.by_type()[:2]).p
        counts = [int((q_values(p) < 0.05).sum()) for p in (p_document, p_type)]
        both = int(((q_values(p_document) < 0.05) & (q_values(p_type) < 0.05)).sum())
        picture.text(10, 34 + 95 * row, name, size=13)
        for place, (test, count) in enumerate(
            zip(("over documents", "over types", "both"), (*counts, both), strict=True)
        ):
            y = 42 + 95 * row + 18 * place
            picture.text(130, y + 12, test, "end")
            picture.bar(140, y, 11 * count + 1, 13, (FAINT, BLUE, ORANGE)[place])
            picture.text(148 + 11 * count, y + 12, f"{count} of {EXPERTS * LABELS}")
    return picture


def draw_bits() -> Picture:
    picture = Picture(
        640, 220, "Bits by occurrence, by type and on unseen types, for a hash of the token and a planted router"
    )
    scale = 400 / 0.14
    for row, (kind, name) in enumerate((("hash", "a hash of the token"), ("planted", "planted"))):
        routed = Routed(kind)
        experts, labels, folds = routed.by_type()
        occurrence = mutual_information_bits(routed.clustered())
        by_type = type_level_bits(experts, labels, folds)
        held_out = held_out_bits(experts, labels, folds)
        assert occurrence is not None
        assert by_type is not None
        assert held_out is not None
        values = (
            ("by occurrence", occurrence.raw_bits, None, None, FAINT),
            ("type level", by_type.bits, by_type.low, by_type.high, BLUE),
            ("held out", held_out.value, held_out.low, held_out.high, ORANGE),
        )
        picture.text(10, 30 + 100 * row, name, size=13)
        for place, (column, value, low, high, colour) in enumerate(values):
            y = 38 + 100 * row + 20 * place
            picture.text(140, y + 12, column, "end")
            x = 190 + scale * min(value, 0.0)
            picture.bar(x, y, max(scale * abs(value), 1), 14, colour)
            if low is not None and high is not None:
                picture.line([(190 + scale * low, y + 7), (190 + scale * high, y + 7)], GREY, 2)
            picture.text(200 + scale * max(value, high or 0), y + 12, f"{value:.2f}".replace("-0.00", "0.00"))
    picture.line([(190, 20), (190, 205)], GREY, 1)
    picture.text(190, 217, "0 bits", "middle", 11)
    return picture


def draw_repetition() -> Picture:
    picture = Picture(640, 190, "Share of neighbours with the same first choice, beside chance")
    rng = np.random.default_rng(3)
    load = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])
    documents = np.repeat(np.arange(40), 500)
    drift = rng.dirichlet(load * 12, 40)[documents]
    expert = (rng.random((documents.size, 1)) > drift.cumsum(axis=1)).sum(axis=1).clip(0, 7)
    stays = rng.random(documents.size) < 0.08
    for place in range(1, documents.size):
        if stays[place] and documents[place] == documents[place - 1]:
            expert[place] = expert[place - 1]
    positions = np.tile(np.arange(500), 40)
    found = repetition(expert[:, None], documents, positions, positions + 4, EXPERTS)
    assert found is not None
    same = [np.sum(n * (n - 1.0)) / (n.sum() * (n.sum() - 1)) for n in count_pairs(documents, expert, (40, EXPERTS))]
    scale = 340 / 0.36
    rows = (
        ("observed", found.first.value, ORANGE),
        ("random tokens of a document", float(np.mean(same)), BLUE),
        ("random tokens (load)", found.load_first, BLUE),
        ("uniform, 1/8", found.uniform_first, FAINT),
    )
    for place, (name, value, colour) in enumerate(rows):
        y = 25 + 38 * place
        picture.text(190, y + 15, name, "end")
        picture.bar(200, y, scale * value, 20, colour)
        picture.text(612, y + 15, f"{value:.3f}", "end")
    if found.first.low is not None and found.first.high is not None:
        picture.line([(200 + scale * found.first.low, 35), (200 + scale * found.first.high, 35)], GREY, 2)
    return picture


def draw_coactivation() -> Picture:
    picture = Picture(640, 200, "Lift of the pairs of experts under random routing, by two ways to expect")
    rng = np.random.default_rng(4)
    n_tokens = 40_000
    keys = rng.random((n_tokens, EXPERTS)) ** (1 / np.linspace(0.6, 2.2, EXPERTS))
    chosen = np.zeros((n_tokens, EXPERTS))
    np.put_along_axis(chosen, np.argsort(-keys, axis=1)[:, :2], 1, axis=1)
    together = chosen.T @ chosen
    loads = np.diagonal(together)
    upper = np.triu_indices(EXPERTS, 1)
    naive = (together / (np.outer(loads, loads) / n_tokens))[upper]
    right = together[upper] / expected_pairs(loads, np.array([0, 0, n_tokens]))[upper]
    for row, (name, lifts, colour) in enumerate((("Nₐ·N_b/T", naive, FAINT), ("distinct draws", right, ORANGE))):
        y = 60 + 70 * row
        picture.text(130, y + 4, name, "end")
        for lift in lifts:
            picture.dot(150 + 400 * (float(lift) - 0.4) / 0.9, y, colour)
    one = 150 + 400 * 0.6 / 0.9
    picture.line([(one, 25), (one, 165)], GREY, 1.5, "5 4")
    picture.text(one, 184, "lift 1: chance", "middle")
    return picture


def draw_vocabulary() -> Picture:
    picture = Picture(
        640, 240, "Mean share of a type's commonest expert by its number of occurrences, under random routing"
    )
    rng = np.random.default_rng(5)
    occurrences = [1, 2, 3, 5, 10, 20, 50, 100, 200]
    means = [float((rng.multinomial(n, [1 / EXPERTS] * EXPERTS, 4_000).max(axis=1) / n).mean()) for n in occurrences]
    left, bottom, scale = 60, 200, 170
    points = [(left + 62 * place, bottom - scale * mean) for place, mean in enumerate(means)]
    picture.line(points, ORANGE, 2.5)
    for (x, y), n, mean in zip(points, occurrences, means, strict=True):
        picture.dot(x, y, ORANGE)
        picture.text(x, y - 10, f"{mean:.2f}", "middle", 11)
        picture.text(x, bottom + 18, str(n), "middle")
    even = bottom - scale / EXPERTS
    picture.line([(left, even), (left + 500, even)], GREY, 1.5, "5 4")
    picture.text(left + 506, even + 4, "1/8")
    picture.line([(left + 62 * 4, 40), (left + 62 * 4, bottom)], FAINT, 1, "3 3")
    picture.text(left + 62 * 4 + 6, 50, "counted from here on")
    picture.text(left + 250, bottom + 36, "occurrences of the type", "middle")
    return picture


def draw_agreement() -> Picture:
    picture = Picture(640, 250, "Agreement of sets and of first choices after a small change, by decile of the margin")
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(50_000, EXPERTS))
    changed = logits + rng.normal(scale=0.15, size=logits.shape)
    ordered = np.sort(logits, axis=1)
    margin = ordered[:, -2] - ordered[:, -3]  # of two chosen experts, the second over the third
    before, after = (np.sort(np.argsort(-one, axis=1)[:, :2], axis=1) for one in (logits, changed))
    same_set = (before == after).all(axis=1)
    same_first = logits.argmax(axis=1) == changed.argmax(axis=1)
    decile = np.searchsorted(np.quantile(margin, np.linspace(0.1, 0.9, 9)), margin)
    left, bottom, scale = 60, 200, 150
    for place in range(10):
        for shift, agreed, colour in ((0, same_set, ORANGE), (21, same_first, BLUE)):
            share = float(agreed[decile == place].mean())
            picture.bar(left + 54 * place + shift, bottom - scale * share, 19, scale * share, colour)
        picture.text(left + 54 * place + 20, bottom + 17, str(place + 1), "middle")
    picture.bar(left, 14, 12, 12, ORANGE)
    picture.text(left + 18, 24, "the same set of two")
    picture.bar(left + 170, 14, 12, 12, BLUE)
    picture.text(left + 188, 24, "the same first choice")
    picture.line([(left - 6, bottom - scale), (left + 540, bottom - scale)], FAINT, 1, "3 3")
    picture.text(left - 10, bottom - scale + 4, "1", "end")
    picture.text(left + 270, bottom + 38, "decile of the margin, near-ties first", "middle")
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "load": draw_load,
    "balance": draw_balance,
    "lift": draw_lift,
    "two-tests": draw_two_tests,
    "bits": draw_bits,
    "repetition": draw_repetition,
    "coactivation": draw_coactivation,
    "vocabulary": draw_vocabulary,
    "agreement": draw_agreement,
}


def main() -> None:
    """Write every picture."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
