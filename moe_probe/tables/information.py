"""How much each router's choice tells about the tokens' labels, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from moe_probe.counts import iter_expert_counts, load_counts, load_type_counts
from moe_probe.measures.specialisation import held_out_bits, mutual_information_bits, type_folds, type_level_bits
from moe_probe.tables.columns import COVER, LAYER, ROUTER, SLOT, TOKENS, Column
from moe_probe.tables.rows import FIRST_CHOICE, router_rows, stack_rows, tagged

if TYPE_CHECKING:
    from moe_probe.store import Run

SPECIALISATION_COLUMNS = (
    LAYER,
    ROUTER,
    Column("label_set", pl.String, "name", "Which labels."),
    SLOT,
    TOKENS,
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
        "Mean of mutual_information_bits over 200 tables with the same margins: the baseline that size alone gives.",
    ),
    Column("types", pl.Int64, "count", "Token types measured by type_level_bits."),
    Column("n", pl.Int64, "count", "Assignments measured by mutual_information_bits."),
)


def specialisation(run: Run, label: str = "upos", *, seed: int = 0) -> pl.DataFrame:
    """Return how many bits each router's first choice tells about a label, over word-initial tokens.

    `type_level_bits`, in which each token type counts once, is the headline; call it syntax only where the lower end
    of `held_out_bits` is above 0 too. Bits by occurrence stand beside them: an untrained router has plenty.

    Args:
        run: an open run.
        label: one of the run's label sets.
        seed: of the permutations that chance is measured by.

    Returns:
        A row a router, null where there are too few types or labels to measure.

    Raises:
        BadInputError: the run has no such label.
    """
    counts = load_counts(run, label, 0, "word_initial")
    known = tagged(counts)
    types = load_type_counts(run, label)
    folds = type_folds(types.tokens)
    frames = []
    for router, expert_counts in iter_expert_counts(run, types):
        table = counts.clustered[router.index][:, :, known]
        by_type = type_level_bits(expert_counts, types.label_counts, folds, seed=seed)
        held_out = held_out_bits(expert_counts, types.label_counts, folds)
        by_occurrence = mutual_information_bits(table, seed=seed)
        row: dict[str, object] = {"label_set": label, "n": int(table.sum())}
        if by_type is not None:
            row |= {"type_level_bits": by_type.bits, "type_ci_low": by_type.low, "type_ci_high": by_type.high}
            row |= {"type_p": by_type.p, "types": by_type.n}
        if held_out is not None:
            row |= {"held_out_bits": held_out.value, "held_out_ci_low": held_out.low, "held_out_ci_high": held_out.high}
        if by_occurrence is not None:
            row |= {"mutual_information_bits": by_occurrence.raw_bits, "null_mean_bits": by_occurrence.null_bits}
        frames.append(router_rows(router, FIRST_CHOICE, "word_initial", {}, row))
    return stack_rows(SPECIALISATION_COLUMNS, frames if counts.n else [])
