"""Which of 64 clusters a token is in: one draw of everything that is said with an interval.

Tokens of one text resemble each other, so a document is one draw. A document's cluster is a hash of its name: it stays
the same in every run, and intervals cost the same for a thousand and for a billion tokens. With too few documents,
blocks of 256 tokens take their place. It does not know what is counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moe_probe.store.clusters import FEWEST_DOCUMENTS, N_CLUSTERS, name_hash

if TYPE_CHECKING:
    from moe_probe.store import Run

BLOCK_POSITIONS = 256
DOCUMENT = "document"
BLOCK = "block"


def document_clusters(run: Run) -> NDArray[np.int64]:
    """Return the cluster, 0 to 63, of each document by its number: a hash of its name."""
    documents = run.documents()
    numbers = documents["document"].to_numpy()
    clusters = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int64)
    for number, name in zip(numbers, documents["name"], strict=True):
        clusters[number] = name_hash(name) % N_CLUSTERS
    return clusters


def unit_for(n_documents: int) -> str:
    """Return what a cluster is made of where so many documents have a counted token: "document" or "block"."""
    return DOCUMENT if n_documents >= FEWEST_DOCUMENTS else BLOCK


class Clusters:
    """Finds the clusters of a run's tokens.

    Attributes:
        unit: "document" or "block".
        columns: of the tokens, what `of` needs.
    """

    def __init__(self, run: Run, unit: str) -> None:
        """Hash the names of a run's documents."""
        self.unit = unit
        self.columns = ["document"] if unit == DOCUMENT else ["document", "position"]
        self._by_document = document_clusters(run) if unit == DOCUMENT else np.zeros(0, dtype=np.int64)
        documents = run.documents()
        self._names = dict(zip(documents["document"], documents["name"], strict=True)) if unit == BLOCK else {}

    def of(self, documents: NDArray[np.integer], positions: NDArray[np.integer] | None = None) -> NDArray[np.int64]:
        """Return the cluster of each token, (tokens,).

        Args:
            documents: (tokens,) numbers of documents.
            positions: (tokens,) places within the document; needed for blocks.
        """
        if self.unit == DOCUMENT:
            of_document: NDArray[np.int64] = self._by_document[documents]
            return of_document
        if positions is None:
            raise ValueError("clusters of blocks are told by positions; give them")
        # Positions are 32 bits wide, and -1 for the special tokens in front of a window.
        codes = documents.astype(np.int64) << 32 | (positions.astype(np.int64) // BLOCK_POSITIONS + 1)
        blocks, places = np.unique(codes, return_inverse=True)
        clusters = [
            name_hash(self._names[int(code) >> 32], (int(code) & 0xFFFF_FFFF) - 1) % N_CLUSTERS for code in blocks
        ]
        return np.array(clusters, dtype=np.int64)[places]
