"""Traces as other tools write them, made by hand for the tests of the importers."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, SLOTS, EXPERTS = 3, 2, 8


def routing(
    n_tokens: int, seed: int = 0, layers: int = LAYERS, slots: int = SLOTS, experts: int = EXPERTS
) -> np.ndarray:
    """Return (tokens, layers, slots): different experts in each row, and no row like the one before."""
    draw = np.random.default_rng(seed)
    return np.argsort(draw.random((n_tokens, layers, experts)), axis=2)[:, :, :slots]


def weights_of(chosen: np.ndarray, seed: int = 1) -> np.ndarray:
    """Return weights that float16 holds, the heaviest first."""
    draw = np.random.default_rng(seed)
    steps = draw.integers(1, 9, chosen.shape)
    return np.cumsum(steps, axis=-1)[..., ::-1] / 64


def write_lines(path: Path, objects: list[Any]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return path


def npy(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


def prompt_object(chosen: np.ndarray, weights: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    """Return a line of the kind that has one object a prompt."""
    found: dict[str, Any] = {"experts": chosen.transpose(1, 0, 2).tolist()}
    if weights is not None:
        found["weights"] = weights.transpose(1, 0, 2).tolist()
    return found | {"token_ids": list(range(5, 5 + len(chosen)))} | more


def row_objects(chosen: np.ndarray, weights: np.ndarray | None = None, **more: Any) -> list[dict[str, Any]]:
    """Return the lines of the kind that has one object a (token, layer)."""
    return [
        {"layer": layer, "token_idx": token, "experts": chosen[token, layer].tolist()}
        | ({} if weights is None else {"gating_probs": weights[token, layer].tolist()})
        | more
        for token in range(len(chosen))
        for layer in range(chosen.shape[1])
    ]


def vllm_response(chosen: np.ndarray, n_prompt: int, form: str, **more: Any) -> dict[str, Any]:
    """Return a response of vLLM; the last of `len(chosen) + 1` tokens never ran."""
    new = len(chosen) + 1 - n_prompt
    response = {
        "id": "cmpl-1",
        "model": "m",
        "prompt_token_ids": list(range(n_prompt)),
        "choices": [{"index": 0, "text": "x", "token_ids": list(range(100, 100 + new))}],
        "usage": {"prompt_tokens": n_prompt, "completion_tokens": new},
    }
    if form == "lists":
        response["prompt_routed_experts"] = chosen[:n_prompt].tolist()
        response["choices"][0]["routed_experts"] = chosen[n_prompt:].tolist()
    else:
        response["choices"][0]["routed_experts"] = npy(chosen.astype(np.uint8))
    return response | more


def sglang_response(chosen: np.ndarray, n_prompt: int, **more: Any) -> dict[str, Any]:
    """Return a response of SGLang; the last of `len(chosen) + 1` tokens never ran."""
    new = len(chosen) + 1 - n_prompt
    meta = {
        "id": "r1",
        "prompt_tokens": n_prompt,
        "completion_tokens": new,
        "routed_experts": base64.b64encode(chosen.astype(np.int32).tobytes()).decode(),
        "input_token_logprobs": [[None, token, None] for token in range(n_prompt)],
    }
    return {"text": "x", "output_ids": list(range(100, 100 + new)), "meta_info": meta | more}


def olmoe_object(chosen: np.ndarray) -> dict[str, Any]:
    return {
        "input_ids": list(range(len(chosen))),
        "predicted_token_ids": list(range(len(chosen))),
        "exp_ids": chosen.transpose(0, 2, 1).tolist(),
    }


def write_esft(folder: Path, documents: list[tuple[np.ndarray, np.ndarray]], first_layer: int = 1) -> Path:
    """Write a file a layer, a line a document."""
    folder.mkdir(parents=True, exist_ok=True)
    for layer in range(documents[0][0].shape[1]):
        lines = [
            "\t".join(map(str, chosen[:, layer].ravel().tolist()))
            + "\t\t"
            + "\t".join(map(str, weights[:, layer].ravel().tolist()))
            + "\n"
            for chosen, weights in documents
        ]
        (folder / f"expert_weights_{layer + first_layer}.txt").write_text("".join(lines))
    return folder
