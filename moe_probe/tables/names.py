"""What each expert is an expert in: one line an expert, which says no more than the verdicts do.

A name comes from the label that an expert tells most about, of those that the label tables call specialised; it says
by how much, how surely, of which tokens and of which text. Where there is none, the line says so. No language model is
needed, and the same run gives the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from moe_probe.counts import LabelCounts, TypeCounts, iter_expert_counts, load_counts, load_rows, load_type_counts
from moe_probe.measures.naming import FLOOR, top_types
from moe_probe.measures.verdicts import NOT_ENOUGH, THIS_TEXT_ONLY
from moe_probe.tables.candidates import IN_DOMAIN, IN_TEXT, Candidates, find_candidates
from moe_probe.tables.columns import EXPERT, LAYER, ROUTER, RULES, SLOT, TOKENS, Column
from moe_probe.tables.domains import ALL_DOMAINS
from moe_probe.tables.rows import ANY_SLOT, stack_rows
from moe_probe.tables.snippets import BETWEEN, Snippets, Wanted, join_snippets, shown_token

if TYPE_CHECKING:
    from moe_probe.store import Run

NOTHING = "nothing above chance"
WITHIN, ALL_TEXT, ALL_TEXT_ONLY, ONE_DOMAIN = "within domains", "all text", "all text only", "one domain"

TOP_LABELS = 5
TOP_TOKENS = 10
SNIPPET_TOKENS = 200_000
"""Snippets come from so many tokens at most."""

_ST_MOE = "Zoph et al. 2022, ST-MoE (arXiv 2202.08906), 7.1 and Table 13"

EXPERT_COLUMNS = (
    LAYER,
    ROUTER,
    EXPERT,
    Column(
        "name",
        pl.String,
        "a line",
        "The label whose verdict is specialised and that the expert tells most about (share_of_its_tokens times log2 "
        "of ci_low), of all label sets; its lift with interval, its share, and of which text. Else: nothing above "
        "chance (no verdict is specialised), or not enough data.",
        _ST_MOE,
    ),
    Column(
        "top_labels",
        pl.String,
        "list",
        f"Up to {TOP_LABELS} labels with the verdict that the name has, in the same text, with their lift, those that "
        "the expert tells most about first; null if there is none.",
    ),
    Column(
        "top_tokens_by_count",
        pl.String,
        "list",
        f"The {TOP_TOKENS} token types that the expert is given most often, any slot; ␣ is a space and ⏎ a line break. "
        "A description, not a test.",
    ),
    Column(
        "top_tokens_by_lift",
        pl.String,
        "list",
        f"Up to {TOP_TOKENS} token types, seen {FLOOR} times or more, that the expert is given most out of proportion: "
        "by lift, pulled towards 1 as by 5 more occurrences at chance. A description, not a test.",
    ),
    Column(
        "share", pl.Float64, "0 to 1", "The expert's assignments over those of all experts of the router, any slot."
    ),
    Column(
        "confidence",
        pl.String,
        f"{WITHIN}, {ALL_TEXT}, {ALL_TEXT_ONLY}, {ONE_DOMAIN}, {THIS_TEXT_ONLY}, {NOTHING}, {NOT_ENOUGH}",
        f"How far the name holds. {WITHIN}: over all documents, and within a domain or more. {ALL_TEXT}: over all "
        f"documents; it could not be tested by documents within a domain, or is about domains. {ALL_TEXT_ONLY}: over "
        f"all documents, but not shown within any one domain, so that it may be the domains that differ. {ONE_DOMAIN}: "
        f"within a domain and not over all. {THIS_TEXT_ONLY}: of fewer than five documents, so that nothing is said of "
        "any other text.",
    ),
    Column("uniform", pl.Float64, "0 to 1", "The share under even load, 1/E: the baseline of share."),
    SLOT,
    TOKENS,
    Column("domain", pl.String, "all, or a domain", "The text that the name is said of; null where there is no name."),
    Column("label_set", pl.String, "name", "Which labels the name is from."),
    Column("label", pl.String, "name", "The label's value that the name is from."),
    Column(
        "lift",
        pl.Float64,
        "ratio",
        "share_of_its_tokens over share_of_all_tokens. Baseline: 1. The label was chosen because it stands out, so "
        "that this is rather too high than too low; the interval does not know of the choice.",
        RULES,
    ),
    Column("ci_low", pl.Float64, "ratio", "Lower end of the 95 % interval of lift."),
    Column("ci_high", pl.Float64, "ratio", "Upper end of the 95 % interval of lift."),
    Column("share_of_its_tokens", pl.Float64, "0 to 1", "Share of the label among the expert's assignments."),
    Column(
        "share_of_all_tokens",
        pl.Float64,
        "0 to 1",
        "Share of the label among all experts' assignments: the baseline of share_of_its_tokens.",
    ),
    Column(
        "n",
        pl.Int64,
        "count",
        "The expert's assignments that share_of_its_tokens is a share of; where there is no name, all of them.",
    ),
    Column(
        "snippets",
        pl.String,
        "list",
        f"Up to three of the tokens named, in their context, marked ⟦ ⟧ and divided by {BETWEEN.strip()}; drawn by a "
        f"hash from at most {SNIPPET_TOKENS:,} tokens, not chosen for their looks. Null where there is no name.",
    ),
)


def expert_names(run: Run, *, tables: Mapping[str, pl.DataFrame] | None = None) -> pl.DataFrame:
    """Return one line for each expert that says what it is an expert in, with what the line rests on.

    Names are chosen from `label_table` of every label set of the run, over all slots; see `EXPERT_COLUMNS`. Each of
    these tables holds false discoveries to 5 % of the cells that it calls specialised, and a run with several label
    sets has as many tables.

    Args:
        run: an open run.
        tables: label tables that are made already, by label set; others are made.

    Returns:
        A row an expert, those that no token came to included; no row for a run without tokens.
    """
    run.need_tokens("the table experts")
    counts = load_counts(run, "phase", ANY_SLOT, "all")
    if counts.n == 0 or not run.routers:
        return stack_rows(EXPERT_COLUMNS, [])
    candidates = find_candidates(run, tables or {})
    named = _named(candidates)
    frame = _experts(counts)
    for known in (named, candidates.tested, _top_labels(candidates), _tokens(run, named)):
        frame = frame.join(known, on=["router", "expert"], how="left", maintain_order="left")
    rest = (
        pl.when(pl.col("of_documents").is_null())
        .then(pl.lit(NOT_ENOUGH))
        .when(pl.col("of_documents"))
        .then(pl.lit(NOTHING))
        .otherwise(pl.lit(f"{THIS_TEXT_ONLY}: {NOTHING}"))
    )
    frame = frame.with_columns(
        name=pl.coalesce("line", rest),
        confidence=pl.coalesce("confidence", rest.str.split(":").list.first()),
        tokens=pl.col("tokens").fill_null("all"),
        n=pl.coalesce("n", "assignments"),
        slot=pl.lit(ANY_SLOT),
    )
    return stack_rows(EXPERT_COLUMNS, [frame])


def name_line(cell: Mapping[str, Any]) -> str:
    """Return the line that one cell of a label table allows.

    Args:
        cell: a row of `Candidates.cells`.

    Example:
        >>> cell = {"plain": "verbs in the past tense", "domain": "all", "reach": 0, "whose": "tokens"}
        >>> cell |= {"lift": 3.14, "ci_low": 2.71, "ci_high": 3.58, "share": 0.408}
        >>> name_line(cell | {"within": 0, "within_text": 0, "not_within": 0})
        'verbs in the past tense, 3.1× (2.7–3.6), 41 % of its tokens'
        >>> name_line(cell | {"within": 0, "within_text": 0, "not_within": 2})
        'verbs in the past tense, 3.1× (2.7–3.6), 41 % of its tokens; not shown within any one domain'
    """
    before = f"{THIS_TEXT_ONLY}: " if cell["reach"] == IN_TEXT else ""
    where = "" if cell["domain"] == ALL_DOMAINS else f" in text of the domain {' '.join(cell['domain'].split())}"
    low, high = _bound(cell["ci_low"], math.floor), _bound(cell["ci_high"], math.ceil)
    size = f"{_factor(cell['lift'])}× ({low}–{high}), {_percent(cell['share'])} of its {cell['whose']}"
    return f"{before}{cell['plain']}{where}, {size}{_within(cell)}"


def _within(cell: Mapping[str, Any]) -> str:
    """Return what is known of the domains by themselves, where the name is said of all text."""
    holds, holds_there, fails = cell["within"], cell["within_text"], cell["not_within"]
    tested = holds + holds_there + fails
    if cell["domain"] != ALL_DOMAINS or not tested:
        return ""
    domains = f"{tested} domain{'s' if tested > 1 else ''} with enough text"
    if holds:
        more = f" (and {holds_there} more in that text only)" if holds_there else ""
        return f"; also within {holds}{more} of {domains}"
    if holds_there:
        return f"; also within {holds_there} of {domains}, in that text only"
    return "; not shown within any one domain"


def _factor(value: float) -> str:
    return f"{value:.1f}" if value < 9.95 else f"{value:,.0f}"


def _bound(value: float | None, outward: Callable[[float], int]) -> str:
    """Return an interval's end, rounded so that the interval does not get narrower."""
    if value is None or math.isinf(value):
        return "?" if value is None else "∞"
    steps = 10 if value < 10 else 1
    return _factor(outward(round(value * steps, 6)) / steps)


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "less than 1 %"
    if 0.995 < share < 1:
        return "more than 99 %"
    return f"{share:.0%}".replace("%", " %")


