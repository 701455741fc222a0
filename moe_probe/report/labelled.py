"""What a report says of the labels of a run: parts of speech, and the domains of its documents.

It does not know HTML beyond parts, nor how a number comes about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from moe_probe.charts import depth_lines, label_heatmap
from moe_probe.measures.verdicts import NOT_SHOWN, SPECIALISED, THIS_TEXT_ONLY
from moe_probe.report.page import Field, Part, figure, table, terms
from moe_probe.report.sections import BASELINE, COUNTED, INTERVAL, NOT_TO_CONCLUDE, Section, place_fields
from moe_probe.report.told import ANY_SLOT, Told, best, over_all
from moe_probe.report.words import between, numbered, range_of

_STRONGEST = 12
_TESTED = (SPECIALISED, NOT_SHOWN, THIS_TEXT_ONLY)
_GIVEN_BITS = 0.005
_LITTLE = 0.1
_LEVEL = 0.05


@dataclass(frozen=True)
class _Subject:
    """How a label set is spoken of."""

    label: str
    title: str
    one: str
    several: str
    short: str
    kept: str
    not_to_conclude: str


_SYNTAX = _Subject(
    "upos",
    "Do experts know parts of speech, or only words?",
    "part of speech",
    "parts of speech",
    "Syntax",
    "there the experts sort by kind of word, and not by remembered words alone",
    "That an expert understands grammar: it takes words of a kind. An untrained router sends each token to an expert "
    "of its own choosing and so seems to know parts of speech, by occurrence; that is why each token type counts once "
    "here.",
)
_DOMAIN = _Subject(
    "domain",
    "Do experts know the subject of a text?",
    "domain",
    "domains",
    "Domain",
    "there it holds for words too that were held out",
    "That an expert knows the subject and not its vocabulary, its language or its layout: domains differ in all of "
    "these at once. Where a domain is a handful of documents, their own habits are not to be told from it.",
)


def syntax_section(told: Told) -> Section:
    """Experts against parts of speech."""
    return _label_section(told, _SYNTAX)


def domain_section(told: Told) -> Section:
    """Experts against domains, and how far the domains lie apart."""
    return _label_section(told, _DOMAIN)


def _label_section(told: Told, subject: _Subject) -> Section:
    if not told.has(subject.label):
        return Section(
            subject.title, f"The run has no {subject.label}. moe-probe label RUN --with {subject.label} adds it."
        )
    cells = told.labels(subject.label)
    if cells.is_empty() or len(over_all(cells)["label"].unique()) < 2:
        return Section(subject.title, f"Not enough data: no two values of {subject.label} were counted.")
    bits = told.specialisation(subject.label)
    over = over_all(cells).filter(pl.col("slot") == ANY_SLOT)
    specialised = over.filter(pl.col("verdict") == SPECIALISED)
    shown = best(bits, "held_out_bits") or best(bits, "type_level_bits")
    router = shown["router"] if shown else int(over["router"][0])
    note = "\n\n".join(
        filter(
            None,
            (_bits_seen(told, bits, subject), _given_seen(told, bits, subject), _cells_seen(over, cells, subject)),
        )
    )
    lines = [name for name in ("type_level_bits", "held_out_bits") if bits[name].is_not_null().any()]
    charts = [figure(depth_lines(bits, lines), _bits_table(told, bits))] if lines else []
    return Section(
        subject.title,
        note,
        (
            *charts,
            figure(label_heatmap(over, router, slot=ANY_SLOT)),
            _strongest(told, specialised, subject),
            *(_divergence(told) if subject is _DOMAIN else ()),
            _terms(bits, over, subject),
        ),
        _short(told, shown, over, subject),
    )


def _bits_seen(told: Told, bits: pl.DataFrame, subject: _Subject) -> str:
    top = best(bits, "type_level_bits")
    if top is None:
        return f"How much the first choice tells about the {subject.one} cannot be said: too few token types recur."
    foretold = ""
    if top["held_out_bits"] is not None:
        foretold = (
            f" On token types that were held out it foretells {top['held_out_bits']:.2f} bits"
            f"{between(top['held_out_ci_low'], top['held_out_ci_high'])}."
        )
    tested = bits.filter(pl.col("held_out_ci_low").is_not_null())
    holds = tested.filter(pl.col("held_out_ci_low") > 0)
    verdict = (
        f" The interval of that second number lies above 0 in {len(holds):,} of {numbered(len(tested), 'layer')}"
        + (f": {subject.kept}." if len(holds) else ".")
        if len(tested)
        else ""
    )
    return (
        f"The first choice tells most about the {subject.one} in {told.titles[top['router']]}: "
        f"{top['type_level_bits']:.2f} bits{between(top['type_ci_low'], top['type_ci_high'])} above chance, each token "
        f"type counting once.{foretold}{verdict}"
    )


def _given_seen(told: Told, bits: pl.DataFrame, subject: _Subject) -> str:
    """What is left once the token is known. A domain is the document's, so that nothing can be left of it there."""
    top = best(bits, "given_token_bits") if subject is _SYNTAX else None
    if top is None:
        return ""
    stands = bits.filter((pl.col("given_token_p") < _LEVEL) & (pl.col("given_token_bits") >= _GIVEN_BITS))
    shown = (
        f"shown in {told.layers(stands['router'].to_list())}"
        if len(stands)
        else "in no layer shown to be more than chance"
    )
    headline = best(bits, "type_level_bits")
    little = headline is not None and top["given_token_bits"] < _LITTLE * headline["type_level_bits"]
    return (
        f"Once the token and its document are known, the {subject.one} adds at most {top['given_token_bits']:.3f} bits "
        f"({told.titles[top['router']]}), {shown}."
        + (
            " Beside the bits above that is little: what experts know of it, they mostly know by the word."
            if little
            else ""
        )
    )


