"""The batches of a traced run, made again, and which label and cluster each token's change of surprisal belongs to.

A surprisal belongs to two tokens: the one *predicted*, and the one *routed*, whose hidden state predicts it, the token
before. They have other labels, and what is said of an expert depends on which is meant. It does not know the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_probe import schema
from moe_probe.counts import find_label
from moe_probe.counts.clusters import Clusters, unit_for
from moe_probe.errors import BadInputError
from moe_probe.store import Run
from moe_probe.store.clusters import N_CLUSTERS
from moe_probe.store.plan import Windowing, document_windows
from moe_probe.tracing.batches import Batch, assemble, group, place

CARRIERS = ("predicted", "routed")


@dataclass(frozen=True, eq=False)
class Carried:
    """Of a batch's tokens: the label that carries the change, (carriers, tokens), -1 for none; (tokens,) clusters."""

    labels: NDArray[np.int64]
    clusters: NDArray[np.int64]

    def count(self, n_labels: int) -> NDArray[np.int64]:
        """Return tokens by carrier, cluster and label."""
        return np.rint(self.add_up(np.ones(self.clusters.shape), n_labels)).astype(np.int64)

    def add_up(self, values: NDArray[np.floating], n_labels: int) -> NDArray[np.float64]:
        """Return sums of (tokens,) values, (carriers, clusters, labels)."""
        sums = np.zeros((len(CARRIERS), N_CLUSTERS * n_labels))
        for carrier, codes in enumerate(self.labels):
            held = codes >= 0
            cells = self.clusters[held] * n_labels + codes[held]
            sums[carrier] = np.bincount(cells, weights=values[held], minlength=sums.shape[1])
        return sums.reshape(len(CARRIERS), N_CLUSTERS, n_labels)


class Batches:
    """All batches of a run, in an order that a seed decides, so that the first of them are a sample of the text.

    Attributes:
        labels: the values that tokens are told apart by, sorted.
        unit: "document", or "block" where there are too few documents.
    """

    def __init__(self, run: Run, prefix: Sequence[int], label: str, *, batch_tokens: int, seed: int) -> None:
        """Cut the run's documents into the windows that it was traced in.

        Raises:
            BadInputError: the run has no such label, or no token with a value of it.
        """
        label_set = find_label(run, label)
        settings = run.manifest["settings"]
        self._windowing = Windowing(settings["context"], settings["stride"], len(prefix), special=False)
        self._prefix = prefix
        columns = dict.fromkeys(["document", "position", "window_position", "token_id", "word_initial", label])
        tokens = run.tokens(list(columns))
        self._token_ids = tokens["token_id"].to_numpy()
        documents = tokens["document"].to_numpy()
        lengths = dict(zip(*np.unique(documents, return_counts=True), strict=True))
        self._starts = {
            int(number): int(start) for number, start in zip(*np.unique(documents, return_index=True), strict=True)
        }
        self._lengths = {int(number): int(length) for number, length in lengths.items()}
        windows = [
            window
            for number, length in self._lengths.items()
            for window in document_windows(length, self._windowing, number)
        ]
        groups = group(place(windows, self._windowing), self._windowing, batch_tokens)
        self._groups = [groups[index] for index in np.random.default_rng(seed).permutation(len(groups))]
        self.unit = unit_for(len(self._lengths))
        self._clusters = Clusters(run, self.unit).of(documents, tokens["position"].to_numpy())
        self._codes, self.labels = _codes(tokens[label].cast(str).to_list(), label_set.word_level)
        self._window_position = tokens["window_position"].to_numpy()
        if not self.labels:
            raise BadInputError(f"label {label!r}: no token of the documents has a value of it")

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def n_tokens(self) -> int:
        """Tokens in all batches."""
        return len(self._token_ids)

    def batch(self, index: int) -> Batch:
        """Return one batch."""
        numbers = {placed.window.document for placed in self._groups[index]}
        ids_of = {n: self._token_ids[self._starts[n] : self._starts[n] + self._lengths[n]] for n in numbers}
        return assemble(self._groups[index], self._windowing, self._prefix, ids_of)

    def carried(self, batch: Batch) -> Carried:
        """Return what carries the change of each kept token of a batch."""
        rows = batch.rows
        predicted = self._codes[rows]
        before = np.maximum(rows - 1, 0)
        in_window = self._window_position[rows] - self._window_position[before] == 1
        routed = np.where(in_window, self._codes[before], -1)
        # The first tokens of a window route oddly: neither may be one of them.
        far = self._window_position[rows] >= schema.SINK_POSITIONS
        far_before = self._window_position[before] >= schema.SINK_POSITIONS
        labels = np.stack([np.where(far, predicted, -1), np.where(far & far_before, routed, -1)])
        return Carried(labels, self._clusters[rows])


def _codes(values: Sequence[str], word_level: bool) -> tuple[NDArray[np.int64], list[str]]:
    left_out = {schema.UNTAGGED, *(schema.NOT_WORDS if word_level else ())}
    labels = sorted(set(values) - left_out)
    place_of = {label: index for index, label in enumerate(labels)}
    return np.array([place_of.get(value, -1) for value in values], dtype=np.int64), labels
