"""Which token goes to which expert, and how faithfully, as tables: token by token, and in sum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import iter_expert_counts, load_type_counts
from moe_probe.counts.by_type import TypeCounts
from moe_probe.measures.intervals import clustered_ratio
from moe_probe.measures.specialisation import N_FOLDS, commonest, type_folds
from moe_probe.measures.vocabulary import (
    VOCABULARY_FLOOR,
    ContextIndependence,
    chance_top_shares,
    context_independence,
    context_independence_of_experts,
    top_shares,
)
from moe_probe.tables.columns import LAYER, ROUTER, SLOT, TOKENS, Column, schema_of
from moe_probe.tables.rows import FIRST_CHOICE, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run

ALL_TOKENS = "all"

_OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060), 5.4, Vocabulary Specialization"
_FLOOR = f"Token types with fewer than {VOCABULARY_FLOOR} occurrences (by default) are left out."
_VINH = "Vinh, Epps & Bailey 2010, Information Theoretic Measures for Clusterings Comparison, 3"

VOCABULARY_COLUMNS = (
    LAYER,
    ROUTER,
    SLOT,
    TOKENS,
    Column("token_id", pl.Int64, "index", f"The vocabulary entry. {_FLOOR}"),
    Column("token", pl.String, "text", "The tokenizer's piece."),
    Column("occurrences", pl.Int64, "count", "First choices of the token; the first of each window are left out."),
    Column("top_expert", pl.Int64, "index", "The token's commonest expert, of equal ones the lower."),
    Column("share", pl.Float64, "0 to 1", "Share of the token's first choices that its commonest expert has.", _OLMOE),
    Column(
        "null_share",
        pl.Float64,
        "0 to 1",
        "The same on average for so many occurrences if each drew its expert from the load: the baseline of share.",
    ),
    Column("n", pl.Int64, "count", "First choices of the router, of all tokens."),
)

VOCABULARY_SUMMARY_COLUMNS = (
    LAYER,
    ROUTER,
    Column(
        "expert", pl.Int64, "index", "Null: all token types of the router. Else those whose commonest expert it is."
    ),
    SLOT,
    TOKENS,
    Column("types", pl.Int64, "count", f"Token types measured. {_FLOOR}"),
    Column("mean_share", pl.Float64, "0 to 1", "Mean of share over types, each counting once.", _OLMOE),
    Column("null_mean_share", pl.Float64, "0 to 1", "Mean of null_share over the same types: the baseline."),
    Column("excess", pl.Float64, "0 to 1", "mean_share less null_mean_share. 0 is chance."),
    Column(
        "excess_ci_low",
        pl.Float64,
        "0 to 1",
        "Lower end of excess at 95 %, one of 64 folds of types being one draw. Null where one fold holds all types.",
    ),
    Column("excess_ci_high", pl.Float64, "0 to 1", "Upper end of excess at 95 %."),
    Column(
        "published_share",
        pl.Float64,
        "0 to 1",
        "mean_share over all types, however rare, as OLMoE's script computes it: a token that occurs once has share 1.",
        f"{_OLMOE}; scripts/run_moe_analysis.py of its repository",
    ),
    Column(
        "published_null_share",
        pl.Float64,
        "0 to 1",
        "What published_share is where experts are drawn from the load: read it before you read published_share.",
    ),
    Column(
        "context_independence",
        pl.Float64,
        "ratio",
        "1 - H(expert | token) / H(expert | shuffled token), over all types; for one expert, whether it is chosen. 0: "
        "the token says nothing; 1: it says all.",
        _VINH,
    ),
    Column(
        "context_independence_ci_low",
        pl.Float64,
        "ratio",
        "Lower end of context_independence at 95 %, one of 64 folds of types being one draw.",
    ),
    Column("context_independence_ci_high", pl.Float64, "ratio", "Upper end of context_independence at 95 %."),
    Column(
        "uncorrected_independence",
        pl.Float64,
        "ratio",
        "1 - H(expert | token) / H(expert): above 0 by chance alone.",
    ),
    Column(
        "shuffled_independence",
        pl.Float64,
        "ratio",
        "Mean of uncorrected_independence where tokens are shuffled: its baseline.",
    ),
    Column("n", pl.Int64, "count", "First choices of the tokens whose types are measured."),
)


@dataclass(frozen=True, eq=False)
class _Words:
    """One router's counts by type, (types, experts), and what is known of each type, (types,)."""

    router: schema.Router
    counts: NDArray[np.int64]
    occurrences: NDArray[np.int64]
    measured: NDArray[np.bool_]
    folds: NDArray[np.int64]
    shares: NDArray[np.float64]
    chances: NDArray[np.float64]


