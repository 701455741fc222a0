"""The report: what it says of a run, and that nothing from a run can act in it."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from hand_made_runs import write_run
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent / "browser"))
from synthetic_run import CODE, PROSE, TEXTS, make_run

from moe_probe.charts import load_heatmap
from moe_probe.effects import EffectFolder
from moe_probe.errors import BadInputError, MoeProbeError
from moe_probe.palette import EXPERT_COLOURS
from moe_probe.report import page as page_module
from moe_probe.report import write_report
from moe_probe.report.caveats import caveats
from moe_probe.report.page import MISSING, Field, Page, bullets, figure, shown, table, terms
from moe_probe.report.text import choose_documents, coloured_text
from moe_probe.report.told import Told
from moe_probe.store import Run, open_run
from moe_probe.tables import load_table

EVIL = '<script>window.hacked=1</script><img src=x onerror="window.hacked=2">'


class Seen(HTMLParser):
    """The elements of a page, the text of each kind, and what could act."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    texts = {f"prose/{n}.txt": PROSE for n in range(6)} | {f"code/{n}.py": CODE * 2 for n in range(5)} | TEXTS
    return open_run(make_run(folder / "run", texts))


@pytest.fixture(scope="module")
def written(small: Run) -> tuple[str, list[tuple[str, int, int]]]:
    """The report, and what was said while it was made."""
    heard: list[tuple[str, int, int]] = []
    path = write_report(small, small.path.parent / "report.html", on_part=lambda *said: heard.append(said))
    return path.read_text(encoding="utf-8"), heard


@pytest.fixture(scope="module")
def report(written: tuple[str, list[tuple[str, int, int]]]) -> str:
    return written[0]


# what it says


def test_the_report_opens_with_the_text_and_asks_of_everything_in_order(report: str) -> None:
    titles = [html.unescape(title) for title in re.findall(r"<h2>(.*?)</h2>", report)]
    assert titles == [
        "What does the routing look like?",
        "What was found, in short?",
        "Is the work shared evenly among the experts?",
        "Do experts know parts of speech, or only words?",
        "Do experts know the subject of a text?",
        "Do neighbouring tokens go to the same expert?",
        "What is each expert an expert in?",
        "How sure is each router, and how even is its load?",
        "What stands against these numbers?",
    ]
    assert report.index('class="panes"') < report.index('class="drawing"')


def test_every_measuring_section_names_its_baseline_interval_n_and_what_not_to_conclude(report: str) -> None:
    sections = report.split("<section")[3:-1]
    assert len(sections) == 6
    for section in sections:
        for term in ("Baseline", "Interval", "Counted", "Not to conclude"):
            assert f"<dt>{term}</dt>" in section


def test_the_busiest_expert_is_that_of_the_table(small: Run, report: str) -> None:
    load = load_table(small).filter(pl.col("slot") == "any").sort("share", descending=True)
    top = load.row(0, named=True)
    assert f"The busiest is expert {top['expert']} of layer {top['layer']}: {100 * top['share']:.1f}\u00a0%" in report


