"""Two runs over the same tokens, side by side; any other two are refused.

Their shards may differ in size, their windows too. It does not know what is said of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import BLOCK_POSITIONS, FEWEST_DOCUMENTS, TokenRows, find_label, load_rows
from moe_probe.errors import BadInputError, RunError

if TYPE_CHECKING:
    from moe_probe.store import Run

_PLACE = ("document", "position", "token_id")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two runs over the same tokens.

    `tokens` has a row for each token that is compared, in the order of run_a, with its `row` there, its `cluster`,
    `word_initial` and the labels asked for, those of run_a. The first four positions of a window, in either run, are
    left out. `complete` is False where the runs are so large that only some of their documents are compared.
    """

    run_a: Run
    run_b: Run
    tokens: pl.DataFrame
    complete: bool
    cluster_unit: str
    _rows_a: TokenRows
    _rows_b: TokenRows
    _kept: NDArray[np.intp]

    @property
    def clusters(self) -> NDArray[np.int64]:
        """The cluster of each token, (tokens,)."""
        return self.tokens["cluster"].to_numpy().astype(np.int64)

    def experts(self, router: schema.Router) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return what a router chose in each run, (tokens, slots); -1 where a slot held none."""
        return self._rows_a.experts(router)[self._kept], self._rows_b.experts(router)[self._kept]

    def margins(self, router: schema.Router) -> NDArray[np.float32] | None:
        """Return run_a's margins, (tokens,), nan where one is not known; None where none is."""
        if not self.run_a.with_scores[router.index]:
            return None
        column = schema.margin_column(router.index)
        rows = self.tokens["row"].to_numpy().astype(np.int64)
        margins = np.full(rows.size, np.nan, np.float32)
        start = 0
        for shard in self.run_a.iter_shards():
            first, last = np.searchsorted(rows, [start, start + shard.rows])
            if first < last:
                margins[first:last] = shard.routing([column])[column].to_numpy()[rows[first:last] - start]
            start += shard.rows
        return margins


def pair_runs(run_a: Run, run_b: Run, labels: Sequence[str] = ()) -> Pair:
    """Lay two runs over the same tokens side by side.

    Args:
        run_a: an open run.
        run_b: another of the same documents, in the same order.
        labels: label sets of run_a to bring along.

    Raises:
        BadInputError: their routers or their tokens differ, or run_a has no such label.
        RunError: a label is missing on some token.
    """
    for run in (run_a, run_b):
        run.need_tokens("a comparison token by token")
    for label in labels:
        find_label(run_a, label)
    _refuse_other_routers(run_a, run_b)
    _refuse_other_text(run_a, run_b)
    rows_a, rows_b = load_rows(run_a, tuple(labels)), load_rows(run_b)
    place = list(_PLACE)
    if not rows_a.frame[place].equals(rows_b.frame[place]):
        raise BadInputError(
            f"{run_a.path} and {run_b.path}: so large a run is compared on documents drawn by name, and the two runs"
            " name theirs differently; trace them over documents of the same names"
        )
    for label in labels:
        if rows_a.frame[label].null_count():
            raise RunError(
                f"{run_a.path}: has tokens without a value of the label {label!r}; make it anew with"
                f" `moe-probe label {run_a.path} --with {label}`"
            )
    windows = (rows_a.frame["window_position"], rows_b.frame["window_position"])
    kept = np.flatnonzero(np.minimum(*(window.to_numpy() for window in windows)) >= schema.SINK_POSITIONS)
    return Pair(
        run_a=run_a,
        run_b=run_b,
        tokens=rows_a.frame.select("row", "cluster", "word_initial", *labels)[kept],
        complete=rows_a.complete,
        cluster_unit=rows_a.cluster_unit,
        _rows_a=rows_a,
        _rows_b=rows_b,
        _kept=kept,
    )


