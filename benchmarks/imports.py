"""How fast foreign traces become runs, against reading the file and parsing it alone, and how much memory it takes.

A row is one decision: the experts of a token in a layer, whatever the format calls it. The rival makes arrays of the
experts (and weights) of a file and does nothing with them; JSON's token ids are parsed too. Of several libraries that
can do so, the one that takes least time for a small file of the same form is the rival: pysimdjson, orjson, msgspec,
DuckDB, pyarrow and Polars for text (objects made by orjson and msgspec become arrays by NumPy); orjson, msgspec and
pysimdjson with the standard library's base64 or pybase64 for base64; pyarrow's CSV reader for ESFT; torch for `.pt`.

Claim: an import has at least a third of the rival's speed by the clock, on two processors: it reads while it checks,
and makes tables while it writes; the rival works alone. The same ratio of processor time stands beside it, and so does
what the run's Parquet files alone cost: the same tables, written again. Rounds alternate, the best of each counts.

Memory is the most that a process of its own holds beyond what it held after a small import, for all rows and for a
quarter of them; the pages of a `.pt` file that is mapped count.

    python benchmarks/imports.py [--rows 10000000] [--rounds 2] [name ...]

Exits with 1 where a format misses the claim.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import orjson
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.json as pj
import pyarrow.parquet as pq
import pybase64
import simdjson

from moe_probe.importers import import_run
from moe_probe.store.writer import ShardFacts, write_routing, write_tokens

LAYERS, SLOTS, EXPERTS, TOKENS = 16, 8, 64, 2048
DIFFERENT = 16
"""So many documents differ; after them the same come again."""
SIZES = {"n_experts": EXPERTS, "n_slots": SLOTS, "n_layers": LAYERS}


def documents(rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield experts and weights, (tokens, layers, slots), of the documents that differ, or fewer."""
    draw = np.random.default_rng(0)
    for _ in range(min(DIFFERENT, n_documents(rows))):
        scores = draw.random((TOKENS, LAYERS, EXPERTS), np.float32)
        experts = np.argpartition(scores, -SLOTS, axis=2)[:, :, -SLOTS:]
        yield experts, np.sort(draw.integers(1, 9999, experts.shape), axis=2)[:, :, ::-1] / 1e4