def _cells_seen(over: pl.DataFrame, cells: pl.DataFrame, subject: _Subject) -> str:
    verdicts = dict(over.group_by("verdict").len().rows())
    found, text_only = verdicts.get(SPECIALISED, 0), verdicts.get(THIS_TEXT_ONLY, 0)
    tested = found + text_only + verdicts.get(NOT_SHOWN, 0)
    pairs = f"pair{'' if tested == 1 else 's'} of an expert and a {subject.one}"
    if not tested:
        return f"No pair of an expert and a {subject.one} has enough data for a test."
    if text_only:
        return (
            f"Of {tested:,} {pairs} that could be tested, {text_only:,} stand out in this text. There are too few "
            "documents to say more."
        )
    sentence = (
        f"Of {tested:,} {pairs} that could be tested, {found:,} {'is' if found == 1 else 'are'} specialised: at least "
        "1.2 times as frequent as chance, over documents and over token types alike."
    )
    within = cells.filter((pl.col("domain") != "all") & (pl.col("slot") == ANY_SLOT))
    if not found or within.is_empty():
        return sentence
    where = ["router", "expert", "label"]
    inside = within.filter(pl.col("verdict").is_in([SPECIALISED, NOT_SHOWN])).select(where).unique()
    again = over.filter(pl.col("verdict") == SPECIALISED).join(inside, on=where, how="semi")
    stands = again.join(within.filter(pl.col("verdict") == SPECIALISED), on=where, how="semi")
    if again.is_empty():
        return f"{sentence} No single domain has enough documents to test them within it."
    standing = f"{len(stands):,}" if len(stands) else "none"
    return f"{sentence} Of {len(again):,} that can be tested within a single domain too, {standing} stand there."


def _short(told: Told, shown: dict[str, Any] | None, over: pl.DataFrame, subject: _Subject) -> str:
    found, tested = (len(over.filter(pl.col("verdict").is_in(verdicts))) for verdicts in ([SPECIALISED], _TESTED))
    if shown is None or shown["held_out_bits"] is None:
        return f"{subject.short}: too little data to measure how much the experts tell."
    stands = shown["held_out_ci_low"] is not None and shown["held_out_ci_low"] > 0
    told_bits = (
        f"the first choice of {told.titles[shown['router']]} foretells {shown['held_out_bits']:.2f} bits"
        f"{between(shown['held_out_ci_low'], shown['held_out_ci_high'])} of the {subject.one} of unseen words"
        if stands
        else f"no layer is shown to foretell the {subject.one} of unseen words"
    )
    passes = f"{numbered(found, 'pair')} of {tested:,} stand in both tests" if tested else "no pair has data for a test"
    return f"{subject.short}: {told_bits}; of experts and {subject.several}, {passes}."


