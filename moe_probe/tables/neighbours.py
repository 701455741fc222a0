"""How often neighbouring tokens share an expert, beside four chances, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import TokenRows, load_rows
from moe_probe.counts.clusters import Clusters, unit_for
from moe_probe.measures.random_pairs import TYPE_FLOOR
from moe_probe.measures.repetition import repetition as measure_repetition
from moe_probe.measures.repetition import uniform_chance
from moe_probe.tables.columns import LAYER, MIXTRAL, ROUTER, TOKENS, Column
from moe_probe.tables.domains import ALL_DOMAINS, DOMAIN, find_domains
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

CLUSTER_UNIT = Column(
    "cluster_unit",
    pl.String,
    "document, block",
    "What one draw of the intervals is made of: documents, or blocks of 256 tokens where there are fewer than five; "
    "then an interval speaks for this text only.",
)

_TABLE_5 = f"{MIXTRAL}, 5 and Table 5"
_NOT_SYNTAX = (
    "It still holds the drift of a document (its own words and topic) and the smoothing of attention, which makes "
    "neighbours alike; it is not syntax, and an untrained model has more of it than a trained one."
)

REPETITION_COLUMNS = (
    DOMAIN,
    LAYER,
    ROUTER,
    TOKENS,
    Column(
        "first_choice",
        pl.Float64,
        "0 to 1",
        "Share of pairs of consecutive tokens of one window that have the same first choice. Null without a pair.",
        _TABLE_5,
    ),
    Column("first_ci_low", pl.Float64, "0 to 1", "Lower end of first_choice at 95 %, a cluster being one draw."),
    Column("first_ci_high", pl.Float64, "0 to 1", "Upper end of first_choice at 95 %."),
    Column("either", pl.Float64, "0 to 1", "Share of these pairs whose sets of experts meet, any slot.", _TABLE_5),
    Column("either_ci_low", pl.Float64, "0 to 1", "Lower end of either at 95 %, a cluster being one draw."),
    Column("either_ci_high", pl.Float64, "0 to 1", "Upper end of either at 95 %."),
    Column("uniform_first", pl.Float64, "0 to 1", "Chance of first_choice under even routing, 1/E.", _TABLE_5),
    Column("uniform_either", pl.Float64, "0 to 1", "Chance of either under even routing, 1 - C(E-k,k)/C(E,k)."),
    Column(
        "load_first",
        pl.Float64,
        "0 to 1",
        "Chance of first_choice for two random tokens of one domain, among the tokens of the pairs: exact, "
        "ΣN_e(N_e-1)/(N(N-1)) in each domain, domains weighted by their pairs.",
    ),
    Column(
        "load_either",
        pl.Float64,
        "0 to 1",
        "Chance of either for two random tokens of one domain, with the sets that occurred; exact up to 2,048 "
        "different sets, else from 100,000 random pairs.",
    ),
    Column(
        "document_first",
        pl.Float64,
        "0 to 1",
        "Chance of first_choice for two random tokens of one document, documents weighted by their pairs.",
    ),
    Column("document_either", pl.Float64, "0 to 1", "Chance of either for two random tokens of one document."),
    Column(
        "token_first",
        pl.Float64,
        "0 to 1",
        "Chance of first_choice if each of the two tokens were routed as another occurrence of the same token, over "
        f"the n_token_pairs pairs whose types both occur {TYPE_FLOOR} times or more; exact, the tokens themselves left "
        f"out. {_NOT_SYNTAX}",
    ),
    Column(
        "token_either",
        pl.Float64,
        "0 to 1",
        "Chance of either if each of the two tokens were routed as another occurrence of the same token, drawn 100,000 "
        "times or more over the same pairs.",
    ),
    Column(
        "excess_first",
        pl.Float64,
        "-1 to 1",
        "first_choice of the n_token_pairs pairs, less token_first: what neighbours share beyond their words. 0 is "
        f"chance. {_NOT_SYNTAX}",
    ),
    Column("excess_ci_low", pl.Float64, "-1 to 1", "Lower end of excess_first at 95 %, a cluster being one draw."),
    Column("excess_ci_high", pl.Float64, "-1 to 1", "Upper end of excess_first at 95 %."),
    CLUSTER_UNIT,
    Column("pairs", pl.Int64, "count", "Pairs of consecutive tokens measured: the n of all but token_ and excess_."),
    Column(
        "n_token_pairs", pl.Int64, "count", f"Pairs whose types both occur {TYPE_FLOOR} times or more: n of token_."
    ),
)


def repetition(run: Run, *, seed: int = 0) -> pl.DataFrame:
    """Return how often consecutive tokens share an expert, in every router, over all text and within each domain.

    Two tokens are consecutive within one window; the first four positions of each are left out. The shares stand
    beside four chances, each knowing more than the one before: uniform, load, document, token. What exceeds even the
    token's chance is no syntax: it holds the drift of documents and the smoothing of attention.

    Args:
        run: an open run. Of more than 2,000,000 tokens, whole documents of so many are measured.
        seed: of random pairs and replacements.

    Returns:
        The columns of repetition.csv, rows over all documents first; null where there is no pair to measure.
    """
    run.need_tokens("the table repetition")
    rows = load_rows(run)
    parts = list(_parts(run, rows))
    by_part: dict[str, list[pl.DataFrame]] = {part.domain: [] for part in parts}
    for router in run.routers if parts else ():
        experts = rows.experts(router)
        for part in parts:
            by_part[part.domain].append(_part_row(router, part, experts[part.rows], seed))
    return stack_rows(REPETITION_COLUMNS, [frame for frames in by_part.values() for frame in frames])


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of one domain, or of all, and what is known of each; all arrays are (rows,)."""

    domain: str
    rows: NDArray[np.int64]
    documents: NDArray[np.int32]
    positions: NDArray[np.int32]
    window_positions: NDArray[np.int32]
    token_ids: NDArray[np.int32]
    domains: NDArray[np.int64]
    clusters: NDArray[np.int64]
    cluster_unit: str


