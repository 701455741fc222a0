"""One forward on its way from the model's tensors to rows in memory: what was seen, how it crosses, what it must obey.

While a forward runs, only references are kept. At its end everything is sorted and stacked on the device that holds it
and copied once; on CUDA by a side stream, while the model goes on. Nothing here waits for the device before
`Parcel.open`. It does not know hooks, nor which forwards belong together.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from moe_probe.errors import RoutingError
from moe_probe.recording.routers import Site
from moe_probe.recording.routing import Decisions
from moe_probe.recording.scores import explains, probabilities, score
from moe_probe.schema import DROPPED
from moe_probe_kernels import pack

Bools = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]

_STACKED_LOGITS = 2**26
"""Logits that are scored at once: bounds the memory of a forward's end, 256 MiB in float32 and some times that."""


_FEW_STRETCHES = 32


@dataclass(eq=False)
class Forward:
    """One open forward: its shape, what it was called with, and each router's decisions as they come."""

    batch: int
    length: int
    mask: torch.Tensor | None  # (batch, past + length), the tokenizer's
    position_ids: torch.Tensor | None
    cache: Any
    past: int | torch.Tensor
    ids: list[torch.Tensor | None] = field(repr=False)  # a router: (tokens, slots)
    weights: list[torch.Tensor | None] = field(repr=False)
    logits: list[torch.Tensor | None] = field(repr=False)  # a router: (tokens, experts)
    with_probabilities: bool = False

    def row_tensors(self) -> dict[str, torch.Tensor]:
        """Return what tells its rows apart, as far as it is held in tensors."""
        mask = None if self.mask is None else self.mask != 0
        named = {"mask": mask, "positions": self.position_ids, "past": self.past}
        return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}

    @property
    def rows_in_memory(self) -> bool:
        """Whether its rows can be told apart without waiting for a device."""
        return all(tensor.device.type == "cpu" for tensor in self.row_tensors().values())

    @property
    def on_cuda(self) -> bool:
        """Whether decisions cross from CUDA, and so arrive later."""
        return any(ids is not None and ids.is_cuda for ids in self.ids)

    @property
    def n_rows(self) -> int:
        """Batch × sequence: the rows that every router must yield, padding included."""
        return self.batch * self.length


