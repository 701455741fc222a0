"""What stands against the numbers of a report, read off the run itself.

Each caveat is a sentence or two that says what is the matter, how large it is, and what would help. It does not know
pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from moe_probe import schema
from moe_probe.counts import FEWEST_DOCUMENTS, load_counts
from moe_probe.report.words import listed, numbered, percent

if TYPE_CHECKING:
    from moe_probe.report.told import Told

_FEW_DOCUMENTS = 30
_LOAD_DOCUMENTS = 200
_FEW_TOKENS = 50_000
_NAMED = 6


def caveats(told: Told) -> list[str]:
    """Return what a reader of this run's report must know, the gravest first."""
    return [
        *_of_the_trace(told),
        *_of_the_corpus(told),
        *_of_the_labels(told),
        *_of_the_model(told),
        "Routing says where tokens are sent, not what an expert does with them. To learn that, switch it off.",
        "An expert's number means nothing outside this model: expert 3 of another model, or of another training, is "
        "another expert.",
    ]


def _of_the_trace(told: Told) -> list[str]:
    run = told.run
    said = []
    if not run.complete:
        total = run.manifest["corpus"].get("tokens")
        of = f" of {total:,}" if isinstance(total, int) else ""
        said.append(
            f"The run is not complete: {run.n_tokens:,}{of} tokens are there. The rest may differ, for a corpus is "
            "traced in its order. Go on with moe-probe trace … --resume."
        )
    said += [f"The trace warned: {warning.rstrip('.')}." for warning in run.warnings]
    check = run.manifest.get("self_check")
    if check != "passed":
        said.append(
            f"The self-check, which recomputes what the experts returned from the routing that was recorded, says "
            f"“{check}” and not “passed”."
        )
    if told.balance.height:
        counted = int(told.balance["n"].to_numpy().max())
        if counted < run.n_tokens:
            said.append(
                f"The first four tokens of each window are left out of every number, for they route oddly: "
                f"{run.n_tokens - counted:,} of {run.n_tokens:,}."
            )
        dropped = int(told.balance["dropped"].sum())
        if dropped:
            said.append(
                f"{numbered(dropped, 'slot')} held no expert (capacity overflow, a skip) and are counted nowhere."
            )
    unknown = [told.titles[router.index] for router in run.routers if not run.with_scores[router.index]]
    if unknown:
        said.append(
            f"The model gives no scores for {listed(unknown, _NAMED)}: entropy of a token and margin are not known "
            "there."
        )
    return said


def _of_the_corpus(told: Told) -> list[str]:
    documents = told.run.documents().filter(pl.col("tokens") > 0)
    count, tokens = documents.height, told.run.n_tokens
    said = []
    if count < FEWEST_DOCUMENTS:
        said.append(
            f"The corpus is {numbered(count, 'document')}. Intervals then come from stretches of 256 tokens: they are "
            "about this text only, and no verdict is given. Trace at least five documents, better thirty."
        )
    elif count < _FEW_DOCUMENTS:
        said.append(
            f"The corpus is {numbered(count, 'document')}. With fewer than {_FEW_DOCUMENTS} the intervals of lift are "
            "wider than they need be, and those of the load cover less often than 95 times in 100."
        )
    elif count < _LOAD_DOCUMENTS:
        said.append(
            f"The corpus is {count:,} documents. Intervals of the load reach 95 % only from about {_LOAD_DOCUMENTS} on."
        )
    if tokens < _FEW_TOKENS:
        said.append(
            f"The corpus is {tokens:,} tokens. A preference of 1.5 to 1 is found nine times in ten from about "
            f"{_FEW_TOKENS:,} on; with fewer, “not shown” often means that there was too little to show it."
        )
    if len(told.domains) < 2:
        said.append(
            "The documents have no two domains, so what looks like a part of speech may be a subject, and no expert "
            "can be called dead. Trace texts of several domains: a folder for each."
        )
    else:
        by_domain = documents.drop_nulls("domain").group_by("domain").len().sort("domain")
        thin = by_domain.filter(pl.col("len") < FEWEST_DOCUMENTS)
        if len(thin):
            names = [f"{domain} ({count})" for domain, count in thin.rows()]
            said.append(
                f"These domains have fewer than {FEWEST_DOCUMENTS} documents, so that what is told of them may be one "
                f"document's: {listed(names, 12)}."
            )
    return said


def _of_the_labels(told: Told) -> list[str]:
    said = []
    for label_set in told.run.labels:
        counts = load_counts(told.run, label_set.name, 0)
        if not counts.n or schema.UNTAGGED not in counts.labels or not len(counts):
            continue
        by_label = counts[0].sum(axis=0)
        without = int(by_label[counts.labels.index(schema.UNTAGGED)])
        rows = "word-initial tokens" if counts.tokens == "word_initial" else "tokens"
        said.append(
            f"{percent(without / max(int(by_label.sum()), 1))} of the {rows} have no {label_set.name} and are left out "
            "of what is said about it"
            + (
                ": a tagger is asked only about its own language."
                if label_set.name in ("upos", "xpos", "stmoe")
                else "."
            )
        )
    sources = {name: source for name, source in ((one.name, one.source) for one in told.run.labels) if name == "upos"}
    said += [
        f"Parts of speech come from: {source}. A tagger errs in some 5 to 10 words of 100, gold tags do not."
        for source in sources.values()
    ]
    return said


def _of_the_model(told: Told) -> list[str]:
    model = told.run.manifest.get("model", {})
    quantised = model.get("quantization")
    if not quantised or quantised == "unknown":
        return []
    experts = [part for part in told.run.manifest.get("precision", []) if part["part"] == "experts"]
    stored = f" ({experts[0]['bits_per_parameter']:.1f} bits a parameter)" if experts else ""
    return [
        f"The model was loaded in {quantised}{stored}. That moves tokens near a tie to another expert, the more the "
        "deeper; how many, moe-probe compare tells, beside a run in 16 bits."
    ]
