"""Runs: where a run's numbers come from, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from moe_probe.store import Run
from moe_probe_app import library
from moe_probe_app.components import plain, sidebar


def draw_trust(run: Run) -> None:
    """Say whether the run is whole, whether it checked itself, and what to be wary of."""
    check = str(run.manifest.get("self_check", "unknown"))
    if check.startswith("passed"):
        text = "Each block's output was computed again from the recorded experts and weights, and came out the same."
        plain.callout("good", f"Self-check: {check}", text)
    else:
        text = "Nothing was found wrong, but what was recorded was not compared with what the model computed."
        plain.callout("warning", f"Self-check {check}", text)
    if not run.complete:
        text = "Every number here is about the part that is there. Go on with the same command and --resume."
        plain.callout("warning", "This run is not complete", text)
    for warning in run.warnings:
        plain.callout("warning", "Warning", warning)


def _as_typed(path: Path) -> Path:
    """Return a folder as someone would type it where the explorer was started."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def draw_provenance(run: Run) -> None:
    """Show model, corpus, routers and labels."""
    model: Mapping[str, Any] = run.manifest.get("model", {})
    kinds = sorted({(one.n_slots, one.n_experts, one.kind) for one in run.routers})
    plain.section("Where it comes from")
    plain.facts(
        [
            ("Model", model.get("name", "unknown")),
            ("Revision", model.get("revision") or "none recorded"),
            (
                "Experts held in",
                {"4bit": "4 bits", "8bit": "8 bits", "unknown": "not known"}.get(
                    str(model.get("quantization")), "full precision"
                ),
            ),
            (
                "Computed in",
                " on ".join(str(model[part]) for part in ("dtype", "device") if model.get(part)) or "unknown",
            ),
            ("Corpus", f"{run.n_tokens:,} tokens of {run.n_documents:,} documents"),
            ("Routers", f"{len(run.routers)}: " + "; ".join(f"{k} of {e} experts, {kind}" for k, e, kind in kinds)),
            *_kept(run),
            ("Folder", _as_typed(run.path)),
        ]
    )
    plain.section("Labels", "What each token is called, and who says so.")
    if run.labels:
        plain.table(
            ("label", "source", "counted over"),
            [(one.name, one.source, "words" if one.word_level else "word starts and all tokens") for one in run.labels],
        )
    else:
        plain.no_labels(run, has_text=library.has_text(run))


def draw_precision(run: Run) -> None:
    """Show in which precision each part of the model was really held."""
    plain.section("Precision", "What the weights were really held in, part by part. The router is never quantised.")
    plain.table(
        ("part", "type", "bits a parameter", "parameters", "megabytes"),
        [
            (
                row["part"],
                row["dtype"],
                f"{row['bits_per_parameter']:.2f}",
                f"{row['parameters']:,}",
                f"{row['bytes'] / 1e6:,.2f}",
            )
            for row in run.manifest.get("precision", [])
        ],
        numeric=(2, 3, 4),
    )


def draw_versions(run: Run) -> None:
    """Show the versions of the libraries that made the run, and its settings."""
    plain.section("Made with")
    versions: Mapping[str, Any] = run.manifest.get("versions", {})
    plain.facts([(name, version or "not installed") for name, version in versions.items()])
    times: Mapping[str, Any] = run.manifest.get("times", {})
    plain.facts(
        [
            *((part, _time(times[part])) for part in ("started", "finished") if part in times),
            *([("took", f"{times['seconds']:,.0f} s")] if "seconds" in times else []),
        ]
    )
    made: Mapping[str, Any] = run.manifest.get("settings", {})
    if made:
        plain.section("Settings")
        # Labels have a table of their own.
        plain.facts([(name.replace("_", " "), _said(value)) for name, value in made.items() if name != "labels"])


def _kept(run: Run) -> list[tuple[str, str]]:
    """Say what is known of each token."""
    if run.counts_only:
        return [("Kept", "counts only: no text, and no token's experts, weights or scores")]
    return [
        ("Text", "held" if library.has_text(run) else "none: the trace held numbers only"),
        ("Weights", _of_routers(run.with_weights, "only which experts were chosen is known")),
        ("Entropy and margin", _of_routers(run.with_scores, "the routers' scores were not recorded")),
    ]


def _of_routers(known: Sequence[bool], otherwise: str) -> str:
    """Say for how many routers something is known."""
    if all(known):
        return "of all routers"
    return f"of {sum(known)} of {len(known)} routers" if any(known) else f"none: {otherwise}"


def _time(text: str) -> str:
    return datetime.fromisoformat(text).strftime("%d %B %Y, %H:%M UTC")


def _said(value: object) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


chosen = sidebar.choose()
plain.heading("Runs", f"What is behind “{chosen.selection.run}”, and how far its numbers can be trusted.")
draw_trust(chosen.run)
left, right = st.columns([3, 2], gap="large")
with left:
    draw_provenance(chosen.run)
    draw_precision(chosen.run)
with right:
    draw_versions(chosen.run)
