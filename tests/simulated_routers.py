"""Corpora and routers made up so that the truth about them is known; what calibration is measured on.

A `Corpus` is drawn as texts are: Zipfian words, documents of unequal length that repeat their own words, domains with a
vocabulary of their own, words that are now one part of speech and now another, and documents that use them differently.
A router sends its tokens to experts. All but `planted` and `planted_in_words` know nothing of labels:

- `random_routing`: experts drawn for each token, whatever the token.
- `hashed_routing`: a function of the token, as in a model that was never trained; on request of its frequency too, and
  with documents that send words of theirs elsewhere.
- `planted_routing`: each expert prefers one label, by given odds; for each token anew, or once for each word.

Both come with what an endless corpus would give (`Routing.truth`), by algebra and not by counting. No code of moe_probe
is used. Everything follows from the generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

N_CLUSTERS = 64
N_TOKENS = 50_000
N_TYPES = 4_000
LABELS = ("NOUN", "VERB", "ADJ", "ADV", "PROPN", "NUM", "DET", "ADP", "PRON", "AUX", "CCONJ", "PUNCT")
N_DOMAINS = 4
_OPEN = np.array([0.34, 0.2, 0.13, 0.08, 0.17, 0.08] + [0.0] * 6)
_CLOSED = np.array([0.0] * 6 + [0.15, 0.22, 0.23, 0.17, 0.08, 0.15])
_BURST = 400.0  # a document's words are Dirichlet around its domain's; the less, the more it repeats itself
_AMBIGUOUS = 0.3
_LOYAL = 0.85  # how often a hash is followed; context does the rest


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokens in the order of their documents, and the population that they were drawn from.

    `documents`, `token_ids` and `labels` are (tokens,); `clusters` and `domains` (documents,). In the population a
    token is type v with probability `type_shares[v]` (types,), and label c then with `label_given_type[v, c]`.
    """

    documents: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    clusters: NDArray[np.int64]
    domains: NDArray[np.int64]
    type_shares: NDArray[np.float64]
    label_given_type: NDArray[np.float64]
    main_labels: NDArray[np.int64]

    @cached_property
    def token_clusters(self) -> NDArray[np.int64]:
        """The cluster of each token, (tokens,)."""
        return self.clusters[self.documents]

    @cached_property
    def uses(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The pairs of a document and a type that occur, as codes (pairs,), and the pair of each token (tokens,)."""
        codes, pair = np.unique(self.documents * self.type_shares.size + self.token_ids, return_inverse=True)
        return codes, pair

    def label_counts(self) -> NDArray[np.int64]:
        """How often each type has each label, (types, labels)."""
        return _count(self.token_ids, self.labels, (self.type_shares.size, len(LABELS)))


@dataclass(frozen=True, eq=False)
class Routing:
    """Where a corpus was sent.

    `experts` is (tokens, slots). `truth[s]` is (experts, labels): in the population, how likely a token has that expert
    in slot s and that label.
    """

    corpus: Corpus
    experts: NDArray[np.int64]
    truth: NDArray[np.float64]

    @property
    def n_experts(self) -> int:
        return self.truth.shape[1]

    def clustered(self, slots: tuple[int, ...] = (0, 1)) -> NDArray[np.int64]:
        """Assignments by cluster, expert and label, (64, experts, labels)."""
        shape = (N_CLUSTERS, self.n_experts * len(LABELS))
        corpus = self.corpus
        codes = [self.experts[:, slot] * len(LABELS) + corpus.labels for slot in slots]
        total = sum(_count(corpus.token_clusters, code, shape) for code in codes)
        return total.reshape(N_CLUSTERS, self.n_experts, len(LABELS))

    def expert_counts(self) -> NDArray[np.int64]:
        """How often each type goes to each expert first, (types, experts)."""
        return _count(self.corpus.token_ids, self.experts[:, 0], (self.corpus.type_shares.size, self.n_experts))

    def lift(self, slots: tuple[int, ...] = (0, 1)) -> NDArray[np.float64]:
        """The lift that an endless corpus would give, (experts, labels)."""
        joint = self.truth[list(slots)].mean(axis=0)
        return joint / (joint.sum(axis=1, keepdims=True) * joint.sum(axis=0))

    def shares(self, slots: tuple[int, ...] = (0, 1)) -> NDArray[np.float64]:
        """The load that an endless corpus would give, (experts,)."""
        return self.truth[list(slots)].mean(axis=0).sum(axis=1)


def draw_corpus(
    rng: np.random.Generator, n_documents: int, *, n_tokens: int = N_TOKENS, n_types: int = N_TYPES
) -> Corpus:
    """Draw words with their labels, and documents that use them."""
    ranks = np.arange(n_types)
    zipf = 1 / (ranks + 2.7) ** 1.05
    main, label_given_type = _draw_labels(rng, ranks)
    by_domain = zipf * rng.lognormal(0, np.where(ranks < 150, 0.2, 0.8), (N_DOMAINS, n_types))
    by_domain /= by_domain.sum(axis=1, keepdims=True)
    domains = rng.integers(0, N_DOMAINS, n_documents)
    lengths = rng.multinomial(n_tokens, rng.dirichlet(np.full(n_documents, 4.0)))
    words = rng.standard_gamma(_BURST * by_domain[domains])
    counts = rng.multinomial(lengths, words / words.sum(axis=1, keepdims=True))  # (documents, types)
    flat = counts.ravel()
    cells = np.repeat(np.arange(flat.size), flat)
    documents, token_ids = np.divmod(cells, n_types)
    corpus = Corpus(
        documents,
        token_ids,
        np.zeros(cells.size, np.int64),
        rng.integers(0, N_CLUSTERS, n_documents),
        domains,
        by_domain.mean(axis=0),
        label_given_type,
        main,
    )
    corpus.labels[:] = _labels_of_tokens(rng, corpus)
    return corpus


def _draw_labels(rng: np.random.Generator, ranks: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The main label of each type, (types,), and the share of each label, (types, labels): short words are frequent."""
    closed = rng.random(ranks.size) < np.where(ranks < 60, 0.85, np.where(ranks < 250, 0.35, 0.03))
    either = [rng.choice(len(LABELS), ranks.size, p=share) for share in (_OPEN, _CLOSED)]
    main = np.where(closed, either[1], either[0])
    other = np.where(closed, rng.choice(len(LABELS), ranks.size, p=_CLOSED), rng.choice(6, ranks.size, p=_OPEN[:6]))
    share = np.where(rng.random(ranks.size) < _AMBIGUOUS, rng.uniform(0.05, 0.45, ranks.size), 0.0)
    given = np.zeros((ranks.size, len(LABELS)))
    given[ranks, main] += 1 - share
    given[ranks, other] += share
    return main, given


def _labels_of_tokens(rng: np.random.Generator, corpus: Corpus) -> NDArray[np.int64]:
    """Labels given types: each document has habits of its own about an ambiguous word."""
    codes, pair = corpus.uses
    types = codes % corpus.type_shares.size
    main = corpus.main_labels
    share = corpus.label_given_type[np.arange(main.size), main]
    habit = np.ones(types.size)
    torn = share[types] < 1
    habit[torn] = rng.beta(4 * share[types][torn], 4 * (1 - share[types][torn]))
    others = corpus.label_given_type.copy()
    others[np.arange(main.size), main] = 0
    other = others.argmax(axis=1)
    ids = corpus.token_ids
    return np.where(rng.random(ids.size) < habit[pair], main[ids], other[ids])


def random_routing(
    rng: np.random.Generator, corpus: Corpus, n_experts: int, *, document_effects: bool = False
) -> Routing:
    """Experts drawn for each token from one uneven load, or from a load of its document's own."""
    loads = rng.dirichlet(np.full(n_experts, 8.0))
    if document_effects:
        by_document = rng.standard_gamma(5 * n_experts * loads, (corpus.domains.size, n_experts))
        first = _draw_rows(rng, by_document, corpus.documents)
    else:
        first = rng.choice(n_experts, corpus.labels.size, p=loads)
    label_shares = corpus.type_shares @ corpus.label_given_type
    return _with_second(rng, corpus, first, np.outer(loads, label_shares))


def hashed_routing(
    rng: np.random.Generator,
    corpus: Corpus,
    n_experts: int,
    *,
    by_frequency: bool = False,
    document_effects: bool = False,
) -> Routing:
    """Each word has an expert; words of like frequency may share a taste, and documents send some words elsewhere."""
    octave = np.frexp(N_TOKENS * corpus.type_shares)[1]
    taste = octave - octave.min() if by_frequency else octave * 0
    tastes = rng.dirichlet(np.full(n_experts, 1.0 if by_frequency else 8.0), taste.max() + 1)
    home = np.repeat(_draw_rows(rng, tastes, taste)[:, None], len(LABELS), axis=1)
    return _through_words(rng, corpus, home, n_experts, moved=0.3 if document_effects else 0.0)


def planted_routing(
    rng: np.random.Generator, corpus: Corpus, n_experts: int, odds: float, *, in_words: bool = False
) -> tuple[Routing, NDArray[np.bool_]]:
    """Each expert prefers one label by `odds`; returns also which cells are planted, (experts, labels).

    With `in_words` a word chooses its expert once, by its main label, and keeps it: a router of words.
    """
    label_shares = corpus.type_shares @ corpus.label_given_type
    planted = np.zeros((n_experts, len(LABELS)), dtype=np.bool_)
    planted[np.arange(n_experts), np.arange(n_experts) * 5 % len(LABELS)] = True  # 5: open and closed classes by turns
    pull = np.where(planted, odds, 1.0).T  # (labels, experts)
    pull /= pull.sum(axis=1, keepdims=True)
    if in_words:
        home = _draw_rows(rng, pull, corpus.main_labels)
        home = np.repeat(home[:, None], len(LABELS), axis=1)
        return _through_words(rng, corpus, home, n_experts), planted
    return _with_second(rng, corpus, _draw_rows(rng, pull, corpus.labels), pull.T * label_shares), planted


def sense_routing(rng: np.random.Generator, corpus: Corpus, n_experts: int, share: float) -> Routing:
    """A hash of the word, but `share` of the words have a second expert for their other label: *light*, *to light*."""
    types = np.arange(corpus.main_labels.size)
    homes = rng.integers(0, n_experts, (2, types.size))
    homes[1] = np.where(rng.random(types.size) < share, homes[1], homes[0])
    home = np.repeat(homes[1][:, None], len(LABELS), axis=1)
    home[types, corpus.main_labels] = homes[0]
    return _through_words(rng, corpus, home, n_experts)


def _through_words(
    rng: np.random.Generator, corpus: Corpus, home: NDArray[np.int64], n_experts: int, *, moved: float = 0.0
) -> Routing:
    """Follow the expert of each word and label, but for chance, and for the share of its words that a document moves.

    Args:
        rng: draws everything.
        corpus: what is sent.
        home: (types, labels) the expert of each word, with each label.
        n_experts: how many there are.
        moved: share of its words that each document sends to an expert to its own taste.
    """
    n_tokens = corpus.token_ids.size
    first = home[corpus.token_ids, corpus.labels]
    if moved:
        codes, pair = corpus.uses
        by_document = rng.standard_gamma(2.0, (corpus.domains.size, n_experts))
        elsewhere = _draw_rows(rng, by_document, codes // corpus.type_shares.size)
        first = np.where((rng.random(codes.size) < moved)[pair], elsewhere[pair], first)
    first = np.where(rng.random(n_tokens) < _LOYAL, first, rng.integers(0, n_experts, n_tokens))
    population = corpus.type_shares[:, None] * corpus.label_given_type  # (types, labels)
    codes_of_home = home * len(LABELS) + np.arange(len(LABELS))
    at_home = np.bincount(codes_of_home.ravel(), population.ravel(), n_experts * len(LABELS)).reshape(n_experts, -1)
    loyal = _LOYAL * (1 - moved)
    return _with_second(rng, corpus, first, loyal * at_home + (1 - loyal) * population.sum(axis=0) / n_experts)


def _with_second(
    rng: np.random.Generator, corpus: Corpus, first: NDArray[np.int64], joint: NDArray[np.float64]
) -> Routing:
    """The second choice is any other expert, so that its truth follows from that of the first."""
    n_experts = joint.shape[0]
    second = (first + 1 + rng.integers(0, n_experts - 1, first.size)) % n_experts
    others = (joint.sum(axis=0) - joint) / (n_experts - 1)
    return Routing(corpus, np.stack([first, second], axis=1), np.stack([joint, others]))


def _draw_rows(rng: np.random.Generator, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw an index for each of `rows`, with the weights of that row of `weights` (rows, choices)."""
    ends = np.cumsum(weights, axis=1)
    ends /= ends[:, -1:]
    # One sorted line of all rows' ends: row r occupies r to r + 1.
    line = (ends + np.arange(len(ends))[:, None]).ravel()
    drawn = np.searchsorted(line, rows + rng.random(rows.size), side="right") - rows * weights.shape[1]
    return np.minimum(drawn, weights.shape[1] - 1)


def _count(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> NDArray[np.int64]:
    return np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
