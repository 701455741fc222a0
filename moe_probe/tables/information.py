"""How much each router's choice tells about the tokens' labels, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import find_label, iter_expert_counts, load_counts, load_rows, load_type_counts
from moe_probe.counts.by_type import TypeCounts
from moe_probe.counts.clusters import Clusters
from moe_probe.measures.association import Information, cramers_v, mutual_information_bits
from moe_probe.measures.given_token import GivenToken, TokenLabels, given_token, token_labels
from moe_probe.measures.specialisation import (
    TypeLabels,
    commonest,
    held_out_bits,
    type_folds,
    type_labels,
    type_level_bits_of_routers,
)
from moe_probe.tables.columns import COVER, LAYER, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.domains import ALL_DOMAINS, DOMAIN, find_domains
from moe_probe.tables.rows import FIRST_CHOICE, router_rows, stack_rows, tagged

if TYPE_CHECKING:
    from moe_probe.store import Run

WORDS = "word_initial"

PUNCTUATION = {
    "upos": ("PUNCT", "SYM"),
    "xpos": (*".,:$#", "``", "''", "-LRB-", "-RRB-", "HYPH", "NFP", "SYM"),
    "shape": ("punctuation", "operator", "symbol"),
    "code": ("punctuation", "operator"),
    "stmoe": ("punctuation",),
}
"""Of each label set, the values that are punctuation and signs."""

_VINH = "Vinh, Epps & Bailey 2010, Information Theoretic Measures for Clusterings Comparison, 3"

SPECIALISATION_COLUMNS = (
    LAYER,
    ROUTER,
    Column("label_set", pl.String, "name", "Which labels."),
    SLOT,
    TOKENS,
    DOMAIN,
    Column(
        "type_level_bits",
        pl.Float64,
        "bits",
        "Information between a token type's commonest expert and commonest label, each type with 3 occurrences or more "
        "counting once, less the mean of 1,000 permutations of labels among types of like frequency. 0 is chance.",
        COVER,
    ),
    Column(
        "type_ci_low", pl.Float64, "bits", "Lower end of type_level_bits at 95 %, by jackknife over 64 folds of types."
    ),
    Column("type_ci_high", pl.Float64, "bits", "Upper end of type_level_bits at 95 %."),
    Column("type_p", pl.Float64, "0 to 1", "Share of the permutations that reach the information seen."),
    Column(
        "held_out_bits",
        pl.Float64,
        "bits",
        "Bits that the expert of a type tells about its label, learnt on types of other folds. 0 is nothing.",
    ),
    Column("held_out_ci_low", pl.Float64, "bits", "Lower end of held_out_bits at 95 %, a fold being one draw."),
    Column("held_out_ci_high", pl.Float64, "bits", "Upper end of held_out_bits at 95 %."),
    Column(
        "mutual_information_bits",
        pl.Float64,
        "bits",
        "Information between expert and label over occurrences, uncorrected. An untrained router has plenty of it.",
        COVER,
    ),
    Column(
        "null_mean_bits",
        pl.Float64,
        "bits",
        "Mean of mutual_information_bits over all tables with the same margins: the baseline that size alone gives.",
        _VINH,
    ),
    Column(
        "above_null_bits", pl.Float64, "bits", "mutual_information_bits less null_mean_bits: no evidence of syntax yet."
    ),
    Column(
        "above_null_ci_low",
        pl.Float64,
        "bits",
        "Lower end of above_null_bits at 95 %, by jackknife over clusters of documents.",
    ),
    Column("above_null_ci_high", pl.Float64, "bits", "Upper end of above_null_bits at 95 %."),
    Column(
        "without_punct_bits",
        pl.Float64,
        "bits",
        "type_level_bits without the types that are punctuation or signs, which are easy to tell. Null where the label "
        "set knows none.",
    ),
    Column("without_punct_ci_low", pl.Float64, "bits", "Lower end of without_punct_bits at 95 %."),
    Column("without_punct_ci_high", pl.Float64, "bits", "Upper end of without_punct_bits at 95 %."),
    Column(
        "given_token_bits",
        pl.Float64,
        "bits",
        "Information between expert and label where the token is known, less the mean of permutations of labels within "
        "token type and document. 0: the expert knows words only. Null where no type has two labels in one document.",
        "Cover & Thomas 2006, Elements of Information Theory, 2.5",
    ),
    Column(
        "given_token_ci_low",
        pl.Float64,
        "bits",
        "Lower end of given_token_bits at 95 %, a cluster of documents being one draw; wide where there is nothing.",
    ),
    Column("given_token_ci_high", pl.Float64, "bits", "Upper end of given_token_bits at 95 %."),
    Column(
        "given_token_p",
        pl.Float64,
        "0 to 1",
        "Student's t over clusters of documents: the least p of all experts and labels, times their number. Ask for "
        ".005 bits too before you believe it.",
    ),
    Column(
        "given_token_n",
        pl.Int64,
        "tokens",
        "Tokens measured by given_token_bits: of whole documents, at most two million of the run's tokens.",
    ),
    Column(
        "normalised",
        pl.Float64,
        "ratio",
        "type_level_bits over the entropy of the types' labels: 0 is chance, 1 is everything there is to know.",
        "Theil 1972, Statistical Decomposition Analysis (there called uncertainty coefficient)",
    ),
    Column(
        "cramers_v",
        pl.Float64,
        "0 to 1",
        "Size of the effect over occurrences, corrected for what independent tokens would give.",
        "Bergsma 2013, A bias-correction for Cramér's V and Tschuprow's T",
    ),
    Column(
        "cluster_unit",
        pl.String,
        "document, block",
        "What one draw is for intervals over occurrences: documents or, where fewer than five have a token, blocks "
        "of 256 tokens; what is said then holds for this text only.",
    ),
    Column("types", pl.Int64, "count", "Token types measured by type_level_bits."),
    Column("n", pl.Int64, "count", "Assignments measured by mutual_information_bits."),
)


def specialisation(run: Run, label: str = "upos", *, seed: int = 0, within: bool = True) -> pl.DataFrame:
    """Return how many bits each router's first choice tells about a label, over word-initial tokens.

    `type_level_bits`, in which each token type counts once, is the headline; call it syntax only where the lower end
    of `held_out_bits` is above 0 too. Bits by occurrence stand beside them: an untrained router has plenty.
    `given_token_bits` is what is left once the token is known.

    Args:
        run: an open run.
        label: one of the run's label sets.
        seed: of the permutations that chance is measured by.
        within: beside all documents, tell of those of each domain by themselves, if there are several and the label is
            not itself one of documents.

    Returns:
        A row a router and domain, those over all documents first; null where there are too few types or labels to
        measure. Domains without a labelled word have no rows. A run that holds counts only has rows over all documents,
        with what is said over occurrences; the rest is null.

    Raises:
        BadInputError: the run has no such label.
    """
    find_label(run, label)
    if run.counts_only:
        return stack_rows(SPECIALISATION_COLUMNS, list(_rows_over_occurrences(run, label)))
    domains = [None, *(find_domains(run, label) if within else ())]
    given = _given_tokens(run, label, domains, seed)
    frames = [frame for domain in domains for frame in _domain_rows(run, label, domain, given, seed)]
    return stack_rows(SPECIALISATION_COLUMNS, frames)


def _domain_rows(
    run: Run,
    label: str,
    domain: str | None,
    given: dict[tuple[str | None, int], GivenToken | None],
    seed: int,
) -> Iterator[pl.DataFrame]:
    """A row for each router."""
    counts = load_counts(run, label, int(FIRST_CHOICE), WORDS, domain=domain)
    types = load_type_counts(run, label, WORDS, domain=domain)
    if counts.n == 0 or (domain is not None and not types.token_ids.size):
        return
    rows, majorities = _rows_by_counts(run, types)
    labels, without = _labels_of_types(types)
    by_type = type_level_bits_of_routers(majorities, labels, seed=seed)
    by_type_without = (
        [None] * len(run.routers) if without is None else type_level_bits_of_routers(majorities, without, seed=seed)
    )
    entropy = labels.label_entropy_bits
    for router, row, bits, bits_without in zip(run.routers, rows, by_type, by_type_without, strict=True):
        table = counts.clustered[router.index][:, :, tagged(counts)]
        row |= _occurrence_columns(table)
        if bits is not None:
            row |= _columns(bits, "type_level_bits", "type") | {"type_p": bits.p, "types": bits.n}
            row |= {"normalised": bits.bits / entropy if entropy > 0 else None}
        if bits_without is not None:
            row |= _columns(bits_without, "without_punct_bits", "without_punct")
        told = given[domain, router.index]
        if told is not None:
            row |= _columns(told, "given_token_bits", "given_token")
            row |= {"given_token_p": told.p, "given_token_n": told.n}
        row |= {"label_set": label, "domain": domain or ALL_DOMAINS, "cluster_unit": counts.cluster_unit}
        yield router_rows(router, FIRST_CHOICE, WORDS, {}, row)


def _rows_over_occurrences(run: Run, label: str) -> Iterator[pl.DataFrame]:
    """A row for each router, of what needs no word types."""
    counts = load_counts(run, label, int(FIRST_CHOICE), WORDS)
    for router in run.routers if counts.n else ():
        row = _occurrence_columns(counts.clustered[router.index][:, :, tagged(counts)])
        row |= {"label_set": label, "domain": ALL_DOMAINS, "cluster_unit": counts.cluster_unit}
        yield router_rows(router, FIRST_CHOICE, WORDS, {}, row)


def _rows_by_counts(run: Run, types: TypeCounts) -> tuple[list[dict[str, object]], list[tuple[NDArray[np.int64], int]]]:
    """What needs every type's counts: a row a router, begun; and each router's commonest expert of every type."""
    folds = type_folds(types.tokens)
    rows: list[dict[str, object]] = []
    majorities = []
    for router, expert_counts in iter_expert_counts(run, types, int(FIRST_CHOICE)):
        majorities.append((commonest(expert_counts), router.n_experts))
        held_out = held_out_bits(expert_counts, types.label_counts, folds)
        rows.append({})
        if held_out is not None:
            rows[-1] = {"held_out_bits": held_out.value}
            rows[-1] |= {"held_out_ci_low": held_out.low, "held_out_ci_high": held_out.high}
    return rows, majorities


def _labels_of_types(types: TypeCounts) -> tuple[TypeLabels, TypeLabels | None]:
    """The types' labels, and the same without punctuation: None where the label set knows none."""
    folds = type_folds(types.tokens)
    signs = PUNCTUATION.get(types.label_set.name)
    without = None
    if signs is not None:
        left_out = [index for index, name in enumerate(types.labels) if name in signs]
        without = type_labels(types.label_counts, folds, without=left_out)
    return type_labels(types.label_counts, folds), without


