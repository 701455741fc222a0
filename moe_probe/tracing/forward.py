"""Runs a model over batches of windows and gives back what was recorded.

The model runs without its head, which would cost a matrix product of the size of the vocabulary for every token. What
was recorded on CUDA is taken some batches later, so that nobody waits for the device in between; elsewhere a thread may
sort it while the model sees the next batch. Where memory is too
small a batch is halved, and halved again. It does not know documents, labels or files.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moe_probe.errors import MoeProbeError, RoutingError, UnsupportedModelError
from moe_probe.models import LanguageModel
from moe_probe.recording import Recording, record
from moe_probe.recording.routing import Decisions, Routing
from moe_probe.store.plan import Windowing
from moe_probe.tracing.batches import Batch, PlacedWindow, assemble, halve
from moe_probe.tracing.causal import looks_ahead, without_mask
from moe_probe.tracing.profile import COPY, IDLE, MODEL, SORT, Stopwatch

_LOGITS_AT_ONCE = 2**25
_PROBE_TOKENS = 8

HELD_BYTES = 64 * 2**20
"""Of so much recorded routing the rows may wait until they are taken, where taking waits for the device."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of one forward: the routing of every token of a batch, and the surprisal of every kept one."""

    batch: Batch
    routing: Routing
    surprisal: npt.NDArray[np.float32] | None
    halved: bool
    """Whether memory was too small for the batch that its windows should have shared."""


@dataclass(frozen=True, eq=False)
class _Held:
    """A batch that the model has seen, and whose routing is still the recorder's."""

    batch: Batch
    surprisal: torch.Tensor | None


