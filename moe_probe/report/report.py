"""Puts a report together, section by section, and writes it. It does not know how a section is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from moe_probe.errors import BadInputError
from moe_probe.report.caveats import caveats
from moe_probe.report.effects import effects_section
from moe_probe.report.labelled import domain_section, syntax_section
from moe_probe.report.page import Field, Page, Part, bullets, table, terms
from moe_probe.report.sections import (
    Section,
    balance_section,
    experts_section,
    load_section,
    repetition_section,
    text_section,
)
from moe_probe.report.told import Told
from moe_probe.report.words import listed, numbered

if TYPE_CHECKING:
    from moe_probe.effects import EffectFolder
    from moe_probe.store import Run

OnPart = Callable[[str, int, int], None]
"""Hears of each section before it is made: its name, how many are done, how many there will be."""

_PRECISION_FIELDS = (
    Field("part"),
    Field("dtype", "type"),
    Field("bits_per_parameter", "bits a parameter", ".2f"),
    Field("parameters"),
    Field("bytes"),
)
_SECTIONS: tuple[tuple[str, Callable[[Told], Section]], ...] = (
    ("text", text_section),
    ("load", load_section),
    ("syntax", syntax_section),
    ("domain", domain_section),
    ("repetition", repetition_section),
    ("experts", experts_section),
    ("balance", balance_section),
)


def write_report(
    run: Run, path: str | Path, *, effects: EffectFolder | None = None, on_part: OnPart | None = None
) -> Path:
    """Write what a run shows as one HTML file that needs no network, for the screen and for paper.

    It opens with a few texts coloured by their experts, then asks about load, syntax, domain, repetition, experts and
    balance (and about cause, given `effects`), and ends with the run's caveats. The same run gives the same bytes.

    Args:
        run: an open run.
        path: the file, replaced if it is there; its folder is made if need be.
        effects: from `open_effects`, to tell of switching experts off too.
        on_part: called with each section's name before it is made, how many are done, and how many there will be.

    Returns:
        The file's path.

    Raises:
        BadInputError: `path` is a folder, or `effects` are of another model.
        MoeProbeError: the file cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise BadInputError(
            f"{target}: a report is one file, and this is a folder; name a file in it: {target / 'report.html'}"
        )
    if effects is not None and effects.manifest["model"]["name"] != run.manifest["model"]["name"]:
        raise BadInputError(
            f"{effects.path}: effects of {effects.manifest['model']['name']}, but the run is of "
            f"{run.manifest['model']['name']}; tell of effects of the same model"
        )
    told = Told(run)
    say = on_part or (lambda name, done, total: None)
    sections = []
    for done, (name, make) in enumerate(_SECTIONS):
        say(name, done, len(_SECTIONS) + 1)
        sections.append(make(told))
    if effects is not None:
        sections.append(effects_section(effects))
    say("caveats", len(_SECTIONS), len(_SECTIONS) + 1)
    sections.append(_caveats_section(told))
    model = _model_name(run)
    page = Page(
        f"The routing of {model}",
        f"Which experts {numbered(run.n_tokens, 'token')} of {numbered(run.n_documents, 'document')} were sent to, "
        "layer by layer, and what follows from it. Every number stands beside what chance gives, an interval, and how "
        "much was counted.",
        kicker="moe_probe report",
    )
    sections.insert(1, _short_section(told, [section.short for section in sections if section.short]))
    for section in sections:
        page.add_section(section.title, section.note, *section.parts)
    return page.write(target)


def _short_section(told: Told, findings: list[str]) -> Section:
    return Section("What was found, in short?", "", (bullets(findings), _about(told)))


def _model_name(run: Run) -> str:
    model = run.manifest.get("model", {})
    bits = {"4bit": " in 4 bits", "8bit": " in 8 bits"}.get(str(model.get("quantization")), "")
    return f"{model.get('name', 'a model')}{bits}"


def _about(told: Told) -> Part:
    run = told.run
    model = run.manifest.get("model", {})
    kinds = sorted({(router.n_slots, router.n_experts, router.kind) for router in run.routers})
    experts = [part for part in run.manifest.get("precision", []) if part["part"] == "experts"]
    languages = run.documents()["language"].drop_nulls().unique().sort().to_list()
    corpus = [
        numbered(run.n_tokens, "token"),
        numbered(run.n_documents, "document"),
        *([f"domains {listed(told.domains, 12)}"] if told.domains else []),
        *([f"languages {listed(languages, 12)}"] if languages else []),
    ]
    return terms(
        {
            "Model": " · ".join(str(model[key]) for key in ("name", "revision", "class") if model.get(key)),
            "Experts": " · ".join(
                f"{part['dtype']}, {part['bits_per_parameter']:.2f} bits a parameter" for part in experts
            ),
            "Routers": f"{len(run.routers):,}: " + "; ".join(f"{k:,} of {e:,} experts, {kind}" for k, e, kind in kinds),
            "Corpus": "; ".join(corpus),
            "Labels": "; ".join(f"{label.name} ({label.source})" for label in run.labels) or "none",
            "Self-check": str(run.manifest.get("self_check", "none")),
        }
    )


def _caveats_section(told: Told) -> Section:
    manifest = told.run.manifest
    versions = ", ".join(f"{name} {version}" for name, version in manifest.get("versions", {}).items())
    return Section(
        "What stands against these numbers?",
        "What follows was read off this run, and limits everything above.",
        (
            bullets(caveats(told)),
            table(
                pl.DataFrame(manifest.get("precision", [])),
                columns=_PRECISION_FIELDS,
                title="Precision of the model as it was loaded",
                empty="Not known.",
            ),
            terms({"Made with": versions}),
        ),
    )
