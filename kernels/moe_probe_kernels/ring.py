"""Ring: a persistent buffer on the device that takes what the experts were called with, forward by forward.

Where the next token goes is counted on the device, so that nothing waits for it and a captured CUDA graph can be
replayed into the same ring. What is not taken in time is overwritten, and `take` says so. It does not know where ids
and weights come from, and does not check them.
"""

from __future__ import annotations

import math

import torch

from moe_probe_kernels.choosing import Way, choose, which
from moe_probe_kernels.pack import Packed, check_shapes
from moe_probe_kernels.signed import as_signed


class Ring:
    """Room for the last `capacity` tokens of all layers.

    Attributes:
        ids: (layers, slots, capacity), the heaviest slot first.
        weights: (layers, slots, capacity).
        written: (1,) int64 on the device, how many tokens ever came.

    Example:
        >>> ring = Ring(n_layers=1, n_slots=2, capacity=3, device="cpu")
        >>> ring.append(torch.tensor([[[5, 2], [1, 0]]]), torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))
        'torch'
        >>> ids, weights = ring.take()
        >>> ids.tolist(), weights.tolist()
        ([[[2, 0], [5, 1]]], [[[0.75, 0.5], [0.25, 0.5]]])
    """

    def __init__(
        self,
        n_layers: int,
        n_slots: int,
        capacity: int,
        device: torch.device | str,
        *,
        id_dtype: torch.dtype = torch.uint8,
        weight_dtype: torch.dtype = torch.float16,
    ) -> None:
        """Make room.

        Args:
            n_layers: layers whose routers have equally many slots.
            n_slots: slots of each.
            capacity: tokens to hold.
            device: where.
            id_dtype: uint8, uint16, int16 or wider; all ids must fit, that of an empty slot is wrapped.
            weight_dtype: float16 or wider.

        Raises:
            ValueError: if there is no room for a token.
        """
        if capacity < 1:
            raise ValueError(f"capacity {capacity}: a ring holds 1 token or more")
        self.ids = torch.zeros((n_layers, n_slots, capacity), dtype=id_dtype, device=device)
        self.weights = torch.zeros((n_layers, n_slots, capacity), dtype=weight_dtype, device=device)
        self.written = torch.zeros(1, dtype=torch.int64, device=device)
        self._taken = 0
        self._ran = which(device)

    @property
    def capacity(self) -> int:
        """How many tokens it holds."""
        return self.ids.shape[2]

    def append(
        self,
        ids: torch.Tensor,
        weights: torch.Tensor,
        keep: torch.Tensor | None = None,
        *,
        dropped: int | None = None,
        way: Way | None = None,
    ) -> Way:
        """Sort each token's slots by weight, and write the tokens behind the last; return which way was gone.

        Slots are compared before they are rounded; equal weights are ordered by expert, the lower first. A weight that
        is no number comes before all others. Nothing here waits for the device.

        Args:
            ids: expert of each slot, (layers, tokens, slots), any integer type, on the ring's device.
            weights: (layers, tokens, slots), any floating type.
            keep: (tokens,) bool on the same device, False for padding; None keeps all.
            dropped: the id of a slot that held no expert, if there may be such slots: they come last, with weight 0.
            way: "triton" or "torch"; None for what the device has.

        Raises:
            ValueError: if the shapes do not agree, more tokens come than the ring holds, or the way cannot be gone.
        """
        check_shapes(ids, weights, keep)
        if (ids.shape[0], ids.shape[2]) != self.ids.shape[:2]:
            raise ValueError(f"ids {tuple(ids.shape)}: the ring is for (layers, slots) {tuple(self.ids.shape[:2])}")
        if ids.shape[1] > self.capacity:
            raise ValueError(f"{ids.shape[1]} tokens at once: the ring holds {self.capacity}; make it longer")
        ran = self._ran = choose(ids.device, way)
        if not ids.shape[1]:
            return ran
        places = None if keep is None else keep.cumsum(0)
        if ran == "triton":
            from moe_probe_kernels import ring_kernel

            ring_kernel.launch(ids, weights, places, self.written, self.ids, self.weights, dropped)
        else:
            self._append(ids, weights, places, dropped)
        self.written += ids.shape[1] if places is None else places[-1]
        return ran

    def take(self) -> Packed:
        """Return, in order, the tokens that came since the last time; waits for the device.

        Raises:
            RuntimeError: if more came than the ring holds, so that some are lost. The next take begins after them.
        """
        written = int(self.written)
        first, self._taken = self._taken, written
        if written - first > self.capacity:
            raise RuntimeError(
                f"{written - first} tokens came since the last take, and the ring holds {self.capacity}: take more"
                " often, or make it longer"
            )
        places = torch.arange(first, written, device=self.ids.device) % self.capacity
        ids = as_signed(self.ids)[:, :, places].view(self.ids.dtype)
        return Packed(ids, self.weights[:, :, places], self._ran)

    def _append(
        self,
        ids: torch.Tensor,
        weights: torch.Tensor,
        places: torch.Tensor | None,
        dropped: int | None,
    ) -> None:
        """Write the reference's way; `places` holds, for each token, how many are kept up to and with it."""
        ids, keys = ids.long(), weights
        if dropped is not None:
            empty = ids == dropped
            keys, weights = keys.masked_fill(empty, -math.inf), weights.masked_fill(empty, 0)
            ids = ids.masked_fill(empty, torch.iinfo(torch.int64).max)
        by_id = ids.argsort(dim=-1, stable=True)
        order = by_id.gather(-1, keys.gather(-1, by_id).argsort(dim=-1, descending=True, stable=True))
        ids, weights = ids.gather(-1, order), weights.gather(-1, order)
        if dropped is not None:
            ids = ids.masked_fill(ids == torch.iinfo(torch.int64).max, dropped)
        # Each place of the ring looks for the token that belongs there: no mask whose size only the device knows.
        place = (torch.arange(self.capacity, device=ids.device) - self.written) % self.capacity
        n_tokens = ids.shape[1]
        n_kept = n_tokens if places is None else places[-1]
        token = place if places is None else torch.searchsorted(places, place + 1)
        token = token.clamp_max(n_tokens - 1)
        for buffer, values in ((self.ids, ids), (self.weights, weights)):
            fresh = as_signed(values.transpose(1, 2)[:, :, token].to(buffer.dtype))
            as_signed(buffer).copy_(torch.where(place < n_kept, fresh, as_signed(buffer)))