def n_documents(rows: int) -> int:
    """Return how many documents have that many rows."""
    return max(1, rows // (TOKENS * LAYERS))


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
    folder.mkdir(parents=True)
    different = list(documents(rows))
    numbers = range(n_documents(rows))
    if name == "esft":
        for layer in range(LAYERS):
            lines = []
            for pair in different:
                parts = ["\t".join(map(str, values[:, layer].ravel().tolist())) for values in pair]
                lines.append("\t\t".join(parts) + "\n")
            with (folder / f"expert_weights_{layer}.txt").open("w") as file:
                file.writelines(lines[number % DIFFERENT] for number in numbers)
        return folder
    if name == "sglang, recorder":
        import torch

        records = [_record(different[number % DIFFERENT][0]) for number in numbers]
        torch.save({"records": records}, folder / "trace.pt")
        return folder / "trace.pt"
    made = [LINES[name][1](*pair, number) for number, pair in enumerate(different)]
    with (folder / "trace.jsonl").open("wb") as file:
        for number in numbers:
            said = b'"document": %d,'
            file.write(made[number % DIFFERENT].replace(said % (number % DIFFERENT), said % number))
    return folder / "trace.jsonl"


def _record(experts: np.ndarray) -> dict[str, object]:
    import torch

    ids = list(range(TOKENS))
    chosen = torch.from_numpy(np.ascontiguousarray(experts.transpose(1, 0, 2), np.int32))
    return {"input_ids": ids, "positions": ids, "extend_seq_lens": [TOKENS], "topk_ids_of_layer": chosen}


Rival = Callable[[Path], None]

CUBES = {
    "jsonl, a prompt a line": ("experts", "weights"),
    "vllm, lists": ("prompt_routed_experts",),
    "olmoe": ("exp_ids",),
}


def _with_lines(read: Callable[[bytes], object]) -> Rival:
    def parse(path: Path) -> None:
        with path.open("rb") as file:
            for line in file:
                read(line)

    return parse


def _cube(value: Any, keys: tuple[str, ...]) -> None:
    for key in keys:
        np.array(value[key])
    for choice in value.get("choices", ()):
        np.array(choice["routed_experts"])


def _simd_cube(parser: Any, line: bytes, keys: tuple[str, ...]) -> None:
    value = parser.parse(line)
    for key in keys:
        np.frombuffer(value[key].as_buffer(of_type="d" if key == "weights" else "i"), np.int64)
    if "choices" in value:
        np.frombuffer(value.at_pointer("/choices/0/routed_experts").as_buffer(of_type="i"), np.int64)


def _cubes(name: str) -> dict[str, Rival]:
    keys, parser = CUBES[name], simdjson.Parser()
    return {
        "pysimdjson": _with_lines(lambda line: _simd_cube(parser, line, keys)),
        "orjson": _with_lines(lambda line: _cube(orjson.loads(line), keys)),
        "msgspec": _with_lines(lambda line: _cube(msgspec.json.decode(line), keys)),
        **_of_files(),
    }


def _of_files() -> dict[str, Rival]:
    return {
        "pyarrow": lambda path: pj.read_json(path, pj.ReadOptions(block_size=16 << 20)),
        "Polars": lambda path: pl.read_ndjson(path),
        "DuckDB": _with_duckdb,
    }


def _with_duckdb(path: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute("set enable_progress_bar = false")
        lines = f"read_json('{path}', format='newline_delimited', maximum_object_size=100000000)"
        connection.sql(f"from {lines}").to_arrow_table()


class _Row(msgspec.Struct):
    document: int
    layer: int
    token_idx: int
    experts: list[int]
    gating_probs: list[float]


def _row_arrays(rows: list[Any], get: Callable[[Any, str], Any]) -> None:
    for key, kind in (("experts", np.int32), ("gating_probs", np.float32)):
        np.fromiter(chain.from_iterable([get(row, key) for row in rows]), kind)
    for key in ("document", "layer", "token_idx"):
        np.fromiter([get(row, key) for row in rows], np.int32)


def _with_blocks(parse: Callable[[list[bytes]], None]) -> Rival:
    def read(path: Path) -> None:
        with path.open("rb") as file:
            while lines := file.readlines(8 << 20):
                parse(lines)

    return read


def _rows() -> dict[str, Rival]:
    decode = msgspec.json.Decoder(_Row).decode
    return {
        "orjson": _with_blocks(lambda lines: _row_arrays([orjson.loads(line) for line in lines], dict.__getitem__)),
        "msgspec": _with_blocks(lambda lines: _row_arrays([decode(line) for line in lines], getattr)),
        **_of_files(),
    }


def _routed(value: Any) -> str:
    return value["choices"][0]["routed_experts"] if "choices" in value else value["meta_info"]["routed_experts"]


def _simd_routed(parser: Any, line: bytes) -> str:
    value = parser.parse(line)
    if "prompt_token_ids" in value:
        np.frombuffer(value["prompt_token_ids"].as_buffer(of_type="i"), np.int64)
        np.frombuffer(value.at_pointer("/choices/0/token_ids").as_buffer(of_type="i"), np.int64)
    return _routed(value)


def _base64(name: str) -> dict[str, Rival]:
    """Return ways to parse the envelope, and two to decode what is in it."""
    parser = simdjson.Parser()
    envelopes: dict[str, Callable[[bytes], str]] = {
        "orjson": lambda line: _routed(orjson.loads(line)),
        "msgspec": lambda line: _routed(msgspec.json.decode(line)),
        "pysimdjson": lambda line: _simd_routed(parser, line),
    }

    def array(data: bytes) -> None:
        np.load(io.BytesIO(data)) if name == "vllm, base64" else np.frombuffer(data, np.int32)

    def way(envelope: Callable[[bytes], str], decode: Callable[[str], bytes]) -> Rival:
        return _with_lines(lambda line: array(decode(envelope(line))))

    return {
        f"{one} + {other}": way(envelope, decode)
        for one, envelope in envelopes.items()
        for other, decode in (("base64", base64.b64decode), ("pybase64", pybase64.b64decode))
    }


def _read_esft(path: Path) -> None:
    for file in path.iterdir():
        for line in file.read_bytes().splitlines():
            for part in line.split(b"\t\t"):
                text = io.BytesIO(part.replace(b"\t", b"\n"))
                pc.read_csv(text, pc.ReadOptions(use_threads=False, column_names=["x"], block_size=len(part) + 1))


def _read_recording(path: Path) -> None:
    import torch

    for record in torch.load(path, weights_only=True)["records"]:
        record["topk_ids_of_layer"].numpy()


def rivals(name: str) -> dict[str, Rival]:
    """Return the ways to parse a format that are tried."""
    if name in CUBES:
        return _cubes(name)
    if name == "jsonl, a row a line":
        return _rows()
    if name == "esft":
        return {"pyarrow's CSV": _read_esft}
    return {"torch": _read_recording} if name == "sglang, recorder" else _base64(name)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the processor and of the clock that something takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - processor, time.perf_counter() - wall


def rewrite(run: Path, folder: Path) -> tuple[float, float]:
    """Return what it takes to write the Parquet files of a run again."""
    total = np.zeros(2)
    for routing in sorted((run / "routing").iterdir()):
        tables = [pq.read_table(run / part / routing.name) for part in ("tokens", "routing")]

        def again(tables: list[pa.Table] = tables) -> None:
            write_tokens(folder / "tokens", tables[0])
            write_routing(folder / "routing", tables[1], ShardFacts((False,) * LAYERS, "", ()))

        total += timed(again)
    return total[0], total[1]


Seconds = dict[str, tuple[float, float]]


def _peak_megabytes() -> float:
    """Return the most memory that this process ever held; unlike getrusage, not what its parent held at the fork."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def imported(name: str, path: Path, small: Path, folder: Path) -> tuple[tuple[float, float], float]:
    """Import a small trace and another one; return the seconds of the other, and the megabytes that it took."""
    kind = "esft" if name == "esft" else name.split(",")[0]
    import_run(kind, small, folder / "small", **SIZES)
    before = psutil.Process().memory_info().rss / 2**20
    importing = timed(lambda: import_run(kind, path, folder / "run", **SIZES))
    return importing, _peak_megabytes() - before


def measure(name: str, path: Path, small: Path, folder: Path) -> tuple[str, Seconds, float]:
    """Return the rival, the seconds of each kind of work, and the megabytes that importing took."""
    importing, held = imported(name, path, small, folder)
    parse = rivals(name)
    for each in parse.values():  # what is made at the first call
        each(small)
    chosen = min(parse, key=lambda one: min(timed(lambda: parse[one](small))[0] for _ in range(3)))
    parsing = timed(lambda: parse[chosen](path))
    return chosen, {"importing": importing, "parsing": parsing, "writing": rewrite(folder / "run", folder)}, held


def apart(work: Callable[..., Any], *arguments: object) -> Any:
    """Return what some work returns that is done in a process of its own, given a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as out, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, (*arguments, Path(out)))


def report(name: str, rows: int, rounds: int) -> bool:
    """Measure a format, print a line of it, and say whether the claim held."""
    rows = n_documents(rows) * TOKENS * LAYERS
    with tempfile.TemporaryDirectory() as folder:
        path = write(name, rows, Path(folder) / "whole")
        small = write(name, 4 * TOKENS * LAYERS, Path(folder) / "small")
        quarter = write(name, rows // 4, Path(folder) / "quarter")
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]))
        held_quarter = apart(imported, name, quarter, small)[1]
        found = [apart(measure, name, path, small) for _ in range(rounds)]
    best = {what: [min(seconds[what][clock] for _, seconds, _ in found) for clock in range(2)] for what in found[0][1]}
    (importing, importing_wall), (parsing, parsing_wall), (writing, _) = best.values()
    ratio = parsing_wall / importing_wall
    print(
        f"  {name:24} {rows / 1e6:5.1f} M rows, {size / 1e6:6,.0f} MB: {importing_wall:6.2f} s, {found[0][0]} alone"
        f" {parsing_wall:6.2f} s: ratio {ratio:.2f} by the clock, {'held' if ratio >= AIM else 'MISSED'}; processor"
        f" {importing:.2f} s against {parsing:.2f}: {parsing / importing:.2f}; the Parquet files alone {writing:.2f} s;"
        f" {max(held for _, _, held in found):,.0f} MB held, {held_quarter:,.0f} MB for a quarter of the rows",
        flush=True,
    )
    return ratio >= AIM


NAMES = (*LINES, "sglang, recorder", "esft")
AIM = 1 / 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000, help="of each format")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("names", nargs="*", help=f"of {'; '.join(NAMES)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"no such format: {', '.join(sorted(unknown))}")
    print(f"a row is a token in a layer: {SLOTS} of {EXPERTS} experts, {LAYERS} layers, documents of {TOKENS} tokens")
    held = [report(name, chosen.rows, chosen.rounds) for name in chosen.names or NAMES]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
