"""Long strings of base64 are taken out of a line before it is parsed: what is left and what was taken are the same."""

from __future__ import annotations

import base64
import json
import threading

import numpy as np
import pytest
from foreign_traces import npy, routing, sglang_response, vllm_response, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import BadInputError
from moe_probe.importers import import_run, packed
from moe_probe.importers.packed import unpack
from moe_probe.importers.regular import RegularReader
from moe_probe.importers.vllm import decode_npy

SIZES = {"n_experts": 8, "n_slots": 2, "n_layers": 3}
DATA = bytes(range(256)) * 16
LONG = base64.b64encode(DATA).decode()


def test_a_long_string_is_its_bytes_wherever_its_key_stands():
    value = {"id": "x", "choices": [{"packed": LONG, "n": [1, 2]}, {"packed": "AAEC"}], "meta": {"packed": LONG}}
    for spaces in ((", ", ": "), (",", ":"), (" , ", " :\t ")):
        found = RegularReader().read(json.dumps(value, separators=spaces).encode(), "packed")
        assert found["choices"][0]["packed"] == found["meta"]["packed"] == DATA
        assert found["choices"][0]["n"].tolist() == [1, 2]
        assert (found["choices"][1], found["id"]) == ({"packed": "AAEC"}, "x")


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"other": LONG}),
        json.dumps({"packed": LONG[:-1] + "?"}),
        json.dumps({"packed": LONG[:-1]}),
        json.dumps({"packed": f"{LONG[:2000]}????{LONG[2000:]}"}),
        json.dumps({"packed": [LONG]}),
        json.dumps({"packed": None, "x": LONG}),
        json.dumps({"x": f'"packed": "{LONG}"'}),
        json.dumps({'"packed': LONG}),
        json.dumps({'x"packed': LONG}),
        json.dumps({"x": "packed", "y": LONG}),
        f'{{"packed": "{LONG}\\n"}}',
        f'{{"packed" "{LONG}"}}',
        f'{{"packed": {LONG}}}',
        f'{{"packed": "{LONG}',
        '{"packed"',
        '{"packed": ',
        json.dumps({"x": "y"}),
        "",
    ],
)
def test_whatever_is_no_long_string_of_base64_under_the_key_stays(line):
    assert unpack(line.encode(), "packed") == (line.encode(), {})


def test_a_line_that_is_no_json_is_none_afterwards():
    for line in (
        f'{{"packed": "{LONG}"',
        f'{{"x"packed": "{LONG}"}}',
        f'{{"packed": "{LONG}"}} 1',
        f'"packed": "{LONG}"',
    ):
        text, taken = unpack(line.encode(), "packed")
        assert len(taken) == 1
        assert len(text) < 100
        assert RegularReader().read(line.encode(), "packed") is None
    hidden = json.dumps({"x": [None, {"packed": LONG}]}).encode()  # in a list of other things nobody looks for it
    assert RegularReader().read(hidden, "packed") is None
    twice = f'{{"packed": "{LONG}", "packed": "AAEC"}}'.encode()
    assert RegularReader().read(twice, "packed") is None  # left to `json`, which takes the last


VALUE = st.recursive(
    st.none() | st.text(max_size=5) | st.sampled_from([LONG, LONG[:-4], "packed", '"packed": "', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["packed", "x", '"', "\\"]), inner),
)


