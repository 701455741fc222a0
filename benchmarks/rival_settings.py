"""What benchmarks/rivals.py gives to each: a model in plain transformers, and the batches that a trace makes of texts.

`oracle` says what is executed there, by a forward written out by hand.
It does not know who is compared.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import moe_probe as mp
import moe_probe_data

sys.path.append(str(Path(__file__).parent.parent / "tests"))
import traced_models
from hand_forward import BLOCKS, hand_forward

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Setting:
    """One model in plain transformers and as moe_probe loads it, texts, and the batches that a trace makes of them."""

    path: Path
    model: Any
    lm: mp.LanguageModel
    documents: list[mp.Document]
    batches: list[Batch]
    folder: Path

    @property
    def n_tokens(self) -> int:
        """Tokens without padding."""
        return sum(int(mask_of(batch).sum()) for batch in self.batches)

    @property
    def layers(self) -> list[int]:
        """The layers that choose experts."""
        return [router.layer for router in mp.find_routers(self.model)]

    @property
    def n_slots(self) -> int:
        """Experts a token."""
        slots: int = self.model.config.num_experts_per_tok
        return slots

    def block(self, layer: int) -> Any:
        """Return the MoE block of a layer."""
        return getattr(self.model.base_model.layers[layer], BLOCKS[self.model.config.model_type][0])


def mask_of(batch: Batch) -> torch.Tensor:
    """Return which tokens of a batch are no padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"]) if mask is None else mask


def without_padding(rows: torch.Tensor, batch: Batch) -> np.ndarray:
    """Return the rows, (batch × length, slots), of tokens."""
    return rows.reshape(-1, rows.shape[-1])[mask_of(batch).reshape(-1).bool()].numpy()


def load_plainly(path: Path) -> Any:
    """Return a model in float32 as transformers alone loads it."""
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def open_setting(path: Path, documents: list[mp.Document], folder: Path) -> Setting:
    lm = mp.load(path, dtype="float32", device_map="cpu")
    batches: list[Batch] = []

    def keep(_: torch.nn.Module, args: object, inputs: dict[str, Any]) -> None:
        names = ("input_ids", "attention_mask", "position_ids", "use_cache")
        batches.append({name: inputs[name] for name in names if inputs.get(name) is not None})

    handle = lm.model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    mp.trace(lm, documents, folder / "first", labels=())
    handle.remove()
    return Setting(path, load_plainly(path), lm, documents, batches, folder)


def mixtral(folder: Path, copies: int) -> Setting:
    sample = list(mp.read_documents([moe_probe_data.SAMPLE], language="en"))
    documents = [
        mp.Document(f"{number}/{one.name}", one.text, domain=one.domain, language=one.language)
        for number in range(copies)
        for one in sample
    ]
    return open_setting(moe_probe_data.MODEL, documents, folder)


def deepseek(folder: Path) -> Setting:
    texts = [mp.Document(f"d{number}", traced_models.text(20 + 5 * number, seed=number)) for number in range(6)]
    return open_setting(traced_models.save(folder / "model", "deepseek_v3"), texts, folder)


def oracle(setting: Setting, batches: list[Batch]) -> tuple[np.ndarray, np.ndarray]:
    """Return by hand the experts, (layers, tokens, slots), and which may be one or another: a tie, (layers, tokens)."""
    experts, tied = [], []
    for batch in batches:
        for line, mask in zip(batch["input_ids"], mask_of(batch), strict=True):
            ids = line[mask.bool()][None]
            decided = hand_forward(setting.model, lambda ids=ids: setting.model(ids), outputs=False)
            experts.append(np.stack([one.experts for one in decided]))
            tied.append(np.stack([one.tied for one in decided]))
    return np.concatenate(experts, axis=1), np.concatenate(tied, axis=1)
