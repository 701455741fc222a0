"""Which architectures of the installed transformers can be recorded, and how exactly; found out by recording each.

    python -m moe_probe.recording.survey docs/models.md

A tiny random model of every Mixture-of-Experts architecture is built and one forward of it recorded. That tells how a
router is read, not what a checkpoint of the architecture was trained to do.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from moe_probe.errors import UnsupportedModelError
from moe_probe.recording import formats
from moe_probe.recording.architectures import VOCABULARY, build, find_architectures, is_text, read_model_class
from moe_probe.recording.forms import Form
from moe_probe.recording.opening import record
from moe_probe.recording.routers import find_number, find_sites
from moe_probe.recording.routing import Routing

_EXPERTS_NAMES = ("n_routed_experts", "num_local_experts", "num_experts", "moe_num_experts")
_SLOTS_NAMES = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "moe_top_k")
_NOTES = {
    "deepseek_v4": "the first layers look experts up by token: no score chose them, so that none has a margin",
    "ernie4_5_vl_moe_text": "batches without images: the experts of images are not recorded",
    "jetmoe": "two routers a layer, one for the attention and one for the MLP",
    "llama4_text": "the weight scales what an expert receives, not what it returns",
    "longcat_flash": "the experts with the highest indices return what they receive",
    "switch_transformers": "encoder and decoder are recorded one by one",
    "phimoe": "in training its second expert is drawn at random, and has no scores",
    "zaya": "a token that skips its experts has none; to skip counts as one choice more in entropy and margin",
}


@dataclass(frozen=True)
class Finding:
    """What one architecture's routers are and how exactly they are read; `refused` says why they are not."""

    model_type: str
    kinds: tuple[str, ...] = ()
    n_experts: int | None = None  # of the library's default configuration
    n_slots: int | None = None
    drops: bool = False
    changeable: bool = False
    scored: tuple[bool, ...] = ()  # by kind: whether entropy and margin are known
    self_check: str = ""
    refused: str | None = None


def run_streams(model: Any) -> list[tuple[nn.Module, Routing, str]]:
    """Record one forward of a model over random tokens; return each stream with its routing and self-check."""
    streams = [model.encoder, model.decoder] if model.config.is_encoder_decoder else [model]
    tokens = torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens.flip(1)
    with ExitStack() as stack, torch.inference_mode():
        recordings = [stack.enter_context(record(stream, self_check=True)) for stream in streams]
        model(**inputs)
    return [(stream, one.routing(), one.self_check) for stream, one in zip(streams, recordings, strict=True)]


def examine(model_type: str) -> Finding:
    """Build a tiny model of an architecture, record it, and return what was found."""
    model = build(model_type)
    try:
        sites = find_sites(model)
        recorded = run_streams(model)
    except UnsupportedModelError as error:
        return Finding(model_type, refused=str(error).partition("cannot be read: ")[2] or str(error))
    scored: dict[str, bool] = {}
    for _, routing, _ in recorded:
        for router in routing.routers:
            known = routing.entropy(router.index) is not None
            scored[router.kind] = known and scored.get(router.kind, True)
    forms: list[Form] = [site.form for site in sites]
    default = find_architectures()[model_type]()
    holders = (default, getattr(default, "ffn_config", None))
    return Finding(
        model_type,
        kinds=tuple(scored),
        n_experts=find_number(_EXPERTS_NAMES, *holders),
        n_slots=forms[0].n_slots or find_number(_SLOTS_NAMES, *holders),
        drops=any(form.drops for form in forms),
        changeable=all(form.by_rule for form in forms),
        scored=tuple(scored.values()),
        self_check=" and ".join(sorted({check for _, _, check in recorded})),
    )


def find_text_architectures() -> list[str]:
    """Return the model types that read text."""
    return [name for name, config in find_architectures().items() if is_text(read_model_class(config))]


def write_table(findings: Iterable[Finding]) -> str:
    """Return the findings as a page in Markdown."""
    findings = list(findings)
    read = [finding for finding in findings if finding.refused is None]
    refused = [finding for finding in findings if finding.refused is not None]
    texts = set(find_text_architectures())
    others = [name for name in find_architectures() if name not in texts]
    lines = [
        "# Models",
        "",
        "<!-- Written by `python -m moe_probe.recording.survey docs/models.md`; a test fails when it is stale. -->",
        "",
        f"transformers {transformers.__version__} holds {len(findings)} Mixture-of-Experts architectures that read "
        f"text. {len(read)} are recorded exactly, {len(refused)} are refused with the reason. They were found in the "
        "library itself, and a tiny random model of each was recorded to write this page.",
        "",
        "- **Experts and weights** are exact for every architecture of the table: they are those that the experts "
        "execute, and the self-check recomputes from them what the experts return. *Self-check* says how it went.",
        "- **Entropy and margin** are exact where the table says so. Where a router's selection scores cannot be had "
        "they are left out: moe_probe does not guess.",
        "- **Experts** and **slots** are those of the library's default configuration; a checkpoint may have others.",
        "- **Intervene** says whether `ablate`, `force` and the like can change the choice, not only record it.",
        "- A vision-language model is recorded through its text model, which is the architecture of the table.",
        "",
        "| architecture | router | experts | slots | entropy, margin | self-check | intervene | notes |",
        "|---|---|---:|---:|---|---|---|---|",
        *(_row(finding) for finding in read),
        "",
        *formats.write_tables(),
        "## Refused",
        "",
        "| architecture | why |",
        "|---|---|",
        *(f"| {finding.model_type} | {finding.refused} |" for finding in refused),
        "",
        f"Experts without text, which are not recorded: {', '.join(others)}.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Write the table to the file named, or print it."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    page = write_table(examine(model_type) for model_type in find_text_architectures())
    if arguments:
        Path(arguments[0]).write_text(page)
    else:
        print(page)


def _row(finding: Finding) -> str:
    scores = ["exact" if known else "not known" for known in finding.scored]
    if len(set(scores)) == 1:
        scores = scores[:1]
    notes = [_NOTES[finding.model_type]] if finding.model_type in _NOTES else []
    if finding.drops:
        notes.append("a slot may hold no expert")
    cells = [
        finding.model_type,
        "; ".join(finding.kinds),
        _shown(finding.n_experts),
        _shown(finding.n_slots),
        "; ".join(scores),
        finding.self_check,
        "yes" if finding.changeable else "no",
        "; ".join(notes),
    ]
    return f"| {' | '.join(cells)} |"


def _shown(number: int | None) -> str:
    return "not set" if number is None else str(number)


if __name__ == "__main__":
    main(sys.argv[1:])
