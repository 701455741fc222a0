"""What a report says of the load, repetition, experts and balance of a run, a section each.

Every section asks a question, says what is seen, draws it, and names the baseline, the interval, how much was counted,
and what may not be concluded. Labels have a module of their own, and caveats too. It does not know HTML beyond parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from moe_probe.charts import depth_lines, load_heatmap
from moe_probe.charts.neighbours import repetition_lines
from moe_probe.measures.verdicts import ABOVE, AT_CHANCE, BELOW, DEAD, NOT_ENOUGH, UNSEEN
from moe_probe.report.page import Field, Part, figure, table, terms
from moe_probe.report.text import coloured_text
from moe_probe.report.told import ANY_SLOT, Told, best
from moe_probe.report.words import between, listed, numbered, percent, range_of
from moe_probe.tables.snippets import BETWEEN

NO_DATA = "Not enough data: no token was counted."
BASELINE, INTERVAL, COUNTED, NOT_TO_CONCLUDE = "Baseline", "Interval", "Counted", "Not to conclude"

_MOST_EXPERTS = 128
_IN_CONTEXT = 8
_SENTENCE_OF_VERDICT = {
    ABOVE: "above even use",
    BELOW: "below it",
    AT_CHANCE: "not apart from it",
    DEAD: "dead",
    UNSEEN: "unseen here",
    NOT_ENOUGH: "without data enough to say",
}


@dataclass(frozen=True)
class Section:
    """A section of a report: a question, what is seen, parts, and its finding in one sentence for the opening."""

    title: str
    note: str
    parts: tuple[Part, ...] = ()
    short: str = ""


def place_fields(told: Told) -> list[Field]:
    """The columns that say where a row is: the layer, and the router where a layer has two."""
    return [Field("layer"), *([Field("router")] if told.two_routers else [])]


def text_section(told: Told) -> Section:
    """The text in the colours of its experts."""
    return Section(
        "What does the routing look like?",
        "Each token wears the colour of its first choice, the expert whose output had the largest weight, in the "
        "first, the middle and the last layer. Look for kinds of words in one colour, for long runs of one colour, and "
        "for colours that come and go with the subject.",
        (
            coloured_text(told.run),
            terms(
                {
                    "Shown": "The beginnings of a few documents, of different domains as far as there are any; after "
                    "Fig. 8 of Mixtral of Experts (arXiv 2401.04088). A ↵ is a token that ends a line.",
                    NOT_TO_CONCLUDE: "A few sentences show what to look for, never that it is so: the eye finds "
                    "patterns in chance too. The sections below count all tokens.",
                }
            ),
        ),
    )


def load_section(told: Told) -> Section:
    """How the work is shared out."""
    title = "Is the work shared evenly among the experts?"
    load = told.load.filter((pl.col("slot") == ANY_SLOT) & pl.col("share").is_not_null())
    top = best(load.with_columns(relative=pl.col("share") / pl.col("uniform")), "relative")
    if top is None:
        return Section(title, NO_DATA)
    counted = dict(load.group_by("verdict").len().rows())
    verdicts = [
        f"{counted[verdict]:,} {said}" for verdict, said in _SENTENCE_OF_VERDICT.items() if counted.get(verdict)
    ]
    seen = (
        f"The busiest is expert {top['expert']} of {told.titles[top['router']]}: {percent(top['share'])}"
        f"{between(top['ci_low'], top['ci_high'], '.1f', 100)} of the assignments of its layer, "
        f"{top['relative']:.1f} times even use."
    )
    numbers = table(
        load,
        columns=[
            *place_fields(told),
            Field("expert"),
            Field("share", "share, 95 %", ".1%", ("ci_low", "ci_high")),
            Field("uniform", "even use", ".1%"),
            Field("assignments"),
            Field("verdict"),
        ],
        limit=_MOST_EXPERTS,
    )
    return Section(
        title,
        f"{seen} Of the {numbered(len(load), 'expert')} of all layers, {listed(verdicts)}.",
        (
            figure(load_heatmap(told.load), numbers),
            terms(
                {
                    BASELINE: "Even use: each expert takes 1 of E assignments.",
                    INTERVAL: "95 %, after Wilson, for as many independent tokens as the documents are worth: tokens "
                    "of one document are alike. Above and below mean that the interval lies off even use.",
                    COUNTED: f"{range_of(load['n'])} assignments a router; all tokens, any slot.",
                    NOT_TO_CONCLUDE: "That a busy expert is a better one, or that it would be busy on other texts. An "
                    "expert that took nothing is unseen here; dead it is called only where 30 documents of two domains "
                    "leave no doubt.",
                }
            ),
        ),
        f"Load: {seen[0].lower()}{seen[1:]}",
    )


def repetition_section(told: Told) -> Section:
    """Whether neighbours go to the same expert."""
    title = "Do neighbouring tokens go to the same expert?"
    frame = told.repetition
    top = best(frame, "first_choice")
    if top is None:
        return Section(title, NO_DATA)
    chart = repetition_lines(frame)
    chart.update_layout(title_text="How often they do, layer by layer")
    columns = [
        *place_fields(told),
        Field("first_choice", "same first choice, 95 %", ".1%", ("first_ci_low", "first_ci_high")),
        Field("uniform_first", "alike", ".1%"),
        Field("load_first", "domain", ".1%"),
        Field("document_first", "document", ".1%"),
        Field("token_first", "tokens", ".1%"),
        Field("excess_first", "excess over tokens, 95 %", ".1%", ("excess_ci_low", "excess_ci_high")),
        Field("pairs"),
        Field("n_token_pairs", "that recur"),
    ]
    most = f"{percent(top['first_choice'])} share their first choice in {told.titles[top['router']]}"
    return Section(
        title,
        _repetition_seen(told, frame, top),
        (
            figure(chart),
            table(frame, columns=columns),
            terms(
                {
                    BASELINE: "Four chances, each asking more: experts drawn alike; random pairs of tokens of one "
                    "domain; of one document; and the same tokens, each with the experts of another occurrence of "
                    "itself.",
                    INTERVAL: "95 %, a document (or a group of them) being one draw.",
                    COUNTED: f"{range_of(frame['pairs'])} pairs of neighbours within a window.",
                    NOT_TO_CONCLUDE: "That repetition is syntax. What is left over the last chance still holds the "
                    "drift of a document's subject and what attention carries from one token to the next. Against even "
                    "chance alone untrained models repeat too.",
                }
            ),
        ),
        f"Neighbours: {most}"
        + (f"; the excess over what their tokens account for is {_points(top)}." if _has_excess(top) else "."),
    )


def _repetition_seen(told: Told, frame: pl.DataFrame, top: dict[str, Any]) -> str:
    chances = [
        f"{percent(top[name])} {said}"
        for name, said in (
            ("uniform_first", "if all experts were drawn alike"),
            ("load_first", "for two tokens of one domain"),
            ("document_first", "for two of one document"),
        )
        if top[name] is not None
    ]
    said = (
        f"Most often they do in {told.titles[top['router']]}: {percent(top['first_choice'])}"
        f"{between(top['first_ci_low'], top['first_ci_high'], '.1f', 100)} of neighbours share their first choice. "
        f"Chance would give {listed(chances)}."
    )
    if _has_excess(top):
        said += (
            f" Of the {top['n_token_pairs']:,} pairs whose tokens both recur, {percent(top['token_first'])} would by "
            f"their tokens alone; the excess over that is {_points(top)}."
        )
    tested = frame.filter(pl.col("excess_ci_low").is_not_null())
    if len(tested):
        above = len(tested.filter(pl.col("excess_ci_low") > 0))
        said += f" It is shown to be above 0 in {above:,} of {numbered(len(tested), 'layer')}."
    return said


def _has_excess(row: dict[str, Any]) -> bool:
    return row["token_first"] is not None and row["excess_first"] is not None


def _points(row: dict[str, Any]) -> str:
    """The excess over token chance in percentage points, with its interval."""
    points = f"{100 * row['excess_first']:.1f}".replace("-", "−")
    return f"{points} points{between(row['excess_ci_low'], row['excess_ci_high'], '.1f', 100)}"


def experts_section(told: Told) -> Section:
    """What each expert is an expert in."""
    title = "What is each expert an expert in?"
    frame = told.experts
    if frame.is_empty():
        return Section(title, NO_DATA)
    named = frame.filter(pl.col("label").is_not_null())
    holds = dict(named.group_by("confidence").len().sort("confidence").rows())
    far = f" How far they hold: {'; '.join(f'{far}, {count:,}' for far, count in holds.items())}." if holds else ""
    seen = (
        f"{len(named):,} of {numbered(len(frame), 'expert')} are chosen above chance for some label; of the others "
        f"nothing of that kind can be said.{far}"
    )
    rows = named if len(frame) > _MOST_EXPERTS else frame
    columns = [
        *place_fields(told),
        Field("expert"),
        Field("name", "an expert in"),
        Field("share", "of the work", ".1%"),
        Field("top_tokens_by_lift", "tokens it takes most above their share", code=True),
    ]
    note = "" if len(rows) == len(frame) else " Only those with a name are listed."
    return Section(
        title,
        f"{seen} The numbers behind a name are the lift, how many times as often as its layer on the whole the expert "
        f"is chosen for that label, and the label's share of the expert's own tokens.{note}",
        (
            table(rows, columns=columns, limit=_MOST_EXPERTS, empty="No expert has a name."),
            _snippets(told, named),
            terms(
                {
                    BASELINE: "Lift 1: the expert takes as much of the label as of all tokens.",
                    INTERVAL: "95 % of the lift, a document (or a group of them) being one draw.",
                    COUNTED: "For each label set what its section says; names come from the pair that tells most among "
                    "those that pass both tests.",
                    NOT_TO_CONCLUDE: "That an expert does nothing else: a name with 41 % of its tokens leaves 59 %. "
                    "That “nothing above chance” means no skill: it may be one for which the run has no label.",
                }
            ),
        ),
        f"Experts: {len(named):,} of {len(frame):,} have a name that stands above chance.",
    )


def _snippets(told: Told, named: pl.DataFrame) -> Part:
    """The tokens in context of the experts whose names tell most."""
    columns = [
        *place_fields(told),
        Field("expert"),
        Field("name", "an expert in"),
        Field("snippets", "where it was chosen", code=True),
    ]
    strongest = named.sort("ci_low", descending=True, nulls_last=True, maintain_order=True).head(_IN_CONTEXT)
    drawn = strongest.with_columns(pl.col("snippets").str.split(BETWEEN))
    return table(drawn, columns=columns, title="Some of them in context") if len(drawn) else Part("")


def balance_section(told: Told) -> Section:
    """How sure the routers are, and how even."""
    title = "How sure is each router, and how even is its load?"
    frame = told.balance
    least = best(frame.with_columns(least=-pl.col("effective_experts")), "least")
    if least is None:
        return Section(title, NO_DATA)
    experts = told.run.routers[least["router"]].n_experts
    seen = (
        f"The load is least even in {told.titles[least['router']]}: as uneven as if {least['effective_experts']:.1f} "
        f"of {experts:,} experts shared it evenly."
    )
    scored = frame.filter(pl.col("mean_token_entropy_bits").is_not_null())
    sure = best(scored.with_columns(sure=-pl.col("mean_token_entropy_bits")), "sure")
    said = (
        f" The router of {told.titles[sure['router']]} is the surest of a single token: "
        f"{sure['mean_token_entropy_bits']:.2f} bits on average, against {_most_bits(sure):.2f} of one that cannot "
        "decide."
        if sure
        else " How sure the routers are is not known: the model gives no scores."
    )
    lines = ["load_entropy_bits", *(["mean_token_entropy_bits"] if len(scored) else [])]
    columns = [
        *place_fields(told),
        Field("effective_experts", "effective experts", ".2f"),
        Field("max_violation", "busiest over mean", "+.0%"),
        Field("load_entropy_bits", "entropy of the load, bits", ".2f"),
        Field("mean_token_entropy_bits", "entropy of a token, bits", ".2f"),
        Field("mean_margin", "margin", ".3f"),
        Field("dropped"),
        Field("dead"),
        Field("unseen"),
        Field("n", "tokens"),
    ]
    return Section(
        title,
        seen + said,
        (
            figure(depth_lines(frame, lines)),
            table(frame, columns=columns),
            terms(
                {
                    BASELINE: "log2 E bits for both entropies, E effective experts, 0 for the busiest over the mean.",
                    INTERVAL: "None: these are facts about this run's tokens. The intervals of the loads are above.",
                    COUNTED: f"{range_of(frame['n'])} tokens a router, all slots.",
                    NOT_TO_CONCLUDE: "That an even load means an undecided router. The entropy of the load is over all "
                    "tokens, that of a token within each: a router can be sure of every token and even over all.",
                }
            ),
        ),
        f"Balance: {seen[0].lower()}{seen[1:]}",
    )


def _most_bits(row: dict[str, Any]) -> float:
    """The entropy of even use, log2 E, in bits."""
    even = row["normalised_load_entropy"]
    return float(row["load_entropy_bits"] / even) if even else 0.0
