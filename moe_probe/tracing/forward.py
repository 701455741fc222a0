"""Runs a model over batches of windows and gives back what was recorded.

The model runs without its head, which would cost a matrix product of the size of the vocabulary for every token. Where
memory is too small a batch is halved, and halved again. It does not know documents, labels or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moe_probe.errors import MoeProbeError, RoutingError, UnsupportedModelError
from moe_probe.models import LanguageModel
from moe_probe.recording import Recording, record
from moe_probe.recording.routing import Routing
from moe_probe.store.plan import Windowing
from moe_probe.tracing.batches import Batch, PlacedWindow, assemble, halve

_LOGITS_AT_ONCE = 2**25
_PROBE_TOKENS = 8


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came out of one forward: the routing of every token of a batch, and the surprisal of every kept one."""

    batch: Batch
    routing: Routing
    surprisal: npt.NDArray[np.float32] | None
    halved: bool
    """Whether memory was too small for the batch that its windows should have shared."""


@dataclass(eq=False)
class ForwardPass:
    """A model under recording, ready to run over batches.

    Attributes:
        prefix: the special tokens at each window's start.
        surprisal: whether to compute the surprisal of each token.
        limit: tokens that fit into memory at once, if a batch did not.
    """

    lm: LanguageModel
    windowing: Windowing
    prefix: Sequence[int]
    surprisal: bool
    recording: Recording
    limit: int | None = field(default=None, init=False)
    _depth: int = field(default=0, init=False)

    @property
    def self_check(self) -> str:
        """What the recorder's self-check said, whether it was made now or earlier for the same model."""
        check = self.recording.self_check
        return "passed" if check.startswith("passed") else check

    def run(self, windows: Sequence[PlacedWindow], ids_of: Mapping[int, npt.NDArray[np.int32]]) -> Iterator[Outcome]:
        """Yield what came out for windows that should share a batch; more than one outcome where memory is small.

        Raises:
            MoeProbeError: if a single window does not fit into memory.
            RoutingError: if the recorder did not see each token once.
        """
        batch = assemble(windows, self.windowing, self.prefix, ids_of)
        if self.limit is not None and batch.ids.size > self.limit and len(windows) > 1:
            yield from self._run_halves(windows, ids_of)
            return
        outcome = self._try(batch)
        if outcome is not None:
            yield outcome
            return
        if len(windows) == 1:
            raise MoeProbeError(
                f"{self.lm.name}: out of memory on {self.lm.device} in a window of {batch.n_tokens} tokens; use a"
                f" shorter --context than {self.windowing.context}, or load the model in fewer bits"
            )
        # Half of what was too much, so that the next batches do not fail first.
        self.limit = min(self.limit or batch.ids.size, max(1, batch.ids.size // 2))
        yield from self._run_halves(windows, ids_of)

    def _run_halves(
        self, windows: Sequence[PlacedWindow], ids_of: Mapping[int, npt.NDArray[np.int32]]
    ) -> Iterator[Outcome]:
        self._depth += 1
        try:
            for half in halve(windows):
                yield from self.run(half, ids_of)
        finally:
            self._depth -= 1

    def _try(self, batch: Batch) -> Outcome | None:
        """Return what came out, or None where memory was too small."""
        try:
            return self._forward(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Here the error and with it the tensors of the failed forward are gone.
        with suppress(RoutingError):
            self.recording.take()
        if self.lm.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _forward(self, batch: Batch) -> Outcome:
        with torch.inference_mode():
            hidden = decode(self.lm, batch)
            routing = self.recording.take()
            if routing.n_tokens != batch.n_tokens:
                raise RoutingError(
                    f"{self.lm.name}: {routing.n_tokens} tokens were recorded of a batch of {batch.n_tokens};"
                    " this is a fault, please report it"
                )
            bits = surprisal_bits(self.lm, hidden, batch) if self.surprisal else None
        return Outcome(batch, routing, bits, halved=self._depth > 0)


@contextmanager
def open_forward(
    lm: LanguageModel, windowing: Windowing, prefix: Sequence[int], *, surprisal: bool
) -> Iterator[ForwardPass]:
    """Record a model while the block is open.

    Raises:
        UnsupportedModelError: if its routers cannot be read, or its head is no plain one and surprisal is wanted.
    """
    if surprisal:
        check_head(lm)
    lm.model.eval()  # type: ignore[no-untyped-call]  # dropout and router noise off
    with record(lm.model) as recording:
        yield ForwardPass(lm, windowing, prefix, surprisal, recording)


def decoder(lm: LanguageModel) -> nn.Module:
    """Return the model without its head; the model itself where it has no inner one."""
    inner: nn.Module = lm.model.base_model
    return inner


def decode(lm: LanguageModel, batch: Batch) -> torch.Tensor:
    """Return the last hidden states of a batch, (windows, tokens, hidden), from the model without its head."""
    ids = torch.from_numpy(batch.ids).to(lm.device)
    positions = torch.arange(ids.shape[1], device=lm.device).expand_as(ids)
    mask = torch.from_numpy(batch.mask).to(lm.device) if batch.is_padded else None
    hidden: torch.Tensor = decoder(lm)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)[0]
    return hidden


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
    ids = torch.from_numpy(batch.ids)
    lines, places = (torch.from_numpy(axis) for axis in np.nonzero(batch.mask))  # in the recorder's order
    lines, places = lines[batch.kept], places[batch.kept]
    bits = torch.full((len(places),), math.nan)
    later = torch.nonzero(places > 0)[:, 0]
    head = _head_of(lm)
    vocabulary = lm.model.config.get_text_config().vocab_size
    for part in torch.split(later, max(1, _LOGITS_AT_ONCE // vocabulary)):
        before = hidden[lines[part].to(hidden.device), places[part].to(hidden.device) - 1]
        logits = head(before).float()
        chosen = ids[lines[part], places[part]].to(logits.device)
        nats = torch.logsumexp(logits, 1) - logits.gather(1, chosen[:, None])[:, 0]
        bits[part] = nats.cpu() / math.log(2)
    return bits.numpy()


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
