"""How tokens go from router to router: transitions between neighbours, and paths through many, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import N_CLUSTERS, TokenRows, iter_transition_counts, load_rows
from moe_probe.errors import BadInputError
from moe_probe.measures.cells import cell_estimates
from moe_probe.measures.lift import label_lift
from moe_probe.measures.multiplicity import q_values
from moe_probe.measures.paths import FLOOR, Paths, find_paths
from moe_probe.measures.verdicts import MINIMUM_EXPECTED, enough_for_cells
from moe_probe.tables.columns import LAYER, ROUTER, Column
from moe_probe.tables.neighbours import CLUSTER_UNIT
from moe_probe.tables.rows import stack_rows
from moe_probe.tables.snippets import CLOSE, OPEN, Snippets

if TYPE_CHECKING:
    from moe_probe.store import Run

MOST_CELLS = 2**18
"""Of two routers with more pairs of experts than this, transitions have no interval: it would take gigabytes."""

TOP = 100
"""So many paths are kept by count, and as many by lift."""

_ALL_TOKENS = "All tokens but the first four positions of each window, since they route oddly."
_COCHRAN = "Cochran 1977, Sampling Techniques, 6.3 and 9A.2 (linearised variance)"
_BH = "Benjamini & Hochberg 1995, Controlling the False Discovery Rate, 3.1"

TRANSITION_COLUMNS = (
    LAYER,
    ROUTER,
    Column("next_layer", pl.Int64, "index", "Transformer block of the next router."),
    Column("next_router", pl.Int64, "index", "Place of the next router in the run."),
    Column("expert", pl.Int64, "index", "First choice in the router."),
    Column("next_expert", pl.Int64, "index", "First choice of the same token in the next router."),
    Column("tokens", pl.Int64, "count", f"Tokens that went from the one to the other. {_ALL_TOKENS}"),
    Column("p", pl.Float64, "0 to 1", "tokens over the tokens whose first choice was expert; null if none."),
    Column(
        "expected",
        pl.Float64,
        "count",
        "tokens if the two routers' first choices were independent: the baseline.",
    ),
    Column("lift", pl.Float64, "ratio", "tokens over expected. Baseline: 1. Null where nothing is expected."),
    Column(
        "ci_low",
        pl.Float64,
        "ratio",
        "Lower end of lift at 95 %, a cluster being one draw. Null where the two never followed each other, where "
        f"clusters do not differ, and for routers with more than {MOST_CELLS:,} pairs of experts.",
        _COCHRAN,
    ),
    Column("ci_high", pl.Float64, "ratio", "Upper end of lift at 95 %; see ci_low."),
    Column(
        "q_value",
        pl.Float64,
        "0 to 1",
        "Of the test that lift is 1, corrected for all cells of this table with 5 or more expected and 5 or more "
        "effective clusters; null for the others.",
        _BH,
    ),
    CLUSTER_UNIT,
    Column("n", pl.Int64, "count", "Tokens that have a first choice in both routers."),
)
PATH_COLUMNS = (
    Column("first_layer", pl.Int64, "index", "Transformer block where the path begins."),
    Column("last_layer", pl.Int64, "index", "Transformer block where the path ends."),
    Column("path", pl.String, "experts", "First choices of the token in all routers in between, in order, with >."),
    Column("tokens", pl.Int64, "count", f"Tokens that took the path. {_ALL_TOKENS}"),
    Column("share", pl.Float64, "0 to 1", "tokens over n."),
    Column("share_ci_low", pl.Float64, "0 to 1", "Lower end of share at 95 %, a cluster being one draw."),
    Column("share_ci_high", pl.Float64, "0 to 1", "Upper end of share at 95 %."),
    Column(
        "expected_if_independent",
        pl.Float64,
        "count",
        "tokens if all routers chose independently, with the same loads of first choices: the baseline.",
    ),
    Column(
        "lift",
        pl.Float64,
        "ratio",
        "tokens over expected_if_independent. Over many routers every path has a high one, and those ranked by it were "
        "chosen from very many: read the interval.",
    ),
    Column(
        "ci_low", pl.Float64, "ratio", "Lower end of lift at 95 %, a cluster being one draw; null below two.", _COCHRAN
    ),
    Column("ci_high", pl.Float64, "ratio", "Upper end of lift at 95 %."),
    Column("rank_by_count", pl.Int64, "rank", "1 is the most frequent path; null if not among the top."),
    Column(
        "rank_by_lift",
        pl.Int64,
        "rank",
        f"1 is the path of the highest lift, of those with {FLOOR} tokens or more; null if not among the top.",
    ),
    Column("example", pl.String, "text", f"The first token that took the path, as {OPEN}token{CLOSE} in its text."),
    CLUSTER_UNIT,
    Column("n", pl.Int64, "count", "Tokens that have a first choice in all routers of the path."),
)


def transitions(run: Run) -> pl.DataFrame:
    """Return how often a first choice followed another in the next router, over all tokens.

    Args:
        run: an open run. Counts are of all of it; of more than 2,000,000 tokens, the width of the intervals and the
            q-values are those of whole documents of so many, and wider than need be.

    Returns:
        The columns of transitions.csv. Cells that no token is in and in which fewer than 5 are expected are left out,
        as are pairs with a router of more than 1,024 experts. (Routers of 1,024 experts have 2^20 cells.)
    """
    run.need_tokens("the table transitions")
    rows: TokenRows | None = None
    frames = []
    for router, following, counts in iter_transition_counts(run):
        if not counts.any():
            continue
        if rows is None:
            rows = load_rows(run)
        frames.append(_step_rows(router, following, counts, rows))
    if not frames or rows is None:
        return stack_rows(TRANSITION_COLUMNS, [])
    stacked = pl.concat(frames)
    q_value = pl.Series(q_values(stacked["test_p"].to_numpy()))
    return stack_rows(TRANSITION_COLUMNS, [stacked.with_columns(q_value=q_value)])


def paths(run: Run, *, layers: Sequence[int] | None = None, top: int = TOP) -> pl.DataFrame:
    """Return the most frequent paths of first choices through the routers, and those of the highest lift.

    Args:
        run: an open run. Of more than 2,000,000 tokens, whole documents of so many are measured.
        layers: the layers that a path goes through, by default all; their routers must follow each other in the run.
        top: how many paths to keep by count, and how many by lift.

    Returns:
        The columns of paths.csv, the most frequent path first.

    Raises:
        BadInputError: `layers` names none, one without a router, or some with routers in between; `top` is below 1.
    """
    run.need_tokens("the table paths")
    routers = _routers_of(run, layers)
    if top < 1:
        raise BadInputError(f"top {top}: keep 1 path or more")
    rows = load_rows(run, ("text",))
    kept = np.flatnonzero(rows.frame["window_position"].to_numpy() >= schema.SINK_POSITIONS)
    if kept.size == 0 or not routers:
        return stack_rows(PATH_COLUMNS, [])
    # A path through sixty routers of two million tokens is a quarter of a gigabyte in 16 bits.
    small = max(router.n_experts for router in routers) <= np.iinfo(np.int16).max
    choices = np.empty((kept.size, len(routers)), dtype=np.int16 if small else np.int32)
    for column, router in enumerate(routers):
        choices[:, column] = rows.experts(router)[kept, 0]
    clusters = rows.frame["cluster"].to_numpy()[kept]
    found = find_paths(choices, [router.n_experts for router in routers], clusters, top=top)
    if found is None:
        return stack_rows(PATH_COLUMNS, [])
    snippets = Snippets(rows)
    examples = [snippets.at(int(place)) for place in kept[found.example]]
    return stack_rows(PATH_COLUMNS, [_path_rows(routers, found, examples, rows.cluster_unit)])


def _step_rows(
    router: schema.Router, following: schema.Router, counts: NDArray[np.int64], rows: TokenRows
) -> pl.DataFrame:
    """The rows of one step, with the test's p-value as `test_p`."""
    whole = label_lift(counts)
    low, high, test_p = (np.full(counts.shape, np.nan) for _ in range(3))
    if counts.size <= MOST_CELLS:
        cells = cell_estimates(_clustered_steps(router, following, rows))
        # The same but in runs of which not all is in these rows; the width is then carried over.
        low, high = whole.lift * (cells.low / cells.lift), whole.lift * (cells.high / cells.lift)
        test_p = np.where(enough_for_cells(cells.expected, cells.geff), cells.p, np.nan)
    told = (counts > 0) | (whole.expected >= MINIMUM_EXPECTED)
    expert, next_expert = np.nonzero(told)
    columns = {
        "expert": expert,
        "next_expert": next_expert,
        "tokens": counts[told],
        "p": whole.p_label_given_expert[told],
        "expected": whole.expected[told],
        "lift": whole.lift[told],
        "ci_low": low[told],
        "ci_high": high[told],
        "test_p": test_p[told],
    }
    same = {
        "layer": router.layer,
        "router": router.index,
        "next_layer": following.layer,
        "next_router": following.index,
        "cluster_unit": rows.cluster_unit,
        "n": int(counts.sum()),
    }
    return pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in same.items()})


