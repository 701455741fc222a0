"""One expert in words: its number, its line, the tokens that it takes, and some of them in context."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files

from moe_probe.tables.snippets import BETWEEN, CLOSE, OPEN
from moe_probe_app.components import plain

_STYLE = files(__package__).joinpath("portrait.css")


def head(expert: int, colour: str, name: str, facts: Iterable[str]) -> None:
    """Show which expert it is, what it is an expert in, and what is known of that."""
    said = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    plain.html(
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style>"
        f'<div class="mp-portrait"><span class="mp-expert" style="background-color: {escape(colour)}">{expert}</span>'
        f"<div><h2>{escape(name)}</h2><ul>{said}</ul></div></div>"
    )


def tokens(title: str, note: str, listed: str | None) -> None:
    """Show a list of tokens, as `tables.expert_names` gives it: divided by blanks."""
    shown = "".join(f"<code>{escape(token)}</code>" for token in (listed or "").split(" ") if token)
    plain.html(
        f'<div class="mp-tokens"><h3>{escape(title)}</h3><p>{escape(note)}</p>'
        f"<div>{shown or '<em>none</em>'}</div></div>"
    )


def snippets(listed: str | None) -> None:
    """Show snippets, as `tables.expert_names` gives them, with their token marked."""
    lines = "".join(f"<li>{_marked(snippet)}</li>" for snippet in (listed or "").split(BETWEEN) if snippet)
    note = (
        "Some of the tokens that its line is about, drawn by chance and not for their looks."
        if lines
        else "Nothing to judge here: no label is shown to be this expert's own. Its tokens are in the text."
    )
    plain.html(f'<div class="mp-snippets"><h3>In context</h3><p>{note}</p><ul>{lines}</ul></div>')


def _marked(snippet: str) -> str:
    before, opened, rest = snippet.partition(OPEN)
    token, _, after = rest.partition(CLOSE)
    mark = f"<mark>{escape(token)}</mark>" if opened else ""
    return f"{escape(before)}{mark}{escape(after)}"
