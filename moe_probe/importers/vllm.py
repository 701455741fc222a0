"""Reads responses of vLLM that were asked for with routed experts.

Two forms: `prompt_routed_experts` [token][layer][slot] beside `choices[].routed_experts` of the generated tokens, both
as nested lists; and `choices[].routed_experts` as base64 of a `.npy` file of (tokens - 1, layers, slots), prompt
included. Token ids are in `prompt_token_ids` and `choices[].token_ids` where they were asked for. The last token that
was generated never ran. Dense layers are zeros; tokens that came out of the prefix cache are -1. There are no weights.
"""

from __future__ import annotations

import binascii
import io
import math
from collections.abc import Generator
from functools import lru_cache
from tokenize import TokenError
from typing import Any

import numpy as np
import pybase64
from numpy.lib import format as _format

from moe_probe.errors import BadInputError
from moe_probe.importers.nested import from_lists
from moe_probe.importers.source import Source
from moe_probe.importers.trace import Integers, Trace

_npy: Any = _format


def read(source: Source) -> Generator[Trace, None, None]:
    """Yield a document a choice; the prompt belongs to the first choice of its response.

    Raises:
        BadInputError: if a response holds no routed experts.
    """
    number = 0
    for line, response in source.lines().objects("routed_experts"):
        where = f"{source.path}, line {line}"
        choices = response.get("choices", response.get("outputs"))
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices) or not choices:
            raise BadInputError(f"{where}: no 'choices', which every response of vLLM has")
        for place, choice in enumerate(choices):
            number += 1
            name = response.get("id") or source.name(number)
            if len(choices) > 1:
                name, where = f"{name} choice {place}", f"{source.path}, line {line}, choice {place}"
            yield _trace(response, choice, (place, len(choices)), str(name), where)


def _trace(response: dict[str, Any], choice: dict[str, Any], place: tuple[int, int], name: str, where: str) -> Trace:
    prompt_ids = _ids(response, choice, "prompt_token_ids", where)
    new_ids = _ids(choice, {}, "token_ids", where)
    n_prompt, n_new = _lengths(response, prompt_ids, new_ids, place[1], where)
    prompt = response.get("prompt_routed_experts", choice.get("prompt_routed_experts"))
    routed = choice.get("routed_experts")
    if prompt is None and routed is None:
        raise BadInputError(f"{where}: no routed experts; was vLLM started with --enable-return-routed-experts?")
    parts = [_array(each, where) for each in (prompt, routed) if each is not None]
    first = 0
    if prompt is not None:
        before = len(parts[0])
        if n_prompt is not None and before != n_prompt:
            raise BadInputError(f"{where}: {before} rows of prompt_routed_experts for a prompt of {n_prompt} tokens")
        n_prompt = before
    elif not isinstance(routed, str | bytes):  # the generated tokens alone
        if n_prompt is None:
            raise BadInputError(f"{where}: the prompt's experts are missing, and so is how long it was")
        first = n_prompt
    experts = _stacked(parts, where).transpose(1, 2, 0)
    known = None if n_prompt is None or n_new is None else n_prompt + n_new - first
    ids = None if prompt_ids is None or new_ids is None else np.concatenate([prompt_ids, new_ids])[first:]
    if place[0] and not first and n_prompt is not None:  # the prompt was said with the first choice
        experts, first = experts[:, :, n_prompt:], n_prompt
        known = None if known is None else known - first
        ids = None if ids is None else ids[first:]
    return Trace(
        name=name,
        where=where,
        layers=tuple(range(len(experts))),
        experts=experts,
        n_tokens=known,
        token_ids=ids,
        n_prompt=n_prompt,
        first=first,
        model=response["model"] if isinstance(response.get("model"), str) else None,
    )


def _ids(one: dict[str, Any], other: dict[str, Any], key: str, where: str) -> Integers | None:
    value = one.get(key) if one.get(key) is not None else other.get(key)
    return None if value is None else from_lists(value, 1, f"{where}, {key}")


def _lengths(
    response: dict[str, Any], prompt: Integers | None, new: Integers | None, n_choices: int, where: str
) -> tuple[int | None, int | None]:
    usage = response.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    said = {key: usage.get(key) for key in ("prompt_tokens", "completion_tokens")}
    for key, value in said.items():
        if value is not None and (not isinstance(value, int) or value < 0):
            raise BadInputError(f"{where}: usage.{key} is {value!r}, no number of tokens")
    n_prompt = said["prompt_tokens"] if prompt is None else len(prompt)
    alone = said["completion_tokens"] if n_choices == 1 else None
    return n_prompt, alone if new is None else len(new)


def _array(value: object, where: str) -> Integers:
    """Return the experts of either form, (tokens, layers, slots)."""
    return decode_npy(value, where) if isinstance(value, str | bytes) else from_lists(value, 3, where)


def decode_npy(packed: str | bytes, where: str) -> Integers:
    """Return the array of whole numbers, (tokens, layers, slots), in a `.npy` file. No object is ever made.

    Args:
        packed: the file, or base64 of it as a string.
        where: what messages say.

    Raises:
        BadInputError: if it is something else.
    """
    try:
        data = packed if isinstance(packed, bytes) else pybase64.b64decode(packed, validate=True)
        wide = data[6:7] > b"\1"  # the second version says the length of its header in four bytes
        begin = 12 if wide else 10
        begin += int.from_bytes(data[8:begin], "little")
        shape, by_column, kind = _header(data[:begin])
    except (binascii.Error, ValueError, TypeError, SyntaxError, TokenError) as error:
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"{where}: routed_experts is no base64 of a .npy file ({reason})") from error
    if len(shape) != 3 or kind.kind not in "iu":
        raise BadInputError(
            f"{where}: routed_experts has shape {shape} of {kind}; (tokens, layers, slots) of whole numbers is needed"
        )
    if math.prod(shape) * kind.itemsize != len(data) - begin:
        raise BadInputError(f"{where}: routed_experts of shape {shape} is not whole; was it cut short?")
    flat: Integers = np.frombuffer(data, kind, offset=begin)
    return flat.reshape(shape, order="F" if by_column else "C")


@lru_cache(64)
def _header(head: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether it is by column, and type, as the head of a `.npy` file says; many files have the same."""
    file = io.BytesIO(head)
    read_header = _npy.read_array_header_1_0 if _npy.read_magic(file) == (1, 0) else _npy.read_array_header_2_0
    shape, by_column, kind = read_header(file)
    return shape, by_column, kind


def _stacked(parts: list[Integers], where: str) -> Integers:
    parts = [part for part in parts if part.size] or parts[:1]
    if len({part.shape[1:] for part in parts}) > 1:
        raise BadInputError(
            f"{where}: layers and slots are {parts[0].shape[1:]} in the prompt and {parts[1].shape[1:]} after it"
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
