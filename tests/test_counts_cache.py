from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moe_probe.counts.cache import Kept, Part, Source, remembered, remembered_parts


def numbers(n_parts: int, asked: list[int] | None = None) -> Iterator[Part]:
    """Part n is [n, n]."""
    for number in range(n_parts):
        if asked is not None:
            asked.append(number)
        yield {"pair": np.array([number, number])}


def values(parts: Iterator[tuple[int, Part]]) -> list[tuple[int, list[int]]]:
    return [(number, part["pair"].tolist()) for number, part in parts]


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "tokens").write_text("some tokens")
    return Source(tmp_path, ("tokens",), ("all", 3))


WHOLE = [(0, [0, 0]), (1, [1, 1]), (2, [2, 2])]


def test_parts_are_counted_once(tmp_path, source):
    path = tmp_path / "counts/x.npz"
    assert values(remembered_parts(path, source, 3, lambda: numbers(3))) == WHOLE
    assert values(remembered_parts(path, source, 3, lambda: pytest.fail("counted again"))) == WHOLE
    assert [file.name for file in path.parent.iterdir()] == ["x.npz"]


def test_parts_of_which_none_are_asked_for_are_none(tmp_path, source):
    assert values(remembered_parts(tmp_path / "counts/x.npz", source, 0, lambda: numbers(0))) == []


def test_parts_are_counted_no_sooner_than_asked_for(tmp_path, source):
    asked: list[int] = []
    parts = remembered_parts(tmp_path / "counts/x.npz", source, 3, lambda: numbers(3, asked))
    next(parts)
    assert asked == [0]


def test_parts_that_were_not_all_asked_for_are_not_kept(tmp_path, source):
    path = tmp_path / "counts/x.npz"
    parts = remembered_parts(path, source, 3, lambda: numbers(3))
    next(parts)
    parts.close()
    assert list(path.parent.iterdir()) == []


def test_an_error_half_way_leaves_no_file(tmp_path, source):
    def fail() -> Iterator[Part]:
        yield {"pair": np.array([0, 0])}
        raise ValueError("damaged")

    path = tmp_path / "counts/x.npz"
    with pytest.raises(ValueError, match="damaged"):
        list(remembered_parts(path, source, 2, fail))
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("what", [("all", 4), ("some", 3)])
def test_what_was_asked_otherwise_is_counted_again(tmp_path, source, what):
    path = tmp_path / "counts/x.npz"
    list(remembered_parts(path, source, 3, lambda: numbers(3)))
    other = Source(source.folder, source.files, what)
    asked: list[int] = []
    assert values(remembered_parts(path, other, 3, lambda: numbers(3, asked))) == WHOLE
    assert asked == [0, 1, 2]


def test_a_changed_file_is_counted_again(tmp_path, source):
    path = tmp_path / "counts/x.npz"
    list(remembered_parts(path, source, 3, lambda: numbers(3)))
    (source.folder / source.files[0]).write_text("other tokens, and more")
    asked: list[int] = []
    list(remembered_parts(path, source, 3, lambda: numbers(3, asked)))
    assert asked == [0, 1, 2]


def test_a_file_that_changes_while_it_is_counted_is_counted_again(tmp_path, source):
    path = tmp_path / "counts/x.npz"

    def count() -> Kept:
        (source.folder / source.files[0]).write_text("changed meanwhile: who knows what was read")
        return Kept({}, {"one": np.array([1])})

    remembered(path, source, count)
    assert remembered(path, source, lambda: Kept({}, {"one": np.array([2])})).arrays["one"].tolist() == [2]


@pytest.mark.parametrize("place", range(4))
def test_a_damaged_part_is_counted_again_and_none_is_given_twice(tmp_path, source, place):
    path = tmp_path / "counts/x.npz"
    list(remembered_parts(path, source, 3, lambda: numbers(3)))
    content = bytearray(path.read_bytes())
    # The numbers lie in the file as they are: damage those of one part, or the directory at the end.
    found = content.find(np.array([place, place]).tobytes()) if place else -1
    content[found if found >= 0 else -30] ^= 0xFF
    path.write_bytes(content)
    assert values(remembered_parts(path, source, 3, lambda: numbers(3))) == WHOLE
    assert values(remembered_parts(path, source, 3, lambda: pytest.fail("counted again"))) == WHOLE


def test_a_file_of_an_earlier_layout_is_counted_again(tmp_path, source):
    path = tmp_path / "counts/x.npz"
    path.parent.mkdir()
    with path.open("wb") as file:
        np.savez(file, header=np.frombuffer(b"{}", dtype=np.uint8), numbers=np.arange(3))
    assert remembered(path, source, lambda: Kept({}, {"one": np.array([2])})).arrays["one"].tolist() == [2]


def test_parts_are_given_where_nothing_can_be_written(tmp_path, source):
    (tmp_path / "counts").write_text("in the way")
    assert values(remembered_parts(tmp_path / "counts/x.npz", source, 3, lambda: numbers(3))) == WHOLE


def test_parts_are_given_where_the_disk_runs_full(tmp_path, source, monkeypatch):
    real = np.save
    saved = []

    def save(file: object, array: np.ndarray, **more: bool) -> None:
        saved.append(array)
        if len(saved) == 2:
            raise OSError(28, "No space left on device")
        real(file, array, **more)

    monkeypatch.setattr(np, "save", save)
    assert values(remembered_parts(tmp_path / "counts/x.npz", source, 3, lambda: numbers(3))) == WHOLE
    assert list((tmp_path / "counts").iterdir()) == []
    saved.clear()
    kept = remembered(tmp_path / "counts/y.npz", source, lambda: Kept({"n": 1}, {"a": np.ones(2), "b": np.ones(2)}))
    assert kept.facts == {"n": 1}
    assert list((tmp_path / "counts").iterdir()) == []


def test_two_that_count_the_same_do_not_meet(tmp_path, source):
    path = tmp_path / "counts/x.npz"
    one = remembered_parts(path, source, 3, lambda: numbers(3))
    other = remembered_parts(path, source, 3, lambda: numbers(3))
    assert [(*first, *second) for first, second in zip(one, other, strict=True)]
    assert values(remembered_parts(path, source, 3, lambda: pytest.fail("counted again"))) == WHOLE


def test_facts_and_arrays_come_back_as_they_were(tmp_path, source):
    path = tmp_path / "counts/x.npz"
    arrays = {"floats": np.array([[0.5, 1.0]]), "small": np.array([3], dtype=np.uint8), "none": np.zeros((0, 2))}
    facts = {"n": 7, "labels": ["NOUN", "▁Ġ"], "unit": None}
    remembered(path, source, lambda: Kept(facts, arrays))
    kept = remembered(path, source, lambda: pytest.fail("counted again"))
    assert kept.facts == facts
    assert {name: (array.dtype, array.tolist()) for name, array in kept.arrays.items()} == {
        name: (array.dtype, array.tolist()) for name, array in arrays.items()
    }
