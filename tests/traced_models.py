"""Tiny models with a tokenizer, ready to be traced."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import tiny_models
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from moe_probe.models import LanguageModel, load

SPECIAL = ("<pad>", "<s>", "</s>")
WORDS = (
    "the of and a model expert router token layer weights naïve 42 don't 猫 🙂 sea salt Anna wrote: "
    "def x(y): return y\n"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer of at most 400 pieces that puts <s> before a text and </s> after it."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([WORDS.encode("ascii", "ignore").decode() * 3], trainer)  # emoji stay in bytes
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def text(n_words: int, *, seed: int) -> str:
    """Return a text of so many words, with accents, emoji, digits and code in it."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS.split(" ")) for _ in range(n_words))


def save(folder: Path, architecture: str = "mixtral", *, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random model of an architecture and its tokenizer to a folder, and return it."""
    tiny_models.save(architecture, folder, dtype=dtype)
    tokenizer().save_pretrained(folder)
    return folder


def language_model(folder: Path, architecture: str = "mixtral", quantization: str | None = None) -> LanguageModel:
    """Return a random model of an architecture, loaded from `folder`, where it is written if it is not there."""
    if not (folder / "config.json").exists():
        save(folder, architecture)
    return load(folder, quantization=quantization, device_map="cpu")


def files_of(run: Path) -> dict[str, str]:
    """Return a digest of each file of a run; of run.json without its times."""
    digests = {}
    for path in sorted(run.rglob("*")):
        if path.is_file():
            content = _without_times(path) if path.name == "run.json" else path.read_bytes()
            digests[str(path.relative_to(run))] = hashlib.sha256(content).hexdigest()
    return digests


def _without_times(path: Path) -> bytes:
    lines = path.read_text().splitlines()
    start = lines.index(' "times": {')
    return "\n".join(lines[:start] + lines[lines.index(" },", start) :]).encode()
