"""Tally: how many assignments of each expert fell into each cell, added up on the device while a model runs.

A cell is whatever the caller numbers: a label in a cluster of documents, for instance. A token may be in one cell of
several sets at once, so that several labels are counted in one launch; the first choice may be counted apart from the
later ones. A corpus of any length leaves the device as these integers only. It does not know what a cell means.
"""

from __future__ import annotations

import torch

from moe_probe_kernels.choosing import Way, choose


class Tally:
    """Counts of all layers, in 64 bits.

    Attributes:
        counts: (layers, planes, cells, experts) int64. Slot s is counted in plane min(s, planes − 1): with one plane
            all slots together, with two the first choice and the others, with as many as slots each apart.
        strays: (layers,) int64, assignments of counted tokens to experts that do not exist. More than 0 means that
            what was recorded is wrong.

    Example:
        >>> tally = Tally(n_layers=1, n_planes=1, n_cells=2, n_experts=3, device="cpu")
        >>> ids = torch.tensor([[[0, 2, 2], [1, 1, 0]]])
        >>> tally.add(ids, torch.tensor([[0, 1, -1]]))
        'torch'
        >>> tally.counts.tolist()
        [[[[1, 1, 0], [0, 1, 1]]]]
    """

    def __init__(self, n_layers: int, n_planes: int, n_cells: int, n_experts: int, device: torch.device | str) -> None:
        """Begin with nothing counted."""
        self.counts = torch.zeros((n_layers, n_planes, n_cells, n_experts), dtype=torch.int64, device=device)
        self.strays = torch.zeros(n_layers, dtype=torch.int64, device=device)

    def add(self, ids: torch.Tensor, cells: torch.Tensor, *, dropped: int | None = None, way: Way | None = None) -> Way:
        """Add what was executed for some tokens, and return which way was gone. Nothing here waits for the device.

        Args:
            ids: (layers, slots, tokens), as `pack` returns them: slot 0 is the first choice.
            cells: (sets, tokens) integers on the same device, the cell that a token is counted in, one a set; -1 where
                it is not. They are not checked: a cell that there is not is counted nowhere.
            dropped: what stands in `ids` where a slot held no expert, which is counted nowhere.
            way: "triton" or "torch"; None for what the device has.

        Raises:
            ValueError: if the shapes do not agree, or the way cannot be gone.
        """
        n_layers, n_planes = self.counts.shape[:2]
        if ids.dim() != 3 or ids.shape[0] != n_layers or ids.shape[1] < n_planes:
            raise ValueError(
                f"ids {tuple(ids.shape)} must be (layers, slots, tokens): {n_layers} layers, {n_planes} slots or more"
            )
        if cells.dim() != 2 or cells.shape[1] != ids.shape[2]:
            raise ValueError(f"cells {tuple(cells.shape)} must be (sets, tokens), {ids.shape[2]} tokens")
        ran = choose(ids.device, way)
        if ran == "triton":
            from moe_probe_kernels import tally_kernel

            tally_kernel.launch(ids, cells, self.counts, self.strays, dropped)
        else:
            self._add(ids, cells, dropped)
        return ran

    def _add(self, ids: torch.Tensor, cells: torch.Tensor, dropped: int | None) -> None:
        """Add the reference's way: what is not counted adds 0 to the first cell."""
        n_layers, n_planes, n_cells, n_experts = self.counts.shape
        ids, cells = ids.long(), cells.long()
        counted = (cells >= 0) & (cells < n_cells)  # (sets, tokens)
        exists = (ids >= 0) & (ids < n_experts)  # (layers, slots, tokens)
        stray = ~exists if dropped is None else ~exists & (ids != dropped)
        if dropped is not None:
            exists = exists & (ids != dropped)
        self.strays += (stray & counted.any(dim=0)).sum(dim=(1, 2))
        plane = torch.arange(ids.shape[1], device=ids.device).clamp_max(n_planes - 1).view(1, -1, 1)
        for cell, inside in zip(cells, counted, strict=True):
            places = (plane * n_cells + cell) * n_experts + ids
            ones = (exists & inside).long()
            self.counts.view(n_layers, -1).scatter_add_(1, (places * ones).flatten(1), ones.flatten(1))
