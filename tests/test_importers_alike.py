"""Lines that are alike but for their numbers: what is read is what `json` reads, number by number, or nothing is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from foreign_traces import routing, row_objects, weights_of, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.importers import alike, import_run, jsonl
from moe_probe.importers.alike import read_alike
from moe_probe.importers.regular import RegularReader

READER = RegularReader()


def by_json(data):
    """Return the columns of lines as the standard library reads them; None where a line is no object like the first."""
    lines = data.decode().split("\n")
    objects = [json.loads(line) for line in (lines[:-1] if lines[-1] == "" else lines)]
    assert all(list(each) == list(objects[0]) for each in objects)
    return {key: [each[key] for each in objects] for key in objects[0]}


def check(data):
    """Compare what is read with `json`; return it, or None."""
    found = read_alike(data, READER)
    if found is not None:
        wanted = by_json(data)
        assert list(found) == list(wanted)
        for key, values in wanted.items():
            assert found[key].tolist() == values
            whole = all(
                isinstance(value, int) for each in values for value in (each if isinstance(each, list) else [each])
            )
            assert found[key].dtype.kind == "i" if whole else found[key].dtype == np.float64
    return found


DIGITS = st.text("0123456789", min_size=1, max_size=12)
PLAIN = st.one_of(
    st.integers(0, 300).map(str),
    st.integers(-(2**52), 2**52).map(str),
    st.tuples(st.integers(0, 99), DIGITS).map(lambda pair: f"{pair[0]}.{pair[1]}"),
    st.floats(0, 1).map(repr),
    st.floats(allow_nan=False, allow_infinity=False, width=32).map(repr).filter(lambda text: "e+" not in text),
)
"""Numbers as JSON has them, and as any library writes them."""

STRANGE = st.text("0123456789.-+eE/ ", min_size=1, max_size=6) | st.sampled_from(
    [
        "05",
        "1.",
        ".5",
        "-",
        "-.5",
        "1.2.3",
        "1-2",
        "1e5",
        "1E5",
        "1e+5",
        "1e",
        "e1",
        "0x1",
        "NaN",
        "true",
        "null",
        '"1"',
    ]
)
"""What may be a number, and mostly is none."""


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.tuples(PLAIN, PLAIN, PLAIN), min_size=1, max_size=6), st.booleans(), st.sampled_from(["", " "]))
def test_every_number_of_json_is_read_as_json_reads_it(rows, ended, space):
    text = "\n".join(f'{{"a":{space}{a},"b_c":{space}[{b},{space}{c}]}}' for a, b, c in rows)
    assert check((text + "\n" * ended).encode()) is not None


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(PLAIN, PLAIN), min_size=1, max_size=4), STRANGE, st.data())
def test_what_is_no_number_leaves_all_to_a_slower_reader(rows, strange, data):
    place = data.draw(st.integers(0, len(rows) - 1))
    rows[place] = (strange, rows[place][1]) if data.draw(st.booleans()) else (rows[place][0], strange)
    text = "".join(f'{{"a": {a}, "b": [{b}]}}\n' for a, b in rows).encode()
    check(text)  # `json` raises where it reads nothing, so that whatever is read is right


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_lines_with_a_byte_changed_are_read_as_json_reads_them_or_not_at_all(monkeypatch, block):
    monkeypatch.setattr(alike, "_BLOCK_BYTES", block)
    text = b'{"a": 1, "b": [2, 30], "c": [0.25, 1e-3]}\n{"a": 22, "b": [4, 5], "c": [0.5, 0.75]}\n'
    read = 0
    for place in range(len(text)):
        for new in b'01.-+eE/,:[]{}" \t\r\na\x00\xc3':
            for end in (place, place + 1):
                changed = text[:place] + bytes([new]) + text[end:]
                if read_alike(changed, READER) is not None:
                    read += check(changed) is not None
    assert read > 100  # a digit may become another


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1, "a": true}',
        '{"a": 1, "a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a": [1, true]}',
        '{"a": true}',
        '{"a": NaN}',
        '{"a": [1, -Infinity]}',
        '{"a": [[1]]}',
        '{"a": []}',
        '{"a": null}',
        '{"a": {"b": 1}}',
        '{"a1": 1}',
        "{}",
        "[1]",
        "1",
    ],
)
def test_lines_of_anything_but_numbers_and_lists_of_them_are_left_to_a_slower_reader(line):
    assert read_alike(f"{line}\n{line}\n".encode(), READER) is None


@pytest.mark.parametrize(
    "other",
    ['{            "a": 1, 2}', '{, "bbbbbbbb": "a":1 2}', '{"a": 1}, "bbbbbbbb": 2', '1{"a": , "bbbbbbbb": 2}'],
)
def test_a_line_of_as_many_bytes_between_its_numbers_may_yet_be_of_another_form(other):
    like = '{"a": 1, "bbbbbbbb": 2}'
    assert len(other) == len(like)
    assert read_alike(f"{like}\n{like}\n".encode(), READER) is not None
    assert read_alike(f"{like}\n{other}\n".encode(), READER) is None
    assert read_alike(f"{like}\n{other}\n{like}\n".encode(), READER) is None


@pytest.mark.parametrize(
    "strange", ["5.", ".5", "5", "-0.5", "0.5.", "10.5", "0.-5", "05.5", "0.5e1", "0..5", "0.123456789"]
)
def test_a_column_of_fractions_takes_other_numbers_of_json_and_nothing_else(strange):
    text = f'{{"a": [0.25, 0.5]}}\n{{"a": [0.75, {strange}]}}\n'.encode()
    try:
        wanted = float(json.loads(strange))
    except ValueError:
        assert read_alike(text, READER) is None
    else:
        assert read_alike(text, READER)["a"].tolist() == [[0.25, 0.5], [0.75, wanted]]


@pytest.mark.parametrize("n_digits", range(1, 12))
def test_fractions_of_any_length_are_those_of_float(n_digits):
    draw = np.random.default_rng(n_digits)
    texts = [f"{draw.integers(10)}.{draw.integers(10**n_digits):0{n_digits}}" for _ in range(200)]
    found = read_alike("".join(f'{{"a": [{text}]}}\n' for text in texts).encode(), READER)
    assert found["a"][:, 0].tolist() == [float(text) for text in texts]


def test_numbers_of_each_length_beside_one_another_do_not_disturb_one_another():
    numbers = [9, 98, 987, 9876, 98765, 987654, 9876543, 98765432, 987654321, 9876543210]
    rows = [numbers[turn:] + numbers[:turn] for turn in range(len(numbers))]
    found = read_alike("".join(json.dumps({"a": row}, separators=(",", ":")) + "\n" for row in rows).encode(), READER)
    assert found["a"].tolist() == rows
    assert found["a"].dtype == np.int64


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("3", "int32"),
        ("-1", "int64"),
        ("123456789", "int64"),
        ("1.0", "float64"),
        ("-1.0", "float64"),
        ("1e-0", "float64"),
        (str(2**53 - 1), "int64"),
        (str(2**53 + 1), "float64"),
    ],
)
def test_only_numbers_that_are_written_whole_and_are_exact_are_whole(text, kind):
    found = read_alike(f'{{"a": 1, "b": 2}}\n{{"a": {text}, "b": 3}}\n'.encode(), READER)
    assert found["a"].dtype == kind
    assert found["b"].dtype == "int32"
    assert found["a"].tolist() == [1, float(text)]


@pytest.mark.parametrize("block", [1, 50, 130])
def test_blocks_of_any_size_give_the_same(monkeypatch, block):
    lines = "".join(json.dumps({"a": n * 37, "b": [n / 8, n / 1000]}) + "\n" for n in range(40)).encode()
    monkeypatch.setattr(alike, "_BLOCK_BYTES", block)
    assert check(lines) is not None
    assert read_alike(lines[:-20] + b"\n", READER) is None


FAULTS = {
    "a float as a layer": ('"layer": 1,', '"layer": 1.0,'),
    "a float as an expert": ('"experts": [', '"experts": [1.0, '),
    "an expert with an exponent": ('"experts": [', '"experts": [1e0, '),
    "a large layer": ('"layer": 1,', '"layer": 4294967297,'),
    "a string as a layer": ('"layer": 1,', '"layer": "1",'),
    "true as a layer": ('"layer": 1,', '"layer": true,'),
    "null as a layer": ('"layer": 1,', '"layer": null,'),
    "no layer": ('"layer": 1, ', ""),
    "two layers": ('"layer": 1,', '"layer": 1, "layer": 2,'),
    "another key": ('"layer": 1,', '"layer": 1, "x": 3,'),
    "another spacing": ('"layer": 1,', '"layer":  1,'),
    "a tab": ('"layer": 1,', '"layer":\t1,'),
    "NaN as a weight": ('"gating_probs": [', '"gating_probs": [NaN, '),
    "a weight too many": ('"gating_probs": [', '"gating_probs": [0.5, '),
    "a zero before": ('"layer": 1,', '"layer": 01,'),
    "a plus": ('"layer": 1,', '"layer": +1,'),
    "no weights": ('"gating_probs": [', '"gating_probs": [], "x": ['),
    "a blank line": ('{"layer": 1,', '\n{"layer": 1,'),
    "a blank start": ('{"layer": 1,', ' {"layer": 1,'),
    "a carriage return": ('{"layer": 2,', '\r{"layer": 2,'),
    "two objects on a line": ('{"layer": 1,', '{"x": 1} {"layer": 1,'),
    "a comment": ('{"layer": 1,', '// \n{"layer": 1,'),
    "a list": ('{"layer": 1,', '[1]\n{"layer": 1,'),
    "a letter": ('"token_idx"', '"tokén_idx"'),
    "a long weight": ('"gating_probs": [', '"gating_probs": [1, "x'),
    "nothing": ("", ""),
}


def outcome(path, out):
    """Return what becomes of a trace: the warnings and bytes of its run, or why there is none."""
    try:
        run = import_run("jsonl", path, out, n_experts=8)
    except MoeProbeError as error:
        return str(error)
    names = ("plan.json", "documents.parquet", "tokens/part-000000.parquet", "routing/part-000000.parquet")
    return run.warnings, [(out / name).read_bytes() for name in names]


def both_ways(text, folder, monkeypatch):
    path = folder / "a.jsonl"
    path.write_bytes(text)
    with monkeypatch.context() as patch:
        read, usual = [], jsonl._alike_rows
        patch.setattr(jsonl, "_alike_rows", lambda *given: read.append(usual(*given)) or read[-1])
        quick = outcome(path, folder / "quick")
    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "_alike_rows", lambda *given: None)
        assert outcome(path, folder / "slow") == quick
    return quick, any(each is not None for each in read)


def rows_of(n_tokens=6, first=0):
    chosen = routing(n_tokens)
    lines = row_objects(chosen, weights_of(chosen), document=first)
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("everywhere", [True, False])
def test_a_fault_is_told_alike_by_the_quick_and_the_slow_reader(tmp_path, monkeypatch, fault, everywhere):
    text = rows_of()
    faulty = text.replace(*FAULTS[fault], -1 if everywhere else 1)
    assert (faulty == text) == (fault == "nothing")
    told, quick = both_ways(faulty.encode(), tmp_path, monkeypatch)
    assert quick == (fault == "nothing") or everywhere
    assert not (fault == "nothing" and isinstance(told, str))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_corrupt_rows_come_to_the_same_by_the_quick_and_the_slow_reader(tmp_path_factory, data):
    text = bytearray((rows_of(4) + rows_of(3, first=1)).encode())
    for _ in range(data.draw(st.integers(0, 2))):
        place = data.draw(st.integers(0, len(text) - 1))
        new = data.draw(
            st.binary(max_size=2) | st.sampled_from([b"null", b"]", b"-", b".0", b"e1", b"0", b"9" * 20, b"\n"])
        )
        text[place : place + data.draw(st.integers(0, 3))] = new
    with pytest.MonkeyPatch.context() as patch:
        both_ways(bytes(text), tmp_path_factory.mktemp("a"), patch)


def test_a_file_that_is_alike_but_for_a_few_lines_is_read_in_both_ways(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_probe.importers.lines._CHUNK_BYTES", 300)
    monkeypatch.setattr("moe_probe.corpus.opening._BLOCK_BYTES", 300)
    chosen, weights = routing(40), weights_of(routing(40))
    lines = row_objects(chosen, weights)
    lines[70]["note"] = "x"
    path = write_lines(tmp_path / "a.jsonl", lines)
    read = []
    usual = jsonl.read_alike
    monkeypatch.setattr(jsonl, "read_alike", lambda *given: read.append(usual(*given)) or read[-1])
    run = import_run("jsonl", path, tmp_path / "run", n_experts=8)
    assert sum(each is None for each in read) == 1 < len(read) - 5
    for router in run.routers:
        np.testing.assert_array_equal(run.experts(router=router.index), chosen[:, router.index])
        np.testing.assert_array_equal(run.weights(router=router.index), weights[:, router.index])


@pytest.mark.parametrize("fault", ['"layer": true', '"layer": 1.0', '"layer": 1,,', '"layer": 4294967297'])
def test_a_fault_in_a_later_part_of_a_file_is_told_with_its_line(tmp_path, monkeypatch, fault):
    monkeypatch.setattr("moe_probe.importers.lines._CHUNK_BYTES", 300)
    monkeypatch.setattr("moe_probe.corpus.opening._BLOCK_BYTES", 300)
    lines = rows_of(40).splitlines(keepends=True)
    lines[70] = lines[70].replace('"layer": 1', fault)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(lines))
    with pytest.raises(BadInputError, match=r"a\.jsonl, line 71: "):
        import_run("jsonl", path, tmp_path / "run", n_experts=8)
