"""Run a model from one of its layers on, with what the layers below gave before.

An intervention in a layer changes nothing below it. What each layer returned is kept from one plain forward; later the
layers below return what was kept, at no cost. Whether a model may be treated so is *seen*, not assumed: some hand
states past the layers (shared keys, per-layer inputs). It does not know experts or texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from moe_probe.errors import UnsupportedModelError
from moe_probe.schema import Router


def find_layers(model: nn.Module, routers: list[Router]) -> nn.ModuleList:
    """Return the list of transformer blocks that the routers lie in.

    Raises:
        UnsupportedModelError: if they do not all lie in one list.
    """
    places = set()
    for router in routers:
        parts = router.name.split(".")
        number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
        places.add(None if number is None else ".".join(parts[:number]))
    place = places.pop() if len(places) == 1 else None
    layers = None if place is None else model.get_submodule(place)
    if not isinstance(layers, nn.ModuleList):
        raise UnsupportedModelError(
            f"{type(model).__name__}: its routers do not lie in one list of layers, so that effects cannot be measured "
            "layer by layer"
        )
    return layers


class Kept:
    """What the layers returned in one forward."""

    def __init__(self) -> None:
        self._outputs: list[Any] = []

    @contextmanager
    def keeping(self, layers: nn.ModuleList) -> Iterator[None]:
        """Keep what every layer returns while the block is open."""
        self._outputs = [None] * len(layers)

        def keep(index: int) -> Any:
            def hook(layer: nn.Module, args: Any, output: Any) -> None:
                self._outputs[index] = output

            return hook

        handles = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def from_layer(self, layers: nn.ModuleList, first: int) -> Iterator[None]:
        """Let the layers below `first` return what they gave before, while the block is open."""
        output = self.output_below(first)

        def give(*args: Any, **kwargs: Any) -> Any:
            return output

        before = [layer.__dict__.get("forward") for layer in layers]
        for layer in layers[:first]:
            layer.forward = give
        try:
            yield
        finally:
            for layer, own in zip(layers[:first], before, strict=False):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own

    def output_below(self, first: int) -> Any:
        """Return what a layer's predecessor gave; None for the lowest, which has none."""
        return self._outputs[first - 1] if first else None
