"""The quick readers of JSON: what they read is what `json` reads, and what they cannot read they leave alone."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from foreign_traces import prompt_object, routing, row_objects, weights_of, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.importers import import_run
from moe_probe.importers.alike import read_alike
from moe_probe.importers.regular import RegularReader

READER = RegularReader()


def plain(value):
    """Return arrays as lists, and all else as it is."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


NUMBER = st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False)
LEAF = NUMBER | st.none() | st.booleans() | st.text(max_size=4)
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.dictionaries(st.text(max_size=3), VALUE, max_size=4), st.booleans())
def test_an_object_is_what_json_makes_of_it(value, tight):
    line = json.dumps(value, separators=(",", ":") if tight else None).encode()
    found = READER.read(line)
    assert found is None or plain(found) == json.loads(line)


def test_regular_lists_are_arrays_and_ragged_ones_are_not():
    line = b'{"a": [[[1, 2]], [[3, -4]]], "b": [[1, 2], [3]], "c": [1, 2.5], "d": [1, null], "e": [[1, 2], 3], "f": []}'
    found = READER.read(line)
    kinds = {key: type(value) for key, value in found.items()}
    assert kinds == {"a": np.ndarray, "b": list, "c": np.ndarray, "d": list, "e": list, "f": list}
    assert (found["a"].shape, found["a"].dtype, found["c"].dtype) == ((2, 1, 2), np.int64, np.float64)
    assert plain(found) == json.loads(line)


def test_lists_of_as_many_numbers_in_another_shape_are_told_apart():
    assert isinstance(READER.read(b'{"a": [[1, 2], [3, 4]]}')["a"], np.ndarray)
    for text in (b"[[1, 2], [3], [4]]", b"[[1, 2], [3, 4, 5], [6]]", b"[[1, [2]], [3, 4]]", b"[[[1, 2]], [3, 4]]"):
        assert READER.read(b'{"a": ' + text + b"}") == {"a": json.loads(text)}


def test_a_key_that_is_there_twice_is_left_to_json():
    assert READER.read(b'{"a": [1], "a": [2]}') is None
    found = READER.read(b'{"a": [[1], [2, 3]], "b": {"a": [[1, 2], [3, 4]]}, "c": "a"}')
    assert plain(found) == {"a": [[1], [2, 3]], "b": {"a": [[1, 2], [3, 4]]}, "c": "a"}


@pytest.mark.parametrize("line", [b"", b"[1]", b'{"a": 1}{"a": 2}', b'{"a": [1, 2', b'{"a": NaN}', b'{"a": "\xff"}'])
def test_a_line_that_is_no_object_of_json_is_left_alone(line):
    assert READER.read(line) is None
    assert READER.read(b'{"a": [1]}') == {"a": np.array([1])}  # and the reader goes on


ROWS = st.lists(st.tuples(st.integers(0, 999), st.lists(NUMBER, min_size=2, max_size=2)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(ROWS, st.booleans(), st.booleans())
def test_lines_that_are_alike_are_columns(rows, tight, ended):
    lines = [json.dumps({"le": a, "b": b}, separators=(",", ":") if tight else None) for a, b in rows]
    found = read_alike("\n".join(lines).encode() + b"\n" * ended, READER)
    if found is not None:
        assert found["le"].tolist() == [a for a, _ in rows]
        assert found["b"].tolist() == [b for _, b in rows]
    assert found is not None or any("e+" in line for line in lines)


ALIKE = b'{"ab": 1, "c": [2, 3]}\n'


@pytest.mark.parametrize(
    "other",
    [
        b'{"ab"4:, "c": [2, 3]}',
        b'{"ab" 4:, "c": [2, 3]}',
        b'{4 "ab":, "c": [2, 3]}',
        b'{"a4b":, "c": [2, 3]}',
        b'{"a4b": 5, "c": [2, 3]}',
        b'{"ab": 4 5, "c": [2, 3]}',
        b'{"ab": 05, "c": [2, 3]}',
        b'{"ab": , "c": [2, 3]}',
        b'{"ab": 5, "c": [2, 3] 4}',
        b'7{"ab": 5, "c": [2, 3]}',
        b'{"xy": 5, "c": [2, 3]}',
        b'{"c": [2, 3], "ab": 5}',
        b'{"ab": 5, "c": [2]}',
        b'{"ab": 5, "c": [2, "3"]}',
        b'{"ab": \x01, "c": [2, 3]}',
        b"",
    ],
)
def test_a_line_that_is_not_like_the_others_leaves_all_to_the_slow_reader(other):
    assert read_alike(ALIKE * 2, READER) is not None
    assert read_alike(ALIKE + other + b"\n" + ALIKE, READER) is None


@pytest.mark.parametrize("kind", ["prompts", "rows"])
def test_the_quick_and_the_slow_way_give_the_same_run(tmp_path, monkeypatch, kind):
    chosen = routing(12)
    weights = weights_of(chosen) * 1e-5  # numbers with exponents
    lines = [prompt_object(chosen, weights)] if kind == "prompts" else row_objects(chosen, weights, document=3)
    path = write_lines(tmp_path / "a.jsonl", lines)
    quick = import_run("jsonl", path, tmp_path / "quick")
    monkeypatch.setattr(RegularReader, "read", lambda self, line: None)
    monkeypatch.setattr(RegularReader, "flat", lambda self, text: None)
    slow = import_run("jsonl", path, tmp_path / "slow")
    for name in ("plan.json", "tokens/part-000000.parquet", "routing/part-000000.parquet"):
        assert (quick.path / name).read_bytes() == (slow.path / name).read_bytes()
    assert math.isclose(float(quick.weights(layer=0)[0, 0]), weights[0, 0, 0], rel_tol=0.05)
