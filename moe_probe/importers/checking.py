"""Finds the traps of foreign traces: what cannot be so is left out and counted, or is an error.

Rows that are not there, or that hold an expert twice, are left out, for there is no telling what ran. What is merely
odd (experts out of order, stretches that never change) is put right or kept, and said. It does not know formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from moe_probe.errors import BadInputError
from moe_probe.importers.findings import Findings
from moe_probe.importers.kept import Form, Kept
from moe_probe.importers.trace import ABSENT, Floats, Integers, Trace
from moe_probe.importers.words import UNKNOWN_ID, Words
from moe_probe.schema import expert_bits

_CONSTANT_ROWS = 8
_ZERO_ROWS = 16
_SHARED_ROWS = 64
_MOST_PAIRED_SLOTS = 16
_MOST_TOKENS = 1_000_000
_COPIED_TOKENS = 256
_BAD_KINDS = ("ragged", "twice", "blank")


@dataclass
class Checker:
    """Checks documents one after the other, and remembers what they have in common."""

    n_experts: int | None
    words: Words
    findings: Findings = field(default_factory=Findings)
    layers: tuple[int, ...] = ()
    n_slots: int = 0
    highest: int = ABSENT
    weighted: bool | None = None
    filled: set[int] = field(default_factory=set)
    model: str | None = None
    _names: set[str] = field(default_factory=set)
    _held: npt.NDArray[np.int64] | None = None
    _held_rows: int = 0

    def check(self, trace: Trace) -> Kept:
        """Return the rows of a document that can be believed.

        Raises:
            BadInputError: if the document cannot be what a model did.
        """
        self._agree(trace)
        trace = self._fit(trace)
        experts, lowest = self._experts(trace)
        blank, zeros = _blank_layers(experts)
        there = [place for place in range(len(trace.layers)) if place not in blank]
        self.filled |= {place for place in there if place not in zeros}
        filled = experts[there] if blank else experts
        keep = self._believable(trace, filled, lowest) if there else np.ones(experts.shape[2], np.bool_)
        weights = self._weights(trace, experts, lowest)
        if weights is not None:
            experts, weights = self._sorted(trace, experts, weights, lowest)
        if not keep.all():
            experts = experts[:, :, keep]
            weights = None if weights is None else weights[:, :, keep]
        self._watch_stretches(trace, experts[there] if blank else experts)
        self._watch_shared(experts)
        return self._kept(trace, np.flatnonzero(keep), experts, weights, (blank, zeros))

    @property
    def form(self) -> Form:
        """What the documents until now have in common."""
        bits = expert_bits(self.n_experts if self.n_experts is not None else self.highest + 1)
        return Form(tuple(sorted(self.filled)), self.n_slots, bits, bool(self.weighted))

    def finish(self) -> None:
        """Say what all documents have in common, once they were checked.

        Raises:
            BadInputError: if no layer holds experts.
        """
        if not self.filled:
            raise BadInputError(
                "the trace holds no expert: every layer of it is zeros or -1, as some versions of vLLM wrote it; record"
                " again"
            )
        empty = [self.layers[place] for place in range(len(self.layers)) if place not in self.filled]
        if empty:
            self.findings.say(
                f"layers {', '.join(map(str, empty))} hold nothing but zeros or -1: they have no router, or it was not"
                " recorded; they are left out"
            )
        if self.n_experts is None:
            self.findings.say(
                f"how many experts a router has was not said: {self.highest + 1}, the highest seen and one more, is"
                " taken; experts beyond it would be missing (n_experts=)"
            )
        if not self.weighted:
            self.findings.say("the trace has no weights: the slots are in the order of the file, whatever that is")
        self._say_shared()

    def refuse_if_mostly_bad(self) -> None:
        """Refuse a trace of which more than half was left out because it cannot be so."""
        bad = {kind: self.findings.count(kind) for kind in _BAD_KINDS}
        if 2 * sum(bad.values()) > self.findings.rows:
            raise BadInputError(
                f"of {self.findings.rows:,} tokens {bad['twice']:,} have an expert twice in a layer, {bad['ragged']:,}"
                f" lack some layers, {bad['blank']:,} a layer that others have; are the axes or the sizes those of the"
                " format, and was the file written whole?"
            )

    def _agree(self, trace: Trace) -> None:
        if trace.experts.ndim != 3 or not trace.experts.size:
            raise BadInputError(f"{trace.where}: no experts; each document needs a layer, a slot and a token at least")
        if len(set(trace.layers)) != len(trace.layers) or min(trace.layers) < 0:
            raise BadInputError(f"{trace.where}: layers {list(trace.layers)} are not different numbers from 0 on")
        if len(trace.layers) != trace.experts.shape[0]:
            raise BadInputError(f"{trace.where}: {len(trace.layers)} layers named, {trace.experts.shape[0]} given")
        if self.layers and trace.layers != self.layers:
            raise BadInputError(
                f"{trace.where}: layers {_short(trace.layers)}, where the documents before have {_short(self.layers)};"
                " a run has the same routers throughout"
            )
        weighted = trace.weights is not None
        if self.weighted not in (None, weighted):
            raise BadInputError(f"{trace.where}: weights {'given' if weighted else 'lacking'}, unlike those before")
        if self.model not in (None, trace.model):
            raise BadInputError(f"{trace.where}: of model {trace.model!r}, those before of {self.model!r}")
        self.layers, self.weighted, self.model = trace.layers, weighted, trace.model
        self.n_slots = max(self.n_slots, trace.experts.shape[1])

    def _fit(self, trace: Trace) -> Trace:
        """Compare the rows with the tokens that there are."""
        rows = trace.experts.shape[2]
        said = {
            name: count
            for name, count in (
                ("token ids", None if trace.token_ids is None else len(trace.token_ids)),
                ("tokens", None if trace.pieces is None else len(trace.pieces)),
                ("tokens by its own count", trace.n_tokens),
            )
            if count is not None
        }
        if not said:
            self.findings.add("unchecked", 1, trace.where)
        for name, count in said.items():
            if count - rows not in (0, 1):
                raise BadInputError(
                    f"{trace.where}: {rows} rows of experts and {count} {name}; they must be as many, or one fewer"
                    " where the last token never ran"
                )
        self.findings.add("last", int(any(count > rows for count in said.values())), trace.where)
        if rows > _MOST_TOKENS:
            raise BadInputError(f"{trace.where}: {rows:,} tokens; a document has at most {_MOST_TOKENS:,}")
        self.findings.rows += rows
        return trace

    def _experts(self, trace: Trace) -> tuple[npt.NDArray[np.signedinteger], int]:
        """Return the experts in the narrowest type that holds them, and the lowest of them."""
        if trace.experts.dtype.kind not in "iu":
            raise BadInputError(f"{trace.where}: experts of type {trace.experts.dtype}; they must be whole numbers")
        lowest, highest = int(trace.experts.min()), int(trace.experts.max())
        if lowest < ABSENT:
            raise BadInputError(f"{trace.where}: expert {lowest}; experts are numbered from 0, and -1 means none")
        limit = self.n_experts if self.n_experts is not None else 2**31 - 2
        if highest >= limit:
            raise BadInputError(
                f"{trace.where}: expert {highest}, where a router has {limit:,}; is n_experts right, or are these"
                " physical numbers, or shared experts?"
            )
        self.highest = max(self.highest, highest)
        kind = np.int8 if highest < 2**7 else np.int16 if highest < 2**15 else np.int32
        if trace.experts.dtype == np.uint8 and kind == np.int8:
            return _contiguous(trace.experts.view(np.int8)), lowest  # the bytes are the same
        return _contiguous(trace.experts.astype(kind, order="K", copy=False)), lowest

    def _believable(self, trace: Trace, experts: npt.NDArray[np.signedinteger], lowest: int) -> npt.NDArray[np.bool_]:
        """Return which tokens have a row in each layer, without an expert twice; (layers, slots, tokens) in."""
        keep = np.ones(experts.shape[2], np.bool_)
        if lowest == ABSENT:
            empty = (experts == ABSENT).all(axis=1)  # (layers, tokens)
            nowhere, somewhere = empty.all(axis=0), empty.any(axis=0)
            self.findings.add("unrecorded", np.count_nonzero(nowhere), trace.where)
            self.findings.add("ragged", np.count_nonzero(somewhere & ~nowhere), trace.where)
            keep = ~somewhere
            dropped = np.count_nonzero((experts == ABSENT).any(axis=0) & keep)
            if dropped:
                self.findings.add("dropped", np.count_nonzero(experts[:, :, keep] == ABSENT), trace.where)
        twice = _twice(experts).any(axis=0) & keep
        self.findings.add("twice", np.count_nonzero(twice), trace.where)
        return keep & ~twice

    def _weights(self, trace: Trace, experts: Integers, lowest: int) -> Floats | None:
        weights = trace.weights
        if weights is None:
            return None
        if weights.shape != experts.shape:
            raise BadInputError(
                f"{trace.where}: weights of shape {weights.shape} for experts of shape {experts.shape} (layers, slots,"
                " tokens)"
            )
        least, most = weights.min(), weights.max()
        largest = max(abs(least), abs(most)) if least <= most else np.nan
        if not largest <= np.finfo(np.float16).max:
            raise BadInputError(f"{trace.where}: a weight of {largest}, which is no number that a run can hold")
        if least > 0 and lowest > ABSENT:
            return weights
        executed = experts != ABSENT
        self.findings.add("negative", np.count_nonzero((weights < 0) & executed), trace.where)
        without = ((weights == 0) | ~executed).all(axis=1) & executed.any(axis=1)
        self.findings.add("weightless", np.count_nonzero(without), trace.where)
        return weights if executed.all() else np.where(executed, weights, 0)

    def _sorted(
        self, trace: Trace, experts: npt.NDArray[np.signedinteger], weights: Floats, lowest: int
    ) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.float16]]:
        """Bring the heaviest first; rows in order stay, equal weights too: a file rounds what was not equal."""
        heavy = np.where(experts == ABSENT, -np.inf, weights) if lowest == ABSENT else weights
        wrong = np.zeros((heavy.shape[0], heavy.shape[2]), np.bool_)
        for slot in range(1, heavy.shape[1]):
            wrong |= heavy[:, slot] > heavy[:, slot - 1]
        if wrong.any():
            self.findings.add("unsorted", np.count_nonzero(wrong), trace.where)
            order = np.argsort(-heavy, axis=1, kind="stable")
            place = np.where(wrong[:, None], order, np.arange(experts.shape[1])[:, None])
            experts, weights = np.take_along_axis(experts, place, 1), np.take_along_axis(weights, place, 1)
        return experts, weights.astype(np.float16)

    def _watch_stretches(self, trace: Trace, experts: Integers) -> None:
        """Look for rows that are the same as the one before in all layers, many in a row."""
        if not experts.shape[0] or experts.shape[2] < _CONSTANT_ROWS:
            return
        same = np.ones(experts.shape[2] - 1, np.bool_)
        for layer in experts:
            for slot in layer:
                same &= slot[1:] == slot[:-1]
            if not same.any():
                return
        edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
        lengths = edges[1::2] - edges[::2] + 1
        self.findings.add("constant", int(lengths[lengths >= _CONSTANT_ROWS].sum()), trace.where)

    def _watch_shared(self, experts: Integers) -> None:
        """Remember which slots of which layers always hold the same expert, (layers, slots); -2: they do not."""
        if not experts.shape[2] or (self._held is not None and (self._held == -2).all()):
            return
        now = np.where((experts == experts[:, :, :1]).all(axis=2), experts[:, :, 0].astype(np.int64), -2)
        if self._held is None:
            self._held = now
        elif self._held.shape == now.shape:
            self._held = np.where(self._held == now, now, -2)
        else:
            self._held[:] = -2
        self._held_rows += experts.shape[2]

    def _say_shared(self) -> None:
        if self._held is None or self._held_rows < _SHARED_ROWS:
            return
        for place, slot in np.argwhere(self._held >= 0):
            if int(place) in self.filled:
                self.findings.say(
                    f"layer {self.layers[place]}, slot {slot}: always expert {self._held[place, slot]}; is that a"
                    " shared expert, or a router that was not recorded?"
                )

    def _kept(
        self,
        trace: Trace,
        rows: npt.NDArray[np.int64],
        experts: npt.NDArray[np.signedinteger],
        weights: npt.NDArray[np.float16] | None,
        empty: tuple[list[int], list[int]],
    ) -> Kept:
        total = trace.experts.shape[2]
        if trace.positions is not None and trace.places is None:
            self.findings.add("late", int(trace.positions[0] > trace.first), trace.where)
            self.findings.add("gaps", int(trace.positions[-1] - trace.positions[0] + 1 - total), trace.where)
        positions = np.arange(trace.first, trace.first + total) if trace.positions is None else trace.positions
        said = self.words.of(trace, rows, self.findings)
        if trace.token_ids is not None:
            ids = trace.token_ids[:total][rows]
        else:
            ids = self.words.numbers(said.pieces) if said.pieces else np.full(len(rows), UNKNOWN_ID)
            if any(said.pieces):
                self.findings.say("there are no token ids: tokens are numbered by their strings, from -2 downwards")
        blank, zeros = empty
        self.findings.add("zeros", len(zeros) if total >= _ZERO_ROWS else 0, trace.where)
        generated = np.zeros(total, np.bool_)
        if trace.n_prompt is not None:
            generated[:] = positions >= trace.n_prompt
        return Kept(
            name=self._named(trace.name),
            domain=trace.domain,
            layers=trace.layers,
            blank=tuple(blank),
            experts=experts,
            weights=weights,
            positions=positions[rows].astype(np.int32),
            places=(positions if trace.places is None else trace.places)[rows].astype(np.int32),
            token_ids=ids.astype(np.int32),
            generated=generated[rows],
            special=said.special,
            pieces=said.pieces,
            texts=said.texts,
        )

    def _named(self, name: str) -> str:
        unique, number = name, 2
        while unique in self._names:
            unique, number = f"{name} ({number})", number + 1
        self._names.add(unique)
        return unique


def _contiguous(experts: npt.NDArray[np.signedinteger]) -> npt.NDArray[np.signedinteger]:
    """Return experts in the order of their axes; so many tokens at once that they stay in the processor's cache."""
    if experts.flags.c_contiguous:
        return experts
    found = np.empty(experts.shape, experts.dtype)
    for begin in range(0, experts.shape[2], _COPIED_TOKENS):
        some = slice(begin, begin + _COPIED_TOKENS)
        found[:, :, some] = experts[:, :, some]
    return found