def comparison_warnings(run_a: Run, run_b: Run) -> list[str]:
    """Return what a reader of a comparison should know of the two runs, a sentence each.

    Args:
        run_a: an open run.
        run_b: another.
    """
    said = []
    name_a, name_b = _model_name(run_a), _model_name(run_b)
    if name_a != name_b:
        said.append(
            f"The models differ: {name_a} and {name_b}. Expert indices of different models cannot be compared: expert 3"
            " of one has nothing to do with expert 3 of the other, unless both are checkpoints of one training."
        )
    window_a, window_b = _window(run_a), _window(run_b)
    if window_a != window_b:
        said.append(
            f"The windows differ: {window_a} and {window_b}. Part of the disagreement may come from the other text that"
            " a model saw before a token."
        )
    if run_a.n_documents < FEWEST_DOCUMENTS:
        said.append(
            f"There are fewer than {FEWEST_DOCUMENTS} documents: intervals are over blocks of {BLOCK_POSITIONS} tokens"
            " and hold for this text only."
        )
    unscored = sum(not known for known in run_a.with_scores)
    if unscored:
        said.append(f"{unscored} of {len(run_a.routers)} routers of {run_a.path} have no margins, hence no deciles.")
    return said


def _model_name(run: Run) -> str:
    model = run.manifest.get("model", {})
    revision = model.get("revision")
    return f"{model.get('name', 'unknown')}" + (f" at {revision}" if revision else "")


def _window(run: Run) -> str:
    settings = run.manifest.get("settings", {})
    return f"{settings.get('context', 'unknown')} tokens with a stride of {settings.get('stride', 0)}"


def _refuse_other_routers(run_a: Run, run_b: Run) -> None:
    if len(run_a.routers) != len(run_b.routers):
        raise BadInputError(
            f"{run_a.path} has {len(run_a.routers)} routers, {run_b.path} has {len(run_b.routers)}: only runs of models"
            " with the same routers can be compared"
        )
    for a, b in zip(run_a.routers, run_b.routers, strict=True):
        if (a.layer, a.n_experts, a.n_slots) != (b.layer, b.n_experts, b.n_slots):
            raise BadInputError(
                f"router {a.index}: {_shape(a)} in {run_a.path}, {_shape(b)} in {run_b.path}: only runs of models with"
                " the same routers can be compared"
            )


def _shape(router: schema.Router) -> str:
    return f"layer {router.layer}, {router.n_slots} of {router.n_experts} experts"


def _refuse_other_text(run_a: Run, run_b: Run) -> None:
    difference = _first_difference(_places(run_a), _places(run_b))
    if difference is None:
        return
    place_a, place_b = difference
    if place_a is not None and place_b is not None and place_a[:2] == place_b[:2]:
        said = f"{_at(run_a, place_a)} has token id {place_a[2]} in {run_a.path} and {place_b[2]} in {run_b.path}"
    else:
        said = f"{_what_comes(run_a, place_a)}, where {_what_comes(run_b, place_b)}"
    raise BadInputError(
        f"the runs are of different text: {said}; compare runs of the same documents, in the same order, cut by the"
        " same tokenizer"
    )


def _at(run: Run, place: list[int]) -> str:
    number, position, _ = place
    name = run.documents().filter(document=number)["name"].item()
    return f"document {name!r}, position {position}"


def _what_comes(run: Run, place: list[int] | None) -> str:
    if place is None:
        return f"{run.path} has no more tokens" + ("" if run.complete else ", for it is not complete")
    return f"{run.path} has {_at(run, place)}, token id {place[2]}"


def _places(run: Run) -> Iterator[NDArray[np.int32]]:
    """Yield the document, position and token id of every token, (tokens, 3), shard by shard."""
    for shard in run.iter_shards():
        yield shard.tokens(list(_PLACE)).cast(pl.Int32).to_numpy()


def _first_difference(
    chunks_a: Iterator[NDArray[np.int32]], chunks_b: Iterator[NDArray[np.int32]]
) -> tuple[list[int] | None, list[int] | None] | None:
    """Return the rows in which two streams first differ, None for a stream that has ended; None if they never do."""
    a = b = np.zeros((0, len(_PLACE)), np.int32)
    while True:
        a, b = _refill(a, chunks_a), _refill(b, chunks_b)
        common = min(len(a), len(b))
        if not common:
            if not len(a) and not len(b):
                return None
            return (a[0].tolist() if len(a) else None), (b[0].tolist() if len(b) else None)
        differs = (a[:common] != b[:common]).any(axis=1)
        if differs.any():
            row = int(differs.argmax())
            return a[row].tolist(), b[row].tolist()
        a, b = a[common:], b[common:]


def _refill(rows: NDArray[np.int32], chunks: Iterator[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Return `rows`, or the next chunk that has any where there are none left."""
    while not len(rows):
        chunk = next(chunks, None)
        if chunk is None:
            break
        rows = chunk
    return rows
