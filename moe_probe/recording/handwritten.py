"""Record routers that someone wrote by hand, from what the caller's own functions say that they chose.

What is read is copied to memory at once, call by call: a hand-written router may write over its tensors afterwards. It
does not know texts, nor how a choice is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moe_probe.errors import RoutingError
from moe_probe.recording.arranging import Arrangement, Called, arrange, may_be_time_first, read_call
from moe_probe.recording.routers import refuse_compiled
from moe_probe.recording.routing import Decisions, Routing
from moe_probe.recording.scores import Scoring, score
from moe_probe.recording.sites import Choice, RouterSite, find_places, read_choices, site_layer
from moe_probe.recording.streams import claim, release
from moe_probe.schema import DROPPED, HAND_WRITTEN, Router
from moe_probe_kernels import pack

SELF_CHECK = f"not run: {HAND_WRITTEN} router"

_LOGITS = Scoring("softmax", of_logits=True, has_bias=False, n_groups=1, n_kept_groups=1, known=True)


class _Key(NamedTuple):
    """A router: the place, the site there, and which of the choices that the site reads."""

    place: int
    site: int
    choice: int


@dataclass(eq=False)
class _Open:
    """A forward that has begun: what it was called with, and what each router chose in each call."""

    called: Called
    calls: dict[_Key, list[Choice]] = field(default_factory=dict)


class _Part(NamedTuple):
    """The decisions of one forward, a router each, without padding."""

    decisions: list[Decisions]
    sequences: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int32]


class SiteRecording:
    """Hooks on hand-written routers while its `with` block is open, and what they saw. Get one from `record`."""

    self_check = SELF_CHECK

    def __init__(self, model: nn.Module, sites: Sequence[RouterSite], *, entropy: bool = True) -> None:
        refuse_compiled(model)
        self._model = model
        self._places = find_places(model, sites)
        self._entropy = entropy
        self._time_first = may_be_time_first(model)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._open: _Open | None = None
        self._keys: list[_Key] = []  # the routers, in order, once the first forward told which there are
        self._sizes: list[tuple[int, int | None]] = []  # a router: its experts, and its slots where they are fixed
        self._scored: list[bool] = []
        self._parts: list[_Part] = []
        self._n_sequences = 0

    @property
    def routers(self) -> list[Router]:
        """The routers, as far as they were recorded.

        Where the slots are those of the token with most, they may grow until the first `take`.

        Raises:
            RoutingError: before the first forward: what a site reads tells how many routers there are.
        """
        if not self._keys:
            raise self._nothing()
        routers = []
        for index, (key, (n_experts, n_slots)) in enumerate(zip(self._keys, self._sizes, strict=True)):
            place = self._places[key.place]
            here = [one for one in self._keys if one.place == key.place]
            name = place.name if len(here) == 1 else f"{place.name}:{here.index(key)}"
            widest = n_slots or max((len(part.decisions[index].experts) for part in self._parts), default=1)
            layer = site_layer(place.name, place.sites[key.site], index)
            routers.append(Router(index, name, layer, n_experts, widest, HAND_WRITTEN))
        return routers

    def __enter__(self) -> SiteRecording:
        claim(self._model)
        plain: Callable[[Any], Any] = torch.compiler.disable
        # The sites' hooks come before the one that ends a forward: the model itself may be a site.
        self._handles = [self._model.register_forward_pre_hook(plain(self._begin), with_kwargs=True)]
        for number, place in enumerate(self._places):
            self._handles.append(place.module.register_forward_hook(plain(self._read_hook(number))))
        self._handles.append(self._model.register_forward_hook(plain(self._end)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._open = None
        release(self._model)

    def routing(self) -> Routing:
        """Return everything recorded and not yet taken.

        Raises:
            RoutingError: if no forward was recorded, or a router sent no token to any expert.
        """
        if not self._parts:
            raise self._nothing()
        routers = self.routers
        decisions = [_joined(router, [part.decisions[router.index] for part in self._parts]) for router in routers]
        for router, decided in zip(routers, decisions, strict=True):
            if decided.experts.size and (decided.experts == DROPPED).all():
                raise RoutingError(
                    f"{router.name} (router {router.index}, layer {router.layer}): none of its "
                    f"{decided.experts.shape[1]} tokens executed an expert; does read say what was executed?"
                )
        sequences = np.concatenate([part.sequences for part in self._parts])
        return Routing(routers, decisions, sequences, np.concatenate([part.positions for part in self._parts]))

    def take(self) -> Routing:
        """Return everything recorded since the last `take`, and forget it, so that memory stays flat.

        Sequence numbers go on, and the number of slots of each router stays. Raises as `routing`.
        """
        self._open = None
        taken = self.routing()
        self._sizes = [(router.n_experts, router.n_slots) for router in taken.routers]
        self._parts = []
        return taken

    # What the hooks do, in the order in which a forward calls them.

    def _begin(self, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        # A forward that is still open was left by an exception: its rows are forgotten.
        self._open = None
        self._open = _Open(read_call(model, args, kwargs))

    def _read_hook(self, number: int) -> Callable[[nn.Module, Any, Any], None]:
        place = self._places[number]

        @torch.no_grad()
        def read(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if self._open is None:
                raise RoutingError(
                    f"{place.where}: it ran outside a forward of the model that is recorded, as gradient checkpointing "
                    "does in the backward pass; record without it, or record the module that is called"
                )
            for site_number, site in enumerate(place.sites):
                for choice_number, choice in enumerate(read_choices(place, site, inputs, output)):
                    key = _Key(number, site_number, choice_number)
                    self._open.calls.setdefault(key, []).append(choice)

        return read

    @torch.no_grad()
    def _end(self, model: nn.Module, args: Any, output: Any) -> None:
        forward = self._open
        self._open = None
        if forward is None:
            raise RoutingError(
                f"{type(model).__name__}: a forward ended that recording did not see begin; open the recording before "
                "the model is called, and take from it after"
            )
        self._refuse_silent(forward)
        keys = sorted(forward.calls)
        arrangements = [self._arrange(key, forward) for key in keys]
        first = arrangements[0]
        for key, one in zip(keys, arrangements, strict=True):
            if one[:2] != first[:2]:
                raise RoutingError(
                    f"{self._places[key.place].where}: {one.batch} sequences of {one.length} rows in a forward, and "
                    f"{self._places[keys[0].place].where} {first.batch} of {first.length}; record routers of different "
                    "rows one by one"
                )
        self._learn(keys, forward)
        self._keep(keys, forward, arrangements)

    def _refuse_silent(self, forward: _Open) -> None:
        ran = {key.place for key in forward.calls}
        silent = [place for number, place in enumerate(self._places) if number not in ran]
        if silent:
            raise RoutingError(
                f"{silent[0].where}: was not called in a forward ({len(silent)} of {len(self._places)} sites were "
                "not), as under a torch.compile made before recording, or where its block was skipped; name others"
            )
        missing = [key for key in self._keys if key not in forward.calls]
        if missing:
            raise RoutingError(
                f"{self._places[missing[0].place].where}: read returned fewer routers than before; a list must be as "
                "long each time"
            )

    def _arrange(self, key: _Key, forward: _Open) -> Arrangement:
        place = self._places[key.place]
        return arrange(
            [choice.leading for choice in forward.calls[key]],
            place.sites[key.site].rows,
            forward.called,
            time_first=self._time_first,
            where=place.where,
        )

    def _learn(self, keys: list[_Key], forward: _Open) -> None:
        """Learn from the first forward which routers there are; afterwards they must stay."""
        sizes: list[tuple[int, int | None]] = []
        for key in keys:
            calls = forward.calls[key]
            slots = {choice.ids.shape[-1] for choice in calls if choice.fixed}
            experts = {choice.n_experts for choice in calls}
            if len(experts) > 1 or len(slots) > 1:
                raise RoutingError(
                    f"{self._places[key.place].where}: of {sorted(experts)} experts and {sorted(slots)} slots in one "
                    "forward; a router has the same ones each time"
                )
            sizes.append((experts.pop(), slots.pop() if slots else None))
        scored = [self._entropy and all(choice.logits is not None for choice in forward.calls[key]) for key in keys]
        if not self._keys:
            self._keys, self._sizes, self._scored = keys, sizes, scored
            return
        for key, old, new in zip(self._keys, self._sizes, sizes, strict=False):
            fits = new[1] in (None, old[1])
            widest = max(choice.ids.shape[-1] for choice in forward.calls[key])
            if keys != self._keys or old[0] != new[0] or not fits or (old[1] is not None and widest > old[1]):
                raise RoutingError(
                    f"{self._places[key.place].where}: {widest} slots of {new[0]} experts in this forward, and "
                    f"{old[1]} of {old[0]} before; give RouterSite(..., n_slots=) the most that a token can have"
                )
        if scored != self._scored:
            raise RoutingError(f"{type(self._model).__name__}: read gave logits in one forward and not in another")

    def _keep(self, keys: list[_Key], forward: _Open, arrangements: list[Arrangement]) -> None:
        first = arrangements[0]
        keep, positions = self._rows(first, forward.called.mask)
        numbers = np.arange(self._n_sequences, self._n_sequences + first.batch, dtype=np.int32)
        decisions = [
            _decided(forward.calls[key], one.order if keep is None else one.order[keep], scored)
            for key, one, scored in zip(keys, arrangements, self._scored, strict=True)
        ]
        sequences = np.repeat(numbers, first.length)
        if keep is not None:
            sequences, positions = sequences[keep], positions[keep]
        self._n_sequences += first.batch
        self._parts.append(_Part(decisions, sequences, positions))

    def _rows(
        self, rows: Arrangement, mask: torch.Tensor | None
    ) -> tuple[npt.NDArray[np.bool_] | None, npt.NDArray[np.int32]]:
        """Return which rows are kept, None for all, and the position of each, (rows,)."""
        if mask is None:
            return None, np.tile(np.arange(rows.length, dtype=np.int32), rows.batch)
        if tuple(mask.shape) != (rows.batch, rows.length):
            raise RoutingError(
                f"{type(self._model).__name__}: attention_mask {tuple(mask.shape)} does not cover {rows.batch} "
                f"sequences of {rows.length} rows"
            )
        shown = mask.numpy()
        positions = (np.cumsum(shown, axis=1) - 1).ravel().astype(np.int32)
        return (None if shown.all() else shown.ravel()), positions

    def _nothing(self) -> RoutingError:
        return RoutingError(
            f"{type(self._model).__name__}: no forward was recorded; call the model inside `with record(model, "
            "routers=...):`, and not through a torch.compile made before, which leaves hooks out"
        )


def _decided(calls: list[Choice], order: npt.NDArray[np.int64], scored: bool) -> Decisions:
    """Return what one router decided in a forward, in the order of its sequences, the heaviest slot first."""
    width = max(choice.ids.shape[-1] for choice in calls)
    rows = torch.from_numpy(np.ascontiguousarray(order))
    ids = torch.cat([_widened(choice.ids, width, DROPPED) for choice in calls])[rows]
    weights = torch.cat([_widened(choice.weights, width, 0) for choice in calls])[rows]
    packed = pack(ids[None], weights[None], id_dtype=torch.int32, dropped=DROPPED)
    entropy = margin = None
    if scored:
        logits = torch.cat([choice.logits.flatten(0, -2) for choice in calls if choice.logits is not None])[rows]
        told = score(_LOGITS, logits[None], ids[None], weights[None], None, drops=True)
        entropy, margin = told.entropy[0].numpy(), told.margin[0].numpy()
    return Decisions(packed.ids[0].numpy(), packed.weights[0].numpy(), entropy, margin)


def _widened(values: torch.Tensor, width: int, nothing: int) -> torch.Tensor:
    """Return (tokens, slots) with empty slots up to `width`."""
    flat = values.flatten(0, -2)
    return torch.nn.functional.pad(flat, (0, width - flat.shape[-1]), value=nothing)


def _joined(router: Router, parts: Sequence[Decisions]) -> Decisions:
    """Return the decisions of several forwards, with as many slots as the router has."""
    ids = [
        np.pad(one.experts, ((0, router.n_slots - len(one.experts)), (0, 0)), constant_values=DROPPED) for one in parts
    ]
    weights = [np.pad(one.weights, ((0, router.n_slots - len(one.weights)), (0, 0))) for one in parts]
    entropy = [one.entropy for one in parts if one.entropy is not None]
    margin = [one.margin for one in parts if one.margin is not None]
    return Decisions(
        np.concatenate(ids, axis=1),
        np.concatenate(weights, axis=1),
        np.concatenate(entropy) if len(entropy) == len(parts) else None,
        np.concatenate(margin) if len(margin) == len(parts) else None,
    )
