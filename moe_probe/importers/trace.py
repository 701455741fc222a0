"""One document of a foreign trace, as every reader gives it.

It does not know formats.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError

Integers: TypeAlias = npt.NDArray[np.integer]
Floats: TypeAlias = npt.NDArray[np.floating]

ABSENT = -1
"""In a trace, an expert that the file does not give: a slot, or a whole row where the router was not recorded."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_SLOTS = ("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token", "moe_top_k")


@dataclass(frozen=True, eq=False)
class Trace:
    """What a file says about one document.

    Attributes:
        name: what the document is called.
        where: file and line, for messages.
        layers: the layer of each router.
        experts: (layers, slots, tokens); `ABSENT` where the file gives none.
        weights: the same shape, or None.
        n_tokens: how many tokens the document has, if the file says so beside the experts.
        token_ids: (tokens,), or None.
        pieces: the token's strings, or None.
        text: the text as a whole, or None.
        n_prompt: how many tokens are the prompt; the others were generated. None: all are.
        first: the position of the first token.
        positions: (tokens,) where they are not simply `first`, `first` + 1 and so on.
        places: (tokens,) positions in the window, where they are not the positions.
        domain: what kind of text it is, if known.
        model: the model's name, if the file says it.
    """

    name: str
    where: str
    layers: tuple[int, ...]
    experts: Integers
    weights: Floats | None = None
    n_tokens: int | None = None
    token_ids: Integers | None = None
    pieces: list[str] | None = None
    text: str | None = None
    n_prompt: int | None = None
    first: int = 0
    positions: Integers | None = None
    places: Integers | None = None
    domain: str | None = None
    model: str | None = None


@dataclass(frozen=True)
class Sizes:
    """What is known of a model beforehand: experts of a router, slots of a token, layers; None where it is not."""

    n_experts: int | None = None
    n_slots: int | None = None
    n_layers: int | None = None


def read_sizes(model: str | Path | None) -> Sizes:
    """Return what a model's config.json says of its routers; nothing where `model` is a mere name.

    Raises:
        BadInputError: if the file is there and is no JSON object.
    """
    path = Path(model) / "config.json" if model is not None else None
    if path is None or not path.is_file():
        return Sizes()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read ({error}); give the model's name instead of its folder") from error
    if not isinstance(config, dict):
        raise BadInputError(f"{path}: holds no JSON object; give the model's name instead of its folder")
    parts = [config, config["text_config"]] if isinstance(config.get("text_config"), dict) else [config]
    return Sizes(_number(parts, _EXPERTS), _number(parts, _SLOTS), _number(parts, ("num_hidden_layers",)))


def _number(parts: list[dict[str, Any]], names: tuple[str, ...]) -> int | None:
    found = [part[name] for part in parts for name in names if isinstance(part.get(name), int)]
    return found[0] if found else None
