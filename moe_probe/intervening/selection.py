"""Interventions in the choice itself: an expert that cannot be chosen, so that the next one takes its place.

The router computes as ever, with -10,000 on the expert's selection score: on the correction bias where the router has
one (DeepSeek-V3 and its kin add it to the scores that top-k and groups are taken of), else on its logits. Weights are
what the router makes of the experts that it then chooses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from moe_probe.errors import BadInputError, RoutingError, UnsupportedModelError
from moe_probe.intervening.places import check_experts, find_place
from moe_probe.recording.routers import Site
from moe_probe.recording.scores import BIAS_NAME

_BANNED = -1e4
_LINEAR = (nn.functional.linear, torch.matmul, torch.Tensor.matmul)
_UNDEFINED = ("hash", "one-hot", "unknown")


@contextmanager
def reroute(
    model: nn.Module, layer: int | None = None, experts: Sequence[int] = (), *, router: int | None = None
) -> Iterator[None]:
    """Make experts unselectable: wherever one would have been chosen, the next best takes its place.

    Equal to a selection bias of -10,000. The sum of a token's weights is whatever the router gives the experts that it
    then chooses: 1 for Mixtral, the lesser sum of their probabilities where it does not normalise. Where a router picks
    groups first, a group loses what the expert contributed to its score.

    Args:
        model: a model in which `find_routers` finds routers.
        layer: the transformer block, where it has one router.
        experts: the experts' indices; enough others must be left.
        router: the router's index, instead of `layer`.

    Raises:
        BadInputError: no such layer, router or expert, or too few experts are left.
        UnsupportedModelError: the router cannot be read, does not choose by scores, keeps them where they cannot be
            changed, or the model is compiled already.
        RoutingError: during a forward, if the router chose a banned expert all the same.
    """
    site = find_place(model, layer, router)
    banned = check_experts(site, experts)
    with _banned(site, banned):
        plain: Any = torch.compiler.disable
        handle = site.experts.register_forward_hook(plain(_check(site, banned)), with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class _Ban:
    """The experts of one router that cannot be chosen, over all open interventions."""

    def __init__(self, site: Site, gate: nn.Module) -> None:
        self._site = site
        self._gate = gate
        self._experts: Counter[int] = Counter()
        self._bias: torch.Tensor | None = None  # the values before the first intervention
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._mode: Any = None  # while the gate runs

    def add(self, experts: Sequence[int]) -> None:
        together = self._experts + Counter(experts)
        left = self._site.router.n_experts - len(together)
        if left < self._site.router.n_slots:
            raise BadInputError(
                f"{self._site.where}: experts {sorted(together)} are banned and {left} left, but a token goes to "
                f"{self._site.router.n_slots}; ban fewer"
            )
        self._experts = together
        self._apply()

    def remove(self, experts: Sequence[int]) -> None:
        self._experts = self._experts - Counter(experts)
        self._apply()

    @property
    def is_empty(self) -> bool:
        return not self._experts

    @torch.no_grad()
    def _apply(self) -> None:
        bias = getattr(self._gate, BIAS_NAME, None)
        if bias is None:
            self._hook_gate()
            return
        if bias.is_meta:
            raise UnsupportedModelError(f"{self._site.where}: its bias is offloaded and cannot be changed")
        if self._bias is None:
            self._bias = bias.detach().clone()
        bias.copy_(self._bias)
        if self._experts:
            bias[torch.tensor(sorted(self._experts), device=bias.device)] += _BANNED
        else:
            self._bias = None

    def _hook_gate(self) -> None:
        if self._experts and not self._handles:
            plain: Any = torch.compiler.disable
            self._handles = [
                self._gate.register_forward_pre_hook(plain(self._enter)),
                self._gate.register_forward_hook(plain(self._leave), always_call=True),
            ]
        elif not self._experts:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def _enter(self, gate: nn.Module, args: Any) -> None:
        mode: Any = _Shifted(self._site.router.n_experts, sorted(self._experts))
        self._mode = mode
        mode.__enter__()

    def _leave(self, gate: nn.Module, args: Any, output: Any) -> None:
        mode: Any = self._mode
        self._mode = None
        if mode is None:
            return
        mode.__exit__(None, None, None)
        if output is not None and mode.seen != 1:
            raise UnsupportedModelError(
                f"{self._site.where}: {type(gate).__name__} makes its logits in {mode.seen} linear maps of "
                f"{self._site.router.n_experts} outputs, not in one, so that they cannot be changed"
            )


class _Shifted(TorchFunctionMode):
    """Lowers the logits of some experts in the one linear map of a router."""

    def __init__(self, n_experts: int, banned: Sequence[int]) -> None:
        super().__init__()
        self.seen = 0
        self._n_experts = n_experts
        self._banned = list(banned)

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in _LINEAR and result.shape[-1] == self._n_experts:
            self.seen += 1
            bias = torch.zeros(self._n_experts, dtype=result.dtype, device=result.device)
            bias[self._banned] = _BANNED
            result = result + bias
        return result


_BANS: dict[nn.Module, _Ban] = {}
"""By gate: what is banned there now."""


@contextmanager
def _banned(site: Site, experts: Sequence[int]) -> Iterator[None]:
    gate = site.gate
    if gate is None or any(kind in site.router.kind for kind in _UNDEFINED):
        raise UnsupportedModelError(
            f"{site.where}: a {site.router.kind} router has no selection score that could be lowered; use ablate"
        )
    ban = _BANS.get(gate) or _Ban(site, gate)
    ban.add(experts)
    _BANS[gate] = ban
    try:
        yield
    finally:
        ban.remove(experts)
        if ban.is_empty:
            del _BANS[gate]


def _check(site: Site, banned: Sequence[int]) -> Any:
    def check(experts: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        _, ids, _ = site.read_call(args, kwargs)
        still = torch.isin(ids, torch.tensor(banned, device=ids.device)).any(dim=-1)
        if bool(still.any()):
            raise RoutingError(
                f"{site.where}: {int(still.sum())} of {len(still)} tokens still went to experts {list(banned)}; this "
                "router does not choose by the scores that were lowered"
            )

    return check
