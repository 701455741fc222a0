"""How fast foreign traces become runs, against reading the file and parsing it alone, and how much memory it takes.

A row is a token in a layer. The rival does nothing with what it reads: for JSON it is orjson if that is installed, else
the standard library's parser (both make Python objects of every number), and base64 decoded where that is how the
numbers are written; for ESFT's text it is pyarrow's CSV reader. Times are of the processor. Memory is the most that a
process of its own holds beyond what it holds after its imports. Run: python benchmarks/imports.py [rows] [format ...]
"""

from __future__ import annotations

import base64
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pc

from moe_probe.importers import import_run

try:
    from orjson import loads
except ModuleNotFoundError:
    loads = json.loads

LAYERS, SLOTS, EXPERTS, TOKENS = 16, 8, 64, 2048
SIZES = {"n_experts": EXPERTS, "n_slots": SLOTS, "n_layers": LAYERS}


def documents(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield experts and weights, (tokens, layers, slots), of as many documents as have that many rows."""
    draw = np.random.default_rng(0)
    for _ in range(max(1, rows // (TOKENS * LAYERS))):
        scores = draw.random((TOKENS, LAYERS, EXPERTS), np.float32)
        experts = np.argpartition(scores, -SLOTS, axis=2)[:, :, -SLOTS:]
        yield experts, np.sort(draw.integers(1, 9999, experts.shape), axis=2)[:, :, ::-1] / 1e4


def _json(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _rows_of(experts: np.ndarray, weights: np.ndarray, number: int) -> bytes:
    lines = [
        f'{{"document": {number}, "layer": {layer}, "token_idx": {token}, "experts": {experts[token, layer].tolist()},'
        f' "gating_probs": {weights[token, layer].tolist()}}}\n'
        for token in range(TOKENS)
        for layer in range(LAYERS)
    ]
    return "".join(lines).encode()


def _response(routed: object, **more: object) -> dict[str, object]:
    prompt, new = list(range(TOKENS // 2)), list(range(TOKENS // 2 + 1))
    return {"prompt_token_ids": prompt, "choices": [{"token_ids": new, "routed_experts": routed}]} | more


def _npy(experts: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, experts.astype(np.uint8))
    return base64.b64encode(file.getvalue()).decode()


def _sglang(experts: np.ndarray) -> dict[str, object]:
    routed = base64.b64encode(experts.astype(np.int32).tobytes()).decode()
    meta = {"prompt_tokens": TOKENS // 2, "completion_tokens": TOKENS // 2 + 1, "routed_experts": routed}
    return {"output_ids": [], "meta_info": meta}


LINES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray, int], bytes]]] = {
    "jsonl, a prompt a line": (
        "jsonl",
        lambda e, w, n: _json(
            {
                "token_ids": list(range(TOKENS)),
                "experts": e.transpose(1, 0, 2).tolist(),
                "weights": w.transpose(1, 0, 2).tolist(),
            }
        ),
    ),
    "jsonl, a row a line": ("jsonl", _rows_of),
    "vllm, lists": (
        "vllm",
        lambda e, w, n: _json(
            _response(e[TOKENS // 2 :].tolist(), prompt_routed_experts=e[: TOKENS // 2].tolist()),
        ),
    ),
    "vllm, base64": ("vllm", lambda e, w, n: _json(_response(_npy(e)))),
    "sglang": ("sglang", lambda e, w, n: _json(_sglang(e))),
    "olmoe": (
        "olmoe",
        lambda e, w, n: _json({"input_ids": list(range(TOKENS)), "exp_ids": e.transpose(0, 2, 1).tolist()}),
    ),
}


def write(name: str, rows: int, folder: Path) -> Path:
    """Write a trace of a format and return its path."""
    if name == "esft":
        path = folder / "esft"
        path.mkdir()
        for experts, weights in documents(rows):
            for layer in range(LAYERS):
                numbers = ["\t".join(map(str, values[:, layer].ravel().tolist())) for values in (experts, weights)]
                with (path / f"expert_weights_{layer}.txt").open("a") as file:
                    file.write("\t\t".join(numbers) + "\n")
        return path
    path = folder / "trace.jsonl"
    with path.open("wb") as file:
        for number, (experts, weights) in enumerate(documents(rows)):
            file.write(LINES[name][1](experts, weights, number))
    return path


def parse(name: str, path: Path) -> None:
    """Do what cannot be left out: read the file and make numbers of it."""
    if name == "esft":
        for file in path.iterdir():
            for line in file.read_bytes().splitlines():
                for part in line.split(b"\t\t"):
                    text = io.BytesIO(part.replace(b"\t", b"\n"))
                    pc.read_csv(text, pc.ReadOptions(use_threads=False, column_names=["x"], block_size=len(part) + 1))
        return
    with path.open("rb") as file:
        for line in file:
            value = loads(line)
            routed = value["choices"][0] if "choices" in value else value.get("meta_info", {})
            if isinstance(routed.get("routed_experts"), str):
                np.frombuffer(base64.b64decode(routed["routed_experts"]), np.uint8)


def measure(name: str, path: Path, out: Path) -> tuple[float, float, float]:
    """Return the processor seconds of importing and of parsing alone, and the megabytes that importing took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    import_run("esft" if name == "esft" else LINES[name][0], path, out, **SIZES)
    importing = time.process_time() - began
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    began = time.process_time()
    parse(name, path)
    return importing, time.process_time() - began, held / 1024


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    names = [name for name in (*LINES, "esft") if len(sys.argv) < 3 or name in sys.argv[2:]]
    print(f"{rows:,} rows ({SLOTS} of {EXPERTS} experts, {LAYERS} layers); JSON parsed by {loads.__module__}")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            path = write(name, rows, Path(folder))
            size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                importing, parsing, held = pool.apply(measure, (name, path, Path(folder) / "run"))
        print(
            f"  {name:24} {size / 1e6:8,.0f} MB  {rows / importing / 1e6:6.2f} million rows a second,"
            f" parsing alone {rows / parsing / 1e6:6.2f}: ratio {parsing / importing:.2f}; {held:,.0f} MB held"
        )


if __name__ == "__main__":
    main()