def _occurrence_columns(table: NDArray[np.int64]) -> dict[str, object]:
    """What is said over occurrences, from (clusters, experts, labels)."""
    row: dict[str, object] = {"n": int(table.sum()), "cramers_v": cramers_v(table.sum(axis=0))}
    found = mutual_information_bits(table, n_draws=0)
    if found is not None:
        row |= _columns(found, "above_null_bits", "above_null")
        row |= {"mutual_information_bits": found.raw_bits, "null_mean_bits": found.null_bits}
    return row


def _columns(found: Information | GivenToken, name: str, prefix: str) -> dict[str, object]:
    return {name: found.bits, f"{prefix}_ci_low": found.low, f"{prefix}_ci_high": found.high}


def _given_tokens(
    run: Run, label: str, domains: Sequence[str | None], seed: int
) -> dict[tuple[str | None, int], GivenToken | None]:
    """What each router tells once the token is known, by domain and router."""
    label_set = find_label(run, label)
    rows = load_rows(run, [label, "position"])
    value = pl.col(label).cast(pl.String)
    starts = ~value.is_in(schema.NOT_WORDS) if label_set.word_level else pl.col("word_initial")
    beyond = pl.col("window_position") >= schema.SINK_POSITIONS
    frame = rows.frame.with_row_index("place").filter(starts & beyond & (value != schema.UNTAGGED))
    prepared: dict[str | None, tuple[NDArray[np.int64], TokenLabels | None]] = {}
    for domain in domains:
        part = frame if domain is None else frame.filter(pl.col("domain_of_document") == domain)
        unit = load_counts(run, label, int(FIRST_CHOICE), WORDS, domain=domain).cluster_unit
        prepared[domain] = (part["place"].to_numpy().astype(np.int64), _token_labels(run, part, label, unit, seed))
    given: dict[tuple[str | None, int], GivenToken | None] = {}
    for router in run.routers:
        first = rows.experts(router)[:, 0] if any(tokens for _, tokens in prepared.values()) else None
        for domain, (places, tokens) in prepared.items():
            told = None if first is None else given_token(tokens, first[places], router.n_experts)
            given[domain, router.index] = told
    return given


def _token_labels(run: Run, part: pl.DataFrame, label: str, unit: str, seed: int) -> TokenLabels | None:
    if part.is_empty():
        return None
    documents = part["document"].to_numpy()
    clusters = Clusters(run, unit).of(documents, part["position"].to_numpy())
    labels = part[label].cast(pl.String).rank("dense").to_numpy().astype(np.int64) - 1
    return token_labels(labels, part["token_id"].to_numpy().astype(np.int64), documents, clusters, seed=seed)