def _blank_layers(experts: Integers) -> tuple[list[int], list[int]]:
    """Return the layers of (layers, slots, tokens) that surely hold nothing, and those that have expert 0 throughout.

    Several slots of zeros are no choice; a single slot may have chosen expert 0 each time.
    """
    alike: dict[int, list[int]] = {ABSENT: [], 0: []}
    for place in np.flatnonzero(experts[:, 0, 0] <= 0).tolist():
        value = int(experts[place, 0, 0])
        if (experts[place, 0] == value).all() and (experts[place] == value).all():
            alike[value].append(place)
    if experts.shape[1] > 1:
        return sorted(alike[ABSENT] + alike[0]), []
    return alike[ABSENT], alike[0]


def _twice(experts: Integers) -> npt.NDArray[np.bool_]:
    """Return where a row of (layers, slots, tokens) holds an expert twice, (layers, tokens)."""
    n_slots = experts.shape[1]
    pairs = range(1, n_slots) if n_slots <= _MOST_PAIRED_SLOTS else ()
    if pairs and not any((experts[:, apart:] == experts[:, :-apart]).any() for apart in pairs):
        return np.zeros((experts.shape[0], experts.shape[2]), np.bool_)  # as nearly always
    ordered = np.sort(experts, axis=1)
    found: npt.NDArray[np.bool_] = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT)).any(axis=1)
    return found


def _short(layers: tuple[int, ...]) -> str:
    named = ", ".join(map(str, layers[:6]))
    return named if len(layers) <= 6 else f"{named} … ({len(layers)})"
