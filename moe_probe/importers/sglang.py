"""Reads what SGLang says of routing: responses, or the file of its expert distribution recorder.

Responses: `meta_info.routed_experts` (also under `choices[]`) is base64 of int32 numbers, or of the type that stands
beside it, token after token, layer after layer, slot after slot; the last token never ran. Layers and slots are not
said: they come from the model's config.json, from the caller, or are guessed.

Recorder: `records[]` with `topk_ids_of_layer` (layers, tokens, slots), recorded per token. The experts there are
physical places, which `last_physical_to_logical_map` maps back. Slots are padded with -1. There are no weights.
"""

from __future__ import annotations

import binascii
import pickle
import zipfile
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pybase64

from moe_probe.errors import BadInputError
from moe_probe.importers.guessing import guess_slots
from moe_probe.importers.nested import from_lists
from moe_probe.importers.source import Source
from moe_probe.importers.trace import ABSENT, Integers, Trace

_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "int64")
_DECODE = 2
"""SGLang's `ForwardMode.DECODE`: one new token for each text of the batch."""


def read(source: Source) -> Generator[Trace, None, None]:
    """Yield a document a response, or a document a text of each recorded pass.

    Raises:
        BadInputError: if the file is neither.
    """
    if source.path.suffix == ".pt":
        yield from _read_recorder(source)
    else:
        yield from _read_responses(source)


def _read_responses(source: Source) -> Iterator[Trace]:
    number = 0
    sizes: tuple[int, int] | None = None
    for line, response in source.lines().objects("routed_experts"):
        for meta, answer in _answers(response):
            number += 1
            where = f"{source.path}, line {line}"
            flat = _decode(meta, where)
            known, n_prompt = _lengths(response, meta, where)
            start = _count(meta, "routed_experts_start_len", where) or 0
            if sizes is None:
                sizes = _sizes(source, flat, meta, None if known is None else known - start, where)
            n_layers, n_slots = sizes
            if len(flat) % (n_layers * n_slots) or not len(flat):
                raise BadInputError(
                    f"{where}: {len(flat)} numbers are no whole number of tokens with {n_layers} layers of {n_slots}"
                    " experts"
                )
            rows = flat.reshape(-1, n_layers, n_slots).transpose(1, 2, 0)
            yield Trace(
                name=str(meta.get("id") or source.name(number)),
                where=where,
                layers=tuple(range(n_layers)),
                experts=_without_shared(source, rows),
                n_tokens=None if known is None else known - start,
                token_ids=_token_ids(response, meta, answer, start, known),
                pieces=None,
                n_prompt=n_prompt,
                first=start,
            )


