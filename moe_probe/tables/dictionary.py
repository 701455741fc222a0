"""The dictionary of all tables: every column's type, unit, meaning and source.

It knows no data. Tables take their columns, order and types from here, so that no column lacks a meaning.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl


class Column(NamedTuple):
    """One column of one table; `source` is the paper and section that the measure is from, if any."""

    name: str
    dtype: type[pl.DataType]
    unit: str
    definition: str
    source: str = ""


_MIXTRAL = "Jiang et al. 2024, Mixtral of Experts (arXiv 2401.04088)"
_COVER = "Cover & Thomas 2006, Elements of Information Theory, 2.3"
_RULES = "Brin et al. 1997, Dynamic Itemset Counting, 4 (there called interest)"

_LAYER = Column("layer", pl.Int64, "index", "Transformer block, counted from 0.")
_ROUTER = Column("router", pl.Int64, "index", "Place of the router in the run; a layer may have two.")
_EXPERT = Column("expert", pl.Int64, "index", "The model's own index of the expert, counted from 0.")
_SLOT = Column(
    "slot",
    pl.String,
    "any, 0, 1 …",
    "Rank of the choice by its combine weight, 0 the heaviest; any: all slots together.",
)
_TOKENS = Column(
    "tokens",
    pl.String,
    "all, word_initial",
    "Which tokens were counted. The first four positions of each window are left out, since they route oddly.",
)
_ASSIGNMENTS = Column(
    "assignments", pl.Int64, "count", "Executed (token, router, slot) triples; a dropped slot is none."
)

_LOAD = (
    _LAYER,
    _ROUTER,
    _EXPERT,
    _SLOT,
    _TOKENS,
    _ASSIGNMENTS,
    Column(
        "share",
        pl.Float64,
        "0 to 1",
        "The expert's assignments over those of all experts of the router, same slot.",
        f"{_MIXTRAL}, 5 and Fig. 7",
    ),
    Column(
        "uniform", pl.Float64, "0 to 1", "The share under even load, 1/E: the baseline of share.", f"{_MIXTRAL}, Fig. 7"
    ),
    Column("n", pl.Int64, "count", "Assignments of all experts of the router, same slot: what share is a share of."),
)
_BALANCE = (
    _LAYER,
    _ROUTER,
    _SLOT,
    _TOKENS,
    Column(
        "max_violation",
        pl.Float64,
        "ratio - 1",
        "Heaviest load over the mean load, less 1; experts without load are in the mean. 0 is even.",
        "Wang et al. 2024, Auxiliary-Loss-Free Load Balancing (arXiv 2408.15664), MaxVio",
    ),
    Column(
        "coefficient_of_variation",
        pl.Float64,
        "ratio",
        "Standard deviation of the experts' loads over their mean. 0 is even.",
        "Shazeer et al. 2017, Outrageously Large Neural Networks (arXiv 1701.06538), 4",
    ),
    Column(
        "gini",
        pl.Float64,
        "0 to (E-1)/E",
        "Sum of all absolute differences of shares over 2E. 0 is even.",
        "Gini 1912, Variabilità e mutabilità",
    ),
    Column(
        "load_entropy_bits",
        pl.Float64,
        "bits",
        "Entropy of the experts' shares of the load; log2 E is even. Not the entropy of a token.",
        "Cover & Thomas 2006, Elements of Information Theory, 2.1",
    ),
    Column("normalised_load_entropy", pl.Float64, "0 to 1", "load_entropy_bits over log2 E; null for one expert."),
    Column(
        "effective_experts",
        pl.Float64,
        "experts",
        "2 to the load_entropy_bits: so many evenly loaded experts would have that entropy.",
        "Hill 1973, Diversity and Evenness (order 1)",
    ),
    Column(
        "mean_token_entropy_bits",
        pl.Float64,
        "bits",
        "Mean over tokens of the entropy of the router's distribution over experts: softmax of the logits, or sigmoid "
        "scores over their sum. Null where the model gives none.",
    ),
    Column(
        "mean_margin",
        pl.Float64,
        "selection score",
        "Mean over tokens of the last chosen less the first unchosen selection score. Null where the model gives none.",
    ),
    Column("dropped", pl.Int64, "count", "Slots that held no expert (capacity overflow, a skip)."),
    Column("unseen", pl.Int64, "experts", "Experts without an assignment in this run; that does not make them dead."),
    Column("n", pl.Int64, "tokens", "Tokens measured."),
)
_LABEL = (
    _LAYER,
    _ROUTER,
    _SLOT,
    _TOKENS,
    _EXPERT,
    Column("label", pl.String, "name", "The label's value. Tokens without one (untagged) are left out of the table."),
    _ASSIGNMENTS,
    Column(
        "p_label_given_expert",
        pl.Float64,
        "0 to 1",
        "Share of the label among the expert's assignments; null if it has none.",
    ),
    Column(
        "p_expert_given_label",
        pl.Float64,
        "0 to 1",
        "Share of the expert among the label's assignments; null if it has none.",
    ),
    Column(
        "lift",
        pl.Float64,
        "ratio",
        "p_label_given_expert over the label's share of all assignments. Baseline: 1, independence.",
        _RULES,
    ),
    Column(
        "expected",
        pl.Float64,
        "count",
        "Assignments if expert and label were independent: the baseline of assignments.",
    ),
    Column("n", pl.Int64, "count", "Assignments of all experts and labels of the router, same slot and tokens."),
)
_SPECIALISATION = (
    _LAYER,
    _ROUTER,
    Column("label_set", pl.String, "name", "Which labels."),
    _SLOT,
    _TOKENS,
    Column(
        "type_level_bits",
        pl.Float64,
        "bits",
        "Information between a token type's commonest expert and commonest label, each type with 3 occurrences or more "
        "counting once, less the mean of 1,000 permutations of labels among types of like frequency. 0 is chance.",
        _COVER,
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
        _COVER,
    ),
    Column(
        "null_mean_bits",
        pl.Float64,
        "bits",
        "Mean of mutual_information_bits over 200 tables with the same margins: the baseline that size alone gives.",
    ),
    Column("types", pl.Int64, "count", "Token types measured by type_level_bits."),
    Column("n", pl.Int64, "count", "Assignments measured by mutual_information_bits."),
)

_TABLES = {"load": _LOAD, "balance": _BALANCE, "label": _LABEL, "specialisation": _SPECIALISATION}


def table_schema(name: str) -> dict[str, type[pl.DataType]]:
    """Return the columns of a table ("load", "balance", "label" or "specialisation") with their types, in order."""
    return {column.name: column.dtype for column in _TABLES[name]}


def columns_table(files: dict[str, str] | None = None) -> pl.DataFrame:
    """Return the meaning of every column: name, table, unit, definition, source.

    Args:
        files: which kind of table each file holds, for example `{"syntax": "label"}`; by default the four kinds
            themselves.

    Example:
        >>> columns_table({"syntax": "label"}).filter(pl.col("name") == "lift")["source"].item()[:4]
        'Brin'
    """
    files = files or {kind: kind for kind in _TABLES}
    return pl.DataFrame(
        [
            {
                "name": column.name,
                "table": file,
                "unit": column.unit,
                "definition": column.definition,
                "source": column.source,
            }
            for file, kind in files.items()
            for column in _TABLES[kind]
        ]
    )