def vocabulary(run: Run, *, floor: int = VOCABULARY_FLOOR, seed: int = 0) -> pl.DataFrame:
    """Return how faithful each token is to its commonest expert, over all tokens' first choices.

    Args:
        run: an open run.
        floor: tokens that occur less often are left out: their shares are high by chance.
        seed: of the draws that chance is measured by.

    Returns:
        The columns of vocabulary.csv, the commonest token of each router first.
    """
    run.need_tokens("the table vocabulary")
    types = _types(run)
    frames = []
    for words in _iter_words(run, types, floor, seed):
        kept = np.flatnonzero(words.measured)
        kept = kept[np.lexsort((types.token_ids[kept], -words.occurrences[kept]))]
        columns = {
            "token_id": types.token_ids[kept],
            "token": np.array(types.tokens, dtype=np.object_)[kept],
            "occurrences": words.occurrences[kept],
            "top_expert": commonest(words.counts[kept]),
            "share": words.shares[kept],
            "null_share": words.chances[kept],
        }
        if kept.size:
            frames.append(router_rows(words.router, FIRST_CHOICE, ALL_TOKENS, columns, {"n": int(words.counts.sum())}))
    return stack_rows(VOCABULARY_COLUMNS, frames)


def vocabulary_summary(run: Run, *, floor: int = VOCABULARY_FLOOR, seed: int = 0) -> pl.DataFrame:
    """Return how faithful tokens are to their experts, for each router as a whole and for each of its experts.

    Args:
        run: an open run.
        floor: tokens that occur less often are left out, but for the published measure and context independence.
        seed: of the draws that chance is measured by.

    Returns:
        A row a router, with `expert` null, and one for each of its experts; null where there are too few tokens.
    """
    run.need_tokens("the table vocabulary_summary")
    types = _types(run)
    rows: list[dict[str, object]] = []
    for words in _iter_words(run, types, floor, seed):
        tops = commonest(words.counts)
        whole = _summary(words, words.measured) | _independence(context_independence(words.counts, words.folds))
        seen = words.occurrences > 0
        if seen.any():
            whole |= {"published_share": float(words.shares[seen].mean())}
            whole |= {"published_null_share": float(words.chances[seen].mean())}
        same = {"layer": words.router.layer, "router": words.router.index, "slot": FIRST_CHOICE, "tokens": ALL_TOKENS}
        rows.append({**same, "expert": None, **whole})
        for expert, found in enumerate(context_independence_of_experts(words.counts, words.folds)):
            row = _summary(words, words.measured & (tops == expert)) | _independence(found)
            rows.append({**same, "expert": expert, **row})
    columns = schema_of(VOCABULARY_SUMMARY_COLUMNS)
    return stack_rows(VOCABULARY_SUMMARY_COLUMNS, [pl.DataFrame(rows, schema=columns)])


def _types(run: Run) -> TypeCounts:
    return load_type_counts(run, "phase", ALL_TOKENS)


def _iter_words(run: Run, types: TypeCounts, floor: int, seed: int) -> Iterator[_Words]:
    if not types.token_ids.size:
        return
    folds = type_folds(types.tokens)
    for router, counts in iter_expert_counts(run, types, int(FIRST_CHOICE)):
        occurrences = counts.sum(axis=1)
        chances = chance_top_shares(occurrences, counts.sum(axis=0), seed=seed)
        measured = occurrences >= max(floor, 1)
        yield _Words(router, counts, occurrences, measured, folds, top_shares(counts), chances)


def _summary(words: _Words, kept: NDArray[np.bool_]) -> dict[str, object]:
    row: dict[str, object] = {"types": int(kept.sum()), "n": int(words.occurrences[kept].sum())}
    if not kept.any():
        return row
    shares, chances = words.shares[kept], words.chances[kept]
    excess = clustered_ratio(
        np.bincount(words.folds[kept], shares - chances, N_FOLDS), np.bincount(words.folds[kept], minlength=N_FOLDS)
    )
    row |= {"mean_share": float(shares.mean()), "null_mean_share": float(chances.mean())}
    if excess is not None:
        row |= {"excess": excess.value, "excess_ci_low": excess.low, "excess_ci_high": excess.high}
    return row


def _independence(found: ContextIndependence) -> dict[str, object]:
    return {
        "context_independence": found.value,
        "context_independence_ci_low": found.low,
        "context_independence_ci_high": found.high,
        "uncorrected_independence": found.raw,
        "shuffled_independence": found.null,
    }