def _answers(response: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each answer in a response and what it says of itself."""
    choices = response.get("choices")
    for answer in choices if isinstance(choices, list) else [response]:
        places = [answer.get(key) for key in ("meta_info", "sglext")] if isinstance(answer, dict) else []
        found = [place for place in places if isinstance(place, dict)]
        yield (found[0] if found else {}), (answer if isinstance(answer, dict) else {})


def _decode(meta: dict[str, Any], where: str) -> Integers:
    value = meta.get("routed_experts")
    if value is None:
        raise BadInputError(
            f"{where}: no meta_info.routed_experts; was SGLang started with --enable-return-routed-experts, and asked?"
        )
    if not isinstance(value, str | bytes):
        return from_lists(value, 3, where).reshape(-1)
    kind = str(meta.get("routed_experts_dtype", "int32")).removeprefix("torch.")
    if kind not in _TYPES:
        raise BadInputError(f"{where}: routed_experts of type {kind!r}; known are {', '.join(_TYPES)}")
    try:
        data = value if isinstance(value, bytes) else pybase64.b64decode(value, validate=True)
        return np.frombuffer(data, np.dtype(kind).newbyteorder("<"))
    except (binascii.Error, ValueError) as error:
        raise BadInputError(f"{where}: routed_experts is no base64 of whole {kind} numbers ({error})") from error


def _count(meta: dict[str, Any], key: str, where: str) -> int | None:
    value = meta.get(key)
    if value is not None and (not isinstance(value, int) or value < 0):
        raise BadInputError(f"{where}: {key} is {value!r}, no number of tokens")
    return value


def _lengths(response: dict[str, Any], meta: dict[str, Any], where: str) -> tuple[int | None, int | None]:
    """Return how many tokens there are, and how many of them are the prompt."""
    usage = response.get("usage")
    said = meta if "prompt_tokens" in meta or not isinstance(usage, dict) else usage
    prompt, new = _count(said, "prompt_tokens", where), _count(said, "completion_tokens", where)
    return None if prompt is None or new is None else prompt + new, prompt


def _sizes(source: Source, flat: Integers, meta: dict[str, Any], known: int | None, where: str) -> tuple[int, int]:
    """Return layers and slots: given, said by the file, or guessed."""
    n_layers, n_slots = source.sizes.n_layers, source.sizes.n_slots
    shape = meta.get("routed_experts_shape")
    shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
    if isinstance(shape, list) and len(shape) == 3 and all(isinstance(size, int) and size > 0 for size in shape):
        return shape[1], shape[2]
    if not isinstance(meta["routed_experts"], str | bytes):
        array = from_lists(meta["routed_experts"], 3, where)
        return array.shape[1], array.shape[2]
    if n_layers and n_slots:
        return n_layers, n_slots
    if not known or known < 2:
        raise BadInputError(
            f"{where}: layers and slots are not said and there is no telling; give n_layers and n_slots"
        )
    rows = [count for count in (known - 1, known) if len(flat) % count == 0]
    if not rows:
        raise BadInputError(f"{where}: {len(flat)} numbers for {known} tokens; were tokens left out of the response?")
    width = len(flat) // rows[0]
    n_slots = n_slots or (width // n_layers if n_layers else guess_slots(flat, where, width))
    if width % n_slots or (n_layers and width != n_layers * n_slots):
        raise BadInputError(f"{where}: {width} numbers a token are no layers of {n_slots} experts; check the sizes")
    source.findings.say(
        f"layers and experts of a token were not said: {width // n_slots} and {n_slots} are taken (n_layers=, n_slots=)"
    )
    return width // n_slots, n_slots


def _without_shared(source: Source, experts: Integers) -> Integers:
    """Leave out the last slots (layers, slots, tokens) where they only ever hold numbers beyond the routed experts."""
    limit = source.sizes.n_experts
    while limit and experts.shape[1] > 1 and experts.size and (experts[:, -1] >= limit).all():
        source.findings.say(f"the last slot holds only numbers from {limit} on: a shared expert, which is left out")
        experts = experts[:, :-1]
    return experts


def _token_ids(
    response: dict[str, Any], meta: dict[str, Any], answer: dict[str, Any], start: int, known: int | None
) -> npt.NDArray[np.int64] | None:
    """Return the ids of all tokens, from wherever the response has them, or None."""
    parts: list[Integers] = []
    for ids, logprobs in (
        (response.get("input_ids", response.get("prompt_token_ids")), meta.get("input_token_logprobs")),
        (answer.get("output_ids"), meta.get("output_token_logprobs")),
    ):
        if isinstance(logprobs, list) and all(isinstance(one, list) and len(one) > 1 for one in logprobs):
            logprobs = [one[1] for one in logprobs]
        for tokens in (ids, logprobs):
            if isinstance(tokens, np.ndarray) and tokens.ndim == 1 and tokens.dtype.kind == "i":
                parts.append(tokens)
                break
            if isinstance(tokens, list):
                if not all(isinstance(token, int) for token in tokens):
                    return None
                parts.append(np.array(tokens, np.int64))
                break
    joined = np.concatenate(parts).astype(np.int64) if len(parts) == 2 else None
    return joined[start:] if joined is not None and len(joined) == known else None


def _read_recorder(source: Source) -> Iterator[Trace]:
    loaded = _load(source)
    records, table = loaded.get("records"), loaded.get("last_physical_to_logical_map")
    if not isinstance(records, list) or not all(isinstance(one, dict) for one in records):
        raise BadInputError(
            f"{source.path}: no list of records; a recorder in mode stat counts only, record in mode per_token"
        )
    physical = None if table is None else _array(table, 2, f"{source.path}, last_physical_to_logical_map")
    if physical is not None and (physical == np.arange(physical.shape[1])).all():
        physical = None
    if physical is not None:
        source.findings.say(
            "experts are mapped from physical places by the last map of the file; if places moved meanwhile,"
            " earlier tokens are mapped wrongly"
        )
    for place, record in enumerate(records):
        if "topk_ids_of_layer" not in record:
            raise BadInputError(f"{source.path}: its records count only; record in mode per_token")
        yield from _passes(source, place, record, physical)


def _load(source: Source) -> dict[str, Any]:
    import torch

    source.hash_file(source.path)
    try:
        # weights_only: tensors and plain values, never a class that the file names.
        loaded = torch.load(source.path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadInputError(f"{source.path}: no file of plain tensors that torch can read ({reason})") from error
    if not isinstance(loaded, dict):
        raise BadInputError(f"{source.path}: holds no recording but {type(loaded).__name__}")
    return loaded


def _array(value: Any, dimensions: int, where: str) -> Integers:
    array = value.numpy() if hasattr(value, "numpy") else np.asarray(value)
    if array.ndim != dimensions or array.dtype.kind not in "iu":
        raise BadInputError(f"{where}: {array.ndim} dimensions of {array.dtype}, not {dimensions} of whole numbers")
    found: Integers = array
    return found


def _passes(source: Source, place: int, record: dict[str, Any], physical: Integers | None) -> Iterator[Trace]:
    where = f"{source.path}, record {place}"
    experts = _array(record["topk_ids_of_layer"], 3, where)  # (layers, tokens, slots)
    while experts.shape[2] > 1 and (experts[:, :, -1] == ABSENT).all():
        experts = experts[:, :, :-1]
    if physical is not None:
        experts = _mapped(experts, physical, where)
    ids = from_lists(record.get("input_ids"), 1, f"{where}, input_ids")
    positions = from_lists(record.get("positions"), 1, f"{where}, positions")
    if not len(ids) == len(positions) == experts.shape[1]:
        raise BadInputError(f"{where}: {len(ids)} ids, {len(positions)} positions, {experts.shape[1]} rows of experts")
    decoding = record.get("forward_mode") == _DECODE
    lengths = None if decoding else record.get("extend_seq_lens")
    cuts = [len(ids)] if not isinstance(lengths, list) else lengths
    if sum(cuts) != len(ids) or min(cuts, default=0) < 0:
        raise BadInputError(f"{where}: texts of {cuts} tokens in a pass of {len(ids)}")
    source.findings.add("decoding", int(decoding), where)
    begin = 0
    for number, length in enumerate(cuts):
        rows = slice(begin, begin + length)
        begin += length
        if not length:
            continue
        yield Trace(
            name=f"{source.path.stem}: pass {place}" + ("" if decoding else f", text {number}"),
            where=where,
            layers=tuple(range(len(experts))),
            experts=_without_shared(source, experts[:, rows].transpose(0, 2, 1)),
            token_ids=ids[rows],
            n_prompt=0 if decoding else None,
            positions=np.arange(length) if decoding else positions[rows],
            places=positions[rows] if decoding else None,
        )


def _mapped(experts: Integers, physical: Integers, where: str) -> Integers:
    """Map places to experts, layer by layer; -1 stays."""
    if len(physical) != len(experts) or experts.max(initial=0) >= physical.shape[1]:
        raise BadInputError(
            f"{where}: experts up to {experts.max(initial=0)} in {len(experts)} layers, and a map of {physical.shape}"
        )
    index = np.arange(len(experts))[:, None, None]
    return np.where(experts == ABSENT, ABSENT, physical[index, np.maximum(experts, 0)])
