"""The labels that an expert may be named after: the cells of the label tables whose verdict says something.

It does not know how a name reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_probe.counts import load_counts
from moe_probe.counts.clusters import DOCUMENT
from moe_probe.labels.plain import is_kind, plain_names
from moe_probe.measures.naming import telling_bits
from moe_probe.measures.verdicts import NOT_SHOWN, SPECIALISED, THIS_TEXT_ONLY
from moe_probe.schema import UNTAGGED, LabelSet
from moe_probe.tables.domains import ALL_DOMAINS
from moe_probe.tables.labels import label_table
from moe_probe.tables.rows import ANY_SLOT

if TYPE_CHECKING:
    from moe_probe.store import Run

OVER_ALL, IN_DOMAIN, IN_TEXT = 0, 1, 2
"""How far a cell's verdict reaches: over all documents, within one domain only, of a text alone."""

_PREFERRED = ("xpos", "upos", "stmoe", "shape", "code", "domain", "language")
_EXPERT = ["router", "expert"]
_CELL = [*_EXPERT, "label"]
_DIGITS = 12  # a tie is a tie on every machine


@dataclass(frozen=True, eq=False)
class Candidates:
    """What experts may be named after.

    Attributes:
        cells: a row a cell, of each expert the best first: router, expert, domain, tokens, label_set, label, `plain`
            (what the label is called), `whose` (which tokens the shares are of), lift, ci_low, ci_high, share,
            share_of_all, n, `reach`, and in how many domains by themselves the same cell is specialised (`within`),
            specialised of that text only (`within_text`), or tested and not shown (`not_within`).
        tested: router, expert, `of_documents`: experts with a cell over all documents that was tested and not shown,
            and whether one was tested by documents, not by pieces of a few.
    """

    cells: pl.DataFrame
    tested: pl.DataFrame

    def best(self) -> pl.DataFrame:
        """Return the best cell of each expert that has one."""
        return self.cells.unique(_EXPERT, keep="first", maintain_order=True)

    def like_best(self, most: int) -> pl.DataFrame:
        """Return the cells that reach as far as the best of their expert, and are of the same text; some of each."""
        same = self.cells.join(self.best().select(*_EXPERT, "reach", "domain"), on=[*_EXPERT, "reach", "domain"])
        # A join need not keep the order.
        return same.sort(_ORDER, descending=_DESCENDING).group_by(_EXPERT, maintain_order=True).head(most)


_ORDER = ["router", "expert", "reach", "bits", "place", "label", "domain"]
_DESCENDING = [name == "bits" for name in _ORDER]


def find_candidates(run: Run, tables: Mapping[str, pl.DataFrame]) -> Candidates:
    """Gather what experts may be named after from the label tables of all label sets.

    Args:
        run: an open run.
        tables: label tables that are made already, by label set; others are made.
    """
    ordered = sorted(run.labels, key=lambda one: (_place(one.name), one.name))
    found = [_candidates(run, label_set, place, tables.get(label_set.name)) for place, label_set in enumerate(ordered)]
    if not found:
        nobody = pl.DataFrame(schema={"router": pl.Int64, "expert": pl.Int64})
        cells = nobody.with_columns(pl.lit(None).alias(name) for name in _COLUMNS if name not in nobody.columns)
        return Candidates(cells, nobody.with_columns(of_documents=pl.lit(False)))
    cells = pl.concat([cells for cells, _ in found]).sort(_ORDER, descending=_DESCENDING)
    tested = pl.concat([tested for _, tested in found])
    return Candidates(cells, tested.group_by(_EXPERT).agg(pl.col("of_documents").any()).sort(_EXPERT))


def _place(label_set: str) -> int:
    return _PREFERRED.index(label_set) if label_set in _PREFERRED else len(_PREFERRED)


def _candidates(
    run: Run, label_set: LabelSet, place: int, table: pl.DataFrame | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return one label set's cells to name an expert after, and the experts with a cell that was tested in vain."""
    counts = load_counts(run, label_set.name, ANY_SLOT)
    table = (label_table(run, label_set.name) if table is None else table).filter(slot=ANY_SLOT)
    names = plain_names(label_set.name, table["label"].unique().sort())
    kinds = [label for label in names if is_kind(label_set.name, label)]
    cells = table.with_columns(n_of_expert=pl.col("assignments").sum().over(*_EXPERT, "domain"))
    cells = cells.filter(pl.col("label").is_in(kinds))
    over_all, verdict = pl.col("domain") == ALL_DOMAINS, pl.col("verdict")
    says = (verdict == SPECIALISED) | (over_all & (verdict == THIS_TEXT_ONLY))
    reach = pl.when(verdict == THIS_TEXT_ONLY).then(IN_TEXT).when(over_all).then(OVER_ALL).otherwise(IN_DOMAIN)
    passed = (
        cells.filter(says)
        .join(_by_domain(cells), on=_CELL, how="left")
        .with_columns(
            bits=_bits(cells.filter(says)),
            reach=reach,
            label_set=pl.lit(label_set.name),
            place=pl.lit(place),
            plain=pl.col("label").replace_strict(names, return_dtype=pl.String) if names else pl.lit(None, pl.String),
            whose=pl.lit(_whose(label_set, partly=UNTAGGED in counts.labels)),
            share=pl.col("p_label_given_expert"),
            share_of_all=pl.col("p_label_given_expert") / pl.col("lift"),
            n=pl.col("n_of_expert"),
        )
    )
    in_vain = cells.filter(over_all & (verdict == NOT_SHOWN)).select(_EXPERT).unique()
    of_documents = counts.cluster_unit == DOCUMENT
    return passed.select(_COLUMNS), in_vain.with_columns(of_documents=pl.lit(of_documents))


_COLUMNS = [
    *("router", "expert", "domain", "tokens", "label_set", "label", "plain", "whose", "lift", "ci_low", "ci_high"),
    *("share", "share_of_all", "n", "reach", "within", "within_text", "not_within", "bits", "place"),
]


def _by_domain(cells: pl.DataFrame) -> pl.DataFrame:
    """Return in how many domains by themselves each cell has which verdict."""
    verdicts = {"within": SPECIALISED, "within_text": THIS_TEXT_ONLY, "not_within": NOT_SHOWN}
    apart = pl.col("domain") != ALL_DOMAINS
    return cells.group_by(_CELL).agg(
        (apart & (pl.col("verdict") == verdict)).sum().cast(pl.Int64).alias(name) for name, verdict in verdicts.items()
    )


def _bits(cells: pl.DataFrame) -> pl.Series:
    shares, lows = (
        cells[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in ("p_label_given_expert", "ci_low")
    )
    return pl.Series(telling_bits(shares, lows)).fill_nan(-np.inf).round(_DIGITS)


def _whose(label_set: LabelSet, *, partly: bool) -> str:
    """Return which tokens a share is of; `partly` says that some of the run have no value of this label."""
    if label_set.word_level:
        return f"tokens that begin a {'tagged ' if partly else ''}word"
    if not partly:
        return "tokens"
    return "tokens in code" if label_set.name == "code" else f"tokens that have a {label_set.name}"
