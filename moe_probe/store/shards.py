"""The rows of one shard in memory, in the types that they have on disk.

It does not know how rows come about, nor how files are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from moe_probe.errors import RoutingError
from moe_probe.schema import (
    DROPPED,
    SURPRISAL_COLUMN,
    Router,
    entropy_column,
    expert_bits,
    expert_column,
    margin_column,
    probabilities_column,
    weight_column,
)

METADATA_KEY = b"moe_probe"
"""The key of what a file of a run says of itself, as JSON."""

TOKEN_TYPES = {
    "document": pa.int32(),
    "position": pa.int32(),
    "window_position": pa.int32(),
    "token_id": pa.int32(),
    "token": pa.string(),
    "text": pa.string(),
    "char_start": pa.int32(),
    "char_end": pa.int32(),
    "phase": pa.string(),
    "word_initial": pa.bool_(),
    SURPRISAL_COLUMN: pa.float32(),
}
"""The types of the columns that are no labels; a label is a string."""


class RoutingBlock:
    """The routing of one shard, filled batch by batch in any order.

    Weights are float16; so are entropies and margins, of which a larger one than float16 holds becomes infinite.

    Example:
        >>> router = Router(0, "layers.0.mlp", 0, n_experts=4, n_slots=2, kind="softmax top-k")
        >>> block = RoutingBlock([router], [False], rows=1)
        >>> block.fill(0, np.array([0]), np.array([[3, 1]]), np.array([[0.75, 0.25]]))
        >>> block.to_table().to_pylist()
        [{'expert_0_0': 3, 'expert_0_1': 1, 'weight_0_0': 0.75, 'weight_0_1': 0.25}]
    """

    def __init__(self, routers: Sequence[Router], scores: Sequence[bool], rows: int, *, weights: bool = True) -> None:
        """Make room for `rows` tokens; `scores[i]` says that router i has an entropy and a margin.

        Without `weights` there are no columns for them.
        """
        self.routers = list(routers)
        self.scores = list(scores)
        self.n_rows = rows
        self.has_weights = weights
        kinds = [np.dtype(f"uint{expert_bits(router.n_experts)}") for router in routers]
        # One contiguous row a column on disk.
        self._experts = [
            np.full((r.n_slots, rows), np.iinfo(kind).max, kind) for r, kind in zip(routers, kinds, strict=True)
        ]
        self._weights = [np.zeros((router.n_slots if weights else 0, rows), np.float16) for router in routers]
        self._scores = [np.full((2, rows if scored else 0), np.nan, np.float16) for scored in scores]

    def fill(
        self,
        router: int,
        rows: npt.NDArray[np.integer] | slice,
        experts: npt.NDArray[np.integer],
        weights: npt.NDArray[np.floating] | None,
        entropy: npt.NDArray[np.floating] | None = None,
        margin: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Put what one router did with some tokens into their rows.

        Args:
            router: its index.
            rows: (tokens,), places in the shard.
            experts: (tokens, slots), heaviest first, -1 where a slot held none.
            weights: (tokens, slots), as executed; None in a block without weights.
            entropy: (tokens,) bits, where the router has scores.
            margin: (tokens,), where the router has scores.

        Raises:
            RoutingError: if an expert does not exist, or a weight is no number that float16 can hold.
        """
        of = self.routers[router]
        if experts.size and not DROPPED <= int(experts.min()) <= int(experts.max()) < of.n_experts:
            wrong = int(experts.max()) if experts.max() >= of.n_experts else int(experts.min())
            raise RoutingError(
                f"{of.name}: expert {wrong} was recorded of {of.n_experts}; this is a fault, please report it"
            )
        if (weights is not None) != self.has_weights:
            raise ValueError(f"{of.name}: its weights were {'promised' if weights is None else 'not promised'}")
        # Casting -1 to an unsigned integer gives its largest value, which is no expert: this is what `null` looks for.
        self._experts[router][:, rows] = experts.T.astype(self._experts[router].dtype)
        if weights is not None:
            self._weights[router][:, rows] = _halves(of, weights).T
        if self.scores[router]:
            if entropy is None or margin is None:
                raise ValueError(f"{of.name}: its entropy and margin were promised")
            with np.errstate(over="ignore"):
                self._scores[router][0, rows] = entropy
                self._scores[router][1, rows] = margin

    def to_table(self) -> pa.Table:
        """Return the columns as `schema.routing_columns` orders them, without copying where no slot was dropped."""
        columns: dict[str, pa.Array] = {}
        for router, experts, weights, scores in zip(
            self.routers, self._experts, self._weights, self._scores, strict=True
        ):
            nothing = np.iinfo(experts.dtype).max
            for slot in range(router.n_slots):
                dropped = experts[slot] == nothing
                mask = dropped if dropped.any() else None
                columns[expert_column(router.index, slot)] = pa.array(experts[slot], mask=mask)
            for slot in range(len(weights)):
                columns[weight_column(router.index, slot)] = pa.array(weights[slot])
            if scores.shape[1] or self.scores[router.index]:
                columns[entropy_column(router.index)] = pa.array(scores[0], from_pandas=True)  # no number is null
                columns[margin_column(router.index)] = pa.array(scores[1], from_pandas=True)
        return pa.table(columns)


