"""Whatever is wrong with a foreign trace, a run of it says so, or there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_traces import (
    EXPERTS,
    LAYERS,
    SLOTS,
    olmoe_object,
    prompt_object,
    routing,
    row_objects,
    sglang_response,
    vllm_response,
    weights_of,
    write_esft,
    write_lines,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.errors import MoeProbeError
from moe_probe.importers import import_run

SIZES = {"n_experts": EXPERTS, "n_slots": SLOTS, "n_layers": LAYERS}
PROMPT = 4

Documents = list[tuple[np.ndarray, np.ndarray]]


def _rows(folder: Path, documents: Documents) -> Path:
    rows = [row for n, (chosen, weights) in enumerate(documents) for row in row_objects(chosen, weights, document=n)]
    # What a file of rows lacks, it does not have: -1 stands for a row that was lost.
    return write_lines(folder / "a.jsonl", [row for row in rows if max(row["experts"]) >= 0])


def _lines(make: Callable[[np.ndarray, np.ndarray], dict[str, object]]) -> Callable[[Path, Documents], Path]:
    return lambda folder, documents: write_lines(folder / "a.jsonl", [make(*document) for document in documents])


FORMATS: dict[str, tuple[str, Callable[[Path, Documents], Path]]] = {
    "prompts": ("jsonl", _lines(prompt_object)),
    "rows": ("jsonl", _rows),
    "vllm lists": ("vllm", _lines(lambda chosen, _: vllm_response(chosen, PROMPT, "lists"))),
    "vllm npy": ("vllm", _lines(lambda chosen, _: _signed(vllm_response(chosen, PROMPT, "npy"), chosen))),
    "sglang": ("sglang", _lines(lambda chosen, _: sglang_response(chosen, PROMPT))),
    "olmoe": ("olmoe", _lines(lambda chosen, _: olmoe_object(chosen))),
    "esft": ("esft", lambda folder, documents: write_esft(folder / "esft", documents)),
}
WEIGHTED = ("prompts", "rows", "esft")
COUNTED = ("prompts", "vllm lists", "vllm npy", "sglang", "olmoe")


def _signed(response: dict, chosen: np.ndarray) -> dict:
    from foreign_traces import npy

    response["choices"][0]["routed_experts"] = npy(chosen)
    return response


def _zero_layer(chosen, weights, draw):
    chosen[:, draw.integers(LAYERS)] = 0


def _zero_tail(chosen, weights, draw):
    chosen[len(chosen) - draw.integers(1, 5) :] = 0


def _absent_row(chosen, weights, draw):
    chosen[draw.integers(len(chosen) - 1)] = -1


def _absent_in_a_layer(chosen, weights, draw):
    chosen[draw.integers(len(chosen)), draw.integers(LAYERS)] = -1


def _absent_layer(chosen, weights, draw):
    chosen[:, draw.integers(LAYERS)] = -1


def _absent_slot(chosen, weights, draw):
    chosen[draw.integers(len(chosen)), draw.integers(LAYERS), draw.integers(SLOTS)] = -1


def _twice(chosen, weights, draw):
    chosen[draw.integers(len(chosen)), draw.integers(LAYERS)] = draw.integers(EXPERTS)


def _too_high(chosen, weights, draw):
    chosen[draw.integers(len(chosen)), draw.integers(LAYERS), draw.integers(SLOTS)] = draw.integers(EXPERTS, 200)


def _too_low(chosen, weights, draw):
    chosen[draw.integers(len(chosen)), draw.integers(LAYERS), draw.integers(SLOTS)] = -draw.integers(2, 9)


def _warm_up(chosen, weights, draw):
    start = draw.integers(len(chosen) - 8)
    chosen[start : start + draw.integers(8, 20)] = chosen[start]


def _unsorted(chosen, weights, draw):
    token, layer = draw.integers(len(chosen)), draw.integers(LAYERS)
    weights[token, layer] = weights[token, layer, ::-1].copy()


def _no_number(chosen, weights, draw):
    weights[draw.integers(len(chosen)), draw.integers(LAYERS), draw.integers(SLOTS)] = draw.choice(
        [np.nan, np.inf, 1e6]
    )


def _negative(chosen, weights, draw):
    weights[draw.integers(len(chosen)), draw.integers(LAYERS), SLOTS - 1] = -0.5


def _weightless(chosen, weights, draw):
    weights[draw.integers(len(chosen)), draw.integers(LAYERS)] = 0


ANY = (
    _zero_layer,
    _zero_tail,
    _absent_row,
    _absent_in_a_layer,
    _absent_layer,
    _absent_slot,
    _twice,
    _too_high,
    _too_low,
    _warm_up,
)
OF_WEIGHTS = (_unsorted, _no_number, _negative, _weightless)
CASES = [(name, fault) for name in FORMATS for fault in (*ANY, *(OF_WEIGHTS if name in WEIGHTED else ()))]


def _documents(seed: int) -> Documents:
    parts = [routing(n, seed + n) for n in (24, 30)]
    return [(part, weights_of(part, seed)) for part in parts]


def _warnings(name: str, folder: Path, documents: Documents) -> list[str]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = FORMATS[name][1](folder, documents)
    return import_run(FORMATS[name][0], path, folder / "run", **SIZES).warnings


def _refusal(kind: str, path: Path, out: Path) -> str:
    """Return why a trace was refused; '' where it became a run."""
    try:
        import_run(kind, path, out, **SIZES)
    except MoeProbeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("name", "fault"), CASES, ids=[f"{name}-{fault.__name__[1:]}" for name, fault in CASES])
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_a_fault_in_the_experts_or_weights_is_said_or_refused(tmp_path_factory, name, fault, seed):
    folder = tmp_path_factory.mktemp("fuzz") / "a"
    usual = _warnings(name, folder, _documents(seed))
    documents = _documents(seed)
    fault(*documents[1], np.random.default_rng(seed))
    try:
        said = _warnings(name, folder, documents)
    except MoeProbeError:
        return
    assert set(said) - set(usual), said


@pytest.mark.parametrize("name", COUNTED)
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), lost=st.integers(1, 3), end=st.booleans())
def test_rows_fewer_than_tokens_are_said_or_refused(tmp_path_factory, name, seed, lost, end):
    folder = tmp_path_factory.mktemp("fuzz") / "a"
    usual = _warnings(name, folder, _documents(seed))
    kind, write = FORMATS[name]
    whole = write(folder, _documents(seed)).read_text().splitlines()
    documents = _documents(seed)
    documents[1] = tuple(each[:-lost] if end else each[lost:] for each in documents[1])
    short = write(folder, documents).read_text().splitlines()
    told, given_ = json.loads(whole[1]), json.loads(short[1])
    # The experts of the shorter document beside the tokens of the whole one.
    if name.startswith("vllm"):
        told["prompt_routed_experts"] = given_.get("prompt_routed_experts")
        told["choices"][0]["routed_experts"] = given_["choices"][0]["routed_experts"]
    elif name == "sglang":
        told["meta_info"]["routed_experts"] = given_["meta_info"]["routed_experts"]
    else:
        key = {"prompts": "experts", "olmoe": "exp_ids"}[name]
        told[key] = given_[key]
        told |= {"weights": given_["weights"]} if name == "prompts" else {}
    path = write_lines(folder / "b.jsonl", [json.loads(whole[0]), told])
    shutil.rmtree(folder / "run")
    try:
        said = import_run(kind, path, folder / "run", **SIZES).warnings
    except MoeProbeError:
        return
    assert set(said) - set(usual), said


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_broken_bytes_never_raise_anything_but_one_of_our_errors(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("bytes")
    kind, write = FORMATS[name]
    path = write(folder, [(routing(6), weights_of(routing(6)))])
    file = path if path.is_file() else sorted(path.iterdir())[data.draw(st.integers(0, LAYERS - 1))]
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["change", "cut", "insert", "repeat"])):
            case "change":
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = data.draw(
                    st.binary(max_size=6) | st.sampled_from([b"null", b"]", b"{", b"1e9", b"-"])
                )
            case "repeat":
                content[place:place] = content[place : place + 30]
        if not content:
            return
    file.write_bytes(bytes(content))
    refused = _refusal(kind, path, folder / "run")
    assert "\n" not in refused
    assert bool(refused) != (folder / "run").exists()


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=6, deadline=None, derandomize=True)
@given(share=st.floats(0.02, 0.98))
def test_a_file_that_was_cut_short_within_its_last_document_is_said_or_refused(tmp_path_factory, name, share):
    folder = tmp_path_factory.mktemp("cut")
    usual = _warnings(name, folder / "a", _documents(0)[:1])
    path = FORMATS[name][1](folder, _documents(0)[:1])
    file = path if path.is_file() else sorted(path.iterdir())[-1]
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    try:
        said = import_run(FORMATS[name][0], path, folder / "run", **SIZES).warnings
    except MoeProbeError:
        return
    assert set(said) - set(usual) or name == "rows", said


def test_a_recording_of_broken_bytes_is_refused_in_one_line(tmp_path):
    import torch

    record = {
        "input_ids": [1, 2, 3],
        "positions": [0, 1, 2],
        "extend_seq_lens": [3],
        "forward_mode": 1,
        "topk_ids_of_layer": torch.tensor(routing(3).transpose(1, 0, 2).tolist(), dtype=torch.int32),
    }
    path = tmp_path / "a.pt"
    torch.save({"records": [record]}, path)
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for number in range(60):
        content = bytearray(whole)
        for place in draw.integers(0, len(content), draw.integers(1, 6)):
            content[place] = draw.integers(256)
        path.write_bytes(content if number % 3 else whole[: draw.integers(len(whole))])
        assert "\n" not in _refusal("sglang", path, tmp_path / f"run{number}")