def open_forward(stream: nn.Module, n_routers: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Forward:
    """Read what a forward is called with.

    Raises:
        RoutingError: if the batch has no recognisable shape, or its mask does not tell padding from tokens.
    """
    given = dict(kwargs)
    if args:
        given |= inspect.signature(type(stream).forward).bind_partial(stream, *args).arguments
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    if not isinstance(tokens, torch.Tensor) or tokens.dim() < 2:
        raise RoutingError(
            f"{type(stream).__name__}: called without input_ids or inputs_embeds of shape (batch, sequence, …), so "
            "that its rows cannot be told apart"
        )
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
        form = f"{mask.dim()} dimensions" if isinstance(mask, torch.Tensor) else f"type {type(mask).__name__}"
        raise RoutingError(
            f"attention_mask has {form}: padding cannot be told from tokens; pass the tokenizer's mask of shape "
            "(batch, sequence), and no static cache, which makes another of it"
        )
    positions = given.get("position_ids")
    cache = given.get("cache")
    cache = given.get("past_key_values") if cache is None else cache
    past = cache.get_seq_length() if cache is not None else 0
    return Forward(
        batch=tokens.shape[0],
        length=tokens.shape[1],
        mask=mask,
        position_ids=positions if isinstance(positions, torch.Tensor) and positions.dim() <= 2 else None,
        cache=cache,
        past=past.clone() if isinstance(past, torch.Tensor) else past,  # a static cache counts on in place
        ids=[None] * n_routers,
        weights=[None] * n_routers,
        logits=[None] * n_routers,
    )


class Rows(NamedTuple):
    """What the rows of a forward are."""

    keep: Bools | None  # (rows,) False for padding; None: there is none
    positions: npt.NDArray[np.int32]  # (rows,), padding included
    past: int


class _Group(NamedTuple):
    """Routers whose tensors can be stacked, and the keys under which they cross."""

    routers: list[int]
    key: str
    weight_dtype: torch.dtype
    scored: bool
    without_padding: bool


class Parcel:
    """A forward's decisions on their way to memory. Made at the end of the forward, opened when they are needed."""

    def __init__(self, sites: Sequence[Site], forward: Forward) -> None:
        """Stack, sort and send off."""
        self.forward = forward
        self._sites = sites
        self._groups: list[_Group] = []
        # Padding is dropped before sorting where the mask is in memory; from elsewhere it is on its way too.
        self._rows = read_rows(forward) if forward.rows_in_memory else None
        tensors = {} if self._rows is not None else forward.row_tensors()
        for number, routers in enumerate(_stackable(sites, forward)):
            self._groups.append(self._pack(str(number), routers, tensors))
        self._host, self._events = _send(tensors)

    def open(self, unproven: set[int] | None) -> tuple[Rows, list[Decisions]]:
        """Wait until the copies are there; return the rows, and each router's decisions, checked, without padding.

        Args:
            unproven: routers whose scores were found not to explain the choices. None before the first forward was
                judged: then scores that do not are left out; later they are an error.

        Raises:
            RoutingError: if what was recorded cannot be what the experts executed.
        """
        for event in self._events:
            event.synchronize()
        # Pinned memory goes back to torch: what is kept must not hold on to it.
        pinned = bool(self._events)
        arrays = {name: tensor.numpy().copy() if pinned else tensor.numpy() for name, tensor in self._host.items()}
        rows = read_rows(self.forward, arrays) if self._rows is None else self._rows
        return rows, self._decisions(arrays, rows.keep, unproven)

    def _decisions(self, arrays: Arrays, keep: Bools | None, unproven: set[int] | None) -> list[Decisions]:
        decided: list[Decisions | None] = [None] * len(self._sites)
        for group in self._groups:
            sites = [self._sites[router] for router in group.routers]
            fields = {name: arrays[f"{group.key}.{name}"] for name in ("experts", "weights", "extremes")}
            names = ("entropy", "margin", "share_error") if group.scored else ()
            scores = {name: arrays[f"{group.key}.{name}"] for name in names}
            shares = arrays.get(f"{group.key}.probabilities")  # (routers, tokens, experts)
            if keep is not None and not group.without_padding:
                fields |= {name: fields[name][..., keep] for name in ("experts", "weights")}
                scores |= {name: scores[name][..., keep] for name in names[:2]}
                shares = None if shares is None else shares[:, keep]
            # Where there is a row of probabilities to flag, logits that are no numbers are no error.
            entropy = scores.get("entropy") if shares is None else None
            check_decisions(sites, fields["experts"], fields["weights"], fields["extremes"], entropy)
            lowest = _lowest_margins(scores) if group.scored else np.zeros(0, np.float32)
            for index, site in enumerate(sites):
                scored = group.scored and _believed(
                    site, group.weight_dtype, float(lowest[index]), float(scores["share_error"][index]), unproven
                )
                decided[site.router.index] = Decisions(
                    fields["experts"][index],
                    fields["weights"][index],
                    scores["entropy"][index] if scored else None,
                    scores["margin"][index] if scored else None,
                    shares[index] if scored and shares is not None else None,
                )
        return [one for one in decided if one is not None]

    def _pack(self, key: str, routers: list[int], tensors: dict[str, torch.Tensor]) -> _Group:
        forward = self.forward
        first = self._sites[routers[0]]
        keep = None if self._rows is None else self._rows.keep
        # A column a slot, as they are kept; the views are (routers, tokens, slots).
        ids = torch.stack([_given(forward.ids[router]).T for router in routers]).transpose(1, 2)
        weights = torch.stack([_given(forward.weights[router]).T for router in routers]).transpose(1, 2)
        low, high = torch.aminmax(ids.flatten(1), dim=1)  # before the cast, which would wrap
        pick = _picker(keep) if keep is not None and ids.device.type == "cpu" else None
        if pick is not None:
            ids, weights = (
                pick(ids.transpose(1, 2), 2).transpose(1, 2),
                pick(weights.transpose(1, 2), 2).transpose(1, 2),
            )
        id_dtype = _id_dtype(first.router.n_experts)
        packed = pack(ids, weights, id_dtype=id_dtype, dropped=DROPPED if first.form.drops else None)
        tensors |= {f"{key}.experts": packed.ids, f"{key}.weights": packed.weights}
        tensors[f"{key}.extremes"] = torch.stack([low, high], dim=1)
        scoring = first.scoring
        scored = forward.logits[routers[0]] is not None and scoring is not None
        if scored and scoring is not None:
            logits = torch.stack([_given(forward.logits[router]) for router in routers])
            if pick is not None:
                logits = pick(logits, 1)
            biases = None
            if scoring.has_bias:
                biases = torch.stack([self._sites[router].bias.to(ids.device) for router in routers])
            scores = score(scoring, logits, ids, weights, biases, drops=first.form.drops)
            tensors |= {f"{key}.{name}": value for name, value in scores._asdict().items()}
            if forward.with_probabilities:
                tensors[f"{key}.probabilities"] = probabilities(scoring, logits)
        return _Group(routers, key, weights.dtype, scored, pick is not None)


def _picker(keep: Bools) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return what picks the rows that are kept along a dimension: stretch by stretch where these are few."""
    turns = (np.flatnonzero(keep[1:] != keep[:-1]) + 1).tolist()
    bounds = [0] * bool(keep[:1].any()) + turns + [len(keep)] * bool(keep[-1:].any())
    if 0 < len(bounds) <= 2 * _FEW_STRETCHES:
        stretches = [(begin, end - begin) for begin, end in zip(bounds[::2], bounds[1::2], strict=True)]
        return lambda tensor, along: torch.cat([tensor.narrow(along, *one) for one in stretches], along)
    places = torch.from_numpy(np.flatnonzero(keep))
    return lambda tensor, along: tensor.index_select(along, places)


def read_rows(forward: Forward, copied: Mapping[str, npt.NDArray[Any]] | None = None) -> Rows:
    """Return which rows of a forward are tokens, and their positions.

    Args:
        forward: what was called.
        copied: its row tensors as they arrived in memory, if they were sent; else they are waited for.

    Raises:
        RoutingError: if the mask does not cover the rows.
    """
    arrays = copied or {name: tensor.cpu().numpy() for name, tensor in forward.row_tensors().items()}
    past = int(arrays["past"]) if "past" in arrays else int(forward.past)
    batch, length = forward.batch, forward.length
    keep = None
    positions = arrays.get("positions")
    if "mask" in arrays:
        shown = arrays["mask"]
        if shown.shape[0] != batch or shown.shape[1] < past + length:
            raise RoutingError(
                f"attention_mask {shown.shape} does not cover the {past} positions in the cache and the {length} of "
                f"this forward for a batch of {batch}"
            )
        if positions is None:
            positions = (np.cumsum(shown, axis=1) - 1)[:, past : past + length]
        rows = shown[:, past : past + length].reshape(-1)
        keep = None if rows.all() else rows
    if positions is None:
        positions = np.arange(past, past + length)[None]
    return Rows(keep, np.broadcast_to(positions, (batch, length)).reshape(-1).astype(np.int32), past)


def check_decisions(
    sites: Sequence[Site],
    experts: npt.NDArray[np.signedinteger],
    weights: npt.NDArray[np.float32],
    extremes: npt.NDArray[np.integer],
    entropy: npt.NDArray[np.float32] | None,
) -> None:
    """Refuse decisions that no router can have made.

    Args:
        sites: the routers.
        experts: (routers, slots, tokens).
        weights: (routers, slots, tokens).
        extremes: (routers, 2), the lowest and highest index before any cast, padding included.
        entropy: (routers, tokens) where known; NaN where a logit is.

    Raises:
        RoutingError: naming the router and how many tokens are wrong.
    """
    n_tokens = experts.shape[-1]
    if n_tokens == 0:
        return
    for site, (low, high) in zip(sites, extremes.tolist(), strict=True):
        lowest = DROPPED if site.form.drops else 0
        if low < lowest or high >= site.router.n_experts:
            raise RoutingError(
                f"{site.where}: expert index {low if low < lowest else high} is out of range: it has "
                f"{site.router.n_experts} experts"
            )
    spoilt: Bools = np.logical_not(np.isfinite(weights).all(axis=1))  # (routers, tokens)
    if entropy is not None:
        spoilt |= np.isnan(entropy)
    _refuse(sites, spoilt, "have NaN or infinite weights or logits, so that their experts mean nothing")
    _refuse(sites, _repeats(experts), "hold the same expert twice")
    # Where slots can be dropped, all of a few tokens' may be.
    zero: Bools = np.logical_not(weights.any(axis=(1, 2))) & (experts != DROPPED).any(axis=(1, 2))
    for site, is_zero in zip(sites, zero, strict=True):
        if is_zero:
            raise RoutingError(f"{site.where}: all weights of its {n_tokens} tokens are zero; nothing was executed")


def _refuse(sites: Sequence[Site], wrong: Bools, what: str) -> None:
    """Raise for the first router with a wrong token; `wrong` is (routers, tokens)."""
    if wrong.any():
        first = int(wrong.any(axis=1).argmax())
        raise RoutingError(f"{sites[first].where}: {int(wrong[first].sum())} of {wrong.shape[1]} tokens {what}")


def _repeats(experts: npt.NDArray[np.signedinteger]) -> Bools:
    """Return which tokens hold an expert twice, (routers, tokens)."""
    n_slots = experts.shape[1]
    if n_slots > 8:  # pairs grow with the square of the slots, sorting does not
        ordered = np.sort(experts, axis=1)
        return np.asarray(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != DROPPED)).any(axis=1))
    repeats = np.zeros((experts.shape[0], experts.shape[2]), dtype=np.bool_)
    for upper in range(n_slots):
        for lower in range(upper + 1, n_slots):
            repeats |= (experts[:, upper] == experts[:, lower]) & (experts[:, upper] != DROPPED)
    return repeats


def _lowest_margins(scores: Arrays) -> npt.NDArray[np.float32]:
    """Return each router's lowest margin, (routers,), of the tokens that are not flagged or an error; else infinite."""
    lowest: npt.NDArray[np.float32] = np.where(np.isnan(scores["entropy"]), np.float32(np.inf), scores["margin"]).min(
        axis=1, initial=np.inf
    )
    return lowest


def _believed(
    site: Site, weight_dtype: torch.dtype, lowest: float, share_error: float, unproven: set[int] | None
) -> bool:
    """Say whether a router's scores explain its choices; once they did, raise where they no longer do."""
    if site.scoring is None or (unproven is not None and site.router.index in unproven):
        return False
    if explains(site.scoring, site.router.n_slots, weight_dtype, lowest, share_error):
        return True
    if unproven is None:
        return False
    raise RoutingError(
        f"{site.where}: its logits explained the executed experts before and no longer do (margin {lowest:.3g}), as "
        "when something changes its choices in between; record with entropy=False"
    )


def _stackable(sites: Sequence[Site], forward: Forward) -> list[list[int]]:
    """Return the routers in stacks of equal shapes, types, devices and scoring, none too high."""
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for index, site in enumerate(sites):
        ids, weights, logits = (_given(forward.ids[index]), _given(forward.weights[index]), forward.logits[index])
        shape_of_logits = None if logits is None else (logits.shape, logits.dtype, site.scoring)
        n_experts = site.router.n_experts
        drops = site.form.drops
        groups[ids.shape, ids.dtype, ids.device, weights.dtype, n_experts, drops, shape_of_logits].append(index)
    stacks = []
    for routers in groups.values():
        logits = forward.logits[routers[0]]
        together = len(routers) if logits is None else max(1, _STACKED_LOGITS // max(1, logits.numel()))
        stacks += [routers[start : start + together] for start in range(0, len(routers), together)]
    return stacks


def _given(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None, "a forward is packed only when all its routers have fired"
    return tensor


def _id_dtype(n_experts: int) -> torch.dtype:
    return torch.int16 if n_experts <= torch.iinfo(torch.int16).max else torch.int32


def _send(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[torch.cuda.Event]]:
    """Return the tensors in memory, and the events after which those that come from CUDA are there."""
    host = {name: tensor.cpu() for name, tensor in tensors.items() if tensor.device.type != "cuda"}
    by_device: defaultdict[torch.device, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            by_device[tensor.device].append(name)
    events = []
    for device, names in by_device.items():
        stream = _side_stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for name in names:
                source = tensors[name]
                # Pinned memory comes from a cache of torch's own: in the long run it is the same few blocks.
                host[name] = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
                host[name].copy_(source, non_blocking=True)
                source.record_stream(stream)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        events.append(event)
    return host, events


_SIDE_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _SIDE_STREAMS:
        _SIDE_STREAMS[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return _SIDE_STREAMS[device]
