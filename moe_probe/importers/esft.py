"""Reads what ESFT's modified model writes: `expert_weights_<layer>.txt`, a line a document.

A line holds the experts of all tokens, slot after slot, token after token, separated by tabs; two tabs; and as many
weights. A folder holds a file a layer, or a folder a process (`rank_0` …) with such files. Slots are not in the order
of their weights. There is no text. (Wang et al. 2024, Let the Expert Stick to His Last, arXiv 2407.01906.)
"""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pc

from moe_probe.errors import BadInputError
from moe_probe.importers.guessing import guess_slots
from moe_probe.importers.source import Source
from moe_probe.importers.trace import ABSENT, Integers, Trace

_NAME = re.compile(r"expert_weights_(\d+)\.txt")
_NEWLINES = bytes.maketrans(b"\t", b"\n")


def read(source: Source) -> Generator[Trace, None, None]:
    """Yield the documents of a file or folder.

    Raises:
        BadInputError: if no file has a name of that form, or a line does not.
    """
    number = 0
    slots = source.sizes.n_slots
    for files in _folders(source.path):
        layers = sorted(files)
        for layer in layers:
            source.hash_file(files[layer])
        with ExitStack() as stack:
            opened = [stack.enter_context(files[layer].open("rb")) for layer in layers]
            for line, row in enumerate(_zipped(source, opened, layers), 1):
                number += 1
                where = f"{files[layers[0]].parent}, line {line}"
                parsed = [_parse(text, f"{files[layer]}, line {line}") for layer, text in zip(layers, row, strict=True)]
                if slots is None:
                    slots = guess_slots(parsed[0][0], where)
                    source.findings.say(f"how many experts a token has was not said: {slots} is taken (n_slots=)")
                yield _trace(source, layers, parsed, slots, number, where)


def _folders(path: Path) -> Iterator[dict[int, Path]]:
    """Yield the file of each layer, folder by folder."""
    folders = [path] if path.is_dir() else []
    if path.is_dir():
        folders += sorted((each for each in path.iterdir() if each.is_dir()), key=lambda each: each.name)
    found = False
    for names in [list(folder.iterdir()) for folder in folders] or [[path]]:
        files = {int(match[1]): name for name in names if (match := _NAME.fullmatch(name.name))}
        if files:
            found = True
            yield files
    if not found:
        raise BadInputError(f"{path}: no file expert_weights_<layer>.txt, as ESFT writes one a layer")


def _zipped(source: Source, files: Sequence[BinaryIO], layers: list[int]) -> Iterator[list[bytes]]:
    """Yield the lines of all layers that belong together; a document that a layer lacks is left out."""
    for line, row in enumerate(zip_longest(*files), 1):
        short = [layer for layer, text in zip(layers, row, strict=True) if text is None or not text.strip()]
        if short:
            source.findings.say(
                f"layer {short[0]} has fewer documents than others: those from line {line} on are left out (ragged"
                " layers)"
            )
            return
        yield [text for text in row if text is not None]


def _parse(line: bytes, where: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    ids, double, weights = line.rstrip(b"\r\n").partition(b"\t\t")
    if not double or not ids or not weights:
        raise BadInputError(f"{where}: no experts, two tabs and weights; was the file cut short?")
    return _numbers(ids, pa.int32(), where), _numbers(weights, pa.float32(), where)


def _numbers(text: bytes, kind: pa.DataType, where: str) -> npt.NDArray[Any]:
    try:
        table = pc.read_csv(
            io.BytesIO(text.translate(_NEWLINES)),
            read_options=pc.ReadOptions(use_threads=False, column_names=["x"], block_size=len(text) + 1),
            parse_options=pc.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False),
            convert_options=pc.ConvertOptions(column_types={"x": kind}, null_values=[]),
        )
    except pa.ArrowException as error:
        raise BadInputError(f"{where}: not numbers between tabs ({' '.join(str(error).split())[:120]})") from error
    found: npt.NDArray[Any] = table.column("x").to_numpy()
    if len(found) != text.count(b"\t") + 1:
        raise BadInputError(f"{where}: an empty place between two tabs")
    return found


def _trace(
    source: Source,
    layers: list[int],
    parsed: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]],
    slots: int,
    number: int,
    where: str,
) -> Trace:
    for layer, (ids, weights) in zip(layers, parsed, strict=True):
        if len(ids) != len(weights) or len(ids) % slots:
            raise BadInputError(
                f"{where}, layer {layer}: {len(ids)} experts and {len(weights)} weights, where there must be as many,"
                f" {slots} a token"
            )
    rows = max(len(ids) for ids, _ in parsed) // slots
    experts: Integers = np.full((len(layers), rows, slots), ABSENT, np.int32)
    weights = np.zeros(experts.shape, np.float32)
    for place, (ids, given) in enumerate(parsed):
        experts[place, : len(ids) // slots] = ids.reshape(-1, slots)
        weights[place, : len(ids) // slots] = given.reshape(-1, slots)
    return Trace(
        name=source.name(number),
        where=where,
        layers=tuple(layers),
        experts=experts.transpose(0, 2, 1),
        weights=weights.transpose(0, 2, 1),
    )