def _bits_table(told: Told, bits: pl.DataFrame) -> Part:
    columns = [
        *place_fields(told),
        Field("type_level_bits", "each type once, 95 %", ".2f", ("type_ci_low", "type_ci_high")),
        Field("held_out_bits", "unseen types, 95 %", ".2f", ("held_out_ci_low", "held_out_ci_high")),
        Field("mutual_information_bits", "by occurrence", ".2f"),
        Field("null_mean_bits", "its chance", ".2f"),
        Field("without_punct_bits", "without punctuation", ".2f"),
        Field("given_token_bits", "given the token", ".3f"),
        Field("types"),
        Field("n"),
    ]
    return table(
        bits, columns=[one for one in columns if one.name in bits.columns and bits[one.name].is_not_null().any()]
    )


def _strongest(told: Told, specialised: pl.DataFrame, subject: _Subject) -> Part:
    columns = [
        *place_fields(told),
        Field("expert"),
        Field("label", subject.one),
        Field("lift", "lift, 95 %", ".1f", ("ci_low", "ci_high")),
        Field("p_label_given_expert", "of the expert", ".0%"),
        Field("p_expert_given_label", f"of the {subject.one}", ".0%"),
        Field("assignments", "tokens"),
    ]
    # By the lower end: the largest lifts are those of rare labels, and of them the least is known.
    return table(
        specialised.sort("ci_low", descending=True, nulls_last=True, maintain_order=True).head(_STRONGEST),
        columns=columns,
        title="The strongest pairs that pass both tests"
        + (f", {_STRONGEST} of {len(specialised):,}" if len(specialised) > _STRONGEST else ""),
        empty="No pair passes both tests.",
    )


def _divergence(told: Told) -> tuple[Part, ...]:
    """How far apart the domains lie, in the router that parts them most."""
    frame = told.divergence.filter(pl.col("excess_bits").is_not_null())
    if frame.is_empty():
        return ()
    means = frame.group_by("router").agg(pl.col("excess_bits").mean()).sort("router")
    top = best(means, "excess_bits")
    rows = frame.filter(pl.col("router") == (top or {})["router"]).sort(
        "excess_bits", descending=True, maintain_order=True
    )
    columns = [
        Field("value", "domain"),
        Field("other_value", "and domain"),
        Field("js_bits", "divergence, bits", ".3f"),
        Field("null_mean_bits", "by chance", ".3f"),
        Field("excess_bits", "excess, 95 %", ".3f", ("excess_ci_low", "excess_ci_high")),
        Field("q_value", "q", ".2f"),
        Field("clusters", "documents"),
        Field("n"),
    ]
    where = told.titles[rows["router"][0]]
    title = f"Which domains does {where} treat most differently? (Jensen–Shannon divergence, any slot)"
    return (table(rows, columns=columns, title=title, limit=_STRONGEST),)


def _terms(bits: pl.DataFrame, over: pl.DataFrame, subject: _Subject) -> Part:
    types = f", {range_of(bits['types'].drop_nulls())} token types" if bits["types"].is_not_null().any() else ""
    rows = "word-initial tokens" if over["tokens"][0] == "word_initial" else "tokens"
    return terms(
        {
            BASELINE: "0 bits: labels exchanged among token types of like frequency. Lift 1: expert and label "
            "independent.",
            INTERVAL: "95 %. Of bits over folds of token types, not over documents; of lift over documents. A pair is "
            "called specialised where two tests, over documents and over token types, stand after correction for all "
            "pairs (Benjamini–Hochberg, q\u00a0<\u00a0.05).",
            COUNTED: f"{range_of(over['n'])} assignments of {rows} a router, any slot, for pairs; "
            f"{range_of(bits['n'])} first choices{types} for bits.",
            NOT_TO_CONCLUDE: subject.not_to_conclude,
        }
    )
