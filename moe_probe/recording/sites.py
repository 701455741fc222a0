"""Sites: where a router that someone wrote by hand is read, and what may be read there.

A site names modules by a pattern and says, with a function, what such a module chose. What the function returns is
checked and brought into one form. It is believed otherwise: no code here knows what the experts do with it, so that
there is no self-check. It does not know hooks, nor which rows make a sequence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from moe_probe.errors import BadInputError, RoutingError, UnsupportedModelError
from moe_probe.recording.routers import find_number, layer_of
from moe_probe.schema import DROPPED

ROW_ORDERS = ("batch sequence", "sequence batch", "batch", "sequence")

_SIZE_NAMES = ("num_experts", "n_experts", "num_local_experts", "num_gates", "out_features")
_GATES = ("gate", "router", "to_gates")
_NAMED = 8


@dataclass(frozen=True)
class RouterSite:
    """Where a hand-written router is read, and how.

    Example:
        >>> def read(gate, inputs, logits):  # the reference code of Mixtral: softmax over the chosen two
        ...     chosen, experts = logits.topk(2)
        ...     return experts, chosen.softmax(-1)
        >>> RouterSite("layers.*.feed_forward.gate", read=read).matches("layers.3.feed_forward.gate")
        True

    Attributes:
        pattern: dotted names of modules: `*` stands for any text within one component, `**` for any components. Each
            module that it names is a router.
        read: called after each call of the module with the module, the tuple of its inputs and its output (a keyword
            argument is no part of the inputs: let the pattern name another module, or use the output). It returns

            - `(ids, weights)`, both (..., slots): whole numbers, -1 where a slot held no expert, and what each expert's
              output was multiplied by; or `(ids, weights, logits)` with logits (..., experts), of whose softmax the
              entropy is told, and of which the margin;
            - or one tensor of gates (..., experts): each expert whose gate is above 0 was executed, with that weight;
            - or a list of these, where a module holds several routers (heads, levels).
        n_experts: how many experts there are. None: the last dimension of gates or logits, or a number that the module
            itself gives (`num_experts`, a gate's `out_features`).
        n_slots: how many experts a token has at most. None: of ids their last dimension; of gates as many as the token
            with most has, of what is recorded when it is taken first.
        layer: the transformer block. None: the first number in the module's name, else the router's index.
        dense: of gates, every expert was executed whatever its gate, as in a mixture that no top-k cuts.
        rows: how the leading dimensions run: "batch sequence", "sequence batch" (time first), "batch" (each call is one
            step of every sequence) or "sequence" (each call is a part of one sequence). None: see `record`.
    """

    pattern: str
    read: Callable[[Any, tuple[Any, ...], Any], Any] = field(repr=False)
    n_experts: int | None = None
    n_slots: int | None = None
    layer: int | None = None
    dense: bool = False
    rows: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            BadInputError: naming the argument.
        """
        if not callable(self.read):
            raise BadInputError(f"RouterSite({self.pattern!r}): read is no function but {type(self.read).__name__}")
        for name, value, least in (
            ("n_experts", self.n_experts, 1),
            ("n_slots", self.n_slots, 1),
            ("layer", self.layer, 0),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BadInputError(f"RouterSite({self.pattern!r}): {name} {value!r}; give a number from {least} on")
        if self.rows is not None and self.rows not in ROW_ORDERS:
            raise BadInputError(
                f"RouterSite({self.pattern!r}): rows {self.rows!r}; choose one of {', '.join(map(repr, ROW_ORDERS))}"
            )
        if self.n_experts is not None and self.n_slots is not None and self.n_slots > self.n_experts:
            raise BadInputError(
                f"RouterSite({self.pattern!r}): {self.n_slots} slots of {self.n_experts} experts; a token has no expert"
                " twice"
            )

    def matches(self, name: str) -> bool:
        """Say whether the pattern names a module."""
        return _compiled(self.pattern).fullmatch(name) is not None


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern: each component, and a dot or the end after it."""
    parts = [
        r"(?:[^.]+(?:\.|$))*" if part == "**" else re.escape(part).replace(r"\*", "[^.]*") + r"(?:\.|$)"
        for part in pattern.split(".")
    ]
    return re.compile("".join(parts) if pattern else "")


class Place(NamedTuple):
    """A module at which some sites are read."""

    name: str
    module: nn.Module
    sites: tuple[RouterSite, ...]

    @property
    def where(self) -> str:
        """The place as messages name it."""
        return f"{self.name or 'the model itself'} ({type(self.module).__name__})"


def find_places(model: nn.Module, sites: Sequence[RouterSite]) -> list[Place]:
    """Return the modules that the sites name, in the order of the model.

    Raises:
        BadInputError: if `sites` holds something else, or nothing.
        UnsupportedModelError: if a pattern names no module, with some that there are.
    """
    if not sites or not all(isinstance(site, RouterSite) for site in sites):
        kinds = sorted({type(site).__name__ for site in sites}) or ["nothing"]
        raise BadInputError(f"routers={', '.join(kinds)}: give a list of RouterSite, one at least")
    modules = dict(model.named_modules())
    for site in sites:
        if not any(map(site.matches, modules)):
            others = [name for name in modules if re.search(r"gat|rout|moe|expert", name, re.IGNORECASE)] or list(
                modules
            )
            raise UnsupportedModelError(
                f"{type(model).__name__}: no module is named {site.pattern!r}; it has, for example, "
                + ", ".join([name for name in others if name][:_NAMED])
            )
    found = ((name, module, tuple(site for site in sites if site.matches(name))) for name, module in modules.items())
    return [Place(*each) for each in found if each[2]]


class Choice(NamedTuple):
    """What a router chose in one call, on the CPU, with the leading dimensions that the call had."""

    ids: torch.Tensor  # (..., slots) int64
    weights: torch.Tensor  # (..., slots) floating, 0 where dropped
    logits: torch.Tensor | None  # (..., experts)
    n_experts: int
    fixed: bool  # whether the number of slots is the model's, not that of the busiest token

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions."""
        return tuple(self.ids.shape[:-1])


def read_choices(place: Place, site: RouterSite, inputs: tuple[Any, ...], output: Any) -> list[Choice]:
    """Return what one call of a module chose, a choice a router.

    Raises:
        BadInputError: if `read` returns something else than choices.
        RoutingError: if no router can have chosen so.
    """
    returned = site.read(place.module, inputs, output)
    each = returned if isinstance(returned, list) else [returned]
    if not each:
        raise BadInputError(f"{place.where}: read returned an empty list; give a choice for each router")
    return [_choice(place, site, one) for one in each]


def _choice(place: Place, site: RouterSite, returned: Any) -> Choice:
    if isinstance(returned, torch.Tensor):
        return _of_gates(place, site, _copied(returned))
    parts = list(returned) if isinstance(returned, tuple) else []
    if len(parts) not in (2, 3) or not all(isinstance(part, torch.Tensor) for part in parts):
        given = ", ".join(type(part).__name__ for part in parts) or type(returned).__name__
        raise BadInputError(
            f"{place.where}: read returned ({given}); it must return (ids, weights), (ids, weights, logits), one "
            "tensor of gates, or a list of these"
        )
    return _of_ids(place, site, *(_copied(part) for part in parts))


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in memory, which the model cannot write to afterwards."""
    return tensor.detach().to("cpu", copy=True)


def _of_gates(place: Place, site: RouterSite, gates: torch.Tensor) -> Choice:
    where = place.where
    if not gates.is_floating_point() or gates.dim() < 2:
        raise BadInputError(
            f"{where}: read returned one tensor of {_said(gates)}; gates are floating numbers of shape (..., experts)"
        )
    n_experts = gates.shape[-1]
    if site.n_experts not in (None, n_experts):
        raise BadInputError(f"{where}: gates of {n_experts} experts, and n_experts={site.n_experts}")
    _refuse_no_numbers(where, gates, "gates")
    if site.dense:
        ids = torch.arange(n_experts).expand(gates.shape).contiguous()
        return Choice(ids, gates, None, n_experts, fixed=True)
    if bool((gates < 0).any()):
        raise RoutingError(
            f"{where}: a gate of {float(gates.min()):.3g}; gates are what experts' outputs are multiplied by, 0 where "
            "an expert was not executed (are these logits?), or say dense=True"
        )
    counts = (gates > 0).sum(dim=-1)
    most = int(counts.max()) if counts.numel() else 0
    n_slots = max(1, most) if site.n_slots is None else site.n_slots
    if most > n_slots:
        raise RoutingError(
            f"{where}: a token has {most} gates above 0, and n_slots={n_slots}; give n_slots={most} or more, or gates "
            "that are 0 where an expert was not executed"
        )
    # Of equal gates the lower expert is taken; those above 0 all fit.
    weights, ids = gates.sort(dim=-1, descending=True, stable=True)
    weights, ids = weights[..., :n_slots], ids[..., :n_slots]
    if weights.shape[-1] < n_slots:
        raise BadInputError(f"{where}: n_slots={n_slots} of {n_experts} experts; a token has no expert twice")
    return Choice(ids.masked_fill(weights <= 0, DROPPED), weights, None, n_experts, fixed=site.n_slots is not None)


def _of_ids(
    place: Place, site: RouterSite, ids: torch.Tensor, weights: torch.Tensor, logits: torch.Tensor | None = None
) -> Choice:
    where = place.where
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise BadInputError(
            f"{where}: ids of {_said(ids)}; experts are whole numbers (did read return (weights, ids)?)"
        )
    if not weights.is_floating_point() or weights.shape != ids.shape or ids.dim() < 2:
        raise BadInputError(
            f"{where}: ids of {_said(ids)} and weights of {_said(weights)}; both are (..., slots), the weights floating"
        )
    if site.n_slots not in (None, ids.shape[-1]):
        raise BadInputError(f"{where}: read returned {ids.shape[-1]} slots, and n_slots={site.n_slots}")
    if logits is not None and (not logits.is_floating_point() or logits.shape[:-1] != ids.shape[:-1]):
        raise BadInputError(f"{where}: logits of {_said(logits)} beside ids of {_said(ids)}; they are (..., experts)")
    ids = ids.to(torch.int64)
    n_experts = _n_experts(place, site, logits)
    _refuse_wrong_ids(where, ids, n_experts)
    _refuse_no_numbers(where, weights[ids != DROPPED], "weights")
    if logits is not None:
        _refuse_no_numbers(where, logits, "logits")
    weights = weights.masked_fill(ids == DROPPED, 0)
    if bool((ids != DROPPED).any()) and not bool(weights.any()):
        raise RoutingError(f"{where}: all weights of a call are zero; nothing was executed (-1 says so of a slot)")
    return Choice(ids, weights, logits, n_experts, fixed=True)


def _n_experts(place: Place, site: RouterSite, logits: torch.Tensor | None) -> int:
    given = None if logits is None else logits.shape[-1]
    if given is not None and site.n_experts not in (None, given):
        raise BadInputError(f"{place.where}: logits of {given} experts, and n_experts={site.n_experts}")
    holders = [place.module, *(getattr(place.module, name, None) for name in _GATES)]
    found = site.n_experts or given or find_number(_SIZE_NAMES, *holders)
    if not found:
        raise BadInputError(
            f"{place.where}: how many experts it chooses from is written nowhere; give RouterSite(..., n_experts=)"
        )
    return found


def _refuse_wrong_ids(where: str, ids: torch.Tensor, n_experts: int) -> None:
    if not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < DROPPED or high >= n_experts:
        raise RoutingError(
            f"{where}: expert index {low if low < DROPPED else high} is out of range: it has {n_experts} experts"
        )
    ordered = ids.sort(dim=-1).values
    twice = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != DROPPED)).any(dim=-1)
    if bool(twice.any()):
        raise RoutingError(f"{where}: {int(twice.sum())} of {twice.numel()} tokens hold the same expert twice")


def _refuse_no_numbers(where: str, values: torch.Tensor, what: str) -> None:
    wrong = int((~values.isfinite()).sum())
    if wrong:
        raise RoutingError(f"{where}: {wrong} {what} are NaN or infinite, so that its experts mean nothing")


def _said(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def site_layer(name: str, site: RouterSite, index: int) -> int:
    """Return the transformer block of a router."""
    return layer_of(name, index) if site.layer is None else site.layer