def _clustered_steps(router: schema.Router, following: schema.Router, rows: TokenRows) -> NDArray[np.int64]:
    """Count the tokens of each step, (clusters, experts, next experts)."""
    first, second = rows.experts(router)[:, 0].astype(np.int64), rows.experts(following)[:, 0].astype(np.int64)
    held = (rows.frame["window_position"].to_numpy() >= schema.SINK_POSITIONS) & (first >= 0) & (second >= 0)
    shape = (N_CLUSTERS, router.n_experts, following.n_experts)
    codes = np.ravel_multi_index((rows.frame["cluster"].to_numpy()[held], first[held], second[held]), shape)
    return np.bincount(codes, minlength=shape[0] * shape[1] * shape[2]).reshape(shape)


def _routers_of(run: Run, layers: Sequence[int] | None) -> list[schema.Router]:
    if layers is None:
        return list(run.routers)
    there = sorted({router.layer for router in run.routers})
    if not layers or not set(layers) <= set(there):
        raise BadInputError(f"layers {list(layers)}: choose from those that the run has a router in: {there}")
    chosen = [router for router in run.routers if router.layer in layers]
    between = sorted({layer for layer in there if min(layers) <= layer <= max(layers)} - set(layers))
    if between:
        raise BadInputError(f"layers {list(layers)}: a path leaves out no router on its way; add the layers {between}")
    return chosen


def _path_rows(
    routers: Sequence[schema.Router], found: Paths, examples: Sequence[str], cluster_unit: str
) -> pl.DataFrame:
    columns = {
        "path": [">".join(map(str, way)) for way in found.experts.tolist()],
        "tokens": found.tokens,
        "share": found.share,
        "share_ci_low": found.share_low,
        "share_ci_high": found.share_high,
        "expected_if_independent": found.expected,
        "lift": found.lift,
        "ci_low": found.lift_low,
        "ci_high": found.lift_high,
        "rank_by_count": [rank or None for rank in found.count_rank.tolist()],
        "rank_by_lift": [rank or None for rank in found.lift_rank.tolist()],
        "example": examples,
    }
    same = {
        "first_layer": routers[0].layer,
        "last_layer": routers[-1].layer,
        "cluster_unit": cluster_unit,
        "n": found.n,
    }
    return pl.DataFrame(columns).with_columns(**{name: pl.lit(value) for name, value in same.items()})
