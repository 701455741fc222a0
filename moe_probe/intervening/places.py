"""Which router an intervention means, and whether it has a meaning there. It changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from moe_probe.errors import BadInputError, UnsupportedModelError
from moe_probe.recording.routers import Site, find_sites, refuse_compiled


def find_place(model: nn.Module, layer: int | None, router: int | None) -> Site:
    """Return the router that is meant by a layer, or by its own index.

    Raises:
        BadInputError: neither or both are given, there is no such router, or the layer has two.
        UnsupportedModelError: the model has no router that can be read, or is compiled.
    """
    refuse_compiled(model)
    site = _find(find_sites(model), layer, router)
    if not site.form.by_rule:
        raise UnsupportedModelError(
            f"{site.where}: its experts are not called with indices and weights that could be changed, so that it can "
            "be recorded but not intervened in"
        )
    return site


def _find(sites: Sequence[Site], layer: int | None, router: int | None) -> Site:
    if (layer is None) == (router is None):
        raise BadInputError(f"layer {layer!r}, router {router!r}: give one of them")
    if router is not None:
        if not 0 <= router < len(sites):
            raise BadInputError(f"router {router}: the model has {len(sites)}, 0 to {len(sites) - 1}")
        return sites[router]
    found = [site for site in sites if site.router.layer == layer]
    if not found:
        layers = sorted({site.router.layer for site in sites})
        raise BadInputError(f"layer {layer}: it has no router; layers with one are {', '.join(map(str, layers))}")
    if len(found) > 1:
        indices = ", ".join(str(site.router.index) for site in found)
        raise BadInputError(f"layer {layer}: it has {len(found)} routers; give router= one of {indices}")
    return found[0]


def check_experts(site: Site, experts: Sequence[int]) -> tuple[int, ...]:
    """Return the experts that are meant, each once, in order.

    Raises:
        BadInputError: none is given, or one does not exist.
    """
    chosen = tuple(sorted(set(experts)))
    if not chosen:
        raise BadInputError(f"{site.where}: experts {list(experts)!r}: give at least one")
    wrong = [expert for expert in chosen if not 0 <= expert < site.router.n_experts]
    if wrong:
        raise BadInputError(f"{site.where}: expert {wrong[0]}: it has {site.router.n_experts}, counted from 0")
    return chosen