def _confidence(cell: Mapping[str, Any]) -> str:
    if cell["reach"] == IN_TEXT:
        return THIS_TEXT_ONLY
    if cell["reach"] == IN_DOMAIN:
        return ONE_DOMAIN
    if cell["within"]:
        return WITHIN
    return ALL_TEXT_ONLY if cell["not_within"] and not cell["within_text"] else ALL_TEXT


def _named(candidates: Candidates) -> pl.DataFrame:
    """Return the line of each expert that has a name, and what it rests on."""
    best = candidates.best()
    cells = best.to_dicts()
    return best.select(
        *("router", "expert", "tokens", "domain", "label_set", "label", "lift", "ci_low", "ci_high", "n"),
        pl.col("share").alias("share_of_its_tokens"),
        pl.col("share_of_all").alias("share_of_all_tokens"),
        pl.Series("line", [name_line(cell) for cell in cells], pl.String),
        pl.Series("confidence", [_confidence(cell) for cell in cells], pl.String),
    )


def _top_labels(candidates: Candidates) -> pl.DataFrame:
    cells = candidates.like_best(TOP_LABELS)
    labels = [f"{cell['label_set']} {cell['label']} {_factor(cell['lift'])}×" for cell in cells.iter_rows(named=True)]
    listed = cells.select("router", "expert", pl.Series("top_labels", labels, pl.String))
    return listed.group_by("router", "expert", maintain_order=True).agg(pl.col("top_labels").str.join("; "))