def test_the_same_run_gives_the_same_bytes_at_another_time(
    small: Run, report: str, tmp_path: Path, monkeypatch
) -> None:
    page_module._library.cache_clear()
    monkeypatch.setattr("time.time", lambda: 1e9)
    again = write_report(open_run(small.path), tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == report


def test_a_report_is_small_and_no_number_is_nan(report: str) -> None:
    assert len(report.encode()) < 5_000_000
    assert not re.search(r"\b(nan|None|inf)\b", Seen(report).text)


def test_each_section_is_announced_before_it_is_made(written: tuple[str, list[tuple[str, int, int]]]) -> None:
    parts = ["text", "load", "syntax", "domain", "repetition", "experts", "balance", "caveats"]
    assert written[1] == [(name, done, 8) for done, name in enumerate(parts)]


BAD_RUNS = {
    "empty": lambda path: write_run(path, [np.zeros((0, 2), int)], labels={"upos": [], "domain": []}),
    "one token": lambda path: write_run(path, [np.array([[0, 1]])], labels={"upos": ["NOUN"], "domain": ["a"]}),
    "one expert": lambda path: write_run(
        path, [np.zeros((40, 1), int)], n_experts=1, labels={"upos": ["NOUN", "VERB"] * 20}
    ),
    "one value": lambda path: write_run(path, [np.arange(40)[:, None] % 4], labels={"upos": ["NOUN"] * 40}),
    "no labels": lambda path: write_run(path, [np.arange(40)[:, None] % 4]),
    "all dropped": lambda path: write_run(path, [np.full((40, 2), -1)], labels={"upos": ["NOUN", "VERB"] * 20}),
    "no known score": lambda path: write_run(
        path, [np.arange(40)[:, None] % 4], scores={0: ([float("nan")] * 40, [float("nan")] * 40)}
    ),
    "two routers a layer": lambda path: write_run(
        path, [np.arange(40)[:, None] % 4] * 2, layers=[0, 0], labels={"upos": ["NOUN", "VERB"] * 20}
    ),
    "untagged": lambda path: write_run(path, [np.arange(40)[:, None] % 4], labels={"upos": ["untagged"] * 40}),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RUNS)
def test_a_run_with_too_little_in_it_gives_a_page_that_says_so(name: str, tmp_path: Path) -> None:
    run = BAD_RUNS[name](tmp_path / "run")
    text = write_report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    seen = Seen(text)
    assert seen.count("section") == 9
    assert not re.search(r"\b(nan|None|inf)\b", seen.text)
    if name in ("empty", "all dropped"):
        assert "Not enough data" in seen.text
    if name == "no labels":
        assert "The run has no upos. moe-probe label RUN --with upos adds it." in seen.text


def test_a_report_on_a_folder_or_a_full_disk_is_refused(small: Run, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(
        BadInputError, match=r"a report is one file, and this is a folder; name a file in it: .*report.html"
    ):
        write_report(small, tmp_path)
    (tmp_path / "old.html").write_text("old")

    def full(self: Path, text: str, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(MoeProbeError, match=r"old.html: cannot be written \(no space left\)"):
        Page("t", "l").write(tmp_path / "old.html")
    monkeypatch.undo()
    assert (tmp_path / "old.html").read_text() == "old"


# nothing acts


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    pieces = ["a\u202eb", "\x07", EVIL, "$x^2$", "<b>", "&amp;", "x" * 3000, "\u2028", '"', "'"] * 30
    run = write_run(
        tmp_path / "run",
        [np.arange(len(pieces))[:, None] % 4] * 2,
        token=pieces,
        labels={"upos": [EVIL, "<i>", "NOUN"] * 100, "domain": [EVIL, "</script>"] * 150},
        documents=np.repeat(range(10), 30),
        names=[f"{EVIL}{n}" for n in range(10)],
        domains=[EVIL, "</script>"] * 5,
    )
    manifest = json.loads((run.path / "run.json").read_text())
    manifest["model"]["name"] = EVIL
    manifest["warnings"] = [f"odd {EVIL}"]
    (run.path / "run.json").write_text(json.dumps(manifest))
    text = write_report(open_run(run.path), tmp_path / "report.html").read_text(encoding="utf-8")
    seen = Seen(text)
    assert seen.count("img") == seen.count("b") == seen.count("i") == 0
    assert "\u202e" not in text
    assert "\x07" not in text
    assert EVIL in seen.text
    assert "⟨U+202E⟩" in seen.text
    scripts = [attributes for tag, attributes in seen.tags if tag == "script"]
    assert [one.get("type") for one in scripts].count(None) == 1
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_shown_text_is_inert_and_says_what_it_was(text: str) -> None:
    markup = shown(text)
    assert not {"<", ">", '"', "'"} & set(markup)
    assert not set(markup) & set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\n\r\x00")
    back = re.sub(r"⟨U\+([0-9A-F]{4,6})⟩", lambda found: chr(int(found[1], 16)), html.unescape(markup))
    assert back.replace("↵", "\n").replace("⇥", "\t") == text.replace("↵", "\n").replace("⇥", "\t")


def test_a_figure_keeps_its_words_as_text_and_cannot_end_its_script() -> None:
    chart = go.Figure(go.Bar(x=["</script><b>"], y=[1]))
    chart.update_layout(
        title={"text": "Of &lt;b&gt; &#36;x&#36;?", "subtitle": {"text": "one<br>n = 2 <i>"}},
        margin={"t": 104}, height=300,
    )  # fmt: skip
    before = chart.to_json()
    part = figure(chart, table(pl.DataFrame({"a": [1]})))
    seen = Seen(part.markup)
    assert chart.to_json() == before
    assert "<h3>Of &lt;b&gt; $x$?</h3><p>one</p><p>n = 2 &lt;i&gt;</p>" in part.markup
    assert seen.count("b") == seen.count("i") == 0
    drawn = json.loads(re.search(r'<script type="application/json">(.*?)</script>', part.markup)[1])
    assert drawn["data"][0]["x"] == ["</script><b>"]
    assert "title" not in drawn["layout"]
    assert drawn["layout"]["height"] == 300 - 104 + 14
    assert "<summary>The numbers</summary>" in part.markup


def test_only_the_pages_own_scripts_may_run_and_none_without_charts(small: Run) -> None:
    plain = Page("t", "l").add_section("q?", "note", table(pl.DataFrame({"a": [1]}))).text()
    assert "script-src 'none'" in plain
    assert Seen(plain).count("script") == 0
    charted = Page("t", "l").add_section("q?", "note", figure(load_heatmap(load_table(small)))).text()
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', charted)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    assert policy.count("sha256-") == 2
    assert "http" not in policy


# tables


def test_a_table_writes_numbers_intervals_and_gaps() -> None:
    frame = pl.DataFrame(
        {
            "name": ["<a>", None],
            "lift": [2.5, None],
            "low": [-1.25, None],
            "high": [3.0, None],
            "n": [12345, 1],
            "share": [0.125, None],
            "sure": [True, False],
            "tokens": [["a", "b"], []],
        }
    )
    part = table(
        frame,
        columns=[
            "name",
            Field("lift", "lift!", ".2f", ("low", "high")),
            "n",
            Field("share", "", ".1%"),
            "sure",
            "tokens",
        ],
    )
    cells = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td.*?>(.*?)</td>", part.markup)]
    assert cells == [
        "&lt;a&gt;", "2.50 −1.25 – 3.00", "12,345", "12.5\u00a0%", "yes", "ab",
        MISSING, MISSING, "1", MISSING, "no", "",
    ]  # fmt: skip
    assert re.findall(r'<th scope="col"(?: class="number")?>(.*?)</th>', part.markup) == [
        "name", "lift!", "n", "share", "sure", "tokens",
    ]  # fmt: skip


def test_a_long_table_says_how_much_more_there_is_and_an_empty_one_why() -> None:
    part = table(pl.DataFrame({"a": range(1500)}), limit=20)
    assert part.markup.count("<tr>") == 21
    assert "and 1,480 more rows, in the exported tables." in part.markup
    assert "more rows" not in table(pl.DataFrame({"a": range(20)}), limit=20).markup
    assert "<table" not in table(pl.DataFrame({"a": []}), empty="None <at all>").markup
    assert "None &lt;at all&gt;" in table(pl.DataFrame({"a": []}), empty="None <at all>").markup


def test_terms_and_bullets_leave_out_what_is_empty() -> None:
    assert terms({"A": "1", "B": ""}).markup == "<dl><dt>A</dt><dd>1</dd></dl>"
    assert terms({"B": ""}).markup == bullets([]).markup == ""
    assert bullets(["<x>"]).markup == "<ul><li>&lt;x&gt;</li></ul>"


# the text


def test_a_token_wears_the_colour_of_its_first_choice_in_each_layer(small: Run) -> None:
    markup = coloured_text(small).markup
    routers = small.routers
    panes = [pane for pane in re.findall(r'<div class="routed[^>]*>(.*?)</div>', markup, re.DOTALL)]
    rows = choose_documents(small, 4)
    assert len(panes) == 3 * len(rows)
    for row, start in zip(rows, range(0, len(panes), 3), strict=True):
        document = small.document(row["document"])
        for pane, router in zip(
            panes[start : start + 3], (routers[0], routers[(len(routers) - 1) // 2], routers[-1]), strict=True
        ):
            spans = re.findall(r'<span class="c(\d)" title="expert (\d+)">', pane)
            assert len(spans) > 20
            first = document.experts(router=router.index)[: len(spans), 0].tolist()
            assert [int(expert) for _, expert in spans] == first
            assert all(colour == expert for colour, expert in spans)  # of eight experts each wears its own
    assert all(f"background: {colour}" in markup for colour in EXPERT_COLOURS)


def test_the_text_shown_is_the_beginning_of_each_document_and_about_as_long_as_asked(small: Run) -> None:
    markup = coloured_text(small, characters=400, most_documents=2).markup
    panes = re.findall(r'<div class="routed[^>]*>(.*?)</div>', markup, re.DOTALL)
    texts = [html.unescape(re.sub("<.*?>", "", pane)).replace("↵", "").removesuffix("…") for pane in panes]
    assert len(texts) == 6
    for row, text in zip(choose_documents(small, 2), texts[::3], strict=True):
        whole = "".join(small.document(row["document"]).tokens["text"])
        assert whole.startswith(text)
        assert 190 <= len(text) <= 240


def test_documents_are_of_different_domains_and_more_of_one_only_where_there_are_no_others(tmp_path: Path) -> None:
    names = ["a/0", "a/1", "b/0", "c/0", "c/1"]
    run = write_run(
        tmp_path / "run",
        [np.zeros((100, 1), int)],
        documents=np.repeat(range(5), [30, 30, 5, 15, 20]),
        names=names,
        domains=[name[0] for name in names],
    )
    assert [row["name"] for row in choose_documents(run, 2)] == ["a/0", "c/0"]
    assert [row["name"] for row in choose_documents(run, 3)] == ["a/0", "b/0", "c/0"]
    assert [row["name"] for row in choose_documents(run, 4)] == ["a/0", "a/1", "b/0", "c/0"]


def test_a_huge_document_is_passed_over_for_a_shorter_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("moe_probe.report.text._LARGE", 50)
    documents = np.repeat([0, 1], [80, 20])
    run = write_run(
        tmp_path / "run", [np.zeros((100, 1), int)], documents=documents, names=["x", "y"], domains=["a", "a"]
    )
    assert [row["name"] for row in choose_documents(run, 1)] == ["y"]


def test_of_many_experts_eight_wear_a_colour_and_dropped_tokens_are_hatched(tmp_path: Path) -> None:
    experts = np.array([[n % 20] for n in range(100)] + [[3]] * 60 + [[-1]] * 5)
    run = write_run(tmp_path / "run", [experts], n_experts=64, token=["w "] * len(experts))
    markup = coloured_text(run).markup
    assert " and 56 other experts, not coloured" in markup
    assert markup.count('class="dropped" title="dropped"') == 5
    assert '<span class="c0" title="expert 3">' in markup  # the most used wears the first colour
    assert '<span title="expert 19">' in markup


def test_a_later_byte_of_a_character_and_a_line_end_have_a_body(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [np.array([[0], [1], [2], [3]])], token=["é", "", "\n", " a"])
    markup = coloured_text(run).markup
    assert '<span class="c1" title="expert 1">·</span>' in markup
    assert '<span class="c2" title="expert 2">↵</span>\n' in markup
    assert ' <span class="c3" title="expert 3">a</span>' in markup


# caveats


def said_of(run: Run) -> str:
    return "\n".join(caveats(Told(run)))


def many(path: Path, n_documents: int, domains: list[str] | None = None, **more: object) -> Run:
    labels = {"upos": ["NOUN", "untagged", "VERB", "untagged"] * (10 * n_documents)}
    return write_run(
        path,
        [np.arange(40 * n_documents)[:, None] % 4],
        documents=np.repeat(range(n_documents), 40),
        names=[f"d{n}" for n in range(n_documents)],
        domains=domains,
        labels=labels,
        **more,
    )


def test_few_documents_and_few_tokens_are_said(tmp_path: Path) -> None:
    assert "The corpus is 1 document. Intervals then come from stretches" in said_of(many(tmp_path / "a", 1))
    assert "The corpus is 12 documents. With fewer than 30" in said_of(many(tmp_path / "b", 12))
    assert "The corpus is 40 documents. Intervals of the load reach 95 %" in said_of(many(tmp_path / "c", 40))
    assert "The corpus is 480 tokens." in said_of(open_run(tmp_path / "b"))
    assert "The documents have no two domains" in said_of(open_run(tmp_path / "b"))


def test_thin_domains_untagged_tokens_and_their_source_are_said(tmp_path: Path) -> None:
    said = said_of(many(tmp_path / "a", 12, ["one"] * 10 + ["two"] * 2))
    assert "may be one document's: two (2)." in said
    assert "50.0\u00a0% of the word-initial tokens have no upos and are left out" in said
    assert "Parts of speech come from: by hand." in said


def test_what_the_trace_says_of_itself_is_passed_on(tmp_path: Path) -> None:
    run = many(tmp_path / "a", 2, window_position=[n % 40 for n in range(80)])
    manifest = json.loads((run.path / "run.json").read_text())
    manifest |= {"warnings": ["a batch was halved."], "self_check": "not run", "complete": False}
    manifest["corpus"]["tokens"] = 4000
    manifest["model"]["quantization"] = "4bit"
    manifest["precision"] = [
        {"part": "experts", "dtype": "nf4", "bits_per_parameter": 4.13, "bytes": 1, "parameters": 2}
    ]
    (run.path / "run.json").write_text(json.dumps(manifest))
    (run.path / "plan.json").write_text(json.dumps({"shards": [[0, 0, 80]]}))
    said = said_of(open_run(run.path))
    assert "The run is not complete: 80 of 4,000 tokens are there." in said
    assert "The trace warned: a batch was halved." in said
    assert "says “not run” and not “passed”" in said
    assert "The first four tokens of each window are left out of every number, for they route oddly: 8 of 80." in said
    assert "The model was loaded in 4bit (4.1 bits a parameter)." in said
    assert "The model gives no scores for layer 0" in said


def test_a_good_run_is_not_warned_of_what_it_has(tmp_path: Path) -> None:
    run = many(tmp_path / "a", 12, scores={0: ([1.0] * 480, [0.5] * 480)})
    said = said_of(run)
    for absent in ("not complete", "warned", "self-check", "loaded in", "no scores", "held no expert"):
        assert absent not in said


def test_more_experts_than_are_listed_leave_only_those_with_a_name(small: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("moe_probe.report.sections._MOST_EXPERTS", 10)
    text = write_report(small, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "Only those with a name are listed." in text


def test_effects_of_another_model_are_refused(small: Run, tmp_path: Path) -> None:
    effects = EffectFolder(tmp_path, {"model": {"name": "another-model"}})
    with pytest.raises(BadInputError, match="effects of another-model, but the run is of"):
        write_report(small, tmp_path / "report.html", effects=effects)
