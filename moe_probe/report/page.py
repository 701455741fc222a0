"""One HTML page that needs nothing else: sections of text, tables and charts, for the screen and for paper.

The page asks the network for nothing, and its content security policy forbids it to: the only scripts that may run are
its own few lines and plotly.js, both named by their hashes. plotly.js is in the page, packed, and is unpacked once by
the browser. Without JavaScript all text and all tables are there; charts leave their title, baseline and n.

Text from a run is shown as it is and never acts: `shown` escapes it and makes control characters visible. It does not
know runs, nor what is told.

Example:
    >>> page = Page("Two runs", "What quantisation changed.")
    >>> page = page.add_section("How alike are they?", "Very.", html("<p>0.98</p>"))
    >>> page.text().startswith("<!doctype html>")
    True
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html as entities
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

import plotly.graph_objects as go
import plotly.offline
import polars as pl

import moe_probe
from moe_probe.store.files import new_file, writing

MISSING = "—"
"""What stands for a number that cannot be given."""

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SIGNS = {"\n": "↵", "\t": "⇥"}
_FONT = "ui-sans-serif, system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_PER_CENT = "\u00a0%"
_TOP_MARGIN = 14
_POINTER = {"bgcolor": "#23221f", "bordercolor": "#23221f", "font": {"color": "#fffefb", "family": _FONT}}
_POLICY = (
    "default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Part:
    """A piece of a section: markup that is trusted, and whether it holds a chart."""

    markup: str
    chart: bool = False


@dataclass(frozen=True)
class Field:
    """A column of a table on a page.

    Attributes:
        name: the column of the frame.
        heading: what the page calls it; the name if "".
        form: how a number is written, as `format` takes it, such as ".1%".
        interval: the columns of its lower and upper end, written behind it.
        code: set in the face of code, as tokens are.
    """

    name: str
    heading: str = ""
    form: str = ""
    interval: tuple[str, str] | None = None
    code: bool = False


@dataclass
class Page:
    """A page that grows section by section.

    Attributes:
        title: what the page is about, as text.
        lead: one paragraph below it, as text.
        kicker: a line above the title, as text.
    """

    title: str
    lead: str
    kicker: str = "moe_probe"
    _opening: list[Part] = field(default_factory=list, init=False, repr=False)
    _sections: list[tuple[str, str, tuple[Part, ...]]] = field(default_factory=list, init=False, repr=False)

    def add_opening(self, *parts: Part) -> Page:
        """Add parts between the lead and the list of sections."""
        self._opening += parts
        return self

    def add_section(self, title: str, note: str, *parts: Part) -> Page:
        """Add a section.

        Args:
            title: a question, as text.
            note: what is seen, as text; blank lines part paragraphs.
            parts: from `figure`, `table`, `terms` and `html`, in order.
        """
        self._sections.append((title, note, parts))
        return self

    def text(self) -> str:
        """Return the page as HTML; the same parts give the same text."""
        folder = files(__name__.rpartition(".")[0])
        style = folder.joinpath("page.css").read_text(encoding="utf-8")
        script = folder.joinpath("page.js").read_text(encoding="utf-8")
        charts = any(
            part.chart for part in [*self._opening, *(part for _, _, parts in self._sections for part in parts)]
        )
        hashes = f"{_hash(script)} {_library()[0]}" if charts else "'none'"
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en">',
                "<head>",
                '<meta charset="utf-8">',
                f'<meta http-equiv="Content-Security-Policy" content="{_POLICY.format(hashes=hashes)}">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta name="referrer" content="no-referrer">',
                f'<meta name="generator" content="moe_probe {moe_probe.__version__}">',
                f"<title>{shown(self.title)}</title>",
                f"<style>{style}</style>",
                "</head>",
                "<body>",
                *self._header(),
                "<main>",
                *(self._section(number) for number in range(len(self._sections))),
                "</main>",
                self._footer(charts),
                f'<script type="text/plain" id="plotly">{_library()[1]}</script><script>{script}</script>'
                if charts
                else "",
                "</body>",
                "</html>",
                "",
            ]
        )

    def write(self, path: str | Path) -> Path:
        """Write the page to a file, which is replaced only when the new one is whole.

        Raises:
            MoeProbeError: the file cannot be written.
        """
        target = Path(path)
        with writing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
        with new_file(target) as temporary:
            temporary.write_text(self.text(), encoding="utf-8")
        return target

    def _header(self) -> list[str]:
        entries = "".join(
            f'<li><a href="#section-{number}">{shown(title)}</a></li>'
            for number, (title, _, _) in enumerate(self._sections, 1)
        )
        return [
            "<header>",
            f'<p class="kicker">{shown(self.kicker)}</p>',
            f"<h1>{shown(self.title)}</h1>",
            f'<p class="lead">{shown(self.lead)}</p>',
            *(part.markup for part in self._opening),
            f'<nav aria-label="Sections"><ol>{entries}</ol></nav>' if entries else "",
            "</header>",
        ]

    def _section(self, index: int) -> str:
        title, note, parts = self._sections[index]
        paragraphs = "".join(f"<p>{shown(text)}</p>" for text in note.split("\n\n") if text.strip())
        body = "\n".join(part.markup for part in parts)
        return f'<section id="section-{index + 1}"><h2>{shown(title)}</h2>{paragraphs}\n{body}</section>'

    def _footer(self, charts: bool) -> str:
        drawn = " Charts are drawn by plotly.js (MIT licence), which is in this file." if charts else ""
        return (
            f"<footer><p>Made by moe_probe {moe_probe.__version__}.{drawn} This file loads nothing else.</p></footer>"
        )


def html(markup: str) -> Part:
    """Return markup as a part. It is trusted: what comes from a run goes through `shown` first."""
    return Part(markup)


def figure(chart: go.Figure, *numbers: Part) -> Part:
    """Return a chart as a part. Its title and subtitle become text of the page, which wraps and prints.

    Args:
        chart: from moe_probe.charts; it is not changed.
        numbers: what is drawn as a table, folded away below the chart.
    """
    drawn = json.loads(chart.to_json())
    layout = drawn["layout"]
    title, subtitle = _take_title(layout)
    margin = layout.setdefault("margin", {})
    height = int(layout.get("height", 450)) - int(margin.get("t", 100)) + _TOP_MARGIN
    layout |= {"height": height, "margin": margin | {"t": _TOP_MARGIN}, "autosize": True}
    layout["font"] = {"family": _FONT} | layout.get("font", {})
    layout["hoverlabel"] = _POINTER | layout.get("hoverlabel", {})
    caption = "".join(f"<p>{line}</p>" for line in subtitle)
    folded = f"<details><summary>The numbers</summary>{''.join(part.markup for part in numbers)}</details>"
    return Part(
        '<figure class="chart">'
        f"<figcaption>{''.join(f'<h3>{line}</h3>' for line in title)}{caption}</figcaption>"
        f'<div class="drawing" style="height:{height}px" role="img" aria-label="{" ".join(title)}">'
        f'<script type="application/json">{_json_in_html({"data": drawn["data"], "layout": layout})}</script>'
        '<noscript><p class="quiet">This chart is drawn with JavaScript.</p></noscript></div>'
        f"{folded if numbers else ''}</figure>",
        chart=True,
    )


def table(
    frame: pl.DataFrame,
    *,
    columns: Sequence[Field | str] | None = None,
    limit: int = 60,
    title: str = "",
    empty: str = "Not enough data: the table has no rows.",
) -> Part:
    """Return a table as a part.

    Args:
        frame: the rows.
        columns: which columns, in order; all if None.
        limit: rows that are shown; a last line says how many more there are.
        title: a line above the table, as text.
        empty: what stands there when there are no rows, as text.
    """
    fields = [one if isinstance(one, Field) else Field(one) for one in columns or frame.columns]
    heading = f"<h3>{shown(title)}</h3>" if title else ""
    if frame.is_empty():
        return Part(f'{heading}<p class="quiet">{shown(empty)}</p>')
    numeric = {one.name for one in fields if frame.schema[one.name].is_numeric()}
    head = "".join(
        f'<th scope="col"{_class_of(one, numeric)}>{shown(one.heading or one.name.replace("_", " "))}</th>'
        for one in fields
    )
    rows = "".join(
        "<tr>" + "".join(f"<td{_class_of(one, numeric)}>{_cell(row, one)}</td>" for one in fields) + "</tr>\n"
        for row in frame.head(limit).iter_rows(named=True)
    )
    left = len(frame) - limit
    more = f'<p class="quiet">and {left:,} more rows, in the exported tables.</p>' if left > 0 else ""
    return Part(
        f'<div class="table">{heading}<table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>{more}</div>'
    )


def terms(facts: Mapping[str, str]) -> Part:
    """Return facts as a list of terms and what is said of each, all as text; empty ones are left out."""
    rows = "".join(f"<dt>{shown(term)}</dt><dd>{shown(said)}</dd>" for term, said in facts.items() if said)
    return Part(f"<dl>{rows}</dl>" if rows else "")


def bullets(lines: Sequence[str], *, title: str = "") -> Part:
    """Return lines of text as a list, with a title above it; nothing if there is none."""
    heading = f"<h3>{shown(title)}</h3>" if title else ""
    return Part(f"{heading}<ul>{''.join(f'<li>{shown(line)}</li>' for line in lines)}</ul>" if lines else "")


def shown(text: str, limit: int | None = None) -> str:
    r"""Return text as markup that shows it and does nothing: escaped, with control characters made visible.

    Args:
        text: any text.
        limit: characters after which it is cut, with an ellipsis.

    Example:
        >>> shown("<b>$x$</b>\n"), shown("a\u202eb"), shown("abcdef", 3)
        ('&lt;b&gt;$x$&lt;/b&gt;↵', 'a⟨U+202E⟩b', 'abc…')
    """
    cut = text if limit is None or len(text) <= limit else text[:limit] + "…"
    return entities.escape(cut if cut.isprintable() else "".join(map(_visible, cut)))


def _visible(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    acts = character in _BIDI or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return f"⟨U+{ord(character):04X}⟩" if acts else character


def _class_of(one: Field, numeric: set[str]) -> str:
    names = [name for name, holds in (("number", one.name in numeric), ("code", one.code)) if holds]
    return f' class="{" ".join(names)}"' if names else ""


def _cell(row: Mapping[str, object], one: Field) -> str:
    value = row[one.name]
    if value is None:
        return MISSING
    if isinstance(value, list):
        return "<br>".join(f"<bdi>{shown(str(each), 400)}</bdi>" for each in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<bdi>{shown('yes' if value is True else 'no' if value is False else str(value), 400)}</bdi>"
    text = _number(value, one.form)
    if one.interval is not None and None not in (ends := [row[name] for name in one.interval]):
        low, high = (_number(end, one.form) for end in ends)  # type: ignore[arg-type]
        low = low.removesuffix(_PER_CENT)
        text += f' <span class="interval">{low} – {high}</span>'
    return text


def _number(value: float, form: str) -> str:
    written = format(value, form or ("," if isinstance(value, int) else ".3g"))
    return written.replace("-", "−").replace("%", _PER_CENT)


def _take_title(layout: dict[str, object]) -> tuple[list[str], list[str]]:
    """Take the title and subtitle out of a layout; return their lines as markup."""
    title = layout.pop("title", None)
    if not isinstance(title, dict):
        return [], []
    subtitle = title.get("subtitle") or {}
    return _lines(title.get("text") or ""), _lines(subtitle.get("text") or "")


def _lines(text: str) -> list[str]:
    """Return the lines of a text in plotly's markup: <br> parts them, all else was escaped by moe_probe.charts."""
    return [shown(entities.unescape(line)) for line in text.split("<br>") if line.strip()]


def _json_in_html(value: object) -> str:
    """Return JSON that cannot end the element which holds it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _hash(code: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"


@cache
def _library() -> tuple[str, str]:
    """The hash of plotly.js, and plotly.js packed."""
    code = plotly.offline.get_plotlyjs()
    return _hash(code), base64.b64encode(gzip.compress(code.encode(), 9, mtime=0)).decode()
