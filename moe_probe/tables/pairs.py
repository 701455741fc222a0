"""Which experts are chosen together, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from moe_probe.counts import PairCounts, iter_coactivation_counts
from moe_probe.measures.coactivation import coactivation as measure_coactivation
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.verdicts import MINIMUM_CLUSTERS, MINIMUM_EXPECTED
from moe_probe.tables.columns import LAYER, ROUTER, TOKENS, Column
from moe_probe.tables.neighbours import CLUSTER_UNIT
from moe_probe.tables.rows import ANY_SLOT, router_rows, stack_rows

if TYPE_CHECKING:
    from moe_probe import schema
    from moe_probe.store import Run

_OLMOE = "Muennighoff et al. 2024, OLMoE (arXiv 2409.02060), 5.2"
_DISTINCT = "Chen, Dempster & Liu 1994, Weighted finite population sampling to maximize entropy"
_BH = "Benjamini & Hochberg 1995, Controlling the False Discovery Rate, 3.1"

COACTIVATION_COLUMNS = (
    LAYER,
    ROUTER,
    TOKENS,
    Column(
        "pairs",
        pl.String,
        "all, adjacent",
        "Which pairs of a token's experts were counted: all, or those in slots s and s + 1 only, as in OLMoE's "
        "published script, 2/k of all.",
        _OLMOE,
    ),
    Column("expert_a", pl.Int64, "index", "The pair's expert of the lower index; each pair has one row."),
    Column("expert_b", pl.Int64, "index", "The pair's expert of the higher index."),
    Column("together", pl.Int64, "tokens", "Tokens whose set of executed experts holds both."),
    Column("p_b_given_a", pl.Float64, "0 to 1", "together over the tokens that hold expert_a; null if none.", _OLMOE),
    Column("p_a_given_b", pl.Float64, "0 to 1", "together over the tokens that hold expert_b; null if none.", _OLMOE),
    Column(
        "expected",
        pl.Float64,
        "tokens",
        "together if each token drew as many different experts as it has, with the experts' loads and nothing else: "
        "the baseline. N_a N_b / T would make every pair look repelled.",
        _DISTINCT,
    ),
    Column("lift", pl.Float64, "ratio", "together over expected. Baseline: 1. Null where nothing is expected."),
    Column(
        "ci_low",
        pl.Float64,
        "ratio",
        "Lower end of lift at 95 %, a cluster being one draw and expected fitted to the same tokens. Null for a pair "
        "that never met, or where the clusters do not differ.",
        "Cochran 1977, Sampling Techniques, 6.3 and 9A.2 (linearised variance)",
    ),
    Column("ci_high", pl.Float64, "ratio", "Upper end of lift at 95 %; see ci_low."),
    Column(
        "geff",
        pl.Float64,
        "draws",
        "How many equally large clusters would be worth those that hold expert_a, or expert_b: the lesser of the two.",
        "Kish 1965, Survey Sampling, 11.7",
    ),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        f"Of the test that lift is 1, corrected for all pairs of this table with {MINIMUM_EXPECTED:g} or more "
        f"expected and a geff of {MINIMUM_CLUSTERS:g} or more; null for the others.",
        _BH,
    ),
    CLUSTER_UNIT,
    Column("n", pl.Int64, "tokens", "Tokens with two or more executed experts."),
)


def coactivation(run: Run, *, adjacent: bool = False) -> pl.DataFrame:
    """Return how often each pair of experts of a router was chosen for the same token, over all tokens.

    Args:
        run: an open run.
        adjacent: count pairs of adjacent ranks only, as OLMoE's published script does.

    Returns:
        The columns of coactivation.csv, each pair once. Routers with more than 1,024 experts, or that send no token to
        two, have no rows.
    """
    run.need_tokens("the table coactivation")
    frames = []
    for router, counts in iter_coactivation_counts(run, adjacent=adjacent):
        frame = _router_pairs(router, counts, adjacent)
        if frame is not None:
            frames.append(frame)
    if not frames:
        return stack_rows(COACTIVATION_COLUMNS, [])
    rows = pl.concat(frames)
    return stack_rows(COACTIVATION_COLUMNS, [rows.with_columns(q_value=pl.Series(q_values(rows["p"].to_numpy())))])


def _router_pairs(router: schema.Router, counts: PairCounts, adjacent: bool) -> pl.DataFrame | None:
    found = measure_coactivation(counts.together, counts.loads, counts.sizes, adjacent=adjacent)
    if found is None:
        return None
    one, other = np.triu_indices(router.n_experts, 1)
    columns = {
        "expert_a": one,
        "expert_b": other,
        "together": found.together[one, other],
        "p_b_given_a": found.b_given_a[one, other],
        "p_a_given_b": found.b_given_a[other, one],
        "expected": found.expected[one, other],
        "lift": found.lift[one, other],
        "ci_low": found.low[one, other],
        "ci_high": found.high[one, other],
        "p": found.p[one, other],
        "geff": found.geff[one, other],
    }
    same = {
        "pairs": "adjacent" if adjacent else "all",
        "cluster_unit": counts.cluster_unit,
        "n": int(counts.sizes[:, 2:].sum()),
    }
    return router_rows(router, ANY_SLOT, "all", columns, same)
