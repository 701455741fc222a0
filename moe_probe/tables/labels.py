"""Which labels each expert is chosen for, over all text and within each domain, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe.counts import iter_expert_counts, load_counts, load_type_counts
from moe_probe.counts.clusters import DOCUMENT
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.lift import label_lift
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.type_test import MINIMUM_TYPES, TYPE_FLOOR, type_test
from moe_probe.measures.verdicts import MINIMUM_LIFT, enough_for_cells, label_verdicts
from moe_probe.tables.columns import ASSIGNMENTS, EXPERT, LAYER, ROUTER, RULES, SLOT, TOKENS, Column
from moe_probe.tables.domains import ALL_DOMAINS, DOMAIN, find_domains
from moe_probe.tables.rows import ANY_SLOT, FIRST_CHOICE, router_rows, stack_rows, tagged

if TYPE_CHECKING:
    from moe_probe.store import Run

_COCHRAN = "Cochran 1977, Sampling Techniques, 6.3 and 9A.2 (linearised variance)"
_BH = "Benjamini & Hochberg 1995, Controlling the False Discovery Rate, 3.1"

LABEL_COLUMNS = (
    LAYER,
    ROUTER,
    SLOT,
    TOKENS,
    DOMAIN,
    EXPERT,
    Column("label", pl.String, "name", "The label's value. Tokens without one (untagged) are left out of the table."),
    ASSIGNMENTS,
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
        RULES,
    ),
    Column(
        "ci_low",
        pl.Float64,
        "ratio",
        "Lower end of the 95 % interval of lift, a document (or a group of them) being one draw; below five documents, "
        "256 tokens of one. Null where the two never met or fewer than two draws hold a token.",
        _COCHRAN,
    ),
    Column("ci_high", pl.Float64, "ratio", "Upper end of the 95 % interval of lift; see ci_low.", _COCHRAN),
    Column(
        "expected",
        pl.Float64,
        "count",
        "Assignments if expert and label were independent: the baseline of assignments.",
    ),
    Column(
        "geff",
        pl.Float64,
        "draws",
        "How many equally large draws would be worth those that hold the label, or the expert: the lesser of the two.",
        "Kish 1965, Survey Sampling, 11.7",
    ),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        "Of the test over documents that lift is 1, corrected for all cells of this table in which at least 5 are "
        "expected and geff is at least 5; null in the others.",
        _BH,
    ),
    Column(
        "type_q_value",
        pl.Float64,
        "0 to 1",
        f"Of the test over word types (first choice, word-initial tokens, types seen {TYPE_FLOOR} times or more) that "
        "the label's types go to the expert as others of like frequency do, corrected for all cells of this table; "
        f"null for labels with fewer than {MINIMUM_TYPES} types.",
        "Strasser & Weber 1999, On the asymptotic theory of permutation statistics",
    ),
    Column(
        "verdict",
        pl.String,
        "specialised, not shown, not enough data, this text only",
        "specialised: q_value and type_q_value below .05, types leaning the same way, lift at least "
        f"{MINIMUM_LIFT}, at least 5 expected, geff at least 5. this text only: the same, but of fewer than five "
        "documents. not shown: tested, and not that. not enough data: not tested.",
    ),
    Column(
        "n", pl.Int64, "count", "Assignments of all experts and labels of the router, same slot, tokens and domain."
    ),
)


def label_table(run: Run, label: str, *, domain: str | None = None, within: bool = True) -> pl.DataFrame:
    """Return how often each expert was chosen on tokens of each label, over any slot and for the first choice.

    Labels that cut the text into words are counted on word-initial tokens, others on all. Tokens without a value,
    `untagged`, are left out: an expert for text that nobody tagged would otherwise seem to shun every part of speech.
    q-values are over the whole table that is returned.

    Args:
        run: an open run.
        label: one of the run's label sets, such as "upos" or "domain".
        domain: count the documents of one domain only.
        within: beside all documents, count those of each domain by themselves, if there are several and the label is
            not itself one of documents.

    Returns:
        The columns of syntax.csv, a row for every expert and label, those that never met included; rows over all
        documents come first. Of a run that holds counts only these are all, and none is called specialised, for it has
        no word types to test.

    Raises:
        BadInputError: the run has no such label or domain.
    """
    within = within and not run.counts_only
    domains = [domain] if domain is not None else [None, *(find_domains(run, label) if within else ())]
    frames = [frame for name in domains for frame in _domain_rows(run, label, name)]
    if not frames:
        return stack_rows(LABEL_COLUMNS, [])
    rows = pl.concat(frames)
    q_value, type_q_value = (q_values(rows[name].to_numpy()) for name in ("p", "type_p"))
    lift, expected, geff, type_z = (rows[name].to_numpy() for name in ("lift", "expected", "geff", "type_z"))
    verdicts = label_verdicts(
        lift, expected, geff, q_value, type_q_value, type_z, of_documents=rows["of_documents"].to_numpy()
    )
    rows = rows.with_columns(
        q_value=pl.Series(q_value), type_q_value=pl.Series(type_q_value), verdict=pl.Series(verdicts, dtype=pl.String)
    )
    return stack_rows(LABEL_COLUMNS, [rows])


def _domain_rows(run: Run, label: str, domain: str | None) -> Iterator[pl.DataFrame]:
    """The rows of one domain, without what needs the whole table: a frame for each router and slot."""
    by_slot = {
        slot: load_counts(run, label, ANY_SLOT if slot == ANY_SLOT else int(slot), domain=domain)
        for slot in (ANY_SLOT, FIRST_CHOICE)
    }
    labels = [name for name, kept in zip(by_slot[ANY_SLOT].labels, tagged(by_slot[ANY_SLOT]), strict=True) if kept]
    if not labels:
        return
    for index, (type_z, type_p) in enumerate(_type_tests(run, label, domain, labels)):
        for slot, counts in by_slot.items():
            columns = _cell_columns(counts.clustered[index][:, :, tagged(counts)], labels)
            columns |= {"type_z": type_z.ravel(), "type_p": type_p.ravel()}
            same = {
                "domain": ALL_DOMAINS if domain is None else domain,
                "n": int(columns["assignments"].sum()),
                "of_documents": counts.cluster_unit == DOCUMENT,
            }
            yield router_rows(run.routers[index], slot, counts.tokens, columns, same)


def _cell_columns(clustered: NDArray[np.int64], labels: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """The columns of one router's cells, (experts x labels,) each.

    Args:
        clustered: (clusters, experts, labels).
        labels: the name of each.
    """
    table = clustered.sum(axis=0)
    cells = cell_estimates(clustered)
    proportions = label_lift(table)
    tested = enough_for_cells(cells.expected, cells.geff)
    by_cell = {
        "assignments": table,
        "p_label_given_expert": proportions.p_label_given_expert,
        "p_expert_given_label": proportions.p_expert_given_label,
        "lift": cells.lift,
        "ci_low": cells.low,
        "ci_high": cells.high,
        "expected": cells.expected,
        "geff": cells.geff,
        "p": np.where(tested, cells.p, np.nan),
    }
    return {
        "expert": np.repeat(np.arange(table.shape[0]), table.shape[1]),
        "label": np.tile(np.array(labels, dtype=np.object_), table.shape[0]),
        **{name: values.ravel() for name, values in by_cell.items()},
    }


def _type_tests(
    run: Run, label: str, domain: str | None, labels: Sequence[str]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield each router's z and p of the test over types, (experts, labels) in the order of `labels`."""
    if run.counts_only:
        for router in run.routers:
            nothing = np.full((router.n_experts, len(labels)), np.nan)
            yield nothing, nothing
        return
    types = load_type_counts(run, label, domain=domain)
    place = {name: index for index, name in enumerate(labels)}
    kept = [index for index, name in enumerate(types.labels) if name in place]
    to = [place[types.labels[index]] for index in kept]
    for router, expert_counts in iter_expert_counts(run, types, 0):
        found = type_test(expert_counts, types.label_counts)
        aligned = np.full((2, router.n_experts, len(labels)), np.nan)
        aligned[:, :, to] = np.stack([found.z, found.p])[:, :, kept]
        yield aligned[0], aligned[1]
