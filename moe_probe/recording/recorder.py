"""Record which experts a model of transformers really executes, without changing what it returns.

Hooks read the experts' calls and, where wanted, the routers' logits. At the end of each forward everything is copied
once; the first forward of a model is checked by replaying it. It does not know texts or tokenizers, and writes nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from moe_probe.errors import BadInputError, RoutingError
from moe_probe.recording import replay
from moe_probe.recording.capture import Forward, Parcel, open_forward, read_rows
from moe_probe.recording.formats import refuse_unread_experts
from moe_probe.recording.routers import Site, check_gates, find_sites, find_stream, refuse_compiled
from moe_probe.recording.routing import Routing, join
from moe_probe.recording.streams import claim, release

__all__ = ["Recording"]

_checked: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
"""Streams whose self-check passed, with the experts implementations that it passed under."""


@dataclass(eq=False)
class _Stand:
    """Where the sequences of a forward stand when it is over: what a forward with the same cache goes on from."""

    batch: int
    keys: weakref.ref[torch.Tensor] | None
    # These follow when the forward is opened, unless that fails.
    length: int = 0  # positions in the cache
    first_sequence: int = -1


class _Sent(NamedTuple):
    """A forward that is over, on its way to memory; without a parcel where that is left to whoever opens it."""

    forward: Forward
    parcel: Parcel | None
    before: _Stand | None
    after: _Stand


class _Check(NamedTuple):
    """The rows that the self-check replays, and what the experts did with them."""

    rows: torch.Tensor  # (tokens,) among the rows of the forward
    places: torch.Tensor  # (tokens,) among the rows that are kept
    probes: dict[int, replay.Probe]
    returned: dict[int, tuple[torch.Tensor, Any]]  # by router: the hidden states it received and what it returned


class Recording:
    """Hooks on a model while its `with` block is open, and what they saw. Get one from `record`.

    `stream` is the module whose calls are the forwards; its `attention_mask` tells padding from tokens.
    """

    def __init__(
        self, model: nn.Module, *, self_check: bool | None = None, entropy: bool = True, probabilities: bool = False
    ) -> None:
        if probabilities and not entropy:
            raise BadInputError(
                "probabilities=True with entropy=False: both are made of the same logits; leave one out"
            )
        refuse_compiled(model)
        self._sites = find_sites(model)
        check_gates(self._sites)
        refuse_unread_experts(model, self._sites)
        self.routers = [site.router for site in self._sites]
        self.self_check = "not run: it was switched off" if self_check is False else "not run: no forward yet"
        self.stream = find_stream(model, self._sites)
        self._entropy = entropy
        self._probabilities = probabilities
        self._forced = bool(self_check)
        self._to_check = self_check is not False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._forward: Forward | None = None
        self._before: _Stand | None = None
        self._check: _Check | None = None
        self._sent: list[_Sent] = []
        self._parts: list[Routing] = []
        self._unproven: set[int] | None = None
        self._n_sequences = 0
        self._leaves_open = False
        self._caches: weakref.WeakKeyDictionary[Any, _Stand] = weakref.WeakKeyDictionary()

    def __enter__(self) -> Recording:
        claim(self.stream)
        self._handles = [
            self.stream.register_forward_pre_hook(_plain(self._begin), with_kwargs=True),
            self.stream.register_forward_hook(_plain(self._end)),
        ]
        for index, site in enumerate(self._sites):
            # Before the experts' hook: of some forms the experts' sum is made from what the router returned.
            if site.gate is not None and (not site.form.at_call or (self._entropy and site.scoring is not None)):
                self._handles.append(site.gate.register_forward_hook(_plain(self._gate_hook(index))))
            hook = self._experts_hook(index) if site.form.at_call else self._sum_hook(index)
            self._handles.append(site.experts.register_forward_hook(_plain(hook), with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._forward = self._check = None
        release(self.stream)

    def routing(self) -> Routing:
        """Return everything recorded and not yet taken.

        Raises:
            RoutingError: if no forward was recorded, or what came last cannot be what the experts executed.
        """
        self._open_parcels(0)
        self._parts = [self._joined(self._parts)]
        return self._parts[0]

    def take(self) -> Routing:
        """Return everything recorded since the last `take`, and forget it, so that memory stays flat.

        Sequence numbers go on. Raises as `routing`.
        """
        self._forward = self._check = None  # a forward that failed half way holds memory that a smaller one needs
        taken = self.routing()
        self._parts = []
        return taken

    def take_later(self) -> Callable[[], Routing]:
        """Do what `take` does, but leave the work to whoever calls what is returned, once.

        That may be another thread, while the model goes on; of several calls, in the order in which they were returned.
        From now on a forward in memory is only kept when it ends, and sorted, scored and checked by that call, which
        raises what is wrong with it.
        """
        self._leaves_open = True
        self._forward = self._check = None
        sent, self._sent = self._sent, []
        parts, self._parts = self._parts, []

        def take() -> Routing:
            parts.extend(map(self._open, sent))
            return self._joined(parts)

        return take

    def _joined(self, parts: Sequence[Routing]) -> Routing:
        if not parts:
            raise RoutingError(
                f"{type(self.stream).__name__}: no forward was recorded; call the model inside `with record(model):`, "
                "and not through a torch.compile made before, which leaves hooks out"
            )
        return join(parts)

    # What the hooks do, in the order in which a forward calls them.

    def _begin(self, stream: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        # A forward that is still open was left by an exception: its rows are forgotten.
        self._forward = self._check = None
        forward = open_forward(stream, len(self._sites), args, kwargs)
        forward.with_probabilities = self._probabilities
        self._before = self._find_stand(forward)
        if self._to_check:
            self._prepare_check(forward)
        self._forward = forward

    def _gate_hook(self, index: int) -> Callable[[nn.Module, Any, Any], None]:
        site = self._sites[index]
        n_scores = site.router.n_experts + (site.scoring is not None and site.scoring.skips)

        def read(gate: nn.Module, args: Any, output: Any) -> None:
            if not site.form.at_call:
                self._read_returned(index, args[0], output)
            forward = self._forward
            logits = output[site.form.logits] if isinstance(output, tuple) else output
            shape = getattr(logits, "shape", ())
            if self._entropy and forward is not None and shape[-1:] == (n_scores,):
                logits = logits if len(shape) == 2 else logits.flatten(0, -2)
                if len(logits) == forward.n_rows:
                    forward.logits[index] = _without_graph(logits)

        return read

    def _read_returned(self, index: int, hidden: torch.Tensor, output: Any) -> None:
        """Take a router's choice from what it returned, of those forms that do not call their experts with it."""
        site = self._sites[index]
        ids, weights = site.form.translate(output, None, site.router.n_slots)
        forward = _expected(site, self._forward, ids)
        forward.ids[index], forward.weights[index] = ids, _without_graph(weights)
        if self._check is not None:
            self._check.returned[index] = (hidden.detach(), output)

    def _experts_hook(self, index: int) -> Callable[[nn.Module, Any, Any, Any], None]:
        site = self._sites[index]

        def read(experts: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            # A forward hook sees the call as the last pre-hook left it, so also what an intervention made of it.
            hidden, ids, weights = site.read_choice(args, kwargs)
            forward = _expected(site, self._forward, ids)
            forward.ids[index], forward.weights[index] = ids, _without_graph(weights)
            if self._check is not None:
                rows = self._check.rows.to(hidden.device)
                self._check.probes[index] = replay.Probe(_take(hidden, rows), _take(output, rows))

        return read

    def _sum_hook(self, index: int) -> Callable[[nn.Module, Any, Any, Any], None]:
        """Keep for the self-check what experts returned whose choice was read at the router."""
        combine = self._sites[index].form.combine

        def read(experts: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if self._check is None or index not in self._check.returned:
                return
            assert combine is not None, "a form that reads the router says how its experts' outputs are added up"
            hidden, returned = self._check.returned.pop(index)
            hidden = hidden.flatten(0, -2)
            rows = self._check.rows.to(hidden.device)
            self._check.probes[index] = replay.Probe(
                hidden[rows], combine(returned, output, len(hidden))[rows].detach()
            )

        return read

    @torch.no_grad()
    def _end(self, stream: nn.Module, args: Any, output: Any) -> None:
        forward, check = self._forward, self._check
        self._forward = self._check = None
        if forward is None:
            raise RoutingError(
                f"{type(stream).__name__}: a forward ended that recording did not see begin; open the recording before "
                "the model is called, and take from it after"
            )
        silent = [site for site, ids in zip(self._sites, forward.ids, strict=True) if ids is None]
        if silent:
            raise RoutingError(
                f"{silent[0].where}: yielded no rows in a forward of {forward.n_rows} ({len(silent)} of "
                f"{len(self._sites)} routers did so): its experts ran without being called, as under a torch.compile "
                "made before recording, use_kernels=True or MXFP4 kernels; load the model without them"
            )
        after = self._keep_stand(forward, output)
        late = self._leaves_open and check is None and not forward.on_cuda
        self._sent.append(_Sent(forward, None if late else Parcel(self._sites, forward), self._before, after))
        if late:
            return
        # One step behind on CUDA, so that the copies of a forward run beside the next one.
        self._open_parcels(1 if forward.on_cuda and check is None else 0)
        if check is not None:
            self._run_check(check)

    # From one forward to the next.

    def _find_stand(self, forward: Forward) -> _Stand | None:
        """Return where the sequences stand that a forward goes on with, None where it begins new ones."""
        before = self._caches.get(forward.cache) if forward.cache is not None else None
        if before is None or (isinstance(forward.past, int) and forward.past == 0):
            return None
        moved = before.keys is not None and before.keys() is not _first_keys(forward.cache)
        if before.batch != forward.batch:
            raise RoutingError(_rearranged(f"a batch of {before.batch} became one of {forward.batch}"))
        if moved:
            raise RoutingError(_rearranged("its first layer holds other keys"))
        return before

    def _keep_stand(self, forward: Forward, output: Any) -> _Stand:
        """Remember by its cache where a forward's sequences stand."""
        cache = forward.cache
        if cache is None:
            values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else ()
            cache = next((value for value in values if hasattr(value, "get_seq_length")), None)
        keys = _first_keys(cache)
        stand = _Stand(forward.batch, None if keys is None else weakref.ref(keys))
        if cache is not None:
            self._caches[cache] = stand
        return stand

    def _open_parcels(self, left: int) -> None:
        """Turn all but the last `left` forwards into rows."""
        while len(self._sent) > left:
            self._parts.append(self._open(self._sent.pop(0)))

    @torch.no_grad()
    def _open(self, sent: _Sent) -> Routing:
        """Turn a forward into rows."""
        forward, parcel, before, after = sent
        rows, decisions = (parcel or Parcel(self._sites, forward)).open(self._unproven)
        after.length = rows.past + forward.length
        if before is None or before.first_sequence < 0 or not rows.past:
            after.first_sequence = self._n_sequences
            self._n_sequences += after.batch
        elif before.length == rows.past:
            after.first_sequence = before.first_sequence
        else:
            raise RoutingError(_rearranged(f"positions {before.length} to {rows.past}"))
        numbers = np.arange(after.first_sequence, after.first_sequence + after.batch, dtype=np.int32)
        sequences = np.repeat(numbers, forward.length)
        positions = rows.positions
        if rows.keep is not None:
            sequences, positions = sequences[rows.keep], positions[rows.keep]
        if self._unproven is None and len(sequences):
            self._unproven = {index for index, one in enumerate(decisions) if one.entropy is None}
        return Routing(self.routers, decisions, sequences, positions)

    # The self-check.

    def _prepare_check(self, forward: Forward) -> None:
        """Choose the rows to replay, or say why none are."""
        reason = next((reason for reason in map(replay.obstacle, self._sites) if reason), None)
        if reason is not None:
            if self._forced:
                raise RoutingError(f"{type(self.stream).__name__}: self_check=True cannot be done: {reason}")
            self.self_check, self._to_check = f"not run: {reason}", False
            return
        if not self._forced and self._implementation() in _checked.get(self.stream, ()):
            self.self_check, self._to_check = "passed earlier", False
            return
        keep = read_rows(forward).keep
        kept = np.arange(forward.n_rows) if keep is None else np.flatnonzero(keep)
        if len(kept):
            places = np.unique(np.linspace(0, len(kept) - 1, replay.MAX_ROWS).round().astype(np.int64))
            self._check = _Check(torch.from_numpy(kept[places]), torch.from_numpy(places), {}, {})

    def _run_check(self, check: _Check) -> None:
        """Replay the last forward's chosen rows from what was recorded of them."""
        routing = self._parts[-1]
        try:
            for index, site in enumerate(self._sites):
                experts = torch.from_numpy(routing.experts(index))[check.places]
                weights = torch.from_numpy(routing.weights(index))[check.places]
                replay.check(site, check.probes[index], experts, weights)
        except RoutingError:
            self._parts.pop()
            self.self_check = "failed"
            raise
        _checked.setdefault(self.stream, set()).add(self._implementation())
        self.self_check, self._to_check = "passed", False

    def _implementation(self) -> str:
        """Return how the model runs its experts, as far as it has a choice."""
        config = getattr(self._sites[0].experts, "config", None)
        return str(getattr(config, "_experts_implementation", None))


def _plain(hook: Callable[..., None]) -> Callable[..., None]:
    """Return a hook that stays outside of what is compiled, where the model is compiled inside the block.

    Elsewhere it is called as it is: what torch puts around it takes longer than the hook itself.
    """
    disable: Callable[[Callable[..., None]], Callable[..., None]] = torch.compiler.disable
    outside = disable(hook)

    def call(*args: Any) -> None:
        (outside if torch.compiler.is_compiling() else hook)(*args)

    return call


def _without_graph(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def _expected(site: Site, forward: Forward | None, ids: torch.Tensor) -> Forward:
    """Return the open forward, if a router may yield these rows in it.

    Raises:
        RoutingError: if a router would not yield batch × sequence rows in a forward.
    """
    if forward is None:
        raise RoutingError(
            f"{site.where}: its experts ran outside a forward of the model, as gradient checkpointing does in the "
            "backward pass; record without it"
        )
    given = forward.ids[site.router.index]
    n_rows = len(ids) + (0 if given is None else len(given))
    if n_rows != forward.n_rows:
        raise RoutingError(
            f"{site.where}: yielded {n_rows} rows in a forward of {forward.batch} × {forward.length} = "
            f"{forward.n_rows}, as where a block runs twice or leaves tokens out; its rows cannot be told apart"
        )
    if ids.shape[1] != site.router.n_slots:
        raise RoutingError(f"{site.where}: sent a token to {ids.shape[1]} experts, not {site.router.n_slots}")
    return forward


def _take(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the chosen rows of hidden states (…, hidden), (tokens, hidden)."""
    return states.detach().flatten(0, -2)[rows]


def _rearranged(change: str) -> str:
    return (
        f"the cache was rearranged between two forwards ({change}), as beam search and assisted decoding do: its rows "
        "are other sequences now; generate without recording, then record one forward over the finished sequences"
    )


def _first_keys(cache: Any) -> torch.Tensor | None:
    """Return the keys of a cache's first layer that has any."""
    found = (getattr(layer, "keys", None) for layer in getattr(cache, "layers", ()))
    return next((keys for keys in found if isinstance(keys, torch.Tensor)), None)
