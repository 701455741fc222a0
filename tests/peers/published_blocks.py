"""Small blocks written from papers and reference code whose routers no package of the registry holds.

They are what users write by hand: nothing in them knows moe_probe. Shapes are those of the papers, sizes are tiny.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class AdaptiveMixture(nn.Module):
    """Jacobs, Jordan, Nowlan & Hinton 1991: every expert runs, a softmax of the input says how much each counts."""

    def __init__(self, width: int, n_experts: int) -> None:
        super().__init__()
        self.gating = nn.Sequential(nn.Linear(width, n_experts), nn.Softmax(dim=-1))
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(n_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return (outputs * self.gating(x)[..., None, :]).sum(dim=-1)


class StackedMixture(nn.Module):
    """Eigen, Ranzato & Sutskever 2013 (arXiv 1312.4314): two such layers, one on the other's output."""

    def __init__(self, width: int, n_experts: tuple[int, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(AdaptiveMixture(width, each) for each in n_experts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


class NoisyTopK(nn.Module):
    """Shazeer et al. 2017 (arXiv 1701.06538), equations 3 to 5: noise before the top k, softmax after it."""

    def __init__(self, width: int, n_experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.w_gate = nn.Parameter(torch.randn(width, n_experts))
        self.w_noise = nn.Parameter(0.3 * torch.randn(width, n_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noisy = x @ self.w_gate + torch.randn(len(x), self.w_gate.shape[1]) * functional.softplus(x @ self.w_noise)
        kept, experts = noisy.topk(self.k, dim=-1)
        return torch.full_like(noisy, -torch.inf).scatter(-1, experts, kept).softmax(dim=-1)


class RecurrentMixture(nn.Module):
    """A mixture between two recurrent layers, applied at each step of time (Shazeer et al. 2017, section 3 and 5)."""

    def __init__(self, width: int, n_experts: int, k: int) -> None:
        super().__init__()
        self.below = nn.LSTMCell(width, width)
        self.gate = NoisyTopK(width, n_experts, k)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(n_experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (time, batch, width)
        state = (x.new_zeros(x.shape[1:]), x.new_zeros(x.shape[1:]))
        steps = []
        for step in x:
            state = self.below(step, state)
            gates = self.gate(state[0])
            outputs = torch.stack([expert(state[0]) for expert in self.experts], dim=-1)
            steps.append((outputs * gates[:, None]).sum(dim=-1))
        return torch.stack(steps)


class Switch(nn.Module):
    """Fedus, Zoph & Shazeer 2022 (arXiv 2101.03961), section 2.2: one expert, and none beyond its capacity."""

    def __init__(self, width: int, n_experts: int, capacity_factor: float) -> None:
        super().__init__()
        self.router = nn.Linear(width, n_experts)
        self.dispatch = nn.Identity()  # a name for the one-hot choice
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(n_experts))
        self.capacity_factor = capacity_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width)
        tokens = x.flatten(0, 1)
        probabilities = self.router(tokens).softmax(dim=-1)
        gate, expert = probabilities.max(dim=-1)
        one_hot = functional.one_hot(expert, len(self.experts))
        capacity = int(self.capacity_factor * len(tokens) / len(self.experts))
        within = one_hot.cumsum(dim=0) <= capacity
        combine = self.dispatch((one_hot * within) * gate[:, None])
        outputs = torch.stack([one(tokens) for one in self.experts], dim=-1)
        return x + (outputs * combine[:, None]).sum(dim=-1).view_as(x)


class ExpertChoice(nn.Module):
    """Zhou et al. 2022 (arXiv 2202.09368), section 3.2: each expert takes the tokens that it scores highest."""

    def __init__(self, width: int, n_experts: int, capacity_factor: float) -> None:
        super().__init__()
        self.w_gate = nn.Parameter(torch.randn(width, n_experts))
        self.chosen = nn.Identity()  # a name for what was gathered
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(n_experts))
        self.capacity_factor = capacity_factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width)
        tokens = x.flatten(0, 1)
        scores = (tokens @ self.w_gate).softmax(dim=-1)
        capacity = int(len(tokens) * self.capacity_factor / len(self.experts))
        gates, places = self.chosen(scores.T.topk(capacity, dim=-1))  # (experts, capacity)
        output = torch.zeros_like(tokens)
        for expert, gate, place in zip(self.experts, gates, places, strict=True):
            output.index_add_(0, place, gate[:, None] * expert(tokens[place]))
        return output.view_as(x)


class MoeLayer(nn.Module):
    """The block of Mistral's reference code (mistral-inference): softmax over the chosen logits, tokens flat."""

    def __init__(self, width: int, n_experts: int, n_slots: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, n_experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(n_experts))
        self.n_slots = n_slots

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:  # (tokens, width)
        weights, selected = torch.topk(self.gate(inputs), self.n_slots)
        weights = weights.float().softmax(dim=1).to(inputs.dtype)
        results = torch.zeros_like(inputs)
        for number, expert in enumerate(self.experts):
            tokens, slots = torch.where(selected == number)
            results[tokens] += weights[tokens, slots, None] * expert(inputs[tokens])
        return results


class Grok1Block(nn.Module):
    """Grok-1's router (xai-org/grok-1) in PyTorch: softmax over all experts, then the top two, as they are."""

    def __init__(self, width: int, n_experts: int = 8, n_slots: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(width, n_experts, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(n_experts))
        self.n_slots = n_slots

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, sequence, width)
        gates, experts = self.router(x).float().softmax(dim=-1).topk(self.n_slots, dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-2)
        chosen = outputs.gather(-2, experts[..., None].expand(*experts.shape, x.shape[-1]))
        return (gates[..., None].to(x.dtype) * chosen).sum(dim=-2)


class FlatLanguageModel(nn.Module):
    """Embeddings and blocks that see all tokens of a batch in one row, as reference code for inference does."""

    def __init__(self, blocks: list[nn.Module], width: int, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleDict({str(number): block for number, block in enumerate(blocks)})

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(input_ids).flatten(0, 1)
        for block in self.layers.values():
            x = x + block(x)
        return x.view(*input_ids.shape, -1)
