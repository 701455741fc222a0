"""Text from a run, shown as itself: no Markdown, no formulas, no markup. And the pieces that pages share."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files

import streamlit as st

from moe_probe.store import Run

_STYLE = files(__package__).joinpath("pages.css")


def html(markup: str) -> None:
    """Show markup whose every value went through `html.escape`."""
    st.html(markup)


def heading(title: str, lead: str = "") -> None:
    """Show a page's heading and one sentence on what it is for."""
    _bring_style()
    st.html(f'<header class="mp-heading"><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>')


def section(title: str, note: str = "") -> None:
    """Show the heading of a part of a page, with a quiet line under it."""
    st.html(f'<div class="mp-section"><h2>{escape(title)}</h2><p>{escape(note)}</p></div>')


def note(text: str) -> None:
    """Show a quiet line."""
    st.html(f'<p class="mp-note">{escape(text)}</p>')


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Show names and values as a list to read."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in pairs)
    st.html(f'<dl class="mp-facts">{rows}</dl>')


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, numeric: Iterable[int] = ()) -> None:
    """Show a small table; `numeric` names the columns to align to the right."""
    right = set(numeric)

    def cells(tag: str, values: Iterable[object]) -> str:
        return "".join(
            f'<{tag} class="{"mp-number" if place in right else ""}">{escape(str(value))}</{tag}>'
            for place, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    st.html(f'<table class="mp-table"><thead><tr>{cells("th", columns)}</tr></thead><tbody>{body}</tbody></table>')


def no_labels(run: Run, *, has_text: bool) -> None:
    """Say that a run has no labels, and how it comes by some."""
    if run.counts_only:
        text = "A run of counts is labelled while it is traced. Trace the text again, with labels:"
        callout("info", "This run has no labels", text, "moe-probe trace … --counts-only --labels upos,shape")
    elif has_text:
        text = "Add some without tracing again, and experts get names where something stands above chance:"
        callout("info", "This run has no labels", text, f"moe-probe label {run.path} --with upos,shape")
    else:
        text = "Labels are made from text. Import the trace again with the model's tokenizer, if it holds token ids:"
        command = "moe-probe import FORMAT TRACE --tokenizer TOKENIZER --out RUN"
        callout("info", "This run holds no text, and so no labels", text, command)


def callout(kind: str, title: str, text: str, command: str = "") -> None:
    """Show a message that says what to do: `kind` is info, good, warning or error."""
    _bring_style()  # a page may have failed before its heading
    code = f"<pre>{escape(command)}</pre>" if command else ""
    role = "alert" if kind == "error" else "status"
    st.html(
        f'<div class="mp-callout mp-{escape(kind)}" role="{role}"><strong>{escape(title)}</strong>'
        f"<p>{escape(text)}</p>{code}</div>"
    )


def _bring_style() -> None:
    """Bring the stylesheet of all pages; the page Text, which is drawn again most often, mostly does without it."""
    st.html(f"<style>{_STYLE.read_text(encoding='utf-8')}</style>")