def decoded(value, key=None):
    """Return what a value is to be: bytes for long strings of base64 under the key."""
    if isinstance(value, dict):
        return {name: decoded(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [decoded(inner) for inner in value]
    return base64.b64decode(value) if key == "packed" and value in (LONG, LONG[:-4]) else value


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(["packed", "x", '"', "\\"]), VALUE, max_size=3))
def test_an_object_is_what_json_makes_of_it_but_for_what_was_packed(value):
    found = RegularReader().read(json.dumps(value).encode(), "packed")
    assert found is None or found == decoded(value)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_trace_is_the_same_whether_its_strings_are_taken_out_or_not(tmp_path, monkeypatch, kind):
    make = {"vllm": lambda part: vllm_response(part, 4, "npy"), "sglang": lambda part: sglang_response(part, 4)}[kind]
    path = write_lines(tmp_path / "a.jsonl", [make(routing(20, seed)) for seed in range(3)])
    taken, runs = [], []

    def watched(line, key):
        text, found = unpack(line, key)
        taken.append(len(found))
        return text, found

    monkeypatch.setattr("moe_probe.importers.regular.unpack", watched)
    for long in (1 << 12, 8):
        monkeypatch.setattr(packed, "_LONG", long)
        runs.append(import_run(kind, path, tmp_path / f"run{long}", **SIZES))
        assert taken[-3:] == [long == 8] * 3
    for name in ("plan.json", "tokens/part-000000.parquet", "routing/part-000000.parquet"):
        assert (runs[0].path / name).read_bytes() == (runs[1].path / name).read_bytes()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, ">i4", np.int64])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_an_npy_file_of_any_type_version_and_order_is_read_as_numpy_reads_it(tmp_path, kind, version):
    for array in (routing(5).astype(kind), np.asfortranarray(routing(5).astype(kind)), routing(300, 1).astype(kind)):
        path = tmp_path / "a.npy"
        with path.open("wb") as file:
            np.lib.format.write_array(file, array, version)
        np.testing.assert_array_equal(decode_npy(path.read_bytes(), "here"), np.load(path))
        np.testing.assert_array_equal(decode_npy(base64.b64encode(path.read_bytes()).decode(), "here"), np.load(path))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00",
        b"\x93NUMPY\x01\x00\xff\xff" + b"{" * 9,
        b"\x93NUMPY\x03\x00\x10\x00\x00\x00" + b" " * 16,
        b"x" * 200,
        base64.b64decode(npy(routing(5)))[:-1],
        base64.b64decode(npy(routing(5))) + b"x",
    ],
)
def test_bytes_that_are_no_whole_npy_file_are_refused(data):
    with pytest.raises(BadInputError, match="here: routed_experts"):
        decode_npy(data, "here")


@pytest.mark.parametrize("expert", [127, 128, 255])
def test_an_expert_that_a_signed_byte_does_not_hold_is_itself(tmp_path, expert):
    chosen = routing(20).astype(np.uint8)
    chosen[7, 1] = [expert, 3]
    path = write_lines(tmp_path / "a.jsonl", [vllm_response(chosen, 4, "npy")])
    run = import_run("vllm", path, tmp_path / "run", n_experts=256)
    for router in run.routers:
        np.testing.assert_array_equal(run.experts(router=router.index), chosen[:, router.index])


def test_a_layer_whose_first_slot_is_always_expert_0_is_no_blank_one(tmp_path):
    chosen = np.stack([np.zeros(40, int), np.arange(40) % 7 + 1], axis=1)[:, None]
    path = write_lines(tmp_path / "a.jsonl", [vllm_response(chosen, 4, "npy")])
    run = import_run("vllm", path, tmp_path / "run", n_experts=8)
    np.testing.assert_array_equal(run.experts(router=0), chosen[:, 0])


@pytest.mark.parametrize("bad", [1, 4])
@pytest.mark.parametrize("ragged", [None, 2])
def test_an_error_after_documents_of_base64_and_others_is_told_and_leaves_no_thread(tmp_path, monkeypatch, bad, ragged):
    monkeypatch.setattr(packed, "_LONG", 8)
    lines = [vllm_response(routing(20, seed), 4, "lists" if seed == ragged else "npy") for seed in range(6)]
    whole = import_run("vllm", write_lines(tmp_path / "a.jsonl", lines), tmp_path / "run", **SIZES)
    for seed in range(6):
        found = whole.document(seed).tokens.height
        assert found == 20
        np.testing.assert_array_equal(whole.experts(router=2)[seed * 20 : seed * 20 + 20], routing(20, seed)[:, 2])
    lines[bad] = vllm_response(routing(20, 9, experts=99) + 9, 4, "npy")
    with pytest.raises(BadInputError, match=f"line {bad + 1}: expert"):
        import_run("vllm", write_lines(tmp_path / "b.jsonl", lines), tmp_path / "other", **SIZES)
    assert not [thread for thread in threading.enumerate() if thread.name == "ahead"]
    assert not (tmp_path / "other").exists()