@dataclass(eq=False)
class ForwardPass:
    """A model under recording, ready to run over batches.

    Attributes:
        prefix: the special tokens at each window's start.
        surprisal: whether to compute the surprisal of each token.
        held_bytes: of so much recorded routing the rows may wait; 0 takes them after every batch.
        sorter: a thread that sorts, scores and checks what was recorded of a batch beside the model; None for none.
        limit: tokens that fit into memory at once, if a batch did not.
    """

    lm: LanguageModel
    windowing: Windowing
    prefix: Sequence[int]
    surprisal: bool
    recording: Recording
    clock: _Clock
    held_bytes: int
    sorter: Executor | None = None
    limit: int | None = field(default=None, init=False)
    _held: list[_Held] = field(default_factory=list, init=False)
    _sorted: Future[list[Outcome]] | None = field(default=None, init=False)

    @property
    def self_check(self) -> str:
        """What the recorder's self-check said, whether it was made now or earlier for the same model."""
        check = self.recording.self_check
        return "passed" if check.startswith("passed") else check

    def run(
        self, groups: Iterable[Sequence[PlacedWindow]], ids_of: Mapping[int, npt.NDArray[np.int32]]
    ) -> Iterator[Outcome]:
        """Yield what came out for groups of windows that should share a batch: one outcome, more where memory is small.

        Raises:
            MoeProbeError: if a single window does not fit into memory.
            RoutingError: if the recorder did not see each token once.
        """
        self._held, self._sorted = [], None
        for windows in groups:
            yield from self._run(assemble(windows, self.windowing, self.prefix, ids_of), ids_of)
        yield from self._take_all()

    def _run(self, batch: Batch, ids_of: Mapping[int, npt.NDArray[np.int32]]) -> Iterator[Outcome]:
        if self.limit is not None and batch.ids.size > self.limit and len(batch.windows) > 1:
            yield from self._take_all()
            yield from self._run_halves(batch, ids_of)
        elif self._try(batch):
            if sum(held.batch.n_tokens for held in self._held) * self._bytes_per_token >= self.held_bytes:
                yield from self._take()
        elif self._held:
            # What the failed forward left can no longer be told from what waited: all are run again, one by one.
            again, self._held = [*(held.batch for held in self._held), batch], []
            yield from self._take_all()
            for one in again:
                yield from self._run_alone(one, ids_of)
        else:
            yield from self._take_all()
            yield from self._shrink(batch, ids_of)

    def _run_alone(self, batch: Batch, ids_of: Mapping[int, npt.NDArray[np.int32]]) -> Iterator[Outcome]:
        """Run a batch while nothing waits."""
        if self._try(batch):
            yield from self._take_all()
        else:
            yield from self._shrink(batch, ids_of)

    def _shrink(self, batch: Batch, ids_of: Mapping[int, npt.NDArray[np.int32]]) -> Iterator[Outcome]:
        """Run what did not fit in halves, and from now on nothing larger than they are."""
        if len(batch.windows) == 1:
            raise MoeProbeError(
                f"{self.lm.name}: out of memory on {self.lm.device} in a window of {batch.n_tokens} tokens; use a"
                f" shorter --context than {self.windowing.context}, or load the model in fewer bits"
            )
        self.limit = min(self.limit or batch.ids.size, max(1, batch.ids.size // 2))
        yield from self._run_halves(batch, ids_of)

    def _run_halves(self, batch: Batch, ids_of: Mapping[int, npt.NDArray[np.int32]]) -> Iterator[Outcome]:
        for windows in halve(batch.windows):
            half = assemble(windows, self.windowing, self.prefix, ids_of)
            too_large = self.limit is not None and half.ids.size > self.limit and len(windows) > 1
            for outcome in self._run_halves(half, ids_of) if too_large else self._run_alone(half, ids_of):
                yield replace(outcome, halved=True)

    def _try(self, batch: Batch) -> bool:
        """Return whether memory was large enough for a batch; then its routing waits to be taken."""
        try:
            self._held.append(self._forward(batch))
            return True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the error and with it the tensors of the failed forward are gone.
        with suppress(RoutingError):
            self.recording.take()  # to forget it
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _forward(self, batch: Batch) -> _Held:
        with torch.inference_mode():
            with self.clock.forward():
                hidden = decode(self.lm, batch)
            with self.clock.stopwatch.part(MODEL):
                return _Held(batch, surprisal_nats(self.lm, hidden, batch) if self.surprisal else None)

    def _take_all(self) -> Iterator[Outcome]:
        """Yield what waited and what is being sorted."""
        yield from self._take()
        yield from self._finish_sorting(None)

    def _take(self) -> Iterator[Outcome]:
        """Yield what waited; with a thread that sorts, what waited before."""
        held, self._held = self._held, []
        if not held:
            return
        with self.clock.stopwatch.part(MODEL):
            self.clock.wait()
        if self.sorter is None:
            yield from self._open(held, self.recording.take, COPY)
        else:
            yield from self._finish_sorting(self.sorter.submit(self._open, held, self.recording.take_later(), SORT))

    def _finish_sorting(self, following: Future[list[Outcome]] | None) -> Iterator[Outcome]:
        """Yield what was being sorted when this followed it."""
        before, self._sorted = self._sorted, following
        if before is not None:
            with self.clock.stopwatch.part(IDLE):
                outcomes = before.result()
            yield from outcomes

    def _open(self, held: Sequence[_Held], take: Callable[[], Routing], part: str) -> list[Outcome]:
        with self.clock.stopwatch.part(part):
            routing = take()
            expected = sum(one.batch.n_tokens for one in held)
            if routing.n_tokens != expected:
                batches = "a batch" if len(held) == 1 else f"{len(held)} batches"
                raise RoutingError(
                    f"{self.lm.name}: {routing.n_tokens} tokens were recorded of {batches} of {expected};"
                    " this is a fault, please report it"
                )
            outcomes = []
            first = 0
            for one in held:
                bits = None if one.surprisal is None else _to_bits(one.surprisal)
                outcomes.append(Outcome(one.batch, _rows(routing, first, one.batch.n_tokens), bits, halved=False))
                first += one.batch.n_tokens
            return outcomes

    @property
    def _bytes_per_token(self) -> int:
        """What the recorder holds of a token: experts in 2 bytes, weights, entropy and margin in 4."""
        return sum(6 * router.n_slots + 8 for router in self.recording.routers)


@contextmanager
def open_forward(
    lm: LanguageModel,
    windowing: Windowing,
    prefix: Sequence[int],
    *,
    surprisal: bool,
    stopwatch: Stopwatch,
    probabilities: bool = False,
    scores: bool = True,
    threaded: bool = False,
) -> Iterator[ForwardPass]:
    """Record a model while the block is open; without `scores`, no entropy and margin.

    What is recorded comes a batch later where it is `threaded`: sorted beside the model, if that is on no GPU and
    leaves a processor for it.

    Raises:
        UnsupportedModelError: if its routers cannot be read, or its head is no plain one and surprisal is wanted.
    """
    if surprisal:
        check_head(lm)
    lm.model.eval()  # type: ignore[no-untyped-call]  # dropout and router noise off
    clock = _Clock(stopwatch, lm.device)
    causal = not looks_ahead(decoder(lm), _device(lm))
    handle = decoder(lm).register_forward_hook(clock.model_ended)  # before the recorder's, which sorts and sends
    try:
        with (
            record(lm.model, entropy=scores, probabilities=probabilities) as recording,
            ThreadPoolExecutor(1, "sorter") as sorter,
            # The recorder, whose hook was there before, still sees which rows are padding.
            without_mask(decoder(lm)) if causal and recording.stream is decoder(lm) else nullcontext(),
        ):
            on_gpu = lm.device.type == "cuda"
            # Probabilities of many experts are too large to wait.
            held_bytes = HELD_BYTES if on_gpu and not probabilities else 0
            beside = sorter if threaded and not on_gpu and not probabilities and leaves_processor() else None
            yield ForwardPass(lm, windowing, prefix, surprisal, recording, clock, held_bytes, beside)
    finally:
        handle.remove()


def leaves_processor() -> bool:
    """Say whether the model's own threads leave a processor to a thread beside them, which else only disturbs them."""
    return torch.get_num_threads() < (os.cpu_count() or 1)


class _Clock:
    """Tells the model's time from the recorder's, which sorts and sends in a hook when the model has ended.

    On CUDA the recorder then waits for the forward before, and `take` for the last one: that time is the model's.
    """

    def __init__(self, stopwatch: Stopwatch, device: torch.device) -> None:
        self.stopwatch = stopwatch
        self._device = device
        self._recorder = ExitStack()
        self._queued: torch.cuda.Event | None = None

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Charge a forward to the model until it ends, and what follows to the recorder."""
        with self.stopwatch.part(MODEL), self._recorder:
            yield
        if self._device.type == "cuda":
            self._queued = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._queued.record(torch.cuda.current_stream(self._device))

    def model_ended(self, model: nn.Module, args: object, output: object) -> None:
        """Hear from the model that it has ended; what it queued on CUDA may still be going on."""
        self.wait()
        self._recorder.enter_context(self.stopwatch.part(COPY))

    def wait(self) -> None:
        """Wait for the last forward that was queued on CUDA, if there is one."""
        if self._queued is not None:
            self._queued.synchronize()
            self._queued = None


def decoder(lm: LanguageModel) -> nn.Module:
    """Return the model without its head; the model itself where it has no inner one."""
    inner: nn.Module = lm.model.base_model
    return inner


def decode(lm: LanguageModel, batch: Batch) -> torch.Tensor:
    """Return the last hidden states of a batch, (windows, tokens, hidden), from the model without its head."""
    device = _device(lm)
    ids = _send(batch.ids, device)
    positions = torch.arange(ids.shape[1], device=device).expand_as(ids)
    mask = _send(batch.mask, device) if batch.is_padded else None
    hidden: torch.Tensor = decoder(lm)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
    return hidden


def _device(lm: LanguageModel) -> torch.device:
    """Return `lm.device`, which looks through all parameters, at the cost of one where one tells."""
    embedding: nn.Module = lm.model.get_input_embeddings()
    first = next((parameter.device for parameter in embedding.parameters()), None)
    return lm.device if first is None or first.type == "meta" else first


def _send(array: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Return an array on a device; on CUDA from pinned memory, so that nobody waits for the forward before."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not enough memory, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


def surprisal_bits(lm: LanguageModel, hidden: torch.Tensor, batch: Batch) -> npt.NDArray[np.float32]:
    """Return the surprisal of each kept token, (kept,), in bits, from the logits at the token before it.

    Not a number for the first token of a window, which has none before it.
    """
    return _to_bits(surprisal_nats(lm, hidden, batch))


def surprisal_nats(lm: LanguageModel, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the surprisal of each kept token, (kept,), in nats, where the hidden states are; see `surprisal_bits`."""
    lines, places = np.nonzero(batch.mask)  # in the recorder's order
    lines, places = lines[batch.kept], places[batch.kept]
    later = np.flatnonzero(places > 0)
    at, chosen, before, row = (
        _send(array, hidden.device)
        for array in (later, batch.ids[lines[later], places[later]], places[later] - 1, lines[later])
    )
    nats = torch.full((len(places),), math.nan, device=hidden.device)
    head = _head_of(lm)
    at_once = max(1, _LOGITS_AT_ONCE // lm.model.config.get_text_config().vocab_size)
    for start in range(0, len(later), at_once):
        part = slice(start, start + at_once)
        logits = head(hidden[row[part], before[part]]).float()
        own = logits.gather(1, chosen[part].to(logits.device)[:, None])[:, 0]
        nats[at[part]] = (torch.logsumexp(logits, 1) - own).to(hidden.device)
    return nats


def _to_bits(nats: torch.Tensor) -> npt.NDArray[np.float32]:
    bits: npt.NDArray[np.float32] = (nats.cpu() / math.log(2)).numpy()
    return bits


def _rows(routing: Routing, first: int, count: int) -> Routing:
    """Return some rows of what was recorded, without copying."""
    if count == routing.n_tokens:
        return routing
    rows = slice(first, first + count)
    decisions = [
        Decisions(
            one.experts[:, rows],
            one.weights[:, rows],
            None if one.entropy is None else one.entropy[rows],
            None if one.margin is None else one.margin[rows],
            None if one.probabilities is None else one.probabilities[rows],
        )
        for one in routing.decisions
    ]
    return Routing(routing.routers, decisions, routing.sequences[rows], routing.positions[rows])


def check_head(lm: LanguageModel) -> None:
    """Refuse a model whose logits are not its head of the last hidden states, for their surprisal would be wrong.

    Raises:
        UnsupportedModelError: naming the model.
    """
    ids = torch.arange(_PROBE_TOKENS, device=lm.device)[None] % lm.model.config.get_text_config().vocab_size
    with torch.inference_mode():
        expected = lm.model(input_ids=ids, use_cache=False).logits.float()
        hidden = decoder(lm)(input_ids=ids, use_cache=False)[0]
        found = _head_of(lm)(hidden).float().to(expected.device)
    tolerance = float(expected.abs().max()) * 1e-3  # rounding, not another formula
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=tolerance, rtol=0):
        raise UnsupportedModelError(
            f"{lm.name}: the logits of {type(lm.model).__name__} are not those of its head alone, so that surprisal"
            " cannot be computed apart from them; trace without --surprisal"
        )


def _head_of(lm: LanguageModel) -> Callable[[torch.Tensor], torch.Tensor]:
    head: nn.Module | None = lm.model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None:
        raise UnsupportedModelError(f"{lm.name}: {type(lm.model).__name__} has no head; trace without --surprisal")
    scaling = float(getattr(lm.model.config.get_text_config(), "logits_scaling", 1.0) or 1.0)

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = head(hidden)
        return found / scaling

    return logits
