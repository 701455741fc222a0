"""Which labels each expert is chosen for, and how much its choice tells about them, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import LabelCounts, iter_expert_counts, load_counts, load_type_counts
from moe_probe.measures.lift import label_lift
from moe_probe.measures.specialisation import held_out_bits, mutual_information_bits, type_folds, type_level_bits
from moe_probe.tables.rows import ANY_SLOT, FIRST_CHOICE, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe.store import Run


def label_table(run: Run, label: str) -> pl.DataFrame:
    """Return how often each expert was chosen on tokens of each label, over any slot and for the first choice.

    Labels that cut the text into words are counted on word-initial tokens, others on all. Tokens without a value,
    `untagged`, are left out: an expert for text that nobody tagged would otherwise seem to shun every part of speech.

    Args:
        run: an open run.
        label: one of the run's label sets, such as "upos" or "domain".

    Returns:
        The columns of syntax.csv, a row for every expert and label, those that never met included.

    Raises:
        BadInputError: the run has no such label.
    """
    frames = []
    for slot in (ANY_SLOT, FIRST_CHOICE):
        counts = load_counts(run, label, ANY_SLOT if slot == ANY_SLOT else int(slot))
        tagged = _tagged(counts)
        labels = np.array(counts.labels, dtype=np.object_)[tagged]
        for router, table in zip(run.routers, counts, strict=True):
            if labels.size == 0:
                continue
            table = table[:, tagged]
            lift = label_lift(table)
            columns = {
                "expert": np.repeat(np.arange(router.n_experts), labels.size),
                "label": np.tile(labels, router.n_experts),
                "assignments": table.ravel(),
                **{name: values.ravel() for name, values in vars(lift).items()},
            }
            frames.append(router_rows(router, slot, counts.tokens, columns, {"n": int(table.sum())}))
    return stack_rows("label", frames).sort(
        "router", pl.col("slot") != ANY_SLOT, "expert", "label", maintain_order=True
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
    tagged = _tagged(counts)
    types = load_type_counts(run, label)
    folds = type_folds(types.tokens)
    frames = []
    for router, expert_counts in iter_expert_counts(run, types):
        table = counts.clustered[router.index][:, :, tagged]
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
    return stack_rows("specialisation", frames if counts.n else [])


def _tagged(counts: LabelCounts) -> NDArray[np.bool_]:
    return np.array([label != schema.UNTAGGED for label in counts.labels], dtype=np.bool_)
