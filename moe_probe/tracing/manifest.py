"""What a run's manifest says about its making: model, precision, tokenizer, corpus, settings, versions, times.

It does not know what was recorded.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

import torch

from moe_probe import __version__
from moe_probe.models import LanguageModel
from moe_probe.tracing.encoding import Encoder
from moe_probe.tracing.reading import Corpus

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "bitsandbytes",
    "numpy",
    "pyarrow",
    "spacy",
)


def about_run(
    lm: LanguageModel, encoder: Encoder, corpus: Corpus, settings: dict[str, object], started: float, seconds: float
) -> dict[str, object]:
    """Return the part of run.json that is known before anything is recorded, and the times until now.

    `started` is the time of day, in seconds since 1970; `seconds` has passed since then. The end is counted from these,
    for the clock may have been set meanwhile.

    `seed` is null: a trace draws nothing at random, unless the model writes texts. Only `times` differs between two
    runs of the same.
    """
    return {
        "model": {
            "name": lm.name,
            "revision": lm.revision,
            "quantization": lm.quantization,
            "class": type(lm.model).__name__,
            "dtype": str(lm.model.dtype).removeprefix("torch."),
            "device": lm.device.type,
            "context": lm.context,
            "fingerprint": lm.fingerprint(),
        },
        "precision": lm.precision_rows(),
        "tokenizer": {
            "class": encoder.name,
            "pieces": encoder.n_pieces,
            "prefix": encoder.find_pieces(encoder.prefix),
        },
        "corpus": {
            "documents": len(corpus.token_counts),
            "tokens": corpus.n_tokens,
            "characters": sum(corpus.character_counts),
            "tokens_by_domain": dict(sorted(corpus.tokens_by_domain.items())),
            "tokens_by_language": dict(sorted(corpus.tokens_by_language.items())),
            "digest": corpus.digest,
        },
        "settings": settings,
        "seed": None,
        "versions": {"moe-probe": __version__, "python": platform.python_version(), **_versions()},
        "times": {
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "finished": datetime.fromtimestamp(started + seconds, UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        },
    }


@cache
def _versions() -> Mapping[str, str | None]:
    """Return the versions of what a run may hang on; to look them up on the disk takes longer than a small shard."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    # It alone says which build it is: packages for CUDA are called by the plain number.
    found["torch"] = str(torch.__version__)
    return MappingProxyType(found)