class ProbabilityBlock:
    """The routers' distributions over experts of one shard, filled batch by batch in any order, in float16.

    Example:
        >>> router = Router(0, "layers.0.mlp", 0, n_experts=2, n_slots=1, kind="softmax top-k")
        >>> block = ProbabilityBlock([router], [True], rows=2)
        >>> block.fill(0, np.array([0, 1]), np.array([[0.75, 0.25], [np.nan, np.nan]]))
        >>> block.to_table().to_pylist(), block.flagged
        ([{'probabilities_0': [0.75, 0.25]}, {'probabilities_0': None}], 1)
    """

    def __init__(self, routers: Sequence[Router], known: Sequence[bool], rows: int) -> None:
        """Make room for `rows` tokens; `known[i]` says that router i has probabilities."""
        self.known = tuple(known)
        self.n_rows = rows
        self._values = {
            router.index: np.full((rows, router.n_experts), np.nan, np.float16) for router in compress(routers, known)
        }

    def fill(
        self, router: int, rows: npt.NDArray[np.integer] | slice, probabilities: npt.NDArray[np.floating] | None
    ) -> None:
        """Put one router's probabilities, (tokens, experts), into the tokens' rows; NaN where they are not known.

        Raises:
            ValueError: if they are known of another router than was said.
        """
        if (probabilities is not None) != self.known[router]:
            raise ValueError(f"router {router}: its probabilities were {'' if self.known[router] else 'not '}promised")
        if probabilities is not None:
            self._values[router][rows] = probabilities

    @property
    def flagged(self) -> int:
        """How many rows hold a router whose probabilities are no numbers, and are null on disk."""
        spoilt = np.zeros(self.n_rows, np.bool_)
        for values in self._values.values():
            spoilt |= np.isnan(values).any(axis=1)
        return int(spoilt.sum())

    def to_table(self) -> pa.Table:
        """Return a column a router with known probabilities: lists of float16, null where they are no numbers."""
        columns = {}
        for router, values in self._values.items():
            spoilt = np.isnan(values).any(axis=1)
            mask = pa.array(spoilt) if spoilt.any() else None
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=mask)
            columns[probabilities_column(router)] = lists
        return pa.table(columns)


def _halves(router: Router, weights: npt.NDArray[np.floating]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves: npt.NDArray[np.float16] = weights.astype(np.float16)
    if not np.isfinite(halves).all():
        wrong = float(weights[~np.isfinite(halves)][0])
        raise RoutingError(
            f"{router.name}: a weight of {wrong} cannot be stored in float16; load the model with another dtype"
            " and look whether its output is finite"
        )
    return halves


def tokens_table(
    columns: Mapping[str, object],
    labels: Mapping[str, Sequence[str] | pa.Array],
    sources: Mapping[str, str] | None = None,
) -> pa.Table:
    """Return the tokens of a shard as they are on disk.

    Args:
        columns: those of `schema.TOKEN_COLUMNS` and perhaps the surprisal, a value a row. Strings may be numbers of a
            dictionary.
        labels: for each label, a value a row.
        sources: what made the labels; kept with the file, so that two makings are never taken for one.
    """
    arrays = {
        name: values if isinstance(values, pa.DictionaryArray) else pa.array(values, TOKEN_TYPES[name])
        for name, values in columns.items()
    }
    for name, values in labels.items():
        arrays[name] = values if isinstance(values, pa.Array) else pa.array(values, pa.string()).dictionary_encode()
    return pa.table(arrays, metadata={METADATA_KEY: json.dumps({"labels": dict(sources or {})})})


def with_label(tokens: pa.Table, name: str, values: Sequence[str], source: str) -> pa.Table:
    """Return tokens as read from a run with one label added or replaced.

    Args:
        tokens: a shard's.
        name: the label.
        values: a value a row.
        source: what made them.
    """
    column = pa.array(values, pa.string()).dictionary_encode()
    if name in tokens.column_names:
        changed = tokens.set_column(tokens.column_names.index(name), name, column)
    else:
        changed = tokens.append_column(name, column)
    facts = json.loads((tokens.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    facts["labels"] = facts.get("labels", {}) | {name: source}
    return changed.replace_schema_metadata({METADATA_KEY: json.dumps(facts)})