def _experts(counts: LabelCounts) -> pl.DataFrame:
    """Return a row an expert with its load."""
    frames = []
    for router, table in zip(counts.routers, counts, strict=True):
        load = table.sum(axis=1)
        total = int(load.sum())
        experts = pl.DataFrame({"expert": np.arange(router.n_experts), "assignments": load})
        frames.append(
            experts.select(
                pl.lit(router.layer, pl.Int64).alias("layer"),
                pl.lit(router.index, pl.Int64).alias("router"),
                pl.col("expert", "assignments").cast(pl.Int64),
                share=pl.col("assignments") / total if total else pl.lit(None, pl.Float64),
                uniform=pl.lit(1 / router.n_experts),
            )
        )
    return pl.concat(frames)


def _tokens(run: Run, named: pl.DataFrame) -> pl.DataFrame:
    """Return the top tokens of each expert, and snippets of those that its name is about."""
    rows = load_rows(run, ["text", *named["label_set"].unique().sort()], most_tokens=SNIPPET_TOKENS)
    snippets = Snippets(rows)
    types = load_type_counts(run, "phase", "all")
    shown = _shown_types(rows.frame, types)
    frames = []
    for router, by_type in iter_expert_counts(run, types, ANY_SLOT):
        tops = top_types(by_type, TOP_TOKENS)
        wanted = {row["expert"]: _wanted(row) for row in named.filter(router=router.index).iter_rows(named=True)}
        drawn = snippets.of(router, wanted)
        frames.append(
            pl.DataFrame(
                {
                    "router": [router.index] * router.n_experts,
                    "expert": range(router.n_experts),
                    "top_tokens_by_count": [_listed(row, shown) for row in tops.by_count.tolist()],
                    "top_tokens_by_lift": [_listed(row, shown) for row in tops.by_lift.tolist()],
                    "snippets": [join_snippets(drawn.get(expert, [])) for expert in range(router.n_experts)],
                },
                _TOKENS_SCHEMA,
            )
        )
    return pl.concat(frames)


def _shown_types(frame: pl.DataFrame, types: TypeCounts) -> list[str]:
    """Return what each token type is shown as: its text, or, where that changes from place to place, its piece.

    The text of a type that stands for some bytes of a character is the whole character, or nothing.
    """
    texts = frame.with_columns(pl.col("text").alias("stripped").str.strip_chars()).group_by("token_id")
    known = texts.agg(pl.col("text").max(), same=pl.col("stripped").n_unique() == 1).filter("same")
    text_of: dict[int, str] = dict(known.select("token_id", "text").iter_rows())
    pairs = zip(types.token_ids.tolist(), types.tokens, strict=True)
    return [shown_token(text_of.get(number) or piece.translate(_SPACE_IN_PIECES)) for number, piece in pairs]


_SPACE_IN_PIECES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})


_TOKENS_SCHEMA = {
    "router": pl.Int64,
    "expert": pl.Int64,
    "top_tokens_by_count": pl.String,
    "top_tokens_by_lift": pl.String,
    "snippets": pl.String,
}


def _wanted(row: Mapping[str, Any]) -> Wanted:
    return Wanted(row["label_set"], row["label"], None if row["domain"] == ALL_DOMAINS else row["domain"])


def _listed(places: Sequence[int], shown: Sequence[str]) -> str | None:
    return " ".join(dict.fromkeys(shown[place] for place in places if place >= 0)) or None