def _parts(run: Run, rows: TokenRows) -> Iterator[_Part]:
    """Yield all rows beyond the sinks, then those of each domain that has rows of its own."""
    place = pl.int_range(pl.len()).alias("place")
    kept = rows.frame.with_columns(place).filter(pl.col("window_position") >= schema.SINK_POSITIONS)
    if kept.is_empty():
        return
    # Documents without a domain are of one, unnamed.
    domain = kept["domain_of_document"].fill_null("").rank("dense").cast(pl.Int64)
    kept = kept.with_columns(domain.alias("domain"))
    yield _part(run, ALL_DOMAINS, kept)
    for name in find_domains(run):
        of_domain = kept.filter(pl.col("domain_of_document") == name)
        if not of_domain.is_empty():
            yield _part(run, name, of_domain)


def _part(run: Run, domain: str, kept: pl.DataFrame) -> _Part:
    columns = ("place", "document", "position", "window_position", "token_id", "domain")
    place, documents, positions, window_positions, token_ids, domains = (kept[name].to_numpy() for name in columns)
    unit = unit_for(kept["document"].n_unique())
    clusters = Clusters(run, unit).of(documents, positions)
    return _Part(domain, place, documents, positions, window_positions, token_ids, domains, clusters, unit)


def _part_row(router: schema.Router, part: _Part, experts: NDArray[np.int32], seed: int) -> pl.DataFrame:
    found = measure_repetition(
        experts,
        part.documents,
        part.positions,
        part.window_positions,
        router.n_experts,
        token_ids=part.token_ids,
        domains=part.domains,
        clusters=part.clusters,
        seed=seed,
    )
    uniform_first, uniform_either = uniform_chance(router.n_experts, router.n_slots)
    row: dict[str, object] = {
        "domain": part.domain,
        "uniform_first": uniform_first,
        "uniform_either": uniform_either,
        "cluster_unit": part.cluster_unit,
        "pairs": 0,
        "n_token_pairs": 0,
    }
    if found is not None:
        row |= {"first_choice": found.first.value, "either": found.either.value, "pairs": found.pairs}
        row |= {"first_ci_low": found.first.low, "first_ci_high": found.first.high}
        row |= {"either_ci_low": found.either.low, "either_ci_high": found.either.high}
        row |= {"load_first": found.load_first, "load_either": found.load_either}
        row |= {"document_first": found.document_first, "document_either": found.document_either}
        row |= {"token_first": found.token_first, "token_either": found.token_either}
        row |= {"n_token_pairs": found.token_pairs}
        if found.excess_first is not None:
            excess = found.excess_first
            row |= {"excess_first": excess.value, "excess_ci_low": excess.low, "excess_ci_high": excess.high}
    return router_rows(router, ANY_SLOT, "all", {}, row)
